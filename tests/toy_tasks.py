"""Two small tasks that a tiny base can learn together, and runs of both."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from toy_runs import toy_rows, write_csv
from veneer.config import RunConfig
from veneer.config_file import load_config
from veneer.training import TrainingResult, train_tasks

MARKS = ("good", "bad", "odd")


def toy_tasks(folder: Path, base: Path | str, **changes: Any) -> RunConfig:
    """A short run of `moods` (two labels, one a text) and `marks` (three, any number a text) into `folder/run`."""
    if not (folder / "moods.csv").exists():
        write_csv(folder / "moods.csv", toy_rows(42))
        write_csv(folder / "moods_dev.csv", toy_rows(24, seed=1))
        write_csv(folder / "marks.csv", toy_rows(20, labels=MARKS, multi=True, seed=2))
        write_csv(folder / "marks_dev.csv", toy_rows(24, labels=MARKS, multi=True, seed=3))
    tasks: dict[str, Any] = {
        name: {"data": {"train": str(folder / f"{name}.csv"), "dev": str(folder / f"{name}_dev.csv")}}
        for name in ("moods", "marks")
    }
    tasks["marks"]["data"]["label_separator"] = "|"
    settings: dict[str, Any] = {
        "base": str(base),
        "tasks": tasks,
        "sampling_temperature": 2.0,
        "out": str(folder / "run"),
        "lora.rank": 4,
        "training.batch_size": 8,
        "training.epochs": 2,
        "training.learning_rate": 5e-3,
        "training.precision": "fp32",
        "training.base_dropout": 0,  # as in toy_runs
        "evaluation.bootstrap": 0,
        "evaluation.baseline": False,
    }
    return load_config(None, settings | {key.replace("__", "."): value for key, value in changes.items()})


def run_tasks(config: RunConfig, *, resume: bool = False) -> dict[str, TrainingResult]:
    """Train without a word, and without the pictures."""
    with patch("veneer.training.finish.plot_curves"):
        return train_tasks(config, resume=resume, console=Console(file=io.StringIO()))
