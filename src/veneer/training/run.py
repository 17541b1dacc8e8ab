"""A whole run: from a configuration to a run folder that has been loaded again and compared.

`train` is the page to read. Everything it needs to know is in the configuration; everything it learns ends in the folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from veneer import lora
from veneer.bases import find_base, fingerprint, load_config, load_tokenizer
from veneer.config import RunConfig, TrainingConfig, settle
from veneer.config_file import config_text, unused_keys
from veneer.config_file import load_config as load_run_config
from veneer.data import render_problems
from veneer.durable import write_text
from veneer.errors import ConfigError, Interrupted, ResumeError, TrainingError, file_refusal
from veneer.families import max_positions
from veneer.methods import METHODS
from veneer.model import Classifier
from veneer.packing import describe_plan
from veneer.run_files import CONFIG_FILE, INFO_FILE, LOG_FILE, METRICS_FILE
from veneer.run_info import resume_command
from veneer.tasks import Task
from veneer.training.checkpoint import Checkpoints, has_checkpoint
from veneer.training.finish import Setting, TrainingResult, finish
from veneer.training.loop import fit
from veneer.training.prepare import Material, encode_split, read_material
from veneer.training.setup import make_job, make_model, method_of, method_plan, precision_of
from veneer.training.tracking import Tracker
from veneer.training.verbaliser import describe, prompt_of, resolved

FEW_STEPS = 150  # of a whole run


def train(config: RunConfig, *, resume: bool = False, console: Console | None = None) -> TrainingResult:
    """Train an adapter, save it, load it again, and score it.

    Args:
        resume: go on from the newest checkpoint in `config.out`.
        console: where progress is shown; standard error by default.

    Raises:
        VeneerError: see `veneer.errors`; nothing of an earlier run is lost.
    """
    console = console or Console(stderr=True)
    folder = run_folder(config, resume)
    material = read_material(config)
    if resume:
        config = as_before(config, folder)
    setting = prepare(config, folder, material)
    job = make_job(
        setting.model,
        setting.config,
        material.task,
        material.labels,
        setting.splits["train"],
        setting.splits["dev"],
        setting.precision,
    )
    checkpoints = Checkpoints(folder, _identity(setting))
    if resume:
        checkpoints.check()  # before anything in the folder is touched
    open_folder(folder, setting.config, resume)
    with Tracker(folder, console, keep=resume) as tracker:
        _announce(setting, tracker)
        with how_to_go_on(folder):
            fast = job.with_vectors(tracker)
            progress = fit(fast, checkpoints, tracker, resume=resume)
            progress.seconds += fast.vector_seconds
            result = finish(setting, job, progress, tracker)
    checkpoints.remove()
    return result


@contextmanager
def how_to_go_on(folder: Path) -> Iterator[None]:
    """Let what stops a run say by which command it goes on."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        reason = str(stop) or "stopped"
        raise Interrupted(f"{reason}. To go on: {resume_command(folder)}") from None
    except Exception as error:
        if (refusal := file_refusal(error)) is None or not has_checkpoint(folder):
            raise
        raise TrainingError(f"{refusal}; a checkpoint is kept. Once it can: {resume_command(folder)}") from error


def run_folder(config: RunConfig, resume: bool) -> Path:
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
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file, and nothing is overwritten. Fix: another --out")
        if folder.exists() and not _is_free(folder):
            unfinished = has_checkpoint(folder) and not (folder / INFO_FILE).exists()
            other = " or --resume to go on with the unfinished run there" if unfinished else ""
            raise ConfigError(f"{folder} is not empty, and nothing is overwritten. Fix: another --out{other}")
        return folder
    named = "-".join(config.tasks)[:64] if config.tasks else config.data.train or "run"
    stem = Path(named).stem.replace(":", "-") or "run"
    return free_folder(Path("runs") / stem)


def _is_free(folder: Path) -> bool:
    """Whether nothing would be lost: the folder is empty, or a run stopped in it before it had a checkpoint."""
    names = {path.name for path in folder.iterdir()}
    return not names or names == {CONFIG_FILE, LOG_FILE, METRICS_FILE}


def free_folder(stem: Path) -> Path:
    """`stem`, or the first of `stem-2`, `stem-3`, … that is not there."""
    if not stem.exists():
        return stem
    return next(folder for number in range(2, 10_000) if not (folder := stem.with_name(f"{stem.name}-{number}")).exists())


def open_folder(folder: Path, config: RunConfig, resume: bool) -> None:
    """Make a run's folder and write its configuration; what an earlier start left there goes, unless it goes on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            for name in (LOG_FILE, METRICS_FILE):
                (folder / name).unlink(missing_ok=True)
        write_text(folder / CONFIG_FILE, config_text(config))
    except OSError as error:
        raise ConfigError(f"cannot write the run folder {folder}: {error.strerror}. Fix: another --out") from None


def as_before(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with the precision of the run that goes on: a timing may come out otherwise today."""
    if config.training.precision != "auto":
        return config
    earlier = load_run_config(folder / CONFIG_FILE).training.precision
    return config.model_copy(update={"training": config.training.model_copy(update={"precision": earlier})})


