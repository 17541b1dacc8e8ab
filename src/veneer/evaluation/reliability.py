"""How far probabilities can be believed: reliability bins, calibration error, Brier score, loss.

Knows probabilities and what came true; knows nothing of how either was made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_BINS = 15
TEXTS_A_BIN = 20  # at least, so that a bin is more than noise
CELLS_AT_ONCE = 1 << 18

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bin:
    """Cases of similar confidence: their mean confidence, the share that came true, and how many they are."""

    confidence: float
    accuracy: float
    texts: int


def reliability(confidence: Floats, true: Floats) -> tuple[Bin, ...]:
    """Bins of equal mass over `[M]` confidences; equal confidences are never parted, so that there may be fewer.

    Args:
        confidence: probabilities.
        true: `[M]`, 1 where it came true.
    """
    order = np.argsort(confidence, kind="stable")
    confidence, true = confidence[order], true[order]
    edges = _edges(len(order))
    edges = np.unique(np.searchsorted(confidence, confidence[edges], side="left"))
    bins = zip(np.split(confidence, edges), np.split(true, edges), strict=True)
    return tuple(Bin(float(sure.mean()), float(right.mean()), len(sure)) for sure, right in bins if len(sure))


def _edges(n: int) -> NDArray[np.int64]:
    """Where the second bin begins, the third and so on, of n cases in order."""
    count = int(np.clip(n // TEXTS_A_BIN, 1, MOST_BINS))
    return np.arange(1, count) * n // count


def expected_calibration_error(bins: tuple[Bin, ...]) -> float:
    """The mean distance of confidence and accuracy, each bin by its mass (arXiv:1909.10155)."""
    total = sum(item.texts for item in bins)
    return sum(item.texts * abs(item.confidence - item.accuracy) for item in bins) / total


def mean_error_by_label(probabilities: Floats, truth: Floats) -> float | None:
    """The mean of the labels' own calibration errors, of those that some text has; None where no text has any.

    Args:
        probabilities: `[N, C]`.
        truth: `[N, C]` of 0 and 1.
    """
    labels = np.flatnonzero(truth.any(0))
    if not len(labels):
        return None
    errors, most = np.empty(len(labels)), max(1, CELLS_AT_ONCE // len(truth))
    for start in range(0, len(labels), most):
        some = labels[start : start + most]
        errors[start : start + most] = _errors(probabilities[:, some].T, truth[:, some].T)
    return float(errors.mean())


def _errors(confidence: Floats, true: Floats) -> Floats:
    """`[B]`: `expected_calibration_error(reliability(...))` of each row of `[B, N]`."""
    n = confidence.shape[1]
    order = np.argsort(confidence, axis=1)
    confidence, true = (np.take_along_axis(values, order, axis=1) for values in (confidence, true))
    begins = np.concatenate([np.ones((len(order), 1), dtype=bool), confidence[:, 1:] > confidence[:, :-1]], axis=1)
    firsts = np.maximum.accumulate(np.where(begins, np.arange(n), 0), axis=1)[:, _edges(n)]
    none = np.zeros((len(order), 1))
    sums = np.concatenate([none, (confidence - true).cumsum(1)], axis=1)
    at_edges = np.concatenate([none, np.take_along_axis(sums, firsts, axis=1), sums[:, -1:]], axis=1)
    return np.asarray(np.abs(np.diff(at_edges, axis=1)).sum(1) / n)


def brier(probabilities: Floats, truth: Floats, multi_label: bool) -> float:
    """The mean over texts of the squared distance of `[N, C]` probabilities and truth, summed over classes.

    Multi-label: its mean over labels.
    """
    squares = (probabilities - truth) ** 2
    return float(squares.mean() if multi_label else squares.sum(1).mean())
