"""Small files that a tiny base can learn, and runs over them; for the tests of training, run folders and predictions."""

from __future__ import annotations

import csv
import io
import json
import random
import signal
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from veneer.config import RunConfig
from veneer.config_file import load_config
from veneer.errors import Interrupted
from veneer.training import TrainingResult, train
from veneer.training.tracking import Tracker

SIGNALS = {"good": ["good", "great", "love", "better"], "bad": ["bad", "poor", "worse", "dull"], "odd": ["why", "how", "when"]}
FILLERS = "a about the film story day work time place people my your it is was we have had on in".split()
TIMINGS = {"texts_per_second", "seconds"}

Rows = list[dict[str, str]]


def toy_rows(count: int, *, labels: Sequence[str] = ("good", "bad"), multi: bool = False, seed: int = 0) -> Rows:
    """Rows of `text` and `label`: a text has a word of each of its labels; multi-label cells are separated by `|`."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        first = labels[number % len(labels)]
        given = [first, *(label for label in labels if label != first and rng.random() < 0.3)] if multi else [first]
        words = rng.choices(FILLERS, k=rng.randint(1, 12)) + [rng.choice(SIGNALS[label]) for label in given]
        rng.shuffle(words)
        rows.append({"text": " ".join(words), "label": "|".join(given)})
    return rows


def write_csv(path: Path, rows: Rows) -> Path:
    """The rows as a CSV file with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def toy_config(folder: Path, base: Path | str, **changes: Any) -> RunConfig:
    """A short run over toy files in `folder` into `folder/run`; `changes` are dotted keys with `__` for the dots."""
    train_file, dev_file = folder / "train.csv", folder / "dev.csv"
    if not train_file.exists():
        write_csv(train_file, toy_rows(42))
        write_csv(dev_file, toy_rows(12, seed=1))
    settings: dict[str, Any] = {
        "base": str(base),
        "data.train": str(train_file),
        "data.dev": str(dev_file),
        "out": str(folder / "run"),
        "lora.rank": 4,
        "training.batch_size": 4,
        "training.epochs": 2,
        "training.learning_rate": 5e-3,
        "training.precision": "fp32",
        "training.base_dropout": 0,  # a tenth of 32 numbers is much to lose
        "evaluation.bootstrap": 0,
    }
    return load_config(None, settings | {key.replace("__", "."): value for key, value in changes.items()})


def run(config: RunConfig, *, resume: bool = False) -> TrainingResult:
    """Train without a word, and without the picture, which takes longer than a toy run."""
    with patch("veneer.training.finish.plot_curves"):
        return train(config, resume=resume, console=Console(file=io.StringIO()))


def run_interrupted(
    config: RunConfig, stops: Collection[int], monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any] = run
) -> tuple[Any, str]:
    """Train with a Ctrl-C at each of these steps, and resume each time; the result, and what the last stop said."""
    advance: Callable[..., None] = Tracker.advance
    said = ""

    def interrupt(self: Tracker, row: dict[str, Any]) -> None:
        advance(self, row)
        if row["step"] in stops:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "advance", interrupt)
        for number in range(len(stops)):
            with pytest.raises(Interrupted) as stop:
                run(config, resume=number > 0)
            said = str(stop.value)
        return run(config, resume=True), said


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` without what differs between equal runs."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMINGS} for line in lines]


def adapter(folder: Path) -> dict[str, Tensor]:
    """The tensors of a run folder's adapter, by PEFT's names."""
    return load_file(folder / "adapter_model.safetensors")


def outcome(folder: Path) -> dict[str, Any]:
    """Everything a run decides: the bytes of its adapters, its rows, its scores; equal for equal runs."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    report["training"] = {key: value for key, value in report["training"].items() if key not in TIMINGS}
    report["history"] = [{key: value for key, value in row.items() if key not in TIMINGS} for row in report["history"]]
    del report["configuration"]["out"]
    weights = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}
    info = [json.loads((place / "veneer.json").read_text(encoding="utf-8")) for place in (folder, folder / "last")]
    return {"weights": weights, "metrics": metrics(folder), "report": report, "info": info}
