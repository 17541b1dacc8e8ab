"""The wrong decisions themselves: what is taken for what, the surest ones, and which look like wrong labels.

Knows targets, decisions and texts; knows nothing of advice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.diagnosis.evidence import Bools, Evidence, Floats, Ids, Labelwise, parts
from veneer.evaluation.diagnosis.margins import overlap

MOST_PAIRS = 20
MOST_EXAMPLES = 3
MOST_MISTAKES = 20
MOST_OVERLAP = 0.35  # of a label with the others, for a clear but wrong decision on it to be odd


def confused_pairs(evidence: Evidence, labels: Labelwise) -> list[dict[str, Any]]:
    """The most frequent `target` taken for `decided`, with their surest examples.

    Multi-label: texts that miss the one label and were wrongly given the other, among the labels looked at one by one.
    """
    sureness = _sureness(evidence)
    if evidence.multi_label:
        missed, wrongly = labels.truth & ~labels.decided, ~labels.truth & labels.decided
        times = np.rint(missed.astype(np.float32).T @ wrongly.astype(np.float32)).astype(np.int64)
        order = np.argsort(-times.ravel(), kind="stable")[:MOST_PAIRS]
        cells = [divmod(int(cell), len(labels.ids)) for cell in order if times.ravel()[cell]]
        return [
            _pair(evidence, (labels.ids[a], labels.ids[b]), np.flatnonzero(missed[:, a] & wrongly[:, b]), sureness)
            for a, b in cells
        ]
    wrong = np.flatnonzero(~evidence.right)
    keys = evidence.targets[wrong].astype(np.int64) * len(evidence.labels) + evidence.decisions[wrong]
    pairs, counts = np.unique(keys, return_counts=True)
    chosen = pairs[np.argsort(-counts, kind="stable")[:MOST_PAIRS]]
    return [_pair(evidence, divmod(int(key), len(evidence.labels)), wrong[keys == key], sureness) for key in chosen]


def surest_mistakes(evidence: Evidence) -> list[dict[str, Any]]:
    """The wrong decisions of which the model was surest.

    `confidence` is the probability of the decided class; multi-label: the largest probability, of having it or of not having
    it, that a wrongly decided label was decided with.
    """
    sureness = _sureness(evidence)
    return [
        evidence.shown(text)
        | {"given": evidence.names(evidence.targets, text), "decided": evidence.names(evidence.decisions, text)}
        | {"confidence": float(sureness[text])}
        for text in _surest(np.flatnonzero(~evidence.right), sureness, MOST_MISTAKES)
    ]


def doubtful_labels(evidence: Evidence, labels: Labelwise) -> tuple[int, int]:
    """Wrong decisions that are as clear as right ones: how many, and among how many wrong ones.

    As clear: the decided class leads by at least the median lead of the right decisions. A hard text is rarely decided so; of
    wrongly labelled texts that are easy else, half are. Only labels that are told from the others count (an overlap of at most
    `MOST_OVERLAP`): else chance alone puts many wrong decisions there. Multi-label: decisions on a label each, by its logit,
    against the right decisions of the same kind (given or not) on that label. Where wrong decisions are as many as right ones,
    none says anything about its label.
    """
    told = [k for k in range(len(labels.ids)) if _overlap(labels, k) <= MOST_OVERLAP]
    if not evidence.multi_label:
        return _as_clear(_leads(evidence), evidence.right, np.isin(evidence.targets, labels.ids[told]))
    doubtful = wrong = 0
    for k in told:
        right = labels.truth[:, k] == labels.decided[:, k]
        for given, sign in ((labels.decided[:, k], 1.0), (~labels.decided[:, k], -1.0)):
            found = _as_clear(sign * labels.scores[given, k], right[given], np.ones(int(given.sum()), dtype=bool))
            doubtful, wrong = doubtful + found[0], wrong + found[1]
    return doubtful, wrong


def _overlap(labels: Labelwise, k: int) -> float:
    truth, scores = labels.truth[:, k], labels.scores[:, k]
    shared = overlap(scores[truth], scores[~truth])
    return 1.0 if shared is None else shared


def _as_clear(lead: Floats, right: Bools, counted: Bools) -> tuple[int, int]:
    """Wrong decisions among the `counted` ones that lead as right ones do, and all of them."""
    wrong = lead[~right & counted]
    trusted = right.sum() > (~right).sum()
    return int((wrong >= np.median(lead[right])).sum()) if trusted else 0, len(wrong)


def _leads(evidence: Evidence) -> Floats:
    """`[N]`: by how much the logit of the decided class is above the best other one."""
    logits, lead = evidence.logits, np.zeros(len(evidence))
    if logits.shape[1] < 2:
        return lead
    for rows in parts(*logits.shape):
        z, decisions = logits[rows].astype(np.float64), evidence.decisions[rows]
        texts = np.arange(len(z))
        decided = z[texts, decisions]
        z[texts, decisions] = -np.inf
        lead[rows] = decided - z.max(axis=1)
    return lead


def _sureness(evidence: Evidence) -> NDArray[Any]:
    """`[N]`: see `surest_mistakes`; of a text decided right it has no meaning."""
    if not evidence.multi_label:
        chosen: NDArray[Any] = evidence.probabilities[np.arange(len(evidence)), evidence.decisions]
        return chosen
    sureness = np.zeros(len(evidence))
    for rows in parts(*evidence.logits.shape):
        decided, p = evidence.decisions[rows].astype(bool), evidence.probabilities[rows]
        wrong = decided != evidence.targets[rows].astype(bool)
        sureness[rows] = np.where(wrong, np.where(decided, p, 1.0 - p), 0.0).max(axis=1)
    return sureness


def _surest(texts: Ids, sureness: NDArray[Any], most: int) -> list[int]:
    return [int(text) for text in texts[np.argsort(-sureness[texts], kind="stable")[:most]]]


def _pair(evidence: Evidence, labels: Iterable[int], texts: Ids, sureness: NDArray[Any]) -> dict[str, Any]:
    target, decided = (evidence.labels[int(label)] for label in labels)
    examples = [evidence.shown(text) for text in _surest(texts, sureness, MOST_EXAMPLES)]
    return {"target": target, "decided": decided, "texts": len(texts), "examples": examples}
