"""Law: several tasks in one pass of the base are the tasks one at a time, and their runs resume and reload as any other.

Logits in float32 to 1e-5; in bf16, whose numbers are 2^-8 apart, to 2 % of the largest; gradients of sums to 1e-4 and 3 %.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from toy_runs import metrics, outcome, run_interrupted
from toy_tasks import run_tasks, toy_tasks
from veneer.adaptation import AdapterPlan, adapt, checkpoint_activations
from veneer.bases import find_base
from veneer.data import EncodedTexts
from veneer.errors import BaseError, Interrupted
from veneer.inference import compute_logits
from veneer.joint import JointClassifier
from veneer.lora import bank, lora_layers
from veneer.model import Classifier, build_classifier
from veneer.tasks import TASKS, Objective
from veneer.training import joint_run
from veneer.training.checkpoint import Progress
from veneer.training.joint_job import JointJob
from veneer.training.loop import Job, run_step, start_optimizer
from veneer.training.prepare import Split
from veneer.training.weights import trained_tensors

Base = Callable[..., Path]
CLASSES = {"two": 2, "five": 5, "three": 3}
COUNTS = (3, 0, 4)
LENGTHS = [17, 3, 40, 1, 9, 40, 22]


def make_models(base: Path, dtype: torch.dtype = torch.float32, **plan: Any) -> dict[str, Classifier]:
    """Classifiers of other labels over one base, their adapters far from zero."""
    models = {}
    for number, (name, classes) in enumerate(CLASSES.items()):
        torch.manual_seed(number)
        models[name] = build_classifier(find_base(str(base)), classes, dtype=dtype)
        adapt(models[name], AdapterPlan(**{"rank": 3, "dropout": 0.0} | plan))
        for layer in lora_layers(models[name].network).values():
            nn.init.normal_(layer.lora_B, std=0.1)
        for module in models[name].modules():
            if isinstance(module, nn.Dropout):  # that of the heads
                module.p = 0.0
    return models


def gradients(model: Classifier) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.trainable().items() if parameter.grad is not None}


def weigh(logits: Tensor) -> Tensor:
    return (logits * torch.linspace(-1, 2, logits.numel()).view_as(logits)).sum()


FAMILIES = ["bert", "roberta", "distilbert", "modernbert", "electra", "albert", "gpt2", "qwen2", "llama"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pass_is_each_classifier_by_itself(
    family: str, dtype: torch.dtype, tiny_base: Base, make_texts: Callable[..., EncodedTexts]
) -> None:
    models = make_models(tiny_base(family), dtype)
    texts = make_texts(LENGTHS, pairs=family == "bert")
    parts = dict(zip(models, np.split(np.arange(len(LENGTHS)), np.cumsum(COUNTS)[:-1]), strict=True))
    alone = {name: models[name](models[name].batch(texts, parts[name].tolist())) for name in ("two", "three")}
    torch.autograd.backward([weigh(logits) for logits in alone.values()])
    expected = {name: gradients(model) for name, model in models.items()}
    for model in models.values():
        model.zero_grad()
    joint = JointClassifier(models)
    joint.train()
    together = joint(joint.batch(texts, range(len(LENGTHS))), COUNTS)
    torch.autograd.backward([weigh(logits) for logits in together.values()])
    exact = dtype == torch.float32
    assert together.keys() == alone.keys()
    for name, logits in together.items():
        assert (logits - alone[name]).abs().max() <= (1e-5 if exact else 0.02) * alone[name].abs().max()
    for name, model in models.items():
        found = gradients(model)
        assert found.keys() == expected[name].keys()
        assert bool(found) == (name != "five")  # a task without texts is left alone
        largest = max((float(one.abs().max()) for one in expected[name].values()), default=0.0)
        for key, grad in found.items():
            assert (grad - expected[name][key]).abs().max() <= (1e-4 if exact else 0.03) * largest, key


def test_frozen_weights_are_one_and_the_classifiers_stay_themselves(
    tiny_base: Base, make_texts: Callable[..., EncodedTexts]
) -> None:
    models, texts = make_models(tiny_base("bert")), make_texts(LENGTHS)
    before = {name: compute_logits(model, texts) for name, model in models.items()}
    joint = JointClassifier(models)
    for name, model in models.items():
        assert torch.equal(compute_logits(model, texts), before[name])
    frozen = [{id(p) for p in model.parameters() if not p.requires_grad} for model in models.values()]
    assert frozen[0] == frozen[1] == frozen[2]
    trained = [id(parameter) for parameter in joint.trainable().values()]
    assert len(set(trained)) == len(trained) == sum(len(model.trainable()) for model in models.values())
    assert joint.head_parameters() == {f"{task}.{name}" for task, model in models.items() for name in model.head_parameters()}


def test_activations_computed_again_have_the_same_gradient_dropout_included(
    tiny_base: Base, make_texts: Callable[..., EncodedTexts], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = make_texts(LENGTHS)
    results, passes, computed = [], [], 0
    compute = bank.bank_linear_group

    def counted(*given: Any) -> Any:
        nonlocal computed
        computed += 1
        return compute(*given)

    monkeypatch.setattr(bank, "bank_linear_group", counted)
    for again in (False, True):
        models = make_models(tiny_base("bert"), dropout=0.3)
        for model in models.values():
            if again:
                checkpoint_activations(model)
        joint = JointClassifier(models)
        joint.train()
        torch.manual_seed(5)
        computed = 0
        logits = joint(joint.batch(texts, range(len(LENGTHS))), COUNTS)
        torch.autograd.backward([weigh(one) for one in logits.values()])
        passes.append(computed)
        results.append({f"{task}.{name}": grad for task, model in models.items() for name, grad in gradients(model).items()})
    assert passes[1] > passes[0]
    assert results[0].keys() == results[1].keys()
    for name, grad in results[0].items():
        assert torch.equal(grad, results[1][name]), name


def test_a_base_that_cannot_pack_is_refused(tiny_base: Base) -> None:
    with pytest.raises(BaseError, match=r"several tasks in one pass need packed texts, .* Fix: another base, or one run a task"):
        JointClassifier(make_models(tiny_base("mpnet")))


def make_jobs(models: dict[str, Classifier], make_texts: Callable[..., EncodedTexts], settings: Any) -> dict[str, Job]:
    jobs = {}
    for number, (name, model) in enumerate(models.items()):
        rng, classes = np.random.default_rng(number), CLASSES[name]
        texts = make_texts(rng.integers(3, 30, 12).tolist(), seed=number)
        targets = torch.from_numpy(rng.integers(0, classes, 12))
        task = TASKS["multi_label" if name == "five" else "single_label"]
        if name == "five":
            targets = nn.functional.one_hot(targets, classes).float()
        split = Split((), texts, targets)  # of examples only their number would be read
        split = replace(split, examples=tuple([None] * 12))  # type: ignore[arg-type]
        objective = Objective(label_smoothing=0.1 * number)
        jobs[name] = Job(model, task, objective, split, split, settings, "macro_f1", 0)
    return jobs


@pytest.mark.parametrize(("tokens_per_pass", "r_drop"), [(16384, None), (40, None), (16384, 2.0), (80, 2.0)])
def test_a_step_is_every_task_s_own_step(
    tokens_per_pass: int, r_drop: float | None, tiny_base: Base, make_texts: Callable[..., EncodedTexts], tmp_path: Path
) -> None:
    """Loss, clipping and optimiser included, over several steps and accumulated batches; and cut for memory."""
    settings = toy_tasks(tmp_path, "base").training
    from veneer.config import TrainingSettings

    settings = TrainingSettings(
        **settings.model_dump()
        | {"tokens_per_pass": tokens_per_pass, "r_drop": r_drop, "gradient_clip": 0.05, "learning_rate": 1e-2}
    )
    steps = [[[0, 1, 13, 25, 26, 27], [2, 14, 15, 28]], [[3, 4, 5, 29, 30]], [[6, 16, 17, 31]]]  # the second without `five`
    models = make_models(tiny_base("bert"))
    jobs = make_jobs(models, make_texts, settings)
    joint = JointJob(JointClassifier(models), jobs, settings, 1.0, 0)
    optimizer = start_optimizer(joint)
    joint.model.train()
    rows = [
        run_step(joint, optimizer, Progress(step=number + 1), [np.array(batch) for batch in batches])
        for number, batches in enumerate(steps)
    ]
    for number, (name, model) in enumerate(make_models(tiny_base("bert")).items()):
        job = make_jobs({**models, name: model}, make_texts, settings)[name]
        job = replace(job, settings=settings)
        own = start_optimizer(job)
        model.train()
        for step, (batches, row) in enumerate(zip(steps, rows, strict=True)):
            mine = [np.array([text - 12 * number for text in batch if text // 12 == number]) for batch in batches]
            if not sum(map(len, mine)):
                assert f"loss/{name}" not in row
                continue
            mine = [batch for batch in mine if len(batch)]
            alone = _step_at_the_rate_of(joint, job, own, step + 1, mine)
            assert row[f"loss/{name}"] == pytest.approx(alone["loss"], abs=1e-5)
        together = trained_tensors(jobs[name].model)
        start = trained_tensors(make_models(tiny_base("bert"))[name])
        moved = max(float((together[key] - start[key]).abs().max()) for key in together)
        assert moved > 5e-3
        for key, tensor in trained_tensors(model).items():
            assert (together[key] - tensor).abs().max() <= 0.01 * moved, (name, key)


def _step_at_the_rate_of(joint: JointJob, job: Job, optimizer: Any, step: int, batches: Sequence[Any]) -> dict[str, Any]:
    """A task's own step, at the learning rate that the joint run has at `step`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Job, "steps", property(lambda self: joint.steps))
        return run_step(job, optimizer, Progress(step=step), list(batches))


