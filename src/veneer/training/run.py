"""A whole run: from a configuration to a run folder that has been loaded again and compared.

`train` is the page to read. Everything it needs to know is in the configuration; everything it learns ends in the folder.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerFast

from veneer import lora
from veneer.artifact import INFO_FILE, ArtifactInfo, load_artifact, package_versions, save_artifact, write_text
from veneer.bases import BaseLocation, find_base, fingerprint, load_config, load_tokenizer, max_positions
from veneer.config import CONFIG_FILE, RunConfig
from veneer.config import load_config as load_run_config
from veneer.data import encode, render_problems
from veneer.errors import ConfigError, InputError, Interrupted, ResumeError, VerificationError
from veneer.evaluation.metrics import Evaluation, score
from veneer.evaluation.plots import plot_curves
from veneer.evaluation.report import RunFacts, build_report
from veneer.inference import compute_logits
from veneer.labels import LabelSet
from veneer.model import AdapterPlan, Classifier, adapt, build_classifier, checkpoint_activations
from veneer.packing import describe_plan
from veneer.precision import Precision, choose_precision, pick_device
from veneer.tasks import Objective, Task
from veneer.training.checkpoint import Checkpoints, Progress, has_checkpoint
from veneer.training.loop import Job, fit, load_trained, trained_tensors
from veneer.training.prepare import Material, Split, encode_split, read_material
from veneer.training.tracking import Tracker

PROBES = 16  # at most so many development texts have their logits compared after saving
PROBE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        report: the content of `report.json`.
        evaluations: the best adapter's scores by split: dev, and test where there is one.
    """

    folder: Path
    report: dict[str, Any]
    evaluations: Mapping[str, Evaluation]


@dataclass(frozen=True)
class _Setting:
    """What a run works with, once files are read and the model is built."""

    config: RunConfig
    folder: Path
    material: Material
    base: BaseLocation
    base_fingerprint: str
    tokenizer: PreTrainedTokenizerFast
    model: Classifier
    splits: dict[str, Split]
    precision: Precision


def train(config: RunConfig, *, resume: bool = False, console: Console | None = None) -> TrainingResult:
    """Train an adapter, save it, load it again, and score it.

    Args:
        resume: go on from the newest checkpoint in `config.out`.
        console: where progress is shown; standard error by default.

    Raises:
        VeneerError: see `veneer.errors`; nothing of an earlier run is lost.
    """
    console = console or Console(stderr=True)
    folder = _run_folder(config, resume)
    material = read_material(config)
    if material.warnings:
        console.print(render_problems(material.warnings), markup=False, highlight=False)
    setting = _prepare(config, folder, material, resume)
    job = _job(setting)
    checkpoints = Checkpoints(folder, _identity(setting))
    if resume:
        checkpoints.check()  # before anything in the folder is touched
    _open_folder(setting)
    with Tracker(folder, console, keep=resume) as tracker:
        _announce(setting, tracker)
        try:
            progress = fit(job, checkpoints, tracker, resume=resume)
            result = _finish(setting, job, progress, tracker)
        except (Interrupted, KeyboardInterrupt) as stop:
            reason = str(stop) or "stopped"
            raise Interrupted(f"{reason}. To go on: {_resume_command(folder)}") from None
    checkpoints.remove()
    return result


