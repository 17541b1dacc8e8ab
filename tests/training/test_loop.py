"""The training loop: what a step does to the weights, when it evaluates and stops, and what it will not go on with."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from toy_runs import toy_config, toy_rows
from veneer.adaptation import AdapterPlan, adapt, checkpoint_activations
from veneer.bases import find_base, load_tokenizer
from veneer.config import TrainingSettings
from veneer.data import Example
from veneer.errors import TrainingError
from veneer.estimate import stored_bytes, weight_bytes
from veneer.labels import LabelSet
from veneer.model import build_classifier
from veneer.tasks import TASKS, Objective
from veneer.training import loop
from veneer.training.checkpoint import Checkpoints, Progress
from veneer.training.loop import Job, fit
from veneer.training.prepare import Split, encode_split
from veneer.training.tracking import Tracker
from veneer.training.weights import copies_kept, load_trained, trained_tensors

Base = Callable[..., Path]


@pytest.fixture
def make_job(tiny_base: Base) -> Callable[..., Job]:
    """`make_job(batch_size=8)` trains a tiny BERT on 20 texts with these training settings and the `lora` ones."""

    def make(
        *,
        lora: dict[str, Any] | None = None,
        objective: Objective | None = None,
        multi: bool = False,
        metric: str = "macro_f1",
        **settings: Any,
    ) -> Job:
        base = find_base(str(tiny_base("bert")))
        tokenizer, task = load_tokenizer(base), TASKS["multi_label" if multi else "single_label"]
        labels = LabelSet(("bad", "good", "odd"))
        rows = toy_rows(20, labels=("good", "bad", "odd"), multi=multi)
        examples = [Example(row["text"], None, tuple(row["label"].split("|")), i) for i, row in enumerate(rows)]
        split = encode_split(examples, tokenizer, 64, task, labels)
        torch.manual_seed(0)
        model = build_classifier(base, 3)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):  # the head's: gradients are compared here
                module.p = 0.0
        model.network.get_submodule("dropout").p = 0.0  # the head's: a batch cut otherwise draws other masks
        adapt(model, AdapterPlan(rank=2, **{"dropout": 0.0} | (lora or {})))
        training = TrainingSettings(**{"batch_size": 4, "epochs": 2, "learning_rate": 1e-3} | settings)
        return Job(model, task, objective or Objective(), split, replace(split), training, metric, 0)

    return make


def tracker(folder: Path) -> Tracker:
    return Tracker(folder, Console(file=io.StringIO()))


def train_all(job: Job, folder: Path) -> tuple[Progress, list[dict[str, Any]]]:
    """Fit, and the rows of `metrics.jsonl`."""
    with tracker(folder) as one:
        return fit(job, Checkpoints(folder, {}), one), one.history


def step(job: Job, batches: Sequence[Sequence[int]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The row of one step of plain gradient descent at the rate 1, and what it took from each parameter: the gradient."""
    before = trained_tensors(job.model)
    optimizer = torch.optim.SGD([{"params": list(job.model.trainable().values()), "lr": 1.0, "peak": 1.0}])
    job.model.train()
    row = loop.run_step(job, optimizer, Progress(step=1), [np.array(batch) for batch in batches])
    after = trained_tensors(job.model)
    load_trained(job.model, before)
    return row, {name: before[name] - after[name] for name in before}


def evaluations(rows: list[dict[str, Any]], split: str = "dev") -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == "evaluation" and row["split"] == split]


def plain(**settings: Any) -> dict[str, Any]:
    """Settings under which a step's change of the weights is its gradient."""
    return {"schedule": "constant", "warmup_ratio": 0.0, "gradient_clip": None} | settings


def norm(gradient: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((tensor**2).sum()) for tensor in gradient.values()))


@pytest.mark.parametrize("multi", [False, True])
def test_accumulated_batches_have_the_gradient_of_one_large_batch(multi: bool, make_job: Callable[..., Job]) -> None:
    """The last batch of an epoch is smaller: its texts weigh as much as any."""
    job = make_job(**plain(), multi=multi, objective=Objective(torch.tensor([0.5, 2.0, 1.0]), focal=True, label_smoothing=0.1))
    row, once = step(job, [[0, 1, 2, 3, 4, 5]])
    other, parts = step(job, [[0, 1, 2, 3], [4, 5]])
    assert norm(once) > 1e-2
    for name in once:
        torch.testing.assert_close(parts[name], once[name], atol=1e-6, rtol=1e-4)
    assert other["loss"] == pytest.approx(row["loss"], abs=1e-6)


