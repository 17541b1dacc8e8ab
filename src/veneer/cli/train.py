"""`veneer train`"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veneer.cli import flags
from veneer.cli.output import print_commands, print_lines, results
from veneer.config import DataConfig, RunConfig
from veneer.config_file import config_to_resume, load_config
from veneer.errors import Interrupted

if TYPE_CHECKING:
    from veneer.training import TrainingResult


def train(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(metavar="RUN.yaml", help="configuration", show_default=False)] = None,
    train: flags.Train = None,
    dev: flags.Dev = None,
    test: flags.Test = None,
    corrections: flags.Corrections = None,
    text: flags.Text = None,
    pair: flags.Pair = None,
    label: flags.Label = None,
    label_separator: flags.LabelSeparator = None,
    label_names: flags.LabelNames = None,
    max_length: flags.MaxLength = None,
    encoding: flags.Encoding = None,
    base: flags.Base = None,
    base_precision: flags.BasePrecision = None,
    task: flags.Task = None,
    pooling: flags.Pooling = None,
    method: flags.Method = None,
    template: flags.Template = None,
    length_normalised: flags.LengthNormalised = None,
    preset: flags.Preset = None,
    rank: flags.Rank = None,
    alpha: flags.Alpha = None,
    dropout: flags.Dropout = None,
    epochs: flags.Epochs = None,
    batch_size: flags.BatchSize = None,
    learning_rate: flags.LearningRate = None,
    precision: flags.Precision = None,
    metric: flags.Metric = None,
    out: flags.Out = None,
    seed: flags.Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the unfinished run in --out")] = False,
    settings: flags.Set = None,
) -> None:
    """Train a classifier on a file of labelled texts."""
    overrides = flags.overrides_of(context.params, settings)
    source = config_to_resume(overrides) if resume and config is None else config
    run = load_config(source, overrides)

    if run.tasks is None:
        _show(train_or_stop(run, resume=resume), run.data)
        return
    for name, result in train_tasks_or_stop(run, resume=resume).items():
        results().rule(f"task {name}", align="left")
        _show(result, run.tasks[name].data)


def _show(result: TrainingResult, data: DataConfig) -> None:
    """What a run came to, and what to do with it."""
    from veneer.cli.scores import print_evaluation, print_findings

    console = results()
    for split, evaluation in result.evaluations.items():
        print_evaluation(console, evaluation, name=split)
    print_findings(console, result.verdict, result.diagnosis)
    print_lines(console, f"Run folder: {result.folder}", f"One page to read: {result.folder / 'report.html'}")
    example = ["--text", "your text", *(["--pair", "its pair"] if data.pair is not None else [])]
    commands: list[list[object]] = [
        ["veneer", "predict", result.folder, *example],
        ["veneer", "predict", result.folder, "--interactive"],
        ["veneer", "evaluate", result.folder, "--data", data.test or data.dev or "FILE"],
        ["veneer", "report", result.folder, "--open"],
        ["veneer", "compare", result.folder, "--baselines"],
    ]
    print_commands(console, "Next", commands)


def train_or_stop(config: RunConfig, *, resume: bool = False) -> TrainingResult:
    """Train; where the person stops the run, say how to go on and end the command with 1."""
    from veneer import training

    with _told_when_stopped():
        return training.train(config, resume=resume)


def train_tasks_or_stop(config: RunConfig, *, resume: bool = False) -> dict[str, TrainingResult]:
    """As `train_or_stop`, of several tasks."""
    from veneer import training

    with _told_when_stopped():
        return training.train_tasks(config, resume=resume)


@contextmanager
def _told_when_stopped() -> Iterator[None]:
    try:
        yield
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise typer.Exit(1) from None
