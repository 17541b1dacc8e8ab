"""Scores of decisions against targets, with bootstrap intervals over texts.

Every score is a function of counts (right, decided and true per class), and the counts of a resample are a product of how often
each outcome was drawn with what that outcome adds. So the point values and the thousand resamples come from one formula; the
definitions are scikit-learn's with `zero_division=0`, and the tests hold the formula against it. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from veneer.errors import DataError

CONFIDENCE = 0.95
MOST_DRAWS_AT_ONCE = 4_000_000  # resamples x outcomes, and resamples x classes, held in memory: 32 MB
MOST_IN_MATRIX = 200  # classes beyond which a confusion matrix is not written out: nearly all of it is zeros

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A score and its 95 % percentile bootstrap interval over texts; `low` and `high` are None without resamples."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class ClassScore:
    """The scores of one class; `support` texts have it, `predicted` texts were given it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of decisions on N texts.

    Attributes:
        n: N.
        metrics: scores by name. Always `accuracy`, `macro_f1`, `micro_f1`, `weighted_f1`, `macro_precision`, `macro_recall`;
            for multi-label also `subset_accuracy` and `hamming_loss`. `accuracy` of a multi-label task *is* the subset accuracy:
            the share of texts with every label right.
        per_class: the C classes in the order of their ids.
        confusion: `[C,C]`, rows are targets and columns decisions, None of more than `MOST_IN_MATRIX` classes; for multi-label
            `[C,2,2]`, each `[[true negative, false positive], [false negative, true positive]]`.
        confused: single-label: target, decision and number of texts of each wrong decision, the most frequent first.
    """

    n: int
    multi_label: bool
    metrics: dict[str, Interval]
    per_class: tuple[ClassScore, ...]
    confusion: NDArray[np.int64] | None
    confused: tuple[tuple[int, int, int], ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """The C names in the order of `confusion`."""
        return tuple(item.label for item in self.per_class)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: `n`, `metrics`, `intervals` (empty without resamples), `per_class`, `confusion`."""
        fields = ClassScore.__slots__
        matrix = None if self.confusion is None else self.confusion.tolist()
        return {
            "n": self.n,
            "metrics": {name: score.value for name, score in self.metrics.items()},
            "intervals": {name: [score.low, score.high] for name, score in self.metrics.items() if score.low is not None},
            "per_class": [{field: getattr(item, field) for field in fields} for item in self.per_class],
            "confusion": {"labels": list(self.label_names), "matrix": matrix},
        }