def test_a_batch_cut_for_memory_has_the_same_gradient(make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = step(make_job(**plain()), [[0, 1, 2, 3, 4, 5]])
    passes: list[int] = []
    job = make_job(**plain(tokens_per_pass=12))
    batch = type(job.model).batch
    monkeypatch.setattr(type(job.model), "batch", lambda self, texts, rows: passes.append(len(rows)) or batch(self, texts, rows))
    _, cut = step(job, [[0, 1, 2, 3, 4, 5]])
    assert len(passes) > 2
    assert sum(passes) == 6
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], atol=1e-6, rtol=1e-4)


def test_gradients_are_clipped(make_job: Callable[..., Job]) -> None:
    row, whole = step(make_job(**plain()), [[0, 1, 2, 3]])
    assert row["gradient_norm"] == pytest.approx(norm(whole), rel=1e-4)
    clipped_row, clipped = step(make_job(**plain(gradient_clip=0.01)), [[0, 1, 2, 3]])
    assert norm(clipped) == pytest.approx(0.01, rel=1e-3)
    assert clipped_row["gradient_norm"] == row["gradient_norm"]  # told as it was
    _, loose = step(make_job(**plain(gradient_clip=1e6)), [[0, 1, 2, 3]])
    assert norm(loose) == pytest.approx(norm(whole), rel=1e-5)


def test_gradient_checkpointing_has_the_same_gradient_and_computes_layers_again(make_job: Callable[..., Job]) -> None:
    """With dropout: the second forward pass draws the masks of the first."""
    gradients, calls = [], []
    for checkpointing in (False, True):
        job = make_job(**plain(), lora={"dropout": 0.4})
        if checkpointing:
            checkpoint_activations(job.model)
        count: list[int] = []
        dense = job.model.network.get_submodule("bert.encoder.layer.0.output.dense")  # the narrowed last one is not
        dense.register_forward_hook(lambda *_, count=count: count.append(1))
        with torch.no_grad():
            for name, parameter in job.model.trainable().items():
                if "lora_B" in name:
                    parameter.add_(0.1)
        torch.manual_seed(3)
        gradients.append(step(job, [[0, 1, 2, 3]])[1])
        calls.append(len(count))
    assert calls == [1, 2]
    assert norm(gradients[0]) > 1e-2
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], atol=1e-6, rtol=1e-4)


def losses(job: Job) -> tuple[Tensor, Tensor]:
    """`[4, 3]` logits and targets of the first four texts."""
    with torch.no_grad():
        return job.model(job.model.batch(job.train.texts, range(4))), job.train.targets[:4]


@pytest.mark.parametrize("multi", [False, True])
def test_the_objective_is_what_is_minimised(multi: bool, make_job: Callable[..., Job]) -> None:
    """Class weights, focal loss and label smoothing, from their formulas."""
    weights = torch.tensor([0.5, 2.0, 1.0])
    logits, targets = losses(make_job(multi=multi))
    p, one_hot = (logits.sigmoid(), targets) if multi else (logits.softmax(-1), functional.one_hot(targets, 3).float())
    if multi:
        binary = -(targets * p.log() + (1 - targets) * (1 - p).log())
        smooth = 0.8 * targets + 0.1
        expected = {
            Objective(): binary,
            Objective(weights): -(weights * targets * p.log() + (1 - targets) * (1 - p).log()),
            Objective(focal=True): (1 - torch.where(targets > 0, p, 1 - p)) ** 2 * binary,
            Objective(label_smoothing=0.2): -(smooth * p.log() + (1 - smooth) * (1 - p).log()),
        }
        wanted = {objective: float(loss.mean()) for objective, loss in expected.items()}
    else:
        right = (p * one_hot).sum(-1)
        mixed = 0.8 * one_hot + 0.2 / 3
        expected = {
            Objective(): -right.log(),
            Objective(weights): -weights[targets] * right.log(),
            Objective(focal=True): -((1 - right) ** 2) * right.log(),
            Objective(label_smoothing=0.2): -(mixed * p.log()).sum(-1),
        }
        wanted = {objective: float(loss.mean()) for objective, loss in expected.items()}
    assert len({round(value, 4) for value in wanted.values()}) == 4
    for objective, value in wanted.items():
        row, _ = step(make_job(**plain(), multi=multi, objective=objective), [range(4)])
        assert row["loss"] == pytest.approx(value, rel=1e-4), objective