def test_two_answers_of_several_tasks_are_held_together_task_by_task(
    tiny_base: Base, make_texts: Callable[..., EncodedTexts], tmp_path: Path
) -> None:
    from veneer.config import TrainingSettings

    settings = TrainingSettings(**toy_tasks(tmp_path, "base").training.model_dump() | {"r_drop": 0.7})
    models = make_models(tiny_base("bert"), dropout=0.4)
    jobs = make_jobs(models, make_texts, settings)
    joint = JointJob(JointClassifier(models), jobs, settings, 1.0, 0)
    joint.model.train()
    part, own = np.array([0, 1, 13, 25, 26, 27]), {"two": [0, 1], "five": [1], "three": [1, 2, 3]}
    with torch.no_grad():
        torch.manual_seed(5)
        losses = joint.losses(part, [part])
        torch.manual_seed(5)
        answered = [0, 1, 0, 1, 13, 13, 25, 26, 27, 25, 26, 27]
        logits = joint.model(joint.model.batch(joint.texts, answered), [4, 2, 6])
    for loss, (name, job) in zip(losses, jobs.items(), strict=True):
        one, other = logits[name].chunk(2)
        law = torch.distributions.Bernoulli if name == "five" else torch.distributions.Categorical
        p, q = law(logits=one), law(logits=other)
        divergence = float((torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)).mean()) / 2
        assert divergence > 1e-3
        plain = [float(job.task.losses(each, job.train.targets[own[name]], job.objective).mean()) for each in (one, other)]
        assert float(loss) == pytest.approx(sum(plain) / 2 + 0.7 * divergence, rel=1e-4)


