"""Decision rules: where on the calibrated scale a class begins, by exact sweeps over every place where a decision changes.

    two classes    an offset for the second one: the sweep is over the N differences of logits, so nothing better exists
    more classes   an offset a class, one swept after the other until none moves
    multi-label    a threshold a label, on its probability

A class of a single-label task that no text has is left alone: whatever is decided on it looks wrong on these texts, which says
nothing of others. Exactly the texts that the plain rule gives it stay with it.

A cut lies midway between neighbouring scores; of equally good ones the nearest to the plain rule is taken.

Knows calibrated logits, targets and a goal; does not judge whether a rule is better than the plain one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from veneer.evaluation.goals import Goal
from veneer.evaluation.scaling import BLOCK, INNER_PARTS, MOST_LABELS, Sample
from veneer.tasks import Calibration

MOST_CLASSES = {"single_label": 100, "multi_label": MOST_LABELS}
ROUNDS = 5
SHRINKAGES = (500.0, 150.0, 50.0, 20.0, 0.0)  # texts of a label that weigh as much as what its calibrated probabilities say

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def fit_rule(sample: Sample, scaling: Calibration, goal: Goal, seed: int = 0) -> tuple[Calibration, tuple[int, ...]]:
    """`scaling` with offsets or thresholds for `goal`, and the classes that it leaves as they are.

    Those are labels that no text has, whose logits are all equal, or whose precision no threshold reaches; all of them where
    fewer than two of a single-label task have texts.

    Args:
        seed: of how the texts are dealt into parts, where a choice is made by parts held out.
    """
    if sample.multi_label:
        return _fit_thresholds(sample, scaling, goal, seed)
    return _fit_offsets(sample, scaling, goal)


def _fit_offsets(sample: Sample, scaling: Calibration, goal: Goal) -> tuple[Calibration, tuple[int, ...]]:
    support = np.bincount(sample.targets.numpy(), minlength=sample.classes)
    known, left = np.flatnonzero(support), np.flatnonzero(support == 0)
    moves = ~np.isin(sample.task.decide(sample.logits).numpy(), left)
    if len(known) < 2 or not moves.any():
        return scaling, tuple(range(sample.classes))
    scores, targets = scaling.calibrated(sample.logits).double().numpy()[moves], sample.targets.numpy()[moves]
    scores[:, left] = -np.inf
    offsets = np.zeros(sample.classes)
    if sample.classes == 2:
        cut = _sweep(scores, 1, targets, goal, support)
        if cut is None:
            return scaling, (1,)
        offsets[1] = cut
        return replace(scaling, offsets=tuple(offsets.tolist())), ()
    moved = scores.copy()
    for _ in range(ROUNDS):
        before = offsets.copy()
        for label in known.tolist():
            offsets[label] += _sweep(moved, label, targets, goal, support) or 0.0
            moved[:, label] = scores[:, label] + offsets[label]
        if np.array_equal(before, offsets):
            break
    ids = tuple(left.tolist())
    return replace(scaling, offsets=tuple(offsets.tolist()), left=ids), ids


def keep_plain(scaling: Calibration) -> Calibration:
    """`scaling` with the decisions of the logits themselves: a label is given where its logit is above 0."""
    if not scaling.shifts:
        return scaling
    return replace(scaling, thresholds=_plain_thresholds(scaling, len(scaling.shifts)))


def _plain_thresholds(scaling: Calibration, classes: int) -> tuple[float, ...]:
    """The least float32 probability above that of a logit of 0."""
    at_zero = torch.tensor(scaling.shifts or (0.0,) * classes).sigmoid()
    return tuple(torch.nextafter(at_zero, torch.tensor(2.0)).tolist())


def _fit_thresholds(sample: Sample, scaling: Calibration, goal: Goal, seed: int) -> tuple[Calibration, tuple[int, ...]]:
    shrinkage = 0.0 if goal.least is not None else _choose_shrinkage(sample, scaling, goal, seed)
    (thresholds,) = _thresholds(sample, scaling, goal, (shrinkage,))
    left = np.flatnonzero(np.isnan(thresholds))
    thresholds[left] = np.asarray(_plain_thresholds(scaling, sample.classes))[left]
    return replace(scaling, thresholds=tuple(thresholds.tolist())), tuple(left.tolist())


def _choose_shrinkage(sample: Sample, scaling: Calibration, goal: Goal, seed: int) -> float:
    """The one of `SHRINKAGES` whose thresholds do best on texts held out from them; of equally good ones the strongest.

    How far the probabilities of labels with few texts can be trusted differs from one classifier to another.
    """
    plain = np.asarray(_plain_thresholds(scaling, sample.classes))
    counts = np.zeros((3, len(SHRINKAGES), sample.classes))  # right, given, true

    def count(rest: Sample, held: Sample, rows: Ints) -> None:
        thresholds = _thresholds(rest, scaling, goal, SHRINKAGES)
        probabilities, true = _probabilities(held, scaling), held.targets.numpy() > 0
        for i, cuts in enumerate(np.where(np.isnan(thresholds), plain, thresholds).astype(np.float32)):
            given = probabilities >= cuts
            counts[:, i] += (given & true).sum(0), given.sum(0), true.sum(0)

    sample.out_of_part(INNER_PARTS, seed, count)
    right, given, true = counts
    if goal.name == "f1":
        values = (2 * right / np.maximum(given + true, 1)).mean(1)
    else:
        missed, wrong = np.asarray(goal.costs or [(1.0, 1.0)] * sample.classes).T
        values = -(wrong * (given - right) + missed * (true - right)).sum(1)
    return SHRINKAGES[int(values.argmax())]


def _probabilities(sample: Sample, scaling: Calibration) -> NDArray[np.float32]:
    return sample.task.probabilities(sample.logits, scaling).numpy()


def _thresholds(sample: Sample, scaling: Calibration, goal: Goal, shrinkages: Sequence[float]) -> Floats:
    """`[S, C]` thresholds by each of S shrinkages; NaN for a label that no text has or whose probabilities are all equal.

    A handful of texts says little about where F1 peaks, and calibrated probabilities say it too: F1's expectation needs no
    target. So a text counts as w·target + (1 − w)·probability, where w = n/(n + shrinkage) for a label of n texts.
    """
    probabilities, targets = _probabilities(sample, scaling), sample.targets.numpy() > 0
    found = np.empty((len(shrinkages), sample.classes))
    most = max(1, BLOCK // len(sample))
    for start in range(0, sample.classes, most):
        labels = slice(start, start + most)
        ordered, true = _in_order(probabilities[:, labels].T, targets[:, labels].T)
        costs = np.asarray(goal.costs or [(1.0, 1.0)] * sample.classes)[labels]
        found[:, labels] = _label_thresholds(ordered, true, goal, costs, shrinkages)
    return found


def _in_order(probabilities: NDArray[np.float32], true: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
    """Both `[B, N]`, each row by descending probability.

    The bits of a number from 0 to 1 are in the order of the numbers and leave room for one more, so that sorting them with the
    target at their end takes the targets along.
    """
    keys = np.ascontiguousarray(probabilities).view(np.uint32) << 1 | true
    keys.sort(axis=1)
    keys = keys[:, ::-1]
    return (keys >> 1).view(np.float32).astype(np.float64), (keys & 1).astype(bool)


def _label_thresholds(ordered: Floats, true: NDArray[np.bool_], goal: Goal, costs: Floats, shrinkages: Sequence[float]) -> Floats:
    """`[S, B]` thresholds of B labels; `costs` is `[B, 2]`, of a label missed and of one wrongly given."""
    cuts, none = _midpoints(ordered), np.zeros((len(ordered), 1))
    distance = np.abs(cuts - 0.5)
    known, expected = (np.concatenate([none, values.cumsum(1)], axis=1) for values in (true, ordered))
    positives = known[:, -1:]
    given = np.arange(known.shape[1])
    found = np.empty((len(shrinkages), len(ordered)))
    for i, shrinkage in enumerate(shrinkages):
        weight = positives / np.maximum(positives + shrinkage, 1.0)
        right = weight * known + (1 - weight) * expected
        if goal.name == "f1":
            values = 2 * right / np.maximum(given + right[:, -1:], 1e-300)
        elif goal.least is not None:
            values = _reaching(right, goal.name, goal.least)
        else:
            values = -(costs[:, 1:] * (given - right) + costs[:, :1] * (right[:, -1:] - right))
        found[i] = _best(values, cuts, ordered, distance)
    found[:, (positives[:, 0] == 0) | (ordered[:, 0] == ordered[:, -1])] = math.nan
    return found


def _midpoints(ordered: Floats) -> Floats:
    """`[B, N+1]` thresholds, the k-th of which the k largest of N descending probabilities reach, in float32."""
    above = np.concatenate([ordered, np.zeros((len(ordered), 1))], axis=1).astype(np.float32)
    top = (1.0 + above[:, 0]) / np.float32(2.0)
    upper = np.concatenate([np.ones((len(ordered), 1), dtype=np.float32), above[:, :-1]], axis=1)
    middle = ((upper.astype(np.float64) + above) / 2).astype(np.float32)
    middle = np.where(middle <= above, upper, middle)  # neighbours with no number between them
    middle[:, 0] = np.where(top > above[:, 0], top, np.nextafter(np.float32(1.0), np.float32(2.0)))
    middle[:, -1] = above[:, -2] / 2
    return middle.astype(np.float64)


def _reaching(right: Floats, name: str, least: float) -> Floats:
    """`[..., N+1]`: the other of precision and recall where the one named is reached, −inf elsewhere.

    Args:
        right: how many of the first k are, `[..., N+1]`.
    """
    given = np.arange(right.shape[-1])
    precision = right / np.maximum(given, 1)
    recall = right / np.maximum(right[..., -1:], 1.0)
    reached, other = (precision, recall) if name == "precision" else (recall, precision)
    # of cuts with the same recall the first has the best precision
    value = other - (1e-9 * given / len(given) if name == "precision" else 0.0)
    return np.where((reached >= least) & (given > 0), value, -np.inf)


def _best(values: Floats, cuts: Floats, ordered: Floats, distance: Floats) -> Floats:
    """`[B]`: of each row the cut with the greatest value among those between different scores; NaN where all are −inf.

    Of cuts that are equally good it is the one at the least distance.
    """
    values[:, 1:-1][ordered[:, :-1] <= ordered[:, 1:]] = -np.inf
    top = values.max(1, keepdims=True)
    equals = np.where(values >= top - 1e-12, distance, np.inf)
    best = np.take_along_axis(cuts, equals.argmin(1, keepdims=True), axis=1)
    return np.where(top > -np.inf, best, np.nan)[:, 0]


def _sweep(scores: Floats, label: int, targets: Ints, goal: Goal, support: Ints) -> float | None:
    """What is best added to the scores `[N, C]` of one class, all others as they are; None where nothing reaches the goal.

    Args:
        support: `[C]` texts that have each class, those included that are not swept over.
    """
    rival = scores.argmax(1)
    own = np.flatnonzero(rival == label)
    others = scores[own]
    others[:, label] = -np.inf
    rival[own] = others.argmax(1)
    margins = scores[:, label] - scores[np.arange(len(scores)), rival]
    order = np.argsort(-margins, kind="stable")
    ordered, true, rival = margins[order], targets[order], rival[order]
    if goal.name == "f1":
        values = _macro_f1(true, rival, label, support)
    elif goal.least is None:
        values = -_mean_cost(true, rival, label, goal, scores.shape[1])
    else:
        values = _reaching(np.concatenate([[0.0], np.cumsum(true == label)]), goal.name, goal.least)
    cuts = np.concatenate([[-ordered[0] - 1.0], -(ordered[:-1] + ordered[1:]) / 2, [-ordered[-1] + 1.0]])
    stay = int((ordered > 0).sum())
    if stay == len(ordered) or ordered[stay] < 0:  # a tie goes to the first class, which no offset says
        cuts[stay] = 0.0
    best = float(_best(values[None], cuts[None], ordered[None], np.abs(cuts)[None])[0])
    return None if math.isnan(best) else best


def _mean_cost(true: Ints, rival: Ints, label: int, goal: Goal, classes: int) -> Floats:
    """`[N+1]` mean costs when the first k texts are decided to be `label` and the others their rival."""
    costs = np.asarray(goal.costs) if goal.costs else 1.0 - np.eye(classes)
    changes = costs[true, label] - costs[true, rival]
    return np.asarray(costs[true, rival].sum() + np.concatenate([[0.0], np.cumsum(changes)])) / len(true)


def _macro_f1(true: Ints, rival: Ints, label: int, support: Ints) -> Floats:
    """`[N+1]` macro-F1 when the first k texts are decided to be `label` and the others their rival; O(N log N).

    A step takes a text from its rival: it changes the F1 of two classes alone. The mean is over the classes with support,
    whatever is decided: were it over those that occur, never to decide on a class without support would look like a gain.

    Args:
        support: `[C]`, as of `_sweep`.
    """
    n, classes = len(true), len(support)
    decided = np.bincount(rival, minlength=classes)
    right = np.bincount(rival[rival == true], minlength=classes)
    by_rival = np.argsort(rival, kind="stable")
    grouped = rival[by_rival]
    starts = np.searchsorted(grouped, grouped, side="left")
    taken = np.arange(n) - starts + 1
    hits = np.concatenate([[0], np.cumsum(true[by_rival] == grouped)])
    right_taken = hits[1:] - hits[starts]
    was_right = hits[:-1] - hits[starts]
    f1_after = _f1(right[grouped] - right_taken, decided[grouped] - taken + support[grouped])
    f1_before = _f1(right[grouped] - was_right, decided[grouped] - taken + 1 + support[grouped])
    change = np.empty(n)
    change[by_rival] = f1_after - f1_before
    total = np.delete(_f1(right, decided + support), label).sum() + np.concatenate([[0.0], np.cumsum(change)])
    own = _f1(np.concatenate([[0], np.cumsum(true == label)]), np.arange(n + 1) + support[label])
    return np.asarray((total + own) / (support > 0).sum())


def _f1(right: Ints, both: Ints) -> Floats:
    return 2.0 * right / np.maximum(both, 1)
