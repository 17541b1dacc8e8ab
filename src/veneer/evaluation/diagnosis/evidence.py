"""What a diagnosis is made from: the texts of a split, what a model said of them, and how its training went.

Knows arrays and label names; knows nothing of models or files, and draws no conclusion.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.config import METHOD_SETTINGS
from veneer.evaluation.calibration import Rule
from veneer.tasks import TaskName

MOST_LABELS = 100  # are looked at one by one
CELLS_AT_ONCE = 4_000_000  # of an [N,C] array that are copied to float64: 32 MB
MOST_CHARACTERS = 500  # of a text that is shown

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """N labelled texts, what was said of them, and the training behind it.

    Attributes:
        labels: C names.
        logits: `[N,C]`, uncalibrated and finite.
        probabilities: `[N,C]`, calibrated if there is a calibration.
        targets: `[N]` class ids, or `[N,C]` 0/1 of a multi-label task.
        decisions: the same form.
        texts: N; `pairs` are their second texts or None, `rows` their 1-based rows in the file.
        lengths: `[N]` tokens.
        cut: `[N]`, whether a text was longer than what the model read.
        train_texts: every text of training (and every second text).
        train_counts: `[C]` training texts of each label.
        history: rows of `metrics.jsonl`; those of the kind `evaluation` are read.
        rule: what fitting a decision rule to these texts found, on parts held out from the fit; None where nobody looked.
        ruled: whether `decisions` follow the rule that was kept, and not the plain one.
        columns: name of another column -> its N values.
        split: the name of the N texts.
        settings: dotted keys of the shape of what was trained, which advice may name.
    """

    task: TaskName
    labels: Sequence[str]
    logits: NDArray[Any]
    probabilities: NDArray[Any]
    targets: NDArray[Any]
    decisions: NDArray[Any]
    texts: Sequence[str]
    pairs: Sequence[str] | None
    rows: Sequence[int]
    lengths: NDArray[Any]
    cut: NDArray[Any]
    train_texts: Sequence[str]
    train_counts: NDArray[Any]
    history: Sequence[Mapping[str, Any]]
    rule: Rule | None = None
    ruled: bool = False
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    split: str = "dev"
    settings: Collection[str] = METHOD_SETTINGS["lora"]

    def __post_init__(self) -> None:
        shape = (len(self.texts), len(self.labels))
        of_targets = shape if self.multi_label else shape[:1]
        arrays = {"logits": shape, "probabilities": shape, "targets": of_targets, "decisions": of_targets}
        arrays |= {"lengths": shape[:1], "cut": shape[:1], "train_counts": shape[1:]}
        wrong = [
            f"{name} {getattr(self, name).shape}" for name, expected in arrays.items() if getattr(self, name).shape != expected
        ]
        lists = {"pairs": self.pairs, "rows": self.rows, **self.columns}
        wrong += [f"{name} ({len(one)},)" for name, one in lists.items() if one is not None and len(one) != shape[0]]
        if wrong or 0 in shape:
            raise ValueError(f"{shape[0]} texts and {shape[1]} labels do not go with {', '.join(wrong) or 'each other'}")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def multi_label(self) -> bool:
        """Whether a text has any number of labels."""
        return self.task == "multi_label"

    @cached_property
    def right(self) -> Bools:
        """`[N]`: whether the decision on a text is right as a whole."""
        if not self.multi_label:
            return np.asarray(self.targets == self.decisions)
        same = self.targets.astype(bool) == self.decisions.astype(bool)
        return np.asarray(same.all(axis=1))

    def names(self, which: NDArray[Any], text: int) -> list[str]:
        """The names of the labels that `which` (`targets` or `decisions`) holds for a text."""
        ids = np.flatnonzero(which[text]) if self.multi_label else [which[text]]
        return [self.labels[int(i)] for i in ids]

    def shown(self, text: int) -> dict[str, Any]:
        """`row`, `text` and `pair` of a text, cut to what is read at a glance."""
        pair = None if self.pairs is None else _shortened(self.pairs[text])
        return {"row": int(self.rows[text]), "text": _shortened(self.texts[text]), "pair": pair}


@dataclass(frozen=True, eq=False)
class Labelwise:
    """The labels one by one: all C, or the `MOST_LABELS` that most texts have.

    Attributes:
        ids: `[K]` increasing.
        truth: `[N,K]`, whether a text has the label.
        decided: `[N,K]`, whether it was given the label.
        scores: `[N,K]` by which texts are ranked for a label: its logit; its lead over the other of two classes; or the logarithm
            of its softmax among more of them. Uncalibrated: ranks do not depend on it, and it never runs into a bound.
    """

    ids: Ids
    truth: Bools
    decided: Bools
    scores: Floats

    @cached_property
    def support(self) -> Ids:
        """`[K]` texts that have the label."""
        return np.asarray(self.truth.sum(axis=0, dtype=np.int64))


def labelwise(evidence: Evidence) -> Labelwise:
    """The labels of the evidence one by one."""
    classes = len(evidence.labels)
    counts = (
        evidence.targets.astype(bool).sum(axis=0) if evidence.multi_label else np.bincount(evidence.targets, minlength=classes)
    )
    ids = np.sort(np.argsort(-counts, kind="stable")[:MOST_LABELS])
    if evidence.multi_label:
        truth, decided = evidence.targets[:, ids].astype(bool), evidence.decisions[:, ids].astype(bool)
    else:
        truth, decided = evidence.targets[:, None] == ids, evidence.decisions[:, None] == ids
    return Labelwise(ids, truth, decided, _scores(evidence, ids))


def parts(rows: int, columns: int) -> Iterator[slice]:
    """The rows of a `[rows, columns]` array, so many at a time as may be copied."""
    step = max(1, CELLS_AT_ONCE // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def _scores(evidence: Evidence, ids: Ids) -> Floats:
    logits = evidence.logits
    chosen = logits[:, ids].astype(np.float64)
    if evidence.multi_label or len(evidence.labels) == 1:
        return chosen
    if len(evidence.labels) == 2:
        return chosen - chosen[:, ::-1]
    for rows in parts(*logits.shape):
        z = logits[rows].astype(np.float64)
        top = z.max(axis=1, keepdims=True)
        chosen[rows] -= top + np.log(np.exp(z - top).sum(axis=1, keepdims=True))
    return chosen


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