@pytest.mark.parametrize("multi", [False, True])
def test_r_drop_adds_what_two_answers_differ_by(multi: bool, make_job: Callable[..., Job]) -> None:
    job = make_job(**plain(r_drop=0.7), multi=multi, lora={"dropout": 0.4})
    with torch.no_grad():
        for name, parameter in job.model.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        job.model.train()
        torch.manual_seed(3)
        one, other = job.model(job.model.batch(job.train.texts, [0, 1, 2, 3, 0, 1, 2, 3])).chunk(2)
    targets = job.train.targets[:4]
    law = torch.distributions.Bernoulli if multi else torch.distributions.Categorical
    p, q = law(logits=one), law(logits=other)
    kl = (torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)) / 2
    plain_losses = [float(job.task.losses(logits, targets, Objective()).mean()) for logits in (one, other)]
    assert float(kl.mean()) > 1e-3
    torch.manual_seed(3)
    row, _ = step(job, [range(4)])
    assert row["loss"] == pytest.approx(sum(plain_losses) / 2 + 0.7 * float(kl.mean()), rel=1e-4)
    job.model.eval()
    logits = loop.split_logits(job.model, job.dev)
    judged = evaluations(job.judge(Progress())[0])[0]
    assert judged["loss"] == pytest.approx(float(job.task.losses(logits, job.dev.targets, Objective()).mean()), rel=1e-5)


