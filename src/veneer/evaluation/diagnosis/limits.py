"""Whether the threshold or the ranking is the limit: the best F1 that any threshold gives, against the F1 now and the AUC.

Knows scores and targets of labels one by one; knows nothing of texts or of advice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.diagnosis.evidence import Bools, Evidence, Floats, Ids, Labelwise

MOST_CURVES = 30
POINTS = 101
Z95 = 1.959963984540054  # standard normal quantile of 0.975


@dataclass(frozen=True)
class Limit:
    """How far a label is from the best its ranking allows.

    Attributes:
        f1: of the decisions.
        best_f1: the largest F1 of "at least a threshold" over all thresholds, on these very texts.
        threshold: the calibrated probability that it is reached from; None where giving the label to no text is best.
        auc: probability that a text with the label ranks above one without; None where there are not both.
        support: texts that have the label.
    """

    label: str
    f1: float
    best_f1: float
    threshold: float | None
    auc: float | None
    support: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Curve:
    """Precision, recall and F1 of a label given from each of `thresholds` on; None where that is 0/0."""

    label: str
    thresholds: tuple[float, ...]
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    f1: tuple[float | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: value if name == "label" else list(value) for name, value in vars(self).items()}


def limits(evidence: Evidence, labels: Labelwise) -> tuple[Limit, ...]:
    """Each label's limit. Of more than two classes, each against all the others."""
    return tuple(_limit(evidence, labels, k) for k in range(len(labels.ids)))


def curves(evidence: Evidence, labels: Labelwise) -> tuple[Curve, ...]:
    """Threshold curves of the most frequent labels, over calibrated probabilities."""
    most = np.argsort(-labels.support, kind="stable")[:MOST_CURVES]
    return tuple(
        _curve(evidence.labels[labels.ids[k]], evidence.probabilities[:, labels.ids[k]], labels.truth[:, k])
        for k in np.sort(most)
    )


def macro_f1(truth: Bools, decided: Bools, all_labels: bool) -> tuple[float, Floats]:
    """The mean F1 of K labels, and `[N]` the influence of each text on it.

    F1 of a label is a ratio of sums over texts, 2·Σhit / Σ(has + given), so that the influence of a text is
    (2·hit − F1·(has + given)) / mean(has + given) (the delta method); the mean of the influences is 0.

    Args:
        truth: `[N,K]`; `decided` the same.
        all_labels: count labels that no text has or was given, as 0; else leave them out.
    """
    n = len(truth)
    hits = (truth & decided).sum(axis=0)
    marks = truth.sum(axis=0) + decided.sum(axis=0)
    f1 = np.divide(2.0 * hits, marks, out=np.zeros(len(hits)), where=marks > 0)
    counted = len(f1) if all_labels else max(1, int((marks > 0).sum()))
    weight = np.divide(n / counted, marks, out=np.zeros(len(hits)), where=marks > 0)
    influence = (truth & decided) @ (2.0 * weight) - truth @ (weight * f1) - decided @ (weight * f1)
    return float(f1.sum() / counted), influence


def half_width(influence: Floats) -> float:
    """Half of the 95 % interval of an estimate, from the `[N]` influences of its texts."""
    return float(Z95 * np.sqrt((influence**2).sum()) / len(influence))


def least_half_width(support: Ids) -> float:
    """Half of the 95 % interval of a mean over labels none of whose texts is decided wrong: what they leave open all the same.

    n texts without an error leave z²/(n + z²) (Wilson), half of it to either side. Labels err on different texts, and so
    independently: the half-widths of the L labels that some text has make up the root of the sum of their squares, over L.
    """
    n = support[support > 0]
    return float(np.sqrt(((Z95**2 / (n + Z95**2) / 2) ** 2).sum()) / max(1, len(n)))


def _limit(evidence: Evidence, labels: Labelwise, k: int) -> Limit:
    from sklearn.metrics import roc_auc_score

    truth, decided, scores, label = labels.truth[:, k], labels.decided[:, k], labels.scores[:, k], int(labels.ids[k])
    support = int(truth.sum())
    best_f1, text = _best_cut(scores, truth) if support else (0.0, None)
    marks = support + int(decided.sum())
    return Limit(
        label=evidence.labels[label],
        f1=2.0 * int((truth & decided).sum()) / marks if marks else 0.0,
        best_f1=best_f1,
        threshold=None if text is None else float(evidence.probabilities[text, label]),
        auc=float(roc_auc_score(truth, scores)) if 0 < support < len(truth) else None,
        support=support,
    )


def _best_cut(scores: Floats, truth: Bools) -> tuple[float, int]:
    """The largest F1 of "at least the score of a text", and that text."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, cuts = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = int(f1[:-1].argmax())  # the last is "no text", without a cut
    return float(f1[best]), int(np.flatnonzero(scores == cuts[best])[0])


def _curve(label: str, probabilities: NDArray[Any], truth: Bools) -> Curve:
    thresholds = np.linspace(0.0, 1.0, POINTS)
    given = _at_least(probabilities, thresholds)
    hits = _at_least(probabilities[truth], thresholds)
    positives = int(truth.sum())
    return Curve(
        label,
        tuple(thresholds.round(4).tolist()),
        precision=_ratios(hits, given),
        recall=_ratios(hits, np.full(POINTS, positives)),
        f1=_ratios(2 * hits, given + positives),
    )


def _at_least(probabilities: NDArray[Any], thresholds: Floats) -> Ids:
    below: Ids = np.searchsorted(np.sort(probabilities), thresholds.astype(probabilities.dtype), side="left")
    return len(probabilities) - below


def _ratios(top: Ids, bottom: Ids) -> tuple[float | None, ...]:
    return tuple(round(a / b, 4) if b else None for a, b in zip(top.tolist(), bottom.tolist(), strict=True))
