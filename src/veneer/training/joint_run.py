"""A run of several tasks: from one configuration to one run folder a task, each verified as any other.

`train_tasks` is the page to read. A task is an ordinary run in all but the training: it is read, prepared and finished by the
same code, from the configuration that `task_config` gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from veneer.config import DataConfig, RunConfig, TrainingConfig, settle
from veneer.errors import ConfigError, DataError
from veneer.joint import JointClassifier
from veneer.packing import describe_mixture, task_shares
from veneer.run_info import resume_command
from veneer.training.checkpoint import Checkpoints, Progress
from veneer.training.finish import Setting, TrainingResult, finish
from veneer.training.joint_job import JointJob
from veneer.training.loop import fit
from veneer.training.prepare import Material, read_material
from veneer.training.run import (
    announce_base,
    announce_texts,
    as_before,
    few_steps,
    files_of,
    how_to_go_on,
    lasting,
    open_folder,
    parameter_table,
    prepare,
    run_folder,
)
from veneer.training.setup import make_job
from veneer.training.tracking import Tracker


def train_tasks(config: RunConfig, *, resume: bool = False, console: Console | None = None) -> dict[str, TrainingResult]:
    """Train the tasks of a configuration in one pass of the base a step, and leave a run folder for each in `config.out`.

    Args:
        resume: go on from the newest checkpoint in `config.out`.
        console: where progress is shown; standard error by default.

    Returns:
        Name of a task -> its finished run.

    Raises:
        VeneerError: as `train`; what is wrong with the files of all tasks is told at once.
    """
    console = console or Console(stderr=True)
    _check(config)
    folder = run_folder(config, resume)
    materials = _read_all(config)
    if resume:
        config = as_before(config, folder)
    config, settings = _prepare_all(config, folder, materials)
    job = _joint_job(config, settings)
    checkpoints = Checkpoints(folder, _identity(config, settings, job))
    if resume:
        checkpoints.check()  # before anything in the folder is touched
    open_folder(folder, config, resume)
    with Tracker(folder, console, keep=resume) as tracker:
        _announce(config, settings, job, tracker)
        with how_to_go_on(folder):
            progress = fit(job, checkpoints, tracker, resume=resume)
            results = {name: _finish(name, setting, job, progress, tracker, console) for name, setting in settings.items()}
    checkpoints.remove()
    return results


def task_config(config: RunConfig, name: str) -> RunConfig:
    """The configuration of one task by itself."""
    task = (config.tasks or {})[name]
    training, evaluation = config.training, config.evaluation
    if task.class_weights is not None:
        training = training.model_copy(update={"class_weights": task.class_weights})
    if task.metric is not None:
        evaluation = evaluation.model_copy(update={"metric": task.metric})
    own = {"task": task.task, "data": task.data, "training": training, "evaluation": evaluation}
    return config.model_copy(update={**own, "tasks": None, "sampling_temperature": 1.0})


def _check(config: RunConfig) -> None:
    """Refuse what a run of several tasks does not do, all of it at once."""
    tasks, lora = config.tasks or {}, config.lora
    problems = [
        f"{key}: each of the tasks has its own. Fix: tasks.{next(iter(tasks))}.{key} instead, and no flag for it"
        for key in _given_at_the_top(config)
    ]
    problems += [
        f"tasks.{name}.data.train: no training file. Fix: the file's path" for name, task in tasks.items() if not task.data.train
    ]
    beyond = {
        "method": config.method != "lora",
        "verbaliser.template": config.verbaliser.template is not None,
        "base_precision": config.base_precision != "auto",
        "lora.dora": lora.dora,
        "lora.init": lora.init != "standard",
        "lora.bias": lora.bias != "none",
        "lora.train_top_layers": lora.train_top_layers > 0,
        "lora.train_embeddings": lora.train_embeddings,
    }
    problems += [
        f"{key}: several tasks in one pass are trained by plain LoRA, with heads, over a frozen base. Fix: leave that out, "
        "or train one run a task"
        for key, asked in beyond.items()
        if asked
    ]
    if isinstance(config.training.class_weights, dict):
        problems.append("training.class_weights: the tasks have other labels. Fix: tasks.NAME.class_weights, or balanced")
    if problems:
        raise ConfigError("the tasks cannot be trained\n  " + "\n  ".join(problems))


def _given_at_the_top(config: RunConfig) -> list[str]:
    """The keys at the top that belong to a task."""
    plain, given = DataConfig().model_dump(), config.data.model_dump()
    keys = [f"data.{key}" for key, value in given.items() if value != plain[key]]
    return [*keys, *(["task"] if config.task != "auto" else [])]


def _read_all(config: RunConfig) -> dict[str, Material]:
    """The files of all tasks, or one error that tells what is wrong with all of them."""
    materials: dict[str, Material] = {}
    errors: list[tuple[str, ConfigError | DataError]] = []
    for name in config.tasks or {}:
        try:
            materials[name] = read_material(task_config(config, name))
        except (ConfigError, DataError) as error:
            errors.append((name, error))
    if errors:
        kind = ConfigError if all(isinstance(error, ConfigError) for _, error in errors) else DataError
        told = [f"task {name}: {error}" for name, error in errors]
        if "--" in "".join(told):
            told.append("A task has no flags: what is told of --text is tasks.NAME.data.text, and so on")
        raise kind("\n".join(told))
    return materials


def _prepare_all(config: RunConfig, folder: Path, materials: Mapping[str, Material]) -> tuple[RunConfig, dict[str, Setting]]:
    """Every task as its own run prepares it; and the configuration with every `auto` that is the same for all settled."""
    texts = sum(len(material.examples["train"]) for material in materials.values())
    training = TrainingConfig(**settle(config, texts).model_dump())
    config = config.model_copy(update={"out": str(folder), "training": training})
    settings: dict[str, Setting] = {}
    for name, material in materials.items():
        setting = settings[name] = prepare(task_config(config, name), folder / name, material)
        # one precision and one pooling: a timing could come out otherwise the next time
        found = {"training": config.training.model_copy(update={"precision": setting.precision.name})}
        config = config.model_copy(update={**found, "pooling": setting.config.pooling})
    return config, settings


def _joint_job(config: RunConfig, settings: Mapping[str, Setting]) -> JointJob:
    model = JointClassifier({name: setting.model for name, setting in settings.items()})
    jobs = {}
    for name, one in settings.items():
        material, splits = one.material, one.splits
        jobs[name] = make_job(
            one.model, one.config, material.task, material.labels, splits["train"], splits["dev"], one.precision
        )
    first = next(iter(jobs.values()))
    return JointJob(model, jobs, first.settings, config.sampling_temperature, config.seed, first.scaler)


def _identity(config: RunConfig, settings: Mapping[str, Setting], job: JointJob) -> dict[str, Any]:
    """What must not change between the parts of a resumed run."""
    lengths = [one.lengths for one in job.jobs.values()]
    plan = describe_mixture(lengths, job.settings.batch_size, job.temperature, job.seed)
    return {
        "configuration": lasting(config),
        "data": {f"{name} {split}": found for name, one in settings.items() for split, found in files_of(one).items()},
        "labels": {name: list(setting.material.labels) for name, setting in settings.items()},
        "base": next(iter(settings.values())).base_fingerprint,
        "batch plan": f"{plan} tokens={job.lengths.sum()}",
    }


def _announce(config: RunConfig, settings: Mapping[str, Setting], job: JointJob, tracker: Tracker) -> None:
    """What will be trained on what, before it starts."""
    first = next(iter(settings.values()))
    announce_base(first, tracker)
    counts = [len(one.train) for one in job.jobs.values()]
    for (name, setting), share in zip(settings.items(), task_shares(counts, job.temperature), strict=True):
        tracker.say(f"task {name}: {share:.1%} of the texts of a step, {job.quotas[name]:,} an epoch")
        announce_texts(setting, tracker)
        tracker.show(parameter_table(setting.model, config.method))
    if (few := few_steps(config, len(job.lengths))) is not None:
        tracker.say(few)
    tracker.say(f"if it stops: {resume_command(Path(config.out or ''))}")


def _finish(name: str, setting: Setting, job: JointJob, progress: Progress, tracker: Tracker, console: Console) -> TrainingResult:
    """Score, save and verify one task in its folder, whose log and metrics are the task's part of the run's."""
    open_folder(setting.folder, setting.config, resume=False)
    with Tracker(setting.folder, console) as own:
        own.say(f"task {name}, trained together with {len(job.jobs) - 1} more: best step {progress.tasks[name].best_step}")
        for row in job.history_of(name, tracker.history):
            own.record(row)
        return finish(setting, job.jobs[name], job.progress_of(name, progress), own)
