"""Evidence made to order: two normal distributions of logits, and what a test changes about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from veneer.evaluation.calibration import fit_calibration
from veneer.evaluation.diagnosis import Evidence
from veneer.tasks import TASKS

WORDS = "the cat sat on a mat".split()


def binary(n: int = 2000, separation: float = 2.0, *, shift: float = 0.0, positives: float = 0.5, seed: int = 0) -> Evidence:
    """Leads of `yes` drawn from N(±separation, 1) and moved by `shift`; decided by their sign."""
    rng = np.random.default_rng(seed)
    targets = (np.arange(n) < round(positives * n)).astype(np.int64)
    return leads(targets, np.where(targets == 1, separation, -separation) + shift + rng.normal(size=n))


def leads(targets: NDArray[np.int64], lead: NDArray[Any]) -> Evidence:
    """Two classes from the `[N]` leads of the second."""
    logits = np.stack([-lead / 2, lead / 2], axis=1).astype(np.float32)
    return evidence("single_label", ("no", "yes"), logits, targets)


def many(n: int = 2000, classes: int = 5, separation: float = 4.0, seed: int = 0) -> Evidence:
    """Single-label: noise of N(0, 1), and `separation` more for the target."""
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), targets] += separation
    return evidence("single_label", tuple(f"c{i}" for i in range(classes)), logits, targets)


def multi(n: int = 2000, classes: int = 5, separation: float = 2.0, *, shift: float = 0.0, share: float = 0.3) -> Evidence:
    """Multi-label: each label on a `share` of the texts, its logit from N(±separation, 1) and moved by `shift`."""
    rng = np.random.default_rng(0)
    targets = rng.random((n, classes)) < share
    logits = np.where(targets, separation, -separation) + shift + rng.normal(size=targets.shape)
    return evidence("multi_label", tuple(f"c{i}" for i in range(classes)), logits.astype(np.float32), targets)


def evidence(task: str, labels: Sequence[str], logits: NDArray[Any], targets: NDArray[Any]) -> Evidence:
    """Evidence with plain decisions; texts, lengths and history tell nothing."""
    n, multi_label = len(logits), task == "multi_label"
    rng = np.random.default_rng(1)
    return Evidence(
        task="multi_label" if multi_label else "single_label",
        labels=labels,
        logits=logits,
        probabilities=probabilities(logits, multi_label),
        targets=targets,
        decisions=logits > 0 if multi_label else logits.argmax(axis=1),
        texts=[" ".join(WORDS[: 1 + i % len(WORDS)]) for i in range(n)],
        pairs=None,
        rows=list(range(1, n + 1)),
        lengths=rng.integers(5, 40, n),
        cut=np.zeros(n, dtype=bool),
        train_texts=[" ".join(WORDS)],
        train_counts=np.full(len(labels), 1000),
        history=curves(),
    )


def ruled(given: Evidence) -> Evidence:
    """The evidence with the rule that fitting finds, not in force."""
    targets = torch.from_numpy(given.targets.astype(np.float32 if given.multi_label else np.int64))
    logits = torch.from_numpy(given.logits.astype(np.float32))
    return replace(given, rule=fit_calibration(logits, targets, TASKS[given.task], bootstrap=300).rule)


def probabilities(logits: NDArray[Any], multi_label: bool) -> NDArray[Any]:
    if multi_label:
        return 1 / (1 + np.exp(-logits))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def spoil(given: Evidence, members: NDArray[np.bool_], share: float) -> Evidence:
    """Decide a `share` of `members` narrowly wrong, as hard texts are: single-label only."""
    texts = np.flatnonzero(members)
    rng = np.random.default_rng(2)
    texts = texts[rng.random(len(texts)) < share]
    logits = given.logits.copy()
    other = (given.targets[texts] + 1) % len(given.labels)
    logits[texts] -= 5.0
    logits[texts, other] = rng.uniform(0.3, 2.5, len(texts))
    logits[texts, given.targets[texts]] = 0.0
    return replace(given, logits=logits, probabilities=probabilities(logits, False), decisions=logits.argmax(axis=1))


def curves(
    train_loss: Sequence[float] = (0.5, 0.3, 0.25, 0.24),
    dev_loss: Sequence[float] = (0.5, 0.35, 0.3, 0.3),
    train: Sequence[float] = (0.8, 0.9, 0.95, 0.96),
    dev: Sequence[float] = (0.8, 0.9, 0.93, 0.94),
) -> list[dict[str, Any]]:
    """A history of evaluations; by default a healthy one."""
    rows: list[dict[str, Any]] = [{"kind": "step", "step": 1, "loss": 0.7}]
    for i, values in enumerate(zip(train_loss, dev_loss, train, dev, strict=True)):
        row = {"kind": "evaluation", "step": 100 * (i + 1), "epoch": i + 1.0}
        rows.append({**row, "split": "dev", "loss": values[1], "macro_f1": values[3]})
        rows.append({**row, "split": "train", "loss": values[0], "macro_f1": values[2]})
    return rows
