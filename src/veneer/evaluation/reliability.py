"""How far probabilities can be believed: reliability bins, calibration error, Brier score, loss.

Knows probabilities and what came true; knows nothing of how either was made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_BINS = 15
TEXTS_A_BIN = 20  # at least, so that a bin is more than noise

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
    count = int(np.clip(len(order) // TEXTS_A_BIN, 1, MOST_BINS))
    edges = np.arange(1, count) * len(order) // count
    edges = np.unique(np.searchsorted(confidence, confidence[edges], side="left"))
    bins = zip(np.split(confidence, edges), np.split(true, edges), strict=True)
    return tuple(Bin(float(sure.mean()), float(right.mean()), len(sure)) for sure, right in bins if len(sure))


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
    errors = [
        expected_calibration_error(reliability(probabilities[:, label], truth[:, label]))
        for label in np.flatnonzero(truth.any(0))
    ]
    return float(np.mean(errors)) if errors else None


def brier(probabilities: Floats, truth: Floats, multi_label: bool) -> float:
    """The mean over texts of the squared distance of `[N, C]` probabilities and truth, summed over classes.

    Multi-label: its mean over labels.
    """
    squares = (probabilities - truth) ** 2
    return float(squares.mean() if multi_label else squares.sum(1).mean())