def prepare(config: RunConfig, folder: Path, material: Material) -> Setting:
    """Base, tokenizer, model and encoded texts; the configuration with every `auto` replaced by what it came to."""
    _check_metric(config.evaluation.metric, material.task)
    precision = precision_of(config)
    base = find_base(config.base)
    limit = max_positions(load_config(base))
    if limit is not None and (added := method_of(config).tokens(method_plan(config))):
        limit -= added
    if limit is not None and config.data.max_length > limit:
        raise ConfigError(
            f"data.max_length: {config.data.max_length} is more than the {limit} tokens that {config.base} can take. "
            f"Fix: --max-length {limit}"
        )
    tokenizer = load_tokenizer(base)
    task, labels = material.task, material.labels
    prompt = prompt_of(config, tokenizer, task, labels, pair=material.pair)
    splits = {
        name: encode_split(examples, tokenizer, config.data.max_length, task, labels, prompt)
        for name, examples in material.examples.items()
    }
    model = make_model(config, base, len(labels), precision, prompt)
    config = resolved(config, prompt).model_copy(
        update={
            "task": task.name,
            "pooling": model.plan.pooling,
            "out": str(folder),
            "training": settle(config, len(splits["train"])).model_copy(update={"precision": precision.name}),
        }
    )
    return Setting(config, folder, material, base, fingerprint(base), tokenizer, model, splits, precision, prompt)


def _check_metric(metric: str, task: Task) -> None:
    if metric == "subset_accuracy" and task.name == "single_label":
        raise ConfigError("evaluation.metric: subset_accuracy is for multi-label tasks. Fix: accuracy")


def _identity(setting: Setting) -> dict[str, Any]:
    """What must not change between the parts of a resumed run."""
    lengths = setting.splits["train"].texts.lengths
    plan = describe_plan(lengths, settle(setting.config, len(lengths)).batch_size, setting.config.seed)
    return {
        "configuration": lasting(setting.config),
        "data": files_of(setting),
        "labels": list(setting.material.labels),
        "base": setting.base_fingerprint,
        "batch plan": f"{plan} tokens={lengths.sum()}",
    }


def lasting(config: RunConfig) -> dict[str, Any]:
    """What of a configuration must not change between the parts of a run; of its files the content counts, not the place."""
    places = {"train", "dev", "test", "corrections"}
    tree = config.model_dump(
        mode="json",
        exclude={
            "out": True,
            "base": True,
            "evaluation": {"bootstrap", "baseline", "calibrate"},
            "training": {"checkpoint_every"},
            "data": places,
            "tasks": {"__all__": {"data": places}},
        },
    )
    return {key: value for key, value in tree.items() if key not in unused_keys(config)}


def files_of(setting: Setting) -> dict[str, Any]:
    """What must not change of a run's files, by split."""
    return {
        name: {"file": getattr(setting.config.data, name), "rows": setting.material.rows[name], "fingerprint": found}
        for name, found in setting.material.fingerprints.items()
    }


def _announce(setting: Setting, tracker: Tracker) -> None:
    """What will be trained on what, before it starts."""
    model = setting.model
    announce_base(setting, tracker)
    announce_texts(setting, tracker)
    if setting.prompt is not None:
        for line in describe(setting.prompt, setting.material.labels, setting.tokenizer, setting.splits["train"].texts):
            tracker.say(line)
    if (few := few_steps(setting.config, len(setting.splits["train"]))) is not None:
        tracker.say(few)
    tracker.show(parameter_table(model, setting.config.method))
    tracker.say(f"if it stops: {resume_command(setting.folder)}")  # said now, as a run that is killed says nothing


def announce_base(setting: Setting, tracker: Tracker) -> None:
    """What the base is, and what it computes in."""
    model = setting.model
    tracker.say(f"base: {setting.base.description}")
    tracker.say(f"precision: {setting.precision.name} ({setting.precision.reason}); {_threads(torch.get_num_threads())}")
    if frozen := lora.frozen_elements(model):
        tracker.say(f"base precision: {frozen:,} weights of the base in {setting.config.base_precision}")
    if model.padding_reason is not None:
        tracker.say(f"texts are padded: {model.padding_reason}")


def announce_texts(setting: Setting, tracker: Tracker) -> None:
    """What it will be trained on, and what is odd about it."""
    splits = setting.splits
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    tracker.say(f"data: {sizes} texts; {len(setting.material.labels)} labels, {setting.material.task.name}")
    if setting.material.corrected:
        tracker.say(f"{setting.material.corrected:,} training rows have labels of {setting.config.data.corrections}")
    if setting.material.warnings:
        tracker.say(render_problems(setting.material.warnings))
    for name, split in splits.items():
        if split.texts.cut:
            share = split.texts.cut / len(split)
            tracker.say(
                f"{name}: {split.texts.cut:,} texts ({share:.1%}) are longer than {setting.config.data.max_length} tokens and cut"
            )


def few_steps(config: RunConfig, texts: int) -> str | None:
    """A word on a run over so many texts that is too short to learn much."""
    free = TrainingConfig(**config.training.model_dump() | {"epochs": "auto"})
    given, advised = settle(config, texts), settle(config.model_copy(update={"training": free}), texts)
    batches = math.ceil(texts / given.batch_size)
    steps = math.ceil(batches / given.gradient_accumulation) * given.epochs
    if steps >= FEW_STEPS or advised.epochs <= given.epochs:
        return None
    return f"{steps} steps are few to learn from: training.epochs: auto would make {advised.epochs} epochs, not {given.epochs}"


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def parameter_table(model: Classifier, method: str) -> Table:
    """What is trained of a model, and its share."""
    counts = lora.count_parameters(model)
    others = "other trained" if method == "lora" else METHODS[method].trains
    head = sum(model.trainable()[name].numel() for name in model.head_parameters())
    table = Table(title="Parameters", title_justify="left")
    table.add_column("part")
    table.add_column("number", justify="right")
    table.add_column("share", justify="right")
    rows = {
        f"LoRA, {len(lora.adapted_layers(model))} layers": counts.lora,
        "head": head,
        others: counts.trainable - counts.lora - head,
        "trained": counts.trainable,
        "all": counts.total,
    }
    for name, number in rows.items():
        if number or name == "head":
            table.add_row(name, f"{number:,}", f"{number / counts.total:.2%}", end_section=name == others)
    return table
