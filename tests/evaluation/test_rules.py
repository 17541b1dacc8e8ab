"""Exact sweeps find what trying everything finds; the plain rule is the plain rule however it is expressed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import Tensor

from veneer.evaluation import rules
from veneer.evaluation.goals import Goal
from veneer.evaluation.rules import fit_rule, keep_plain
from veneer.evaluation.scaling import Sample
from veneer.tasks import PLAIN, TASKS, Calibration

SINGLE, MULTI = TASKS["single_label"], TASKS["multi_label"]


def single(n: int, classes: int, seed: int, *, rounded: bool = False, share: float = 0.5) -> Sample:
    """Logits that are biased against the last class; `rounded` ones have many ties."""
    rng = np.random.default_rng(seed)
    targets = np.where(rng.random(n) < share, classes - 1, rng.integers(0, classes, n))
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[targets] - 0.8 * np.eye(classes)[classes - 1]
    return Sample(SINGLE, torch.from_numpy(logits.round() if rounded else logits).float(), torch.from_numpy(targets))


def multi(n: int, shares: list[float], seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    targets = rng.random((n, len(shares))) < shares
    logits = rng.normal(size=targets.shape) + 2.0 * targets - 2.0
    return Sample(MULTI, torch.from_numpy(logits).float(), torch.from_numpy(targets).float())


def macro_f1(sample: Sample, decided: Tensor | NDArray[np.int64]) -> float:
    return float(f1_score(sample.targets.numpy(), np.asarray(decided), average="macro", zero_division=0))


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_shift_of_two_classes_is_the_best_there_is(seed: int, rounded: bool) -> None:
    sample = single(120, 2, seed, rounded=rounded, share=0.31)
    fitted, left = fit_rule(sample, PLAIN, Goal())
    difference = (sample.logits[:, 1] - sample.logits[:, 0]).double().numpy()
    places = [-np.inf, *np.unique(difference)]
    tried = [macro_f1(sample, (difference > place).astype(np.int64)) for place in places]
    assert macro_f1(sample, SINGLE.decide(sample.logits, fitted)) == pytest.approx(max(tried), abs=1e-12)
    assert max(tried) > macro_f1(sample, SINGLE.decide(sample.logits)) or fitted.offsets == (0.0, 0.0)
    assert left == ()


def test_a_cut_lies_midway_between_neighbours() -> None:
    logits = torch.tensor([[0.0, -3.0], [0.0, -2.0], [0.0, -1.0], [0.0, 2.0]])
    fitted, _ = fit_rule(Sample(SINGLE, logits, torch.tensor([0, 0, 1, 1])), PLAIN, Goal())
    assert fitted.offsets == (0.0, 1.5)


def test_of_equally_good_rules_the_plain_one_is_taken() -> None:
    logits = torch.tensor([[0.0, -2.0], [0.0, -1.0], [0.0, 3.0], [0.0, 4.0]])
    fitted, _ = fit_rule(Sample(SINGLE, logits, torch.tensor([0, 0, 1, 1])), PLAIN, Goal())
    assert fitted.offsets == (0.0, 0.0)


@pytest.mark.parametrize("name", ["f1", "accuracy", "cost"])
def test_a_sweep_of_one_of_many_classes_is_exact(name: str) -> None:
    """Checked on the first class swept, all others at 0."""
    sample = single(60, 4, 3, share=0.3)
    costs = tuple(tuple(float(abs(i - j) ** 2) for j in range(4)) for i in range(4))
    goal = Goal(name, costs=costs if name == "cost" else None)  # type: ignore[arg-type]
    logits, targets = sample.logits.double().numpy(), sample.targets.numpy()

    def value(offset: float) -> float:
        decided = (logits + np.array([offset, 0, 0, 0])).argmax(1)
        if name == "f1":
            return macro_f1(sample, decided)
        if name == "cost":
            return -float(np.mean([costs[i][j] for i, j in zip(targets, decided, strict=True)]))
        return float((decided == targets).mean())

    margins = np.sort(logits[:, 1:].max(1) - logits[:, 0])
    tried = [margins[0] - 1, *((margins[1:] + margins[:-1]) / 2), margins[-1] + 1]
    found = rules._sweep(logits, 0, targets, goal, np.bincount(targets))
    assert found is not None
    assert value(found) == pytest.approx(max(value(offset) for offset in tried), abs=1e-12)


def test_a_class_without_texts_is_never_in_the_mean() -> None:
    """Not even where it is decided: to let it go altogether would look like a gain."""
    true, rival = np.array([0, 0, 1, 1, 0, 1]), np.array([2, 2, 1, 2, 1, 1])
    decided = [np.where(np.arange(6) < k, 0, rival) for k in range(7)]
    expected = [f1_score(true, given, average="macro", zero_division=0, labels=[0, 1]) for given in decided]
    assert rules._macro_f1(true, rival, 0, np.array([3, 3, 0, 0])) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["f1", "accuracy", "cost"])
def test_a_class_that_no_text_has_keeps_its_texts_and_gets_no_others(name: str) -> None:
    """Of whatever texts; the offsets of the others are those that are best with that."""
    costs = tuple(tuple(float(abs(i - j)) for j in range(4)) for i in range(4))
    goal = Goal(name, costs=costs if name == "cost" else None)  # type: ignore[arg-type]
    sample, new = single(300, 4, 0, share=0.3), single(3000, 4, 1, share=0.3)
    seen = sample.rows(np.flatnonzero(sample.targets.numpy() != 1))
    fitted, left = fit_rule(seen, PLAIN, goal)
    assert left == fitted.left == (1,)
    assert fitted.offsets[1] == 0.0
    plain, decided = SINGLE.decide(new.logits), SINGLE.decide(new.logits, fitted)
    assert torch.equal(plain == 1, decided == 1)
    assert not torch.equal(plain, decided)
    assert Calibration.from_json(fitted.to_json(), "single_label", 4) == fitted


def test_one_class_alone_leaves_all_as_they_are() -> None:
    sample = single(60, 3, 0)
    one = sample.rows(np.flatnonzero(sample.targets.numpy() == 2))
    assert fit_rule(one, PLAIN, Goal()) == (PLAIN, (0, 1, 2))
    always = Sample(SINGLE, torch.tensor([[0.0, 0.0, 1.0]]).repeat(6, 1), torch.arange(6) % 2)
    assert fit_rule(always, PLAIN, Goal()) == (PLAIN, (0, 1, 2))  # no text is decided on a class that is there


def test_offsets_of_many_classes_help() -> None:
    sample = single(400, 5, 0, share=0.4)
    fitted, _ = fit_rule(sample, PLAIN, Goal())
    gained = macro_f1(sample, SINGLE.decide(sample.logits, fitted)) - macro_f1(sample, SINGLE.decide(sample.logits))
    assert gained > 0.02


@pytest.mark.parametrize("seed", range(3))
def test_a_threshold_is_the_best_for_its_label_without_shrinkage(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SHRINKAGES", (0.0,))
    sample = multi(90, [0.5, 0.2, 0.05], seed)
    fitted, _ = fit_rule(sample, PLAIN, Goal())
    decided, p = MULTI.decide(sample.logits, fitted), sample.logits.sigmoid()
    for label in range(3):
        true = sample.targets[:, label].numpy()
        best = max(f1_score(true, (p[:, label] >= cut).numpy()) for cut in p[:, label])
        assert f1_score(true, decided[:, label].numpy()) == pytest.approx(best)


def test_few_texts_leave_a_threshold_near_what_the_probabilities_say() -> None:
    """Calibrated probabilities have their best F1 at half of it (arXiv:1402.1892); one positive text does not change that."""
    rng = np.random.default_rng(0)
    p = rng.beta(0.3, 1.2, size=4000)
    targets = (rng.random(4000) < p).astype(np.float64)
    exact = max(f1_score(targets, p >= cut, zero_division=0) for cut in np.linspace(0.05, 0.95, 91)) / 2
    one = np.zeros(4000)
    one[p.argmin()] = 1.0  # the most misleading text there is
    sample = Sample(MULTI, torch.from_numpy(np.log(p / (1 - p)))[:, None].float(), torch.from_numpy(one)[:, None].float())
    assert float(rules._thresholds(sample, PLAIN, Goal(), (150.0,))[0, 0]) == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("shrinkage", [0.0, 20.0, 500.0])
@pytest.mark.parametrize("goal", [Goal(), Goal("accuracy"), Goal("cost", costs=((5.0, 1.0), (1.0, 3.0), (1.0, 1.0), (2.0, 1.0)))])
def test_thresholds_of_all_labels_at_once_are_those_of_trying_each_cut(
    goal: Goal, shrinkage: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label by label and cut by cut, on probabilities with many ties; in blocks of two labels."""
    monkeypatch.setattr(rules, "BLOCK", 160)
    drawn = multi(80, [0.4, 0.1, 0.02, 0.6], 4)
    sample = Sample(MULTI, (drawn.logits * 2).round() / 2, drawn.targets)
    found = rules._thresholds(sample, PLAIN, goal, (7.0, shrinkage))[1]
    for label in range(4):
        p, true = sample.logits.sigmoid().double().numpy()[:, label], sample.targets.double().numpy()[:, label]
        if not true.any():
            assert np.isnan(found[label])
            continue
        weight = true.sum() / (true.sum() + shrinkage)
        ordered = np.unique(p)
        cuts = [ordered[0] / 2, *((ordered[1:] + ordered[:-1]) / 2), (1 + ordered[-1]) / 2]
        values = [plain_value(p >= cut, weight * true + (1 - weight) * p, goal, label) for cut in cuts]
        equals = [cut for cut, value in zip(cuts, values, strict=True) if value > max(values) - 1e-12]
        assert found[label] == pytest.approx(min(equals, key=lambda cut: abs(cut - 0.5)))


