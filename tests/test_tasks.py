"""Losses are the formulas they are named after, weights are scikit-learn's, decisions are those of the probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional

import veneer.tasks
from veneer.tasks import TASKS, MultiLabel, Objective, SingleLabel, Task

SINGLE, MULTI = SingleLabel(), MultiLabel()
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0], [-4.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
IDS = [[0], [2], [1], [1]]
MANY = [[0, 2], [], [1], [0, 1, 2]]
WEIGHTS = torch.tensor([0.5, 2.0, 3.0])


def test_targets() -> None:
    assert SINGLE.targets(IDS, 3).tolist() == [0, 2, 1, 1]
    assert SINGLE.targets(IDS, 3).dtype == torch.int64
    assert MULTI.targets(MANY, 3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]
    assert MULTI.targets(MANY, 3).dtype == torch.float32
    assert {name: task.name for name, task in TASKS.items()} == {"single_label": "single_label", "multi_label": "multi_label"}


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_single_label_loss_is_cross_entropy(weights: Tensor | None, smoothing: float) -> None:
    targets = SINGLE.targets(IDS, 3)
    losses = SINGLE.losses(LOGITS, targets, Objective(weights, label_smoothing=smoothing))
    per_class = torch.ones(3) if weights is None else weights
    logs = LOGITS.log_softmax(-1)
    for row, target in enumerate(targets.tolist()):
        smooth = sum(float(per_class[c] * logs[row, c]) for c in range(3)) / 3
        expected = -(1 - smoothing) * float(per_class[target] * logs[row, target]) - smoothing * smooth
        assert float(losses[row]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_multi_label_loss_is_binary_cross_entropy(weights: Tensor | None, smoothing: float) -> None:
    targets = MULTI.targets(MANY, 3)
    losses = MULTI.losses(LOGITS, targets, Objective(weights, label_smoothing=smoothing))
    p = LOGITS.sigmoid()
    smooth = targets * (1 - smoothing) + smoothing / 2
    positive = torch.ones(3) if weights is None else weights
    expected = -(positive * smooth * p.log() + (1 - smooth) * (1 - p).log()).mean(-1)
    torch.testing.assert_close(losses, expected)
    assert losses.shape == (4,)


@pytest.mark.parametrize(("task", "ids"), [(SINGLE, IDS), (MULTI, MANY)])
def test_focal_loss_without_gamma_is_the_plain_one(task: Task, ids: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    targets = task.targets(ids, 3)
    plain = task.losses(LOGITS, targets, Objective(WEIGHTS))
    focal = task.losses(LOGITS, targets, Objective(WEIGHTS, focal=True))
    assert (focal < plain).all()
    monkeypatch.setattr(veneer.tasks, "FOCAL_GAMMA", 0.0)
    torch.testing.assert_close(task.losses(LOGITS, targets, Objective(WEIGHTS, focal=True)), plain)


def test_focal_loss_is_the_formula() -> None:
    p = 0.8
    logit = math.log(p / (1 - p))
    single = SINGLE.losses(torch.tensor([[logit, 0.0], [0.0, logit]]), torch.tensor([0, 0]), Objective(focal=True))
    expected = [-(0.2**2) * math.log(0.8), -(0.8**2) * math.log(0.2)]
    assert single.tolist() == pytest.approx(expected, rel=1e-5)
    multi = MULTI.losses(
        torch.tensor([[logit, -logit], [logit, logit]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), Objective(focal=True)
    )
    assert multi.tolist() == pytest.approx([expected[0], expected[1]], rel=1e-5)


@pytest.mark.parametrize(("task", "ids"), [(SINGLE, IDS), (MULTI, MANY)])
@pytest.mark.parametrize("objective", [Objective(), Objective(WEIGHTS, True, 0.1)])
def test_losses_have_gradients_and_stand_extreme_logits(task: Task, ids: list[list[int]], objective: Objective) -> None:
    logits = (LOGITS * 200).requires_grad_()
    losses = task.losses(logits, task.targets(ids, 3), objective)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    small = LOGITS.double().requires_grad_()
    weights = None if objective.class_weights is None else objective.class_weights.double()
    exact = Objective(weights, objective.focal, objective.label_smoothing)
    targets = task.targets(ids, 3)
    targets = targets.double() if targets.is_floating_point() else targets
    # the formulas take probabilities in float32, so that differences of float64 would see their rounding
    assert torch.autograd.gradcheck(lambda one: task.losses(one, targets, exact), small, eps=1e-3, atol=1e-3, rtol=1e-2)


def test_probabilities_and_decisions() -> None:
    torch.testing.assert_close(SINGLE.probabilities(LOGITS), functional.softmax(LOGITS, -1))
    torch.testing.assert_close(SINGLE.probabilities(LOGITS).sum(-1), torch.ones(4))
    assert SINGLE.decide(LOGITS).tolist() == [0, 1, 1, 0]
    torch.testing.assert_close(MULTI.probabilities(LOGITS), 1 / (1 + (-LOGITS).exp()))
    assert MULTI.decide(LOGITS).tolist() == [[True, False, True], [True, True, False], [False, True, False], [False] * 3]
    assert torch.equal(MULTI.decide(LOGITS), MULTI.probabilities(LOGITS) > 0.5)
    assert SINGLE.probabilities(LOGITS.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("counts", [[5, 1, 3], [4, 4, 4], [9, 0, 1], [100, 1, 20]])
def test_single_label_weights_are_those_of_scikit_learn(counts: list[int]) -> None:
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    weights = SINGLE.class_weights(targets, 3)
    present = [label for label, count in enumerate(counts) if count]
    expected = compute_class_weight("balanced", classes=np.array(present), y=targets.numpy())
    assert weights[present].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert all(float(weights[label]) == 1.0 for label in range(3) if not counts[label])
    assert float(weights[targets].mean()) == pytest.approx(1.0, rel=1e-6)


def test_multi_label_weights_rise_with_rarity_up_to_a_bound() -> None:
    positives = [0, 1, 10, 100, 199, 200]
    targets = torch.stack([(torch.arange(200) < count).float() for count in positives], dim=1)
    weights = MULTI.class_weights(targets, 6).tolist()
    assert weights == pytest.approx([1.0, 10.0, math.sqrt(19), 1.0, 0.1, 0.1])


@pytest.mark.parametrize("name", ["single_label", "multi_label"])
def test_averaged_logits_have_the_mean_probabilities(name: str) -> None:
    task, logits = TASKS[name], torch.randn(3, 5, 4) * 3  # type: ignore[index]
    expected = torch.stack([task.probabilities(one) for one in logits]).mean(0)
    torch.testing.assert_close(task.probabilities(task.averaged(logits)), expected)


@pytest.mark.parametrize("name", ["single_label", "multi_label"])
def test_averaged_logits_are_finite_where_probabilities_are_too_small_for_float32(name: str) -> None:
    averaged = TASKS[name].averaged(torch.tensor([[[300.0, -300.0]], [[400.0, -400.0]]]))  # type: ignore[index]
    assert averaged.isfinite().all()
    assert averaged[0, 0] - averaged[0, 1] > 500
