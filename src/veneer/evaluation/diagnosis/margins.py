"""How far the logits of a label tell its texts from the others: histograms, and how much they overlap.

Knows labels, scores and targets; knows nothing of thresholds or advice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.diagnosis.evidence import Evidence, Floats, Ids, Labelwise

MOST_MARGINS = 40
BINS = 24


@dataclass(frozen=True)
class Margin:
    """How two groups of texts lie on one line of logits; the texts of the label are `inside`.

    Attributes:
        name: `joy`, or `yes against no`.
        labels: the names of the one label, or of the two.
        overlap: 0 to 1, see `overlap`; None where a group has no text.
        edges: `[b+1]` of the bins both histograms share, in logits.
        inside: `[b]` texts of the label (of two: of the first) in each bin; `outside` the others.
    """

    name: str
    labels: tuple[str, ...]
    overlap: float | None
    edges: tuple[float, ...]
    inside: tuple[int, ...]
    outside: tuple[int, ...]

    @property
    def fewest(self) -> int:
        """Texts of the smaller group."""
        return min(sum(self.inside), sum(self.outside))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        histogram = {name: list(getattr(self, name)) for name in ("edges", "inside", "outside")}
        return {"name": self.name, "overlap": self.overlap, **histogram}


def overlap(inside: Floats, outside: Floats) -> float | None:
    """How much two samples overlap: 1 − max over t of (F_outside(t) − F_inside(t)), F being the empirical distribution functions.

    Where the densities f cross once, as those of two normal distributions of one width do, this is the overlapping coefficient
    ∫ min(f_inside, f_outside) (Weitzman 1970), without choosing bins or a bandwidth. In general it is the smallest sum of the two
    shares of errors (texts inside below a threshold, texts outside above it) that any single threshold can reach: one minus
    Youden's J. 0: a threshold tells them apart; 1: none is better than chance.

    Args:
        inside: `[n]` values expected to be the higher ones.
        outside: `[m]` values.
    """
    if len(inside) == 0 or len(outside) == 0:
        return None
    inside, outside = np.sort(inside), np.sort(outside)
    of_inside = np.searchsorted(inside, outside, side="right") / len(inside)  # the largest difference is at one of `outside`
    of_outside = np.searchsorted(outside, outside, side="right") / len(outside)
    return float(1.0 - max(0.0, (of_outside - of_inside).max()))


def margins(evidence: Evidence, labels: Labelwise) -> tuple[Margin, ...]:
    """Multi-label: the logit of each label, the most frequent ones first. Two classes: the lead of the second. More: the lead in
    each of the most confused pairs, over the texts of the two.
    """
    names = evidence.labels
    if evidence.multi_label:
        first = np.argsort(-labels.support, kind="stable")[:MOST_MARGINS]
        return tuple(_margin((names[labels.ids[k]],), labels.scores[:, k], labels.truth[:, k]) for k in first)
    pairs = [(1, 0)] if len(names) == 2 else _most_confused(evidence)
    return tuple(_between(evidence, a, b) for a, b in pairs)


def _most_confused(evidence: Evidence) -> list[tuple[int, int]]:
    """Pairs of classes by how often one is taken for the other, either way."""
    classes = len(evidence.labels)
    wrong = ~evidence.right
    target, decided = evidence.targets[wrong].astype(np.int64), evidence.decisions[wrong].astype(np.int64)
    keys: Ids = np.minimum(target, decided) * classes + np.maximum(target, decided)
    pairs, times = np.unique(keys, return_counts=True)
    order = np.argsort(-times, kind="stable")[:MOST_MARGINS]
    return [(int(key) // classes, int(key) % classes) for key in pairs[order]]


def _between(evidence: Evidence, a: int, b: int) -> Margin:
    texts = np.flatnonzero((evidence.targets == a) | (evidence.targets == b))
    z = evidence.logits[texts][:, [a, b]].astype(np.float64)
    return _margin((evidence.labels[a], evidence.labels[b]), z[:, 0] - z[:, 1], evidence.targets[texts] == a)


def _margin(labels: tuple[str, ...], values: Floats, inside: NDArray[np.bool_]) -> Margin:
    edges = np.histogram_bin_edges(values, BINS) if len(values) else np.linspace(-1.0, 1.0, BINS + 1)
    counts = [tuple(np.histogram(values[which], edges)[0].tolist()) for which in (inside, ~inside)]
    shared = overlap(values[inside], values[~inside])
    return Margin(" against ".join(labels), labels, shared, tuple(edges.tolist()), counts[0], counts[1])
