"""`veneer.train`: a run from keywords instead of a configuration. Knows the names of the keywords; what they do is the
configuration's to say."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypedDict, Unpack

from rich.console import Console

from veneer.config import Column, MethodName, Preset, RunConfig
from veneer.config_file import config_to_resume, expand_short_forms, load_config
from veneer.training.finish import TrainingResult
from veneer.training.joint_run import train_tasks
from veneer.training.run import train as train_config

Source = str | PathLike[str]


class Keywords(TypedDict, total=False):
    """The short forms of the configuration's keys that people use most; `veneer train --help` says what each is."""

    base: Source
    base_precision: str
    task: str
    pooling: str
    train: Source
    dev: Source
    test: Source
    corrections: Source
    text: Column
    pair: Column
    label: Column | list[Column]
    label_separator: str
    label_names: Source | list[str]
    max_length: int
    encoding: str
    method: MethodName
    template: str
    length_normalised: bool
    preset: Preset
    rank: int
    alpha: float
    dropout: float
    epochs: int
    batch_size: int
    learning_rate: float
    precision: str
    metric: str
    out: Source
    seed: int


def train(
    config: Source | RunConfig | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    console: Console | None = None,
    **keywords: Unpack[Keywords],
) -> TrainingResult | dict[str, TrainingResult]:
    """Train an adapter and save it: `train(train="reviews.csv", text="review", label="sentiment", out="runs/reviews")`.

    Args:
        config: a YAML file or a configuration to start from.
        settings: dotted keys of the configuration, such as `{"training.schedule": "cosine"}`; they go before keywords.
        resume: go on from the newest checkpoint in `out`; without `config`, with the configuration saved there.
        console: where progress is shown; standard error by default.
        keywords: see `Keywords`.

    Returns:
        The finished run; of a configuration with `tasks` a run for each, by the task's name.

    Raises:
        VeneerError: a ConfigError for a keyword or value that cannot be used, a DataError that lists what is wrong with the
            files; see `veneer.errors`.
    """
    overrides = {**expand_short_forms(keywords), **(settings or {})}
    if resume and config is None:
        config = config_to_resume(overrides)
    source = config if isinstance(config, RunConfig) or config is None else str(config)
    run = load_config(source, overrides)
    if run.tasks is not None:
        return train_tasks(run, resume=resume, console=console)
    return train_config(run, resume=resume, console=console)