# Whole runs

RUNS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "mid-epoch, dropout": (
        (2, 7, 11),
        {"lora__dropout": 0.3, "training__base_dropout": "auto", "training__evaluate_every": 3, "training__ema_decay": 0.9},
    ),
    "accumulation, early stop, a metric a task": (
        (1, 4),
        {
            "training__gradient_accumulation": 3,
            "training__patience": 2,
            "training__epochs": 5,
            "training__learning_rate": 1e-6,
            "tasks.marks.metric": "micro_f1",
        },
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_by_ctrl_c_ends_as_if_it_had_not_been(
    name: str, tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops, changes = RUNS[name]
    config = toy_tasks(tmp_path, tiny_base("bert"), **changes)
    run_tasks(config)
    stopped = config.model_copy(update={"out": str(tmp_path / "stopped")})
    _, said = run_interrupted(stopped, stops, monkeypatch, run_tasks)
    assert f"To go on: veneer train --out {tmp_path}/stopped --resume" in said
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "run")
    for task in ("moods", "marks"):
        assert outcome(tmp_path / "stopped" / task) == outcome(tmp_path / "run" / task)
    assert not (tmp_path / "stopped" / "checkpoints").exists()


def test_a_run_stopped_between_two_tasks_being_saved_goes_on(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_tasks(tmp_path, tiny_base("bert"), training__epochs=1)
    run_tasks(config)
    stopped = config.model_copy(update={"out": str(tmp_path / "stopped")})
    finish = joint_run.finish

    def once(setting: Any, *rest: Any) -> Any:
        if setting.folder.name == "marks":
            raise KeyboardInterrupt
        return finish(setting, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(joint_run, "finish", once)
        with pytest.raises(Interrupted, match="To go on"):
            run_tasks(stopped)
    assert not (tmp_path / "stopped" / "marks" / "veneer.json").exists()
    run_tasks(stopped, resume=True)
    for task in ("moods", "marks"):
        assert outcome(tmp_path / "stopped" / task) == outcome(tmp_path / "run" / task)


FRESH = """
import json, sys
from safetensors.torch import save_file
from veneer import load
folders, texts, out = json.load(sys.stdin)
save_file({folder: load(folder, precision="fp32").logits(texts) for folder in folders}, out)
"""


def test_a_task_s_folder_loaded_in_a_fresh_process_gives_the_logits_it_gave(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {}
    finish = joint_run.finish

    def kept(setting: Any, *rest: Any) -> Any:
        result = finish(setting, *rest)
        memory[str(setting.folder)] = compute_logits(setting.model, setting.splits["dev"].texts)
        memory["texts"] = [example.text for example in setting.splits["dev"].examples]
        return result

    monkeypatch.setattr(joint_run, "finish", kept)
    config = toy_tasks(tmp_path, tiny_base("bert"), training__epochs=1)
    write = Path(config.tasks["moods"].data.dev).read_text(encoding="utf-8")  # type: ignore[index, arg-type]
    Path(config.tasks["marks"].data.dev).write_text(write, encoding="utf-8")  # type: ignore[index, arg-type]
    run_tasks(config)
    texts = memory.pop("texts")
    job = json.dumps([list(memory), texts, str(tmp_path / "fresh.safetensors")])
    subprocess.run([sys.executable, "-c", FRESH], input=job, text=True, check=True, timeout=300)
    fresh = load_file(tmp_path / "fresh.safetensors")
    assert {tuple(logits.shape) for logits in fresh.values()} == {(24, 2), (24, 3)}
    for folder, logits in memory.items():
        assert torch.equal(fresh[folder], logits)
