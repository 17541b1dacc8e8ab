"""Decision rules: where on the calibrated scale a class begins, by exact sweeps over every place where a decision changes.

    two classes    an offset for the second one: the sweep is over the N differences of logits, so nothing better exists
    more classes   an offset a class, one swept after the other until none moves
    multi-label    a threshold a label, on its probability

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
from veneer.evaluation.scaling import INNER_PARTS, MOST_LABELS, Sample
from veneer.tasks import Calibration

MOST_CLASSES = {"single_label": 100, "multi_label": MOST_LABELS}
ROUNDS = 5
SHRINKAGES = (500.0, 150.0, 50.0, 20.0, 0.0)  # texts of a label that weigh as much as what its calibrated probabilities say

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def fit_rule(sample: Sample, scaling: Calibration, goal: Goal, seed: int = 0) -> tuple[Calibration, tuple[int, ...]]:
    """`scaling` with offsets or thresholds for `goal`, and the classes that it leaves as they are.

    Those are labels that no text has, whose logits are all equal, or whose precision no threshold reaches.

    Args:
        seed: of how the texts are dealt into parts, where a choice is made by parts held out.
    """
    if sample.multi_label:
        return _fit_thresholds(sample, scaling, goal, seed)
    scores = scaling.calibrated(sample.logits).double().numpy()
    targets = sample.targets.numpy()
    offsets = np.zeros(sample.classes)
    if sample.classes == 2:
        cut = _sweep(scores, 1, targets, goal)
        if cut is None:
            return scaling, (1,)
        offsets[1] = cut
        return replace(scaling, offsets=tuple(offsets.tolist())), ()
    for _ in range(ROUNDS):
        before = offsets.copy()
        for label in range(sample.classes):
            offsets[label] += _sweep(scores + offsets, label, targets, goal) or 0.0
        if np.array_equal(before, offsets):
            break
    return replace(scaling, offsets=tuple(offsets.tolist())), ()


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
        for i, cuts in enumerate(np.where(np.isnan(thresholds), plain, thresholds)):
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


def _probabilities(sample: Sample, scaling: Calibration) -> Floats:
    return sample.task.probabilities(sample.logits, scaling).double().numpy()


def _thresholds(sample: Sample, scaling: Calibration, goal: Goal, shrinkages: Sequence[float]) -> Floats:
    """`[S, C]` thresholds by each of S shrinkages; NaN for a label where there is none to find."""
    probabilities, targets = _probabilities(sample, scaling), sample.targets.double().numpy()
    columns = [_threshold(probabilities[:, c], targets[:, c], goal, c, shrinkages) for c in range(sample.classes)]
    return np.array(columns, dtype=np.float64).T.reshape(len(shrinkages), sample.classes)


def _threshold(probabilities: Floats, targets: Floats, goal: Goal, label: int, shrinkages: Sequence[float]) -> list[float]:
    """The threshold of one label by each shrinkage, NaN where there is none to find.

    A handful of texts says little about where F1 peaks, and calibrated probabilities say it too: F1's expectation needs no
    target. So a text counts as w·target + (1 − w)·probability, where w = n/(n + shrinkage) for a label of n texts.
    """
    positives = targets.sum()
    if positives == 0 or probabilities.min() == probabilities.max():
        return [math.nan] * len(shrinkages)
    order = np.argsort(-probabilities, kind="stable")
    ordered, true = probabilities[order], targets[order]
    cuts, found = _midpoints(ordered), []
    for shrinkage in shrinkages:
        weight = positives / (positives + shrinkage)
        values = _threshold_values(weight * true + (1 - weight) * ordered, goal, label)
        best = _best(values, cuts, ordered, np.abs(cuts - 0.5))
        found.append(math.nan if best is None else best)
    return found


def _threshold_values(true: Floats, goal: Goal, label: int) -> Floats:
    """`[N+1]` values of the goal when the first k texts are given the label; `true` is how far each has it, 0 to 1."""
    right = np.concatenate([[0.0], np.cumsum(true)])
    if goal.name == "f1":
        return np.asarray(2 * right / (np.arange(len(right)) + right[-1]))
    if goal.least is not None:
        return _reaching(right, goal.name, goal.least)
    missed, wrong = goal.costs[label] if goal.costs else (1.0, 1.0)
    return np.asarray(-(wrong * (np.arange(len(right)) - right) + missed * (right[-1] - right)))


def _midpoints(ordered: Floats) -> Floats:
    """`[N+1]` thresholds, the k-th of which the k largest of N descending probabilities reach, in float32."""
    above = np.append(ordered, 0.0).astype(np.float32)
    top = np.float32((1.0 + float(above[0])) / 2)
    upper = np.concatenate([[np.float32(1.0)], above[:-1]])
    middle = ((upper.astype(np.float64) + above) / 2).astype(np.float32)
    middle = np.where(middle <= above, upper, middle)  # neighbours with no number between them
    middle[0] = top if top > above[0] else np.nextafter(np.float32(1.0), np.float32(2.0))
    middle[-1] = above[-2] / 2
    return middle.astype(np.float64)


def _reaching(right: Floats, name: str, least: float) -> Floats:
    """The other of precision and recall where the one named is reached, −inf elsewhere; `right` of the first k are, `[N+1]`."""
    given = np.arange(len(right))
    precision = right / np.maximum(given, 1)
    recall = right / max(right[-1], 1.0)
    reached, other = (precision, recall) if name == "precision" else (recall, precision)
    # of cuts with the same recall the first has the best precision
    value = other - (1e-9 * given / len(right) if name == "precision" else 0.0)
    return np.where((reached >= least) & (given > 0), value, -np.inf)


def _best(values: Floats, cuts: Floats, ordered: Floats, distance: Floats) -> float | None:
    """The cut with the greatest value among those between different scores; None where all are −inf."""
    possible = np.concatenate([[True], ordered[:-1] > ordered[1:], [True]])
    values = np.where(possible, values, -np.inf)
    top = values.max()
    if top == -np.inf:
        return None
    equals = np.flatnonzero(values >= top - 1e-12)
    return float(cuts[equals[distance[equals].argmin()]])


def _sweep(scores: Floats, label: int, targets: Ints, goal: Goal) -> float | None:
    """What is best added to the scores `[N, C]` of one class, all others as they are."""
    others = scores.copy()
    others[:, label] = -np.inf
    rival = others.argmax(1)
    margins = scores[:, label] - others.max(1)
    order = np.argsort(-margins, kind="stable")
    ordered, true, rival = margins[order], targets[order], rival[order]
    if goal.name == "f1":
        values = _macro_f1(true, rival, label, scores.shape[1])
    elif goal.least is None:
        values = -_mean_cost(true, rival, label, goal, scores.shape[1])
    else:
        values = _reaching(np.concatenate([[0.0], np.cumsum(true == label)]), goal.name, goal.least)
    cuts = np.concatenate([[-ordered[0] - 1.0], -(ordered[:-1] + ordered[1:]) / 2, [-ordered[-1] + 1.0]])
    stay = int((ordered > 0).sum())
    if stay == len(ordered) or ordered[stay] < 0:  # a tie goes to the first class, which no offset says
        cuts[stay] = 0.0
    return _best(values, cuts, ordered, np.abs(cuts))


def _mean_cost(true: Ints, rival: Ints, label: int, goal: Goal, classes: int) -> Floats:
    """`[N+1]` mean costs when the first k texts are decided to be `label` and the others their rival."""
    costs = np.asarray(goal.costs) if goal.costs else 1.0 - np.eye(classes)
    changes = costs[true, label] - costs[true, rival]
    return np.asarray(costs[true, rival].sum() + np.concatenate([[0.0], np.cumsum(changes)])) / len(true)


def _macro_f1(true: Ints, rival: Ints, label: int, classes: int) -> Floats:
    """`[N+1]` macro-F1 when the first k texts are decided to be `label` and the others their rival; O(N log N).

    A step takes a text from its rival: it changes the F1 of two classes alone. The mean is over classes that occur in targets or
    decisions.
    """
    n = len(true)
    support = np.bincount(true, minlength=classes)
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
    gone = (decided[grouped] - taken + support[grouped]) == 0
    change, vanish = np.empty(n), np.empty(n)
    change[by_rival], vanish[by_rival] = f1_after - f1_before, gone
    rivals = np.arange(classes) != label
    total = _f1(right, decided + support)[rivals].sum() + np.concatenate([[0.0], np.cumsum(change)])
    present = ((decided + support) > 0)[rivals].sum() - np.concatenate([[0.0], np.cumsum(vanish)])
    k = np.arange(n + 1)
    own = _f1(np.concatenate([[0], np.cumsum(true == label)]), k + support[label])
    return np.asarray((total + own) / (present + ((k + support[label]) > 0)))


def _f1(right: Ints, both: Ints) -> Floats:
    return 2.0 * right / np.maximum(both, 1)