def _run_folder(config: RunConfig, resume: bool) -> Path:
    """The folder to write; refused where it holds something else, so that no work is ever overwritten."""
    if resume:
        if config.out is None:
            raise ConfigError("--resume needs the run folder. Fix: --out DIR")
        folder = Path(config.out)
        if (folder / INFO_FILE).exists() and not has_checkpoint(folder):
            raise ResumeError(
                f"{folder} holds a finished run: there is nothing to resume. Fix: train into another --out, without --resume"
            )
        if not has_checkpoint(folder):
            raise ResumeError(
                f"{folder} holds no checkpoint to resume from. "
                "Fix: --out with the folder of an unfinished run, or leave out --resume to train from the start"
            )
        return folder
    if config.out is not None:
        folder = Path(config.out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            unfinished = has_checkpoint(folder) and not (folder / INFO_FILE).exists()
            other = " or --resume to go on with the unfinished run there" if unfinished else ""
            raise ConfigError(f"{folder} is not empty, and nothing is overwritten. Fix: another --out{other}")
        return folder
    stem = Path(config.data.train or "run").stem.replace(":", "-") or "run"
    return free_folder(Path("runs") / stem)


def free_folder(stem: Path) -> Path:
    """`stem`, or the first of `stem-2`, `stem-3`, … that is not there."""
    if not stem.exists():
        return stem
    return next(folder for number in range(2, 10_000) if not (folder := stem.with_name(f"{stem.name}-{number}")).exists())


def _resume_command(folder: Path) -> str:
    return f"veneer train --out {shlex.quote(str(folder))} --resume"


def _open_folder(setting: _Setting) -> None:
    try:
        setting.folder.mkdir(parents=True, exist_ok=True)
        write_text(setting.folder / CONFIG_FILE, setting.config.to_yaml())
    except OSError as error:
        raise ConfigError(f"cannot write the run folder {setting.folder}: {error.strerror}. Fix: another --out") from None


def _prepare(config: RunConfig, folder: Path, material: Material, resume: bool) -> _Setting:
    """Base, tokenizer, model and encoded texts; the configuration with every `auto` replaced by what it came to."""
    _check_metric(config.evaluation.metric, material.task)
    plan = AdapterPlan(**config.lora.model_dump(exclude={"preset"}))
    requested = config.training.precision
    if resume and requested == "auto":  # a timing may come out otherwise today
        requested = load_run_config(folder / CONFIG_FILE).training.precision
    device = pick_device()
    if requested == "auto" and plan.trains_base:
        precision = Precision("fp32", "weights of the base are trained")
    else:
        precision = choose_precision(requested, device)
    base = find_base(config.base)
    limit = max_positions(load_config(base))
    if limit is not None and config.data.max_length > limit:
        raise ConfigError(
            f"data.max_length: {config.data.max_length} is more than the {limit} tokens that {config.base} can take. "
            f"Fix: --max-length {limit}"
        )
    tokenizer = load_tokenizer(base)
    task, labels = material.task, material.labels
    splits = {
        name: encode_split(examples, tokenizer, config.data.max_length, task, labels)
        for name, examples in material.examples.items()
    }
    torch.manual_seed(config.seed)
    model = build_classifier(base, len(labels), pooling=config.pooling, dtype=precision.dtype)
    adapt(model, plan)
    model.to(device)
    if config.training.gradient_checkpointing:
        checkpoint_activations(model)
    resolved = config.model_copy(
        update={
            "task": task.name,
            "pooling": model.plan.pooling,
            "out": str(folder),
            "training": config.training.model_copy(update={"precision": precision.name}),
        }
    )
    return _Setting(resolved, folder, material, base, fingerprint(base), tokenizer, model, splits, precision)


def _check_metric(metric: str, task: Task) -> None:
    if metric == "subset_accuracy" and task.name == "single_label":
        raise ConfigError("evaluation.metric: subset_accuracy is for multi-label tasks. Fix: accuracy")


def _identity(setting: _Setting) -> dict[str, Any]:
    """What must not change between the parts of a resumed run."""
    config = setting.config.model_dump(mode="json", exclude={"out": True, "base": True, "evaluation": {"bootstrap"}})
    config["training"].pop("checkpoint_every")
    for key in ("train", "dev", "test"):  # their content counts, not their place
        config["data"].pop(key)
    lengths = setting.splits["train"].texts.lengths
    plan = describe_plan(lengths, setting.config.training.batch_size, setting.config.seed)
    return {
        "configuration": config,
        "data": setting.material.fingerprints,
        "labels": list(setting.material.labels),
        "base": setting.base_fingerprint,
        "batch plan": f"{plan} tokens={lengths.sum()}",
    }


def _job(setting: _Setting) -> Job:
    training, task, splits = setting.config.training, setting.material.task, setting.splits
    weights = _class_weights(training.class_weights, setting.material.labels, task, splits["train"])
    device = setting.model.device
    objective = Objective(
        None if weights is None else weights.to(device), focal=training.loss == "focal", label_smoothing=training.label_smoothing
    )
    scaler = torch.amp.GradScaler(device.type, enabled=setting.precision.name == "fp16")
    return Job(
        setting.model,
        task,
        objective,
        splits["train"],
        splits["dev"],
        training,
        setting.config.evaluation.metric,
        setting.config.seed,
        scaler,
    )


def _class_weights(given: str | dict[str, float] | None, labels: LabelSet, task: Task, train: Split) -> torch.Tensor | None:
    if given is None:
        return None
    if isinstance(given, str):
        return task.class_weights(train.targets, len(labels))
    if set(given) != set(labels) or min(given.values()) <= 0:
        raise ConfigError(
            f"training.class_weights must give every label a weight above 0: {', '.join(labels)}; given: {', '.join(given)}"
        )
    return torch.tensor([given[label] for label in labels])


def _announce(setting: _Setting, tracker: Tracker) -> None:
    """What will be trained on what, before it starts."""
    model, splits = setting.model, setting.splits
    tracker.say(f"base: {setting.base.description}")
    tracker.say(f"precision: {setting.precision.name} ({setting.precision.reason}); {torch.get_num_threads()} threads")
    if model.padding_reason is not None:
        tracker.say(f"texts are padded: {model.padding_reason}")
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    tracker.say(f"data: {sizes} texts; {len(setting.material.labels)} labels, {setting.material.task.name}")
    for name, split in splits.items():
        if split.texts.cut:
            share = split.texts.cut / len(split)
            tracker.say(
                f"{name}: {split.texts.cut:,} texts ({share:.1%}) are longer than {setting.config.data.max_length} tokens and cut"
            )
    tracker.show(_parameter_table(model))
    tracker.say(f"if it stops: {_resume_command(setting.folder)}")  # said now, as a run that is killed says nothing


def _parameter_table(model: Classifier) -> Table:
    counts = lora.count_parameters(model)
    head = sum(model.trainable()[name].numel() for name in model.head_parameters())
    table = Table(title="Parameters", title_justify="left")
    table.add_column("part")
    table.add_column("number", justify="right")
    table.add_column("share", justify="right")
    rows = {
        f"LoRA, {len(lora.adapted_layers(model))} layers": counts.lora,
        "head": head,
        "other trained": counts.trainable - counts.lora - head,
        "trained": counts.trainable,
        "all": counts.total,
    }
    for name, number in rows.items():
        if number or name == "head":
            table.add_row(name, f"{number:,}", f"{number / counts.total:.2%}", end_section=name == "other trained")
    return table


def _finish(setting: _Setting, job: Job, progress: Progress, tracker: Tracker) -> TrainingResult:
    """Save last and best adapter, load the best again and compare, score it, write the report."""
    folder, model = setting.folder, setting.model
    plot_curves(tracker.history, job.metric, folder / "curves.png")
    last = trained_tensors(model)
    last_dev = None if progress.best_step == progress.step else _score(setting, "dev")
    load_trained(model, progress.best_tensors)
    evaluations = {name: _score(setting, name) for name in setting.splits if name != "train"}
    report = build_report(_facts(setting, job, progress), evaluations)
    write_text(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    load_trained(model, last)
    (folder / "last").mkdir(exist_ok=True)
    save_artifact(folder / "last", model, setting.tokenizer, _info(setting, last_dev or evaluations["dev"]))
    load_trained(model, progress.best_tensors)
    save_artifact(folder, model, setting.tokenizer, _info(setting, evaluations["dev"]))
    probes = _verify(setting)
    tracker.note(f"saved in {folder}: loaded again, logits of {probes} texts are the same")
    return TrainingResult(folder, report, evaluations)


def _score(setting: _Setting, name: str) -> Evaluation:
    split, task = setting.splits[name], setting.material.task
    logits = compute_logits(setting.model, split.texts)
    targets = split.targets.bool() if task.name == "multi_label" else split.targets
    return score(
        targets.numpy(),
        task.decide(logits).numpy(),
        setting.material.labels.names,
        multi_label=task.name == "multi_label",
        bootstrap=setting.config.evaluation.bootstrap,
        seed=setting.config.seed,
    )


def _facts(setting: _Setting, job: Job, progress: Progress) -> RunFacts:
    counts = lora.count_parameters(setting.model)
    return RunFacts(
        task=setting.material.task.name,
        base=setting.base.model_id,
        labels=setting.material.labels.names,
        splits={name: len(split) for name, split in setting.splits.items()},
        metric=job.metric,
        best_step=progress.best_step,
        steps=progress.step,
        epochs=progress.epoch + progress.batch * job.settings.batch_size / len(job.train),
        seconds=round(progress.seconds, 3),
        texts_per_second=round(progress.texts / progress.seconds, 1),
        parameters={"lora": counts.lora, "trainable": counts.trainable, "total": counts.total},
        versions=package_versions(),
    )


def _info(setting: _Setting, dev: Evaluation) -> ArtifactInfo:
    return ArtifactInfo(
        task=setting.material.task.name,
        labels=setting.material.labels.names,
        pooling=setting.model.plan.pooling,
        own_head=setting.model.plan.own,
        base=setting.config.base,
        base_id=setting.base.model_id,
        base_fingerprint=setting.base_fingerprint,
        data_fingerprint=setting.material.fingerprints["train"],
        max_length=setting.config.data.max_length,
        pair=setting.material.pair,
        precision=setting.precision.name,
        scores={name: interval.value for name, interval in dev.metrics.items()},
        versions=package_versions(),
    )


def _verify(setting: _Setting) -> int:
    """Load the folder as anybody would and compare the logits of probe texts with those in memory; how many were compared."""
    examples = setting.splits["dev"].examples[:PROBES]
    pairs = [example.pair or "" for example in examples] if setting.material.pair else None
    texts = [example.text for example in examples]
    memory = compute_logits(setting.model, encode(setting.tokenizer, texts, pairs, setting.config.data.max_length))
    problem = ""
    try:
        loaded = load_artifact(setting.folder, base=str(setting.base.path), precision=setting.precision.name)
        disk = compute_logits(loaded.model, encode(loaded.tokenizer, texts, pairs, loaded.info.max_length))
        difference = float((memory - disk).abs().max())
        if not difference <= PROBE_TOLERANCE:  # nor is it where it is not a number
            problem = f"gives other logits than the one in memory (by {difference:.2g})"
    except InputError as error:
        problem = f"cannot be loaded again ({error})"
    if problem:
        (setting.folder / INFO_FILE).unlink()
        raise VerificationError(f"the adapter saved in {setting.folder} {problem}. The checkpoint is kept; please report this")
    return len(examples)
