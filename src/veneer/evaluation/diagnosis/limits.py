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
FOLDS = 5
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


@dataclass(frozen=True)
class ThresholdGain:
    """What choosing thresholds adds to macro-F1, on texts that they were not chosen on; `low` to `high` at 95 %."""

    now: float
    gain: float
    low: float
    high: float


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


def threshold_gain(evidence: Evidence, labels: Labelwise) -> ThresholdGain | None:
    """Thresholds chosen on four fifths of the texts, a label each (of two classes: one), used on the last fifth, five times.

    None of more than two classes, which no threshold decides, and of fewer than two texts a part.
    """
    if len(evidence) < 2 * FOLDS or (len(evidence.labels) != 2 and not evidence.multi_label):
        return None
    fold = np.random.default_rng(0).permutation(len(evidence)) % FOLDS  # files are often sorted by label
    columns = range(len(labels.ids)) if evidence.multi_label else [1]
    fitted = labels.decided.copy()
    for k in columns:
        fitted[:, k] = _cross_fitted(labels.scores[:, k], labels.truth[:, k], fold, both=not evidence.multi_label)
    if not evidence.multi_label:
        fitted[:, 0] = ~fitted[:, 1]
    now, of_now = macro_f1(labels.truth, labels.decided, evidence.multi_label)
    then, of_then = macro_f1(labels.truth, fitted, evidence.multi_label)
    gain, half = then - now, half_width(of_then - of_now)
    return ThresholdGain(now, gain, gain - half, gain + half)


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


@dataclass(frozen=True)
class _Sweep:
    """All S different decisions "at least a threshold", none given first.

    Attributes:
        last: `[S]` the text with the lowest score that is given the label, −1 for none.
        cuts: `[S]` thresholds half-way to the next text.
        given: `[S]` texts given the label; `hits` are those that have it.
        positives: texts that have it.
    """

    last: Ids
    cuts: Floats
    given: Ids
    hits: Ids
    positives: int

    @classmethod
    def of(cls, scores: Floats, truth: Bools) -> _Sweep:
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        below = np.append(ranked[ends[1:]], ranked[-1] - 1.0)
        hits = np.cumsum(truth[order])[ends]
        return cls(
            np.append(-1, order[ends]),
            np.append(np.inf, (ranked[ends] + below) / 2.0),
            np.append(0, ends + 1),
            np.append(0, hits),
            int(truth.sum()),
        )

    def f1(self) -> Floats:
        """`[S]`: F1 of the label; 0 where no text has it or is given it."""
        return _f1(self.hits, self.given, self.positives)

    def f1_of_the_rest(self, n: int) -> Floats:
        """`[S]`: F1 of not having the label, over `n` texts."""
        kept = n - self.given
        return _f1(kept - (self.positives - self.hits), kept, n - self.positives)


def _f1(hits: Ids, given: Ids, positives: int) -> Floats:
    marks = given + positives
    f1: Floats = np.divide(2.0 * hits, marks, out=np.zeros(len(hits)), where=marks > 0)
    return f1


def _limit(evidence: Evidence, labels: Labelwise, k: int) -> Limit:
    from sklearn.metrics import roc_auc_score

    truth, decided, label = labels.truth[:, k], labels.decided[:, k], int(labels.ids[k])
    sweep = _Sweep.of(labels.scores[:, k], truth)
    f1 = sweep.f1()
    best, support = int(f1.argmax()), int(truth.sum())
    marks = support + int(decided.sum())
    return Limit(
        label=evidence.labels[label],
        f1=2.0 * int((truth & decided).sum()) / marks if marks else 0.0,
        best_f1=float(f1[best]),
        threshold=float(evidence.probabilities[sweep.last[best], label]) if best else None,
        auc=float(roc_auc_score(truth, labels.scores[:, k])) if 0 < support < len(truth) else None,
        support=support,
    )


def _cross_fitted(scores: Floats, truth: Bools, fold: Ids, *, both: bool) -> Bools:
    """`[N]`: whether a text is given the label by the threshold best for F1 of it, or of `both` classes, elsewhere."""
    decided = np.zeros(len(scores), dtype=bool)
    for part in range(FOLDS):
        held_out = fold == part
        sweep = _Sweep.of(scores[~held_out], truth[~held_out])
        value = sweep.f1() + sweep.f1_of_the_rest(int((~held_out).sum())) if both else sweep.f1()
        decided[held_out] = scores[held_out] >= sweep.cuts[int(value.argmax())]
    return decided


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
