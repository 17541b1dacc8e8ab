"""Logits of every row by a model that was not trained on it: K folds, each with a fresh adapter on a clean base.

A fold is trained as `veneer train` trains without a dev file: a part of the *other* folds is split off, and picks the best
step. The rows held out have no part in it. Folds that are done are kept in one file, so that an audit which was stopped goes
on; a fold depends on nothing but the settings and its rows, so it goes on to the same result.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from veneer.bases import BaseLocation, fingerprint, load_tokenizer
from veneer.config import RunConfig
from veneer.data import Example, split_examples
from veneer.data import fingerprint as data_fingerprint
from veneer.data.folds import assign_folds
from veneer.durable import sync_files, sync_folder
from veneer.errors import DataError, Interrupted, ResumeError
from veneer.inference import compute_logits
from veneer.labels import LabelSet
from veneer.tasks import Task
from veneer.training.checkpoint import Checkpoints
from veneer.training.loop import fit
from veneer.training.prepare import encode_split
from veneer.training.setup import make_job, make_model, precision_of
from veneer.training.tracking import Tracker
from veneer.training.verbaliser import prompt_of
from veneer.training.weights import load_trained

_NEVER = 2**62  # steps between checkpoints: a fold that is stopped begins anew


@dataclass(frozen=True)
class FoldedTraining:
    """What is trained K times.

    Attributes:
        config: the settings; its files and its output folder play no part.
        examples: the N rows.
        folds: K.
    """

    config: RunConfig
    examples: tuple[Example, ...]
    task: Task
    labels: LabelSet
    base: BaseLocation
    folds: int

    def identity(self) -> str:
        """sha256 (hex) of everything that decides the logits."""
        decisive = {"pooling", "verbaliser", "method", "base_precision", "lora", "tuning", "training", "seed"}
        config = self.config.model_dump(mode="json", include=decisive, exclude_none=True)  # a key to come, unset, changes nothing
        tree = {
            "config": config,
            "metric": self.config.evaluation.metric,
            "max_length": self.config.data.max_length,
            "dev_fraction": self.config.data.dev_fraction,
            "data": data_fingerprint(self.examples),
            "task": self.task.name,
            "labels": list(self.labels),
            "base": fingerprint(self.base),
            "folds": self.folds,
        }
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def out_of_fold_logits(work: FoldedTraining, kept: Path, console: Console) -> Tensor:
    """`[N, C]` float32 logits, each row's by the model of the fold that it was held out of.

    Args:
        kept: file of the finished folds; folds found in it are not trained again. It is left there.
        console: where progress is shown.

    Raises:
        DataError: there are too few rows.
        ResumeError: `kept` is of another training.
        Interrupted: stopped from outside; only the fold in work is lost.
    """
    assigned = assign_folds(work.examples, work.folds, work.config.seed)
    store = _Store(kept, work.identity())
    done = store.read()
    if done:
        _say(console, f"{len(done)} of {work.folds} folds are in {kept}: going on with the others")
    seconds: list[float] = []
    with progress_bar(console, f"{work.folds} folds", work.folds, len(done)) as move:
        for fold in (fold for fold in range(work.folds) if fold not in done):
            start = time.perf_counter()
            try:
                done[fold] = _train_fold(work, assigned != fold, move)
                store.write(done)
            except (Interrupted, KeyboardInterrupt):
                raise Interrupted(_stopped(fold, work.folds, len(done), kept)) from None
            seconds.append(time.perf_counter() - start)
            _say(console, _fold_done(len(done), work.folds, int((assigned == fold).sum()), seconds))
    logits = torch.empty(len(assigned), len(work.labels))
    for fold, some in done.items():
        logits[torch.from_numpy(np.flatnonzero(assigned == fold))] = some
    return logits


def _train_fold(work: FoldedTraining, trained_on: np.ndarray[Any, np.dtype[np.bool_]], move: Callable[[float], None]) -> Tensor:
    """Logits of the rows that are not trained on, in their order; `move` is called with the share of a fold that a step is."""
    config, task, labels = work.config, work.task, work.labels
    rest = [example for example, mine in zip(work.examples, trained_on, strict=True) if mine]
    held_out = [example for example, mine in zip(work.examples, trained_on, strict=True) if not mine]
    train, dev = inner_split(rest, config, work.folds, task.name == "multi_label")
    tokenizer = load_tokenizer(work.base)
    prompt = prompt_of(config, tokenizer, task, labels, pair=rest[0].pair is not None)
    splits = [encode_split(some, tokenizer, config.data.max_length, task, labels, prompt) for some in (train, dev, held_out)]
    precision = precision_of(config)
    quiet = config.model_copy(update={"training": config.training.model_copy(update={"checkpoint_every": _NEVER})})
    model = make_model(config, work.base, len(labels), precision, prompt)
    job = make_job(model, quiet, task, labels, splits[0], splits[1], precision)
    with TemporaryDirectory() as name, _FoldTracker(Path(name), lambda: move(1.0 / job.steps)) as tracker:
        progress = fit(job.with_vectors(tracker), Checkpoints(Path(name), {}), tracker)
    move((job.steps - progress.step) / job.steps)  # those that patience saved
    load_trained(model, progress.best_tensors)
    return compute_logits(model, splits[2].texts)


def inner_split(rest: Sequence[Example], config: RunConfig, folds: int, multi_label: bool) -> tuple[list[Example], list[Example]]:
    """The rows outside a fold, dealt into what a model is trained on and what picks the best of it.

    Raises:
        DataError: they are too few.
    """
    try:
        train, dev, _ = split_examples(rest, (config.data.dev_fraction, 0.0), config.seed, multi_label)
    except DataError:
        raise DataError(
            f"{len(rest)} rows outside a fold are too few: a part of them has to pick the best step. "
            f"Fix: more rows, or data.dev_fraction above {config.data.dev_fraction:g} (now {folds} folds)"
        ) from None
    return train, dev


class _FoldTracker(Tracker):
    """Tells of every step, and shows nothing itself."""

    def __init__(self, folder: Path, moved: Callable[[], None]) -> None:
        super().__init__(folder, Console(file=io.StringIO()))
        self._moved = moved

    def advance(self, row: Mapping[str, Any]) -> None:
        super().advance(row)
        self._moved()


class _Store:
    """Finished folds in one safetensors file, which names what they belong to."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._identity = path, identity

    def read(self) -> dict[int, Tensor]:
        """Fold -> its logits; empty where there is no file."""
        if not self._path.exists():
            return {}
        try:
            with safe_open(self._path, framework="pt") as file:
                belongs = (file.metadata() or {}).get("identity") == self._identity
                done = {int(name): file.get_tensor(name) for name in file.keys()} if belongs else {}  # noqa: SIM118
        except (SafetensorError, OSError):
            belongs = False
        if not belongs:
            raise ResumeError(
                f"{self._path} holds folds of an audit with other data, settings or base. "
                "Fix: the same settings to go on with that one, another --out, or remove the file"
            )
        return done

    def write(self, done: Mapping[int, Tensor]) -> None:
        """Replace the file at once."""
        writing = self._path.with_name(f".{self._path.name}.writing")
        save_file({str(fold): logits.contiguous() for fold, logits in done.items()}, writing, {"identity": self._identity})
        sync_files([writing])
        writing.replace(self._path)
        sync_folder(self._path.parent)


@contextmanager
def progress_bar(console: Console, what: str, total: int, done: int = 0) -> Iterator[Callable[[float], None]]:
    """A live bar with the time left, where the console is a terminal; the block moves it by how much of `total` is done."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda share: bar.advance(task, share)


def _fold_done(done: int, folds: int, texts: int, seconds: Sequence[float]) -> str:
    left = sum(seconds) / len(seconds) * (folds - done)
    more = f", about {_duration(left)} left" if left else ""
    return f"fold {done} of {folds}: {texts:,} texts scored, {_duration(seconds[-1])}{more}"


def _stopped(fold: int, folds: int, done: int, kept: Path) -> str:
    saved = f"{done} finished {'fold is' if done == 1 else 'folds are'} kept in {kept}" if done else "no fold was finished"
    return f"stopped in fold {fold + 1} of {folds}; {saved}. To go on: the same command again"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