def plain_value(given: NDArray[np.bool_], expected: NDArray[np.float64], goal: Goal, label: int) -> float:
    """The F1, or the cost below 0, of texts that have a label as far as `expected` says."""
    missed, wrong = goal.costs[label] if goal.costs else (1.0, 1.0)
    right = expected[given].sum()
    if goal.name == "f1":
        return float(2 * right / (given.sum() + expected.sum()))
    return float(-wrong * (given.sum() - right) - missed * (expected.sum() - right))


def chosen_shrinkage(sample: Sample, scaling: Calibration, goal: Goal | None = None) -> float:
    return rules._choose_shrinkage(sample, scaling, goal or Goal(), 0)


def test_how_far_probabilities_are_trusted_is_chosen_by_texts_held_out() -> None:
    """Honest probabilities beat what few texts say; far too low ones mislead, and the texts are believed."""
    rng = np.random.default_rng(1)
    p = rng.beta(0.4, 2.0, size=(200, 12))
    targets = torch.from_numpy((rng.random(p.shape) < p).astype(np.float32))
    honest = torch.from_numpy(np.log(p / (1 - p))).float()
    clear = multi(200, [0.3] * 12, 1)
    trusted = chosen_shrinkage(Sample(MULTI, honest, targets), PLAIN)
    believed = chosen_shrinkage(Sample(MULTI, clear.logits - 6, clear.targets), PLAIN)
    assert believed <= 50 <= trusted
    assert believed < trusted


