"""Knowing when not to answer: sets that hold the right classes, and answers that are right, for a promised share of texts.

    coverage    split-conformal prediction (arXiv:2107.07511): a class is in the set from a probability on, which is found as a
                rank of the right classes' probabilities among n texts. Over draws of these texts and of a new one, the set holds
                what is right with at least the promised probability.
    precision   an answer is given from a confidence on, found by exact binomial tests of one confidence after the other
                (fixed-sequence testing, arXiv:2110.01052): with 95 % confidence, the promised share of answers is right.

Both assume that new texts come from the same source as the labelled ones (that they are exchangeable). Neither says anything
about one class alone, or about texts of another kind.

Knows logits, targets and a calibration; knows nothing of how that was fitted, but that it was without the texts given here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtrc, betaincinv  # scipy.stats gives the same, and takes seconds to import
from torch import Tensor
from torch.nn.functional import one_hot

from veneer.errors import DataError
from veneer.evaluation.scaling import Sample
from veneer.tasks import Calibration, Promise, Task

ERROR_RATE = 0.05  # how often a promised precision may turn out to be wrong
GRID = 20
HEADROOM = 1.6  # the first test has so many times the texts that one without a mistake takes, so that a mistake may be among them
ASSUMPTION = "holds for texts from the same source as those it was found on"


@dataclass(frozen=True)
class Found:
    """A promise, with what it looked like on the texts it was found on.

    Attributes:
        facts: coverage: `held` (share of sets that held all right classes), `mean_size`, `empty_share`. precision: `answered` and
            `right` texts, `answered_share`, `lower_bound` of the precision at 95 % confidence.
    """

    kind: Literal["coverage", "precision"]
    promise: Promise
    facts: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return vars(self.promise) | self.facts | {"assumption": ASSUMPTION}


def candidate_sets(task: Task, logits: Tensor, calibration: Calibration) -> Tensor:
    """`[N, C]` bool: the classes in each text's set; those that are decided on are always among them.

    Raises:
        ValueError: the calibration promises no coverage.
    """
    if calibration.coverage is None:
        raise ValueError("the calibration promises no coverage")
    sets = task.probabilities(logits, calibration) >= calibration.coverage.level
    decided = task.decide(logits, calibration)
    if task.name == "multi_label":
        return sets | decided
    sets[torch.arange(len(logits)), decided] = True
    return sets


def answered(task: Task, logits: Tensor, calibration: Calibration) -> Tensor:
    """`[N]` bool: whether the decision on a text is sure enough to be given.

    Raises:
        ValueError: the calibration promises no precision.
    """
    if calibration.precision is None:
        raise ValueError("the calibration promises no precision")
    return task.confidence(logits, calibration) >= calibration.precision.level


def find_coverage(logits: Tensor, targets: Tensor, task: Task, calibration: Calibration, share: float) -> Found:
    """The probability from which on classes are in the set, so that a share of the sets holds every right class.

    Texts without any right label are held by every set: the level is found on the others, so that it holds for those too.

    Args:
        logits: `[N, C]` of texts that `calibration` was not fitted on.

    Raises:
        DataError: the share needs more texts, or is not above 0 and below 1.
    """
    _check_share("coverage", share)
    probabilities = task.probabilities(logits, calibration)
    if task.name == "multi_label":
        some = targets.any(1)
        probabilities, true = probabilities[some], targets[some] > 0
    else:
        true = one_hot(targets, logits.shape[1]) > 0
    least = probabilities.masked_fill(~true, 1.0).amin(1).numpy() if len(true) else np.empty(0, dtype=np.float32)
    n = len(least)
    rank = math.ceil((n + 1) * share - 1e-9)
    if rank > n:
        needed = math.ceil(share / (1 - share) - 1e-9)
        raise DataError(
            f"a coverage of {share:g} needs at least {needed:,} labelled texts beside those that fit the probabilities; "
            f"there are {n:,}. Fix: give more with --data, or a lower --coverage"
        )
    level = float(np.sort(least)[n - rank])
    promise = Promise(share, level, n)
    return Found("coverage", promise, _sets_facts(logits, targets, task, replace(calibration, coverage=promise)))


def find_precision(first: Sample, second: Sample, calibration: Calibration, share: float) -> Found:
    """The least confidence found from which on answers are right for a share of them.

    The confidences to test come from `first`; the tests are on `second` alone, from the strictest on until one fails.

    Raises:
        DataError: no confidence passes, with the highest hundredth that would; or the share is not above 0 and below 1.
    """
    _check_share("precision", share)
    levels, _ = _outcomes(first, calibration)
    levels = np.unique(np.append(np.quantile(levels, np.arange(1, GRID) / GRID, method="lower"), 0.0)).astype(np.float32)
    sure, right = _outcomes(second, calibration)
    order, passed = _passing(levels, sure, right, share)
    if not passed:
        lower = (hundredths / 100 for hundredths in range(math.ceil(100 * share - 1e-9) - 1, 0, -1))
        reachable = next((one for one in lower if _passing(levels, sure, right, one)[1]), None)
        raise DataError(_not_found(sure, right, order[0], share, reachable))
    level = min(passed)
    promise = Promise(share, level, len(sure))
    return Found("precision", promise, _answer_facts(sure, right, promise))


def _passing(
    levels: NDArray[np.float32], sure: NDArray[np.float32], right: NDArray[np.bool_], share: float
) -> tuple[list[float], list[float]]:
    """The levels in the order of their tests, and those before the first that fails."""
    # where to begin depends on how many answers there are, which says nothing of how many are right: the tests stay exact
    enough = min(HEADROOM * _least_texts(share), len(sure))
    order = [level for level in levels[::-1].tolist() if (sure >= np.float32(level)).sum() >= enough]
    return order, list(takewhile(lambda level: _p_value(sure, right, level, share) <= ERROR_RATE, order))


def check_promises(logits: Tensor, targets: Tensor, task: Task, calibration: Calibration) -> dict[str, dict[str, float]]:
    """What a calibration promises, with what it comes to on N labelled texts: `facts` of `Found` and the `target`, by kind."""
    found: dict[str, dict[str, float]] = {}
    if calibration.coverage is not None:
        facts = _sets_facts(logits, targets, task, calibration)
        found["coverage"] = {"target": calibration.coverage.target, **facts}
    if calibration.precision is not None:
        facts = _answer_facts(*_outcomes(Sample(task, logits, targets), calibration), calibration.precision)
        found["precision"] = {"target": calibration.precision.target, **facts}
    return found


def _sets_facts(logits: Tensor, targets: Tensor, task: Task, calibration: Calibration) -> dict[str, float]:
    sets = candidate_sets(task, logits, calibration)
    missing = targets > 0 if task.name == "multi_label" else one_hot(targets, logits.shape[1]) > 0
    held = (sets | ~missing).all(1)
    sizes = sets.sum(1)
    empty = float((sizes == 0).double().mean())
    return {"held": float(held.double().mean()), "mean_size": float(sizes.double().mean()), "empty_share": empty}


def _answer_facts(sure: NDArray[np.float32], right: NDArray[np.bool_], promise: Promise) -> dict[str, float]:
    given = sure >= np.float32(promise.level)
    count, hits = int(given.sum()), int(right[given].sum())
    bound = _lower_bound(hits, count)
    return {"answered": count, "right": hits, "answered_share": count / len(sure), "lower_bound": bound}


def _not_found(sure: NDArray[np.float32], right: NDArray[np.bool_], level: float, share: float, reachable: float | None) -> str:
    given = sure >= np.float32(level)
    count, hits = int(given.sum()), int(right[given].sum())
    bound = _lower_bound(hits, count)
    needed = _least_texts(share)
    lower = "; no precision can be" if reachable is None else f", or --precision {reachable:g}, which can be promised"
    return (
        f"a precision of {share:g} cannot be promised: of the {count:,} most certain of {len(sure):,} texts {hits:,} are decided "
        f"right, which only shows a precision of {bound:.3f} (95 % confidence; without a mistake it takes {needed:,} texts). "
        f"Fix: more labelled texts with --data{lower}"
    )


def _outcomes(sample: Sample, calibration: Calibration) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """`[N]` confidences, and whether the whole decision is right."""
    decided = sample.task.decide(sample.logits, calibration)
    right = (decided == (sample.targets > 0)).all(1) if sample.multi_label else decided == sample.targets
    return sample.task.confidence(sample.logits, calibration).numpy(), right.numpy()


def _p_value(sure: NDArray[np.float32], right: NDArray[np.bool_], level: float, share: float) -> float:
    """How likely so many right answers, or more, would be at a precision of `share`."""
    given = sure >= np.float32(level)
    return float(bdtrc(right[given].sum() - 1, given.sum(), share))


def _least_texts(share: float) -> int:
    """How many answers, all right, show a precision of `share`."""
    return math.ceil(math.log(ERROR_RATE) / math.log(share))


def _lower_bound(hits: int, count: int) -> float:
    """Clopper and Pearson's, one-sided."""
    return float(betaincinv(hits, count - hits + 1, ERROR_RATE)) if hits else 0.0


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise DataError(f"--{name} is a share above 0 and below 1, not {share:g}")