def score(
    targets: ArrayLike,
    decisions: ArrayLike,
    label_names: Sequence[str],
    *,
    multi_label: bool,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score decisions against targets.

    Macro scores are what scikit-learn gives by default. Multi-label: means over all C classes; one that is neither in the file
    nor ever decided counts as 0. Single-label: means over the classes that occur in the targets or the decisions; another one is
    still listed in `per_class`, with zeros, but neither helps nor hurts. The classes of a mean are the same in every resample:
    one that a resample happens to miss counts as 0 there, for of such a class these texts say next to nothing.

    Args:
        targets: `[N]` class ids; for multi-label `[N,C]` 0/1.
        decisions: the same shape.
        label_names: C names.
        bootstrap: resamples of the N texts behind each interval; 0 for no intervals.
        seed: of the resamples.

    Raises:
        DataError: there is no text to score.
        ValueError: the shapes do not belong together, or an id is not below C.
    """
    outcomes = Outcomes.of(targets, decisions, len(label_names), multi_label)
    counts = outcomes.count(outcomes.times[None, :])
    point = metrics_of(counts, multi_label)
    intervals = _bootstrap(outcomes, multi_label, bootstrap, seed) if bootstrap else {}
    return Evaluation(
        n=outcomes.n,
        multi_label=multi_label,
        metrics={name: Interval(float(value[0]), *intervals.get(name, ())) for name, value in point.items()},
        per_class=_per_class(counts, label_names),
        confusion=_per_label_confusion(counts, outcomes.n) if multi_label else outcomes.confusion(),
        confused=() if multi_label else outcomes.confused(),
    )


def point_metrics(targets: ArrayLike, decisions: ArrayLike, n_classes: int, multi_label: bool) -> dict[str, float]:
    """The values of `score(...).metrics` alone, without intervals: cheap enough for every evaluation of a training.

    Raises:
        DataError: there is no text to score.
        ValueError: the shapes do not belong together, or an id is not below `n_classes`.
    """
    outcomes = Outcomes.of(targets, decisions, n_classes, multi_label)
    scores = metrics_of(outcomes.count(outcomes.times[None, :]), multi_label)
    return {name: float(value[0]) for name, value in scores.items()}


@dataclass(frozen=True)
class Counts:
    """Counts of R resamples: `right`, `decided` and `true` are `[R,C]`, `exact` (texts with all right) and `texts` are `[R]`.

    `averaged` is `[C]`, the classes that single-label means over classes are of, whatever a resample holds.
    """

    right: Floats
    decided: Floats
    true: Floats
    exact: Floats
    texts: Floats
    averaged: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The K distinct (target, decision) pairs among N texts, as sparse `[K,C]` 0/1; `times` is `[K]`, how often each occurs.

    Texts with the same outcome are interchangeable, so that resampling texts is drawing from a multinomial over outcomes.
    """

    targets: sparse.csr_array
    decisions: sparse.csr_array
    times: NDArray[np.int64]

    @classmethod
    def of(cls, targets: ArrayLike, decisions: ArrayLike, n_classes: int, multi_label: bool) -> Outcomes:
        """The outcomes of targets and decisions.

        Raises:
            DataError: there is no text to score.
            ValueError: the shapes do not belong together, or an id is not below `n_classes`.
        """
        true, decided = np.asarray(targets), np.asarray(decisions)
        if len(true) == 0:
            raise DataError("there is no text to score: the data has no rows")
        shape = (len(true), n_classes) if multi_label else (len(true),)
        if true.shape != shape or decided.shape != shape:
            raise ValueError(f"targets {true.shape} and decisions {decided.shape} must both have the shape {shape}")
        if not multi_label and (min(true.min(), decided.min()) < 0 or max(true.max(), decided.max()) >= n_classes):
            raise ValueError(f"class ids must be from 0 to {n_classes - 1}")
        (both,), times = joint_outcomes(true, [decided], n_classes)
        return cls(*both, times)

    @property
    def n(self) -> int:
        """N, how many texts there are."""
        return int(self.times.sum())

    def count(self, times: NDArray[np.int64]) -> Counts:
        """The counts when each outcome occurs `times` `[R,K]` times."""
        occurring = self.targets.sum(axis=0) + self.decisions.sum(axis=0) > 0
        weights = times.astype(np.float64)  # BLAS has no integer product; counts below 2^53 are exact
        return Counts(
            right=weights @ self.targets.multiply(self.decisions),
            decided=weights @ self.decisions,
            true=weights @ self.targets,
            exact=weights @ (np.asarray((self.targets != self.decisions).sum(axis=1)) == 0),
            texts=weights.sum(axis=1),
            averaged=np.asarray(occurring),
        )

    def confusion(self) -> NDArray[np.int64] | None:
        """`[C,C]` of single labels: rows are targets, columns decisions; None of more than `MOST_IN_MATRIX` classes."""
        n_classes = self.targets.shape[1]
        if n_classes > MOST_IN_MATRIX:
            return None
        matrix = np.zeros((n_classes, n_classes), dtype=np.int64)
        matrix[self.targets.indices, self.decisions.indices] = self.times
        return matrix

    def confused(self) -> tuple[tuple[int, int, int], ...]:
        """Target, decision and number of texts of each wrong decision on single labels, the most frequent first."""
        cells = np.stack([self.targets.indices, self.decisions.indices, self.times], axis=1)
        cells = cells[cells[:, 0] != cells[:, 1]]
        return tuple(map(tuple, cells[np.argsort(-cells[:, 2], kind="stable")].tolist()))


def joint_outcomes(
    targets: NDArray[Any], decisions: Sequence[NDArray[Any]], n_classes: int
) -> tuple[list[tuple[sparse.csr_array, sparse.csr_array]], NDArray[np.int64]]:
    """The K distinct rows of targets and one or more sets of decisions, and how often each occurs, `[K]`.

    Args:
        targets: `[N]` class ids, or `[N,C]` 0/1; each of `decisions` the same.

    Returns:
        For each set of decisions the `[K,C]` 0/1 targets and decisions.
    """
    if targets.ndim == 2:
        flags = [np.asarray(one).astype(bool) for one in (targets, *decisions)]
        packed = np.concatenate([np.packbits(one, axis=1) for one in flags], axis=1)
        _, firsts, times = np.unique(packed, axis=0, return_index=True, return_counts=True)
        blocks = [sparse.csr_array(one[firsts]) for one in flags]
    else:
        ids, times = np.unique(np.stack([targets, *decisions], axis=1), axis=0, return_counts=True)
        ones, ends = np.ones(len(ids), dtype=bool), np.arange(len(ids) + 1)
        blocks = [sparse.csr_array((ones, column, ends), shape=(len(ids), n_classes)) for column in ids.T]
    return [(blocks[0], block) for block in blocks[1:]], times


def metrics_of(counts: Counts, multi_label: bool) -> dict[str, Floats]:
    """Every metric, `[R]`."""
    f1 = _ratio(2 * counts.right, counts.decided + counts.true)
    in_macro = np.broadcast_to(True if multi_label else counts.averaged, f1.shape)
    accuracy = counts.exact / counts.texts
    scores = {
        "accuracy": accuracy,
        "macro_f1": _average(f1, in_macro),
        "micro_f1": _ratio(2 * counts.right.sum(axis=1), (counts.decided + counts.true).sum(axis=1)),
        "weighted_f1": _average(f1, counts.true),
        "macro_precision": _average(_ratio(counts.right, counts.decided), in_macro),
        "macro_recall": _average(_ratio(counts.right, counts.true), in_macro),
    }
    if multi_label:
        wrong = (counts.decided + counts.true - 2 * counts.right).sum(axis=1)
        scores |= {"subset_accuracy": accuracy, "hamming_loss": wrong / (counts.texts * counts.true.shape[1])}
    return scores


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """`top / bottom`, and 0 where that is 0/0."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _average(values: Floats, weights: Floats) -> Floats:
    return _ratio((values * weights).sum(axis=1), weights.sum(axis=1))


def _bootstrap(outcomes: Outcomes, multi_label: bool, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
    """The 95 % percentile interval of every metric (Efron and Tibshirani 1993, chapter 13)."""
    names: list[str] = []

    def measure(drawn: NDArray[np.int64]) -> Floats:
        metrics = metrics_of(outcomes.count(drawn), multi_label)
        names[:] = metrics
        return np.stack(list(metrics.values()))

    values = resampled(outcomes.times, measure, outcomes.targets.shape[1], resamples, seed)
    return {name: bounds(of_one) for name, of_one in zip(names, values, strict=True)}


def resampled(
    times: NDArray[np.int64], measure: Callable[[NDArray[np.int64]], Floats], width: int, resamples: int, seed: int
) -> Floats:
    """What R resamples of the texts measure, `[M, R]`: the bootstrap of scores and of paired differences alike.

    Args:
        times: how often each of K outcomes occurs, `[K]`.
        measure: `[M, r]` values when the outcomes occur as often as `[r, K]` says; of the same resample for all M, so that their
            differences are paired.
        width: the most numbers `measure` needs of a resample; what is held in memory at once follows from it.
    """
    n, rng = int(times.sum()), np.random.default_rng(seed)
    most = max(1, MOST_DRAWS_AT_ONCE // max(len(times), width))
    starts = range(0, resamples, most)
    return np.concatenate([measure(rng.multinomial(n, times / n, size=min(most, resamples - start))) for start in starts], axis=1)


def bounds(values: Floats) -> tuple[float, float]:
    """The 95 % percentile interval of resampled values."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _per_class(counts: Counts, label_names: Sequence[str]) -> tuple[ClassScore, ...]:
    precision = _ratio(counts.right, counts.decided)[0]
    recall = _ratio(counts.right, counts.true)[0]
    f1 = _ratio(2 * counts.right, counts.decided + counts.true)[0]
    return tuple(
        ClassScore(name, float(precision[i]), float(recall[i]), float(f1[i]), int(counts.true[0, i]), int(counts.decided[0, i]))
        for i, name in enumerate(label_names)
    )


def _per_label_confusion(counts: Counts, n: int) -> NDArray[np.int64]:
    right, decided, true = counts.right[0], counts.decided[0], counts.true[0]
    cells = [[n - true - decided + right, decided - right], [true - right, right]]
    return np.array(cells, dtype=np.int64).transpose(2, 0, 1)