@pytest.mark.parametrize("goal", [Goal("accuracy"), Goal("cost", costs=((5.0, 1.0),) * 12)], ids=["accuracy", "cost"])
def test_the_choice_is_by_the_goal(goal: Goal) -> None:
    """Probabilities that are far too low lead to answers never given, which texts held out show to be dear."""
    clear = multi(200, [0.3] * 12, 1)
    assert chosen_shrinkage(Sample(MULTI, clear.logits - 6, clear.targets), PLAIN, goal) <= 50


def test_no_text_is_judged_by_its_own_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is between thresholds that are each fitted on two of three parts; what is kept is fitted on all."""
    sample, sizes = multi(90, [0.5, 0.2], 0), []
    fitted = rules._thresholds

    def record(part: Sample, *rest: Any) -> Any:
        sizes.append(len(part))
        return fitted(part, *rest)

    monkeypatch.setattr(rules, "_thresholds", record)
    fit_rule(sample, PLAIN, Goal())
    assert sizes == [60, 60, 60, 90]


def test_thresholds_stand_saturated_and_equal_probabilities() -> None:
    logits = torch.tensor([[40.0, 0.0], [40.0, 0.0], [-40.0, 0.0], [39.0, 0.0]])
    targets = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    fitted, left = fit_rule(Sample(MULTI, logits, targets), PLAIN, Goal())
    assert MULTI.decide(logits, fitted)[:, 0].tolist() == [True, True, False, True]
    assert left == (1,)
    assert torch.equal(MULTI.decide(logits, fitted)[:, 1], MULTI.decide(logits)[:, 1])


def test_a_precision_is_reached_with_as_many_answers_as_can_be() -> None:
    sample = multi(400, [0.3, 0.3], 0)
    fitted, left = fit_rule(sample, PLAIN, Goal("precision", 0.9))
    decided, p = MULTI.decide(sample.logits, fitted), sample.logits.sigmoid()
    assert left == ()
    for label in range(2):
        true = sample.targets[:, label] > 0
        assert float(true[decided[:, label]].float().mean()) >= 0.9
        reaching = [
            int((true & (p[:, label] >= cut)).sum()) for cut in p[:, label] if true[p[:, label] >= cut].float().mean() >= 0.9
        ]
        assert int((true & decided[:, label]).sum()) == max(reaching)


def test_a_recall_is_reached_with_the_best_precision() -> None:
    sample = single(300, 2, 1)
    fitted, _ = fit_rule(sample, PLAIN, Goal("recall", 0.95))
    decided, true = SINGLE.decide(sample.logits, fitted) == 1, sample.targets == 1
    difference = sample.logits[:, 1] - sample.logits[:, 0]

    def precision(given: Tensor) -> float:
        return float((given & true).sum() / given.sum())

    cuts = [difference >= cut for cut in difference]
    best = max(precision(given) for given in cuts if (given & true).sum() / true.sum() >= 0.95)
    assert (decided & true).sum() / true.sum() >= 0.95
    assert precision(decided) == pytest.approx(best)


def test_a_precision_out_of_reach_changes_nothing() -> None:
    logits = torch.tensor([[3.0], [2.0], [1.0], [-1.0]])
    fitted, left = fit_rule(Sample(MULTI, logits, torch.tensor([[0.0], [1.0], [0.0], [0.0]])), PLAIN, Goal("precision", 0.9))
    assert left == (0,)
    assert torch.equal(MULTI.decide(logits, fitted), MULTI.decide(logits))


def test_costs_move_a_threshold() -> None:
    sample = multi(500, [0.3], 2)
    careful, _ = fit_rule(sample, PLAIN, Goal("cost", costs=((1.0, 20.0),)))
    eager, _ = fit_rule(sample, PLAIN, Goal("cost", costs=((20.0, 1.0),)))
    even, _ = fit_rule(sample, PLAIN, Goal("accuracy"))
    assert careful.thresholds[0] > even.thresholds[0] > eager.thresholds[0]


def test_the_plain_rule_survives_platt_scaling() -> None:
    """Shifts move probabilities through 0.5; the decisions stay those of the logits."""
    logits = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)) * 3
    logits[0] = 0.0
    scaling = Calibration(slopes=(0.4, 1.0, 2.0, 0.7), shifts=(-2.0, 0.0, 1.5, 3.0))
    assert not torch.equal(MULTI.decide(logits, scaling), MULTI.decide(logits))
    assert torch.equal(MULTI.decide(logits, keep_plain(scaling)), MULTI.decide(logits))
    assert keep_plain(Calibration(slopes=(2.0,))) == Calibration(slopes=(2.0,))