def test_of_two_equal_answers_r_drop_has_the_plain_gradient_however_it_is_cut(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    row, whole = step(make_job(**plain()), [[0, 1, 2, 3, 4, 5]])
    for budget in (16384, 48):
        job, passes = make_job(**plain(r_drop=2.0, tokens_per_pass=budget)), []
        batch = type(job.model).batch
        with monkeypatch.context() as patched:
            patched.setattr(type(job.model), "batch", lambda self, texts, rows: passes.append(rows) or batch(self, texts, rows))  # noqa: B023
            twice, gradient = step(job, [[0, 1, 2, 3, 4, 5]])
        assert sum(map(len, passes)) == 12
        assert len(passes) == 1 if budget > 48 else 2 <= len(passes) <= 4
        assert max(sum(int(job.lengths[i]) for i in rows) for rows in passes) <= budget
        assert twice["loss"] == pytest.approx(row["loss"], abs=1e-6)
        for name in whole:
            torch.testing.assert_close(gradient[name], whole[name], atol=1e-6, rtol=1e-4)


def test_the_rate_of_a_step_is_the_schedules(make_job: Callable[..., Job], tmp_path: Path) -> None:
    """Ten steps, two of warm-up."""
    _, rows = train_all(make_job(warmup_ratio=0.2, learning_rate=8e-3), tmp_path)
    rates = [row["learning_rate"] for row in rows if row["kind"] == "step"]
    assert rates == pytest.approx([8e-3 / 3, 16e-3 / 3, *(1e-3 * k for k in range(8, 0, -1))])


def test_the_head_has_its_own_rate_in_training(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(head_learning_rate=1e-12, weight_decay=0.0)
    before = trained_tensors(job.model)
    train_all(job, tmp_path)
    moved = {name: float((tensor - before[name]).abs().max()) for name, tensor in trained_tensors(job.model).items()}
    for name, distance in moved.items():
        assert (distance < 1e-7) if "classifier" in name else (distance > 1e-4), name


def test_steps_and_epochs_are_counted(make_job: Callable[..., Job], tmp_path: Path) -> None:
    """20 texts in batches of 6: four a pass, two of them a step, so two steps an epoch."""
    progress, rows = train_all(make_job(batch_size=6, gradient_accumulation=2, epochs=3), tmp_path)
    assert (progress.step, progress.epoch, progress.batch, progress.texts) == (6, 3, 0, 60)
    steps = [row for row in rows if row["kind"] == "step"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in steps] == [0.4, 1.0, 1.4, 2.0, 2.6, 3.0]  # in texts: a batch of 2 lies anywhere
    assert [row["step"] for row in evaluations(rows)] == [2, 4, 6]


def test_every_text_is_trained_on_once_an_epoch(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = loop.run_step

    def note(job: Job, optimizer: Any, progress: Progress, batches: list[Any]) -> dict[str, Any]:
        seen.extend(int(text) for batch in batches for text in batch)
        return real(job, optimizer, progress, batches)

    monkeypatch.setattr(loop, "run_step", note)
    train_all(make_job(batch_size=6, gradient_accumulation=2), tmp_path)
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
    assert seen[:20] != seen[20:]


def test_evaluation_every_few_steps_and_at_the_end(make_job: Callable[..., Job], tmp_path: Path) -> None:
    _, rows = train_all(make_job(evaluate_every=4), tmp_path)
    assert [row["step"] for row in evaluations(rows)] == [4, 8, 10]
    assert evaluations(rows)[0].keys() >= {"split", "epoch", "loss", "accuracy", "macro_f1", "micro_f1"}


@pytest.mark.parametrize("multi", [False, True])
def test_a_sample_of_the_training_texts_is_evaluated_beside_dev(
    multi: bool, make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same texts each time, as many as dev has, by the plain loss and without dropout."""
    job = make_job(multi=multi, lora={"dropout": 0.4}, objective=Objective(label_smoothing=0.3), learning_rate=1e-2)
    dev = replace(job, dev=job.train.sample(7, seed=5))
    sample = dev.train_sample
    assert len(sample) == len(sample.texts) == len(sample.targets) == 7
    rows = [example.row for example in sample.examples]
    assert rows == sorted(set(rows))
    assert rows != [example.row for example in dev.dev.examples]
    for i, row in enumerate(rows):
        span, whole = (texts.offsets for texts in (sample.texts, dev.train.texts))
        assert sample.texts.ids[span[i] : span[i + 1]].tolist() == dev.train.texts.ids[whole[row] : whole[row + 1]].tolist()
        assert torch.equal(sample.targets[i], dev.train.targets[row])
    _, history = train_all(dev, tmp_path)
    (_, last) = evaluations(history, "train")
    logits = loop.split_logits(dev.model, dev.train)[rows]
    targets = dev.train.targets[rows]
    loss = functional.binary_cross_entropy_with_logits(logits, targets) if multi else functional.cross_entropy(logits, targets)
    assert last["loss"] == pytest.approx(float(loss), rel=1e-5)
    right = (dev.task.decide(logits) == targets).view(7, -1).all(-1).float().mean()
    assert last["accuracy"] == pytest.approx(float(right))
    assert last.keys() == evaluations(history)[0].keys()


def test_no_more_than_so_many_training_texts_are_evaluated(make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(make_job().train_sample) == 20
    monkeypatch.setattr(loop, "MOST_SAMPLED", 3)
    assert len(make_job().train_sample) == 3


def test_evaluating_the_sample_changes_neither_the_run_nor_its_random_numbers(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for sampled in (True, False):
        if not sampled:
            monkeypatch.setattr(loop, "_scores", scores_of_dev_alone(loop._scores))
        torch.manual_seed(1)
        folder = tmp_path / str(sampled)
        folder.mkdir()
        job = make_job(lora={"dropout": 0.4}, learning_rate=1e-2)
        job = replace(job, dev=job.train.sample(7, seed=5))
        progress, rows = train_all(job, folder)
        state = progress.to_json() | {"seconds": 0.0}
        runs.append((state, evaluations(rows), trained_tensors(job.model), torch.get_rng_state()))
    assert runs[0][:2] == runs[1][:2]
    assert all(torch.equal(tensor, runs[1][2][name]) for name, tensor in runs[0][2].items())
    assert torch.equal(runs[0][3], runs[1][3])


def scores_of_dev_alone(real: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    return lambda job, split: real(job, split) if split is job.dev else {}


def test_a_gpu_without_memory_names_the_settings_that_need_less(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(loop, "split_batch", full)
    fix = r"Fix: a lower training\.tokens_per_pass \(now 16,384; .*\) or training\.batch_size \(now 4\)"
    with pytest.raises(TrainingError, match=rf"step 1: the memory of the GPU .*{fix}"):
        train_all(make_job(), tmp_path)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Tensor]]]:
    """Let the evaluations score what the script says, at losses that stay the same by default; the adapter at each evaluation."""

    def script(scores: list[float], told_losses: list[float] | None = None) -> list[dict[str, Tensor]]:
        adapters: list[dict[str, Tensor]] = []
        told, losses = iter(scores), iter(told_losses or [0.5] * len(scores))
        real, real_scores = loop._evaluate, loop._scores

        def dev_as_told(job: Job, split: Split) -> dict[str, float]:
            return real_scores(job, split) | ({"macro_f1": next(told), "loss": next(losses)} if split is job.dev else {})

        def evaluate(job: Job, *rest: Any) -> None:
            adapters.append(trained_tensors(job.model))
            real(job, *rest)

        monkeypatch.setattr(loop, "_evaluate", evaluate)
        monkeypatch.setattr(loop, "_scores", dev_as_told)
        return adapters

    return script


def test_early_stopping_stops_and_the_best_adapter_is_kept(
    make_job: Callable[..., Job], tmp_path: Path, scripted: Callable[..., list[dict[str, Tensor]]]
) -> None:
    """Patience 2: a tie is no better, a better score in between starts the count again; it ends in the middle of an epoch."""
    adapters = scripted([0.2, 0.1, 0.3, 0.1, 0.6, 0.6, 0.5, 0.9])
    job = make_job(evaluate_every=1, patience=2)
    progress, _ = train_all(job, tmp_path)
    assert (progress.step, progress.best_step, progress.best_score, progress.stale) == (7, 5, 0.6, 2)
    assert all(torch.equal(tensor, adapters[4][name]) for name, tensor in progress.best_tensors.items())
    last = trained_tensors(job.model)
    assert all(torch.equal(tensor, adapters[6][name]) for name, tensor in last.items())
    assert any(not torch.equal(tensor, last[name]) for name, tensor in progress.best_tensors.items())
    assert "no better macro_f1 in 2 evaluations: stopped early at step 7" in (tmp_path / "train.log").read_text(encoding="utf-8")


def test_of_equal_scores_the_one_with_the_lower_loss_is_kept_and_patience_goes_on(
    make_job: Callable[..., Job], tmp_path: Path, scripted: Callable[..., list[dict[str, Tensor]]]
) -> None:
    adapters = scripted([0.0] * 7, [0.7, 0.6, 0.5, 0.4, 0.4, 0.45, 0.1])
    progress, _ = train_all(make_job(evaluate_every=1, patience=2), tmp_path)
    assert (progress.step, progress.best_step, progress.best_loss) == (6, 4, 0.4)
    assert all(torch.equal(tensor, adapters[3][name]) for name, tensor in progress.best_tensors.items())


def test_the_running_average_is_its_formula_and_what_is_evaluated_and_kept(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step t's weights count `(1 - d_t) * d_(t+1) * ... * d_T`, where `d_t = min(0.5, (1 + t)/(10 + t))`."""
    taken: list[dict[str, Tensor]] = []
    run_step = loop.run_step

    def noting(job: Job, *given: Any) -> dict[str, Any]:
        row = run_step(job, *given)
        taken.append(trained_tensors(job.model))
        return row

    monkeypatch.setattr(loop, "run_step", noting)
    job = make_job(ema_decay=0.5, evaluate_every=5, learning_rate=2e-2, metric="loss")
    progress, rows = train_all(job, tmp_path)
    decays = [min(0.5, (1 + t) / (10 + t)) for t in range(1, 11)]
    assert decays[0] < decays[6] < decays[7] == 0.5

    def expected(name: str, steps: int) -> Tensor:
        shares = [1.0] + [1 - decay for decay in decays[1:steps]]
        return sum((taken[t][name] * shares[t] * math.prod(decays[t + 1 : steps]) for t in range(steps)), torch.zeros(()))

    assert progress.best_step in (5, 10)
    kept = [*progress.best_tensors.values(), *progress.average_tensors.values()]
    assert sum(map(weight_bytes, kept)) == copies_kept("cpu", 0.5) * stored_bytes(job.model)[1]
    for name, tensor in progress.average_tensors.items():
        torch.testing.assert_close(tensor, expected(name, 10), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(progress.best_tensors[name], expected(name, progress.best_step), rtol=1e-5, atol=1e-7)
        assert torch.equal(trained_tensors(job.model)[name], tensor)
    losses = [row["loss"] for row in evaluations(rows)]
    load_trained(job.model, {name: expected(name, 10) for name in taken[0]})
    assert losses[-1] == pytest.approx(loop._scores(job, job.dev)["loss"], rel=1e-4)
    load_trained(job.model, taken[-1])
    assert losses[-1] != pytest.approx(loop._scores(job, job.dev)["loss"], rel=1e-3)


def test_without_patience_all_steps_are_done(
    make_job: Callable[..., Job], tmp_path: Path, scripted: Callable[..., list[dict[str, Tensor]]]
) -> None:
    scripted([0.9] + [0.1] * 9)
    progress, _ = train_all(make_job(evaluate_every=1), tmp_path)
    assert (progress.step, progress.best_step) == (10, 1)
    assert "stopped early" not in (tmp_path / "train.log").read_text(encoding="utf-8")


def test_the_best_loss_is_the_lowest(make_job: Callable[..., Job], tmp_path: Path) -> None:
    progress, rows = train_all(make_job(evaluate_every=1, metric="loss", learning_rate=2e-2), tmp_path)
    losses = [row["loss"] for row in evaluations(rows)]
    assert progress.best_step == 1 + losses.index(min(losses))
    assert progress.best_score == -min(losses)
    assert len(losses) == 10


def test_training_learns(make_job: Callable[..., Job], tmp_path: Path) -> None:
    """Twenty texts by heart, by the adapter: the loss falls by more than half."""
    job = make_job(epochs=12, learning_rate=1e-2, head_learning_rate=1e-9)
    _, rows = train_all(job, tmp_path)
    losses = [row["loss"] for row in evaluations(rows)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_loss_that_is_not_finite_stops_and_names_the_fix(make_job: Callable[..., Job], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: the loss is .*Fix: a lower training\.learning_rate \(now 1e\+30\)"):
        train_all(make_job(learning_rate=1e30, schedule="constant", warmup_ratio=0.0), tmp_path)


def test_a_dev_loss_that_is_not_finite_stops(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the last step may leave the weights: no step comes after it to see."""
    monkeypatch.setattr(loop, "split_logits", lambda model, split: torch.full((len(split), 3), float("nan")))
    with pytest.raises(TrainingError, match=r"step 5: the loss on dev is nan\. Fix: a lower training\.learning_rate"):
        train_all(make_job(), tmp_path)


@pytest.mark.parametrize(("batch_size", "factor"), [(4, 0.0), (20, 0.0), (4, 1e-26)])
def test_an_adapter_that_does_not_move_stops(
    batch_size: int, factor: float, make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three steps, or after the last one of a shorter run; a move that float32 would round away is none."""
    monkeypatch.setattr(loop, "learning_rate_factor", lambda *_: factor)
    steps = min(3, 40 // batch_size)
    with pytest.raises(
        TrainingError, match=rf"after {steps} steps no LoRA layer has moved.*Fix: a higher training\.learning_rate"
    ):
        train_all(make_job(batch_size=batch_size), tmp_path)


def test_some_layers_that_do_not_move_are_noted(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job()
    still = job.model.network.get_submodule("bert.encoder.layer.0.output.dense")
    still.get_parameter("lora_B").register_hook(torch.zeros_like)
    train_all(job, tmp_path)
    said = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert "1 of 13 LoRA layers have not moved after 3 steps: bert.encoder.layer.0.output.dense" in said


def test_two_checkpoints_are_kept(make_job: Callable[..., Job], tmp_path: Path) -> None:
    train_all(make_job(checkpoint_every=3), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000009", "step-00000010"]


def test_settings_reach_the_job(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """`balanced` weights are n / (C·n_c); given ones are taken in the order of the labels."""
    import veneer.training.run as training_run

    jobs: list[Job] = []

    class Caught(Exception):
        pass

    def catch(job: Job, *_: Any, **__: Any) -> Progress:
        jobs.append(job)
        raise Caught

    monkeypatch.setattr(training_run, "fit", catch)
    for number, changes in enumerate(
        (
            {"training__class_weights": "balanced", "training__base_dropout": "auto"},
            {"training__class_weights": {"good": 3.0, "bad": 0.5}, "training__loss": "focal"},
            {"training__label_smoothing": 0.2, "training__gradient_checkpointing": True, "evaluation__metric": "accuracy"},
        )
    ):
        config = toy_config(tmp_path, tiny_base("bert"), out=str(tmp_path / f"{number}"), **changes)
        (tmp_path / "train.csv").write_text("text,label\n" + "a,good\n" * 6 + "b,bad\nc,bad\n", encoding="utf-8")
        with pytest.raises(Caught):
            training_run.train(config, console=Console(file=io.StringIO()))
    balanced, given, smooth = jobs
    assert balanced.objective.class_weights is not None
    assert balanced.objective.class_weights.tolist() == pytest.approx([8 / (2 * 2), 8 / (2 * 6)])
    assert given.objective.class_weights is not None
    assert given.objective.class_weights.tolist() == [0.5, 3.0]
    assert given.objective.focal
    assert smooth.objective == Objective(label_smoothing=0.2)
    assert smooth.metric == "accuracy"
    assert {layer.p for layer in balanced.model.base_dropout} == {0.1}
    assert given.model.base_dropout == ()
    assert smooth.model.network.is_activation_checkpointing
