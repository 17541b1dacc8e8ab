"""Is one better than the other? Paired tests of two sets of decisions on the same texts, and the verdict in plain words.

The same resample of the texts is scored for both, so that what makes a text hard for both cancels out. As in `metrics`, texts
with the same outcome (target, one decision, other decision) are interchangeable, and a resample is one multinomial draw.

Knows targets and decisions; knows nothing of models, files or how either came to its decisions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.metrics import (
    Interval,
    Outcomes,
    bounds,
    joint_outcomes,
    metrics_of,
    point_metrics,
    resampled,
)
from veneer.evaluation.tables import NAMES

RESAMPLES = 1000
EFFECTIVE = 0.05  # a relative gain whose whole interval is above this is effective,
LIMITED = 0.01  # one whose whole interval is below this is not worth it, and any other that is sure is limited
MANY_TIMES = 3.0  # a relative gain above this reads better as "so many times as much"
MOST_FACTOR = 100  # beyond so many times the texts, more of them is no advice

Array = NDArray[Any]


@dataclass(frozen=True)
class Compared:
    """What two sets of decisions are judged by.

    Attributes:
        targets: `[N]` class ids; for multi-label `[N, C]` 0/1.
        classes: C.
        metric: a name of `metrics.score`, higher is better.
        seed: of the resamples.
        resamples: how many.
    """

    targets: Array
    classes: int
    multi_label: bool
    metric: str
    seed: int = 0
    resamples: int = RESAMPLES

    def score(self, decisions: Array) -> float:
        """The metric of decisions in the form of the targets."""
        return point_metrics(self.targets, decisions, self.classes, self.multi_label)[self.metric]


@dataclass(frozen=True)
class Difference:
    """How much better `ours` is than `theirs`: absolute, with its 95 % interval and the two-sided p value of "no difference".

    `relative` is the 95 % interval of the difference as a share of `theirs`, from the same resamples; None where theirs is 0 in
    some of them.
    """

    value: float
    low: float
    high: float
    p: float
    relative: tuple[float, float] | None = None

    @property
    def within_noise(self) -> bool:
        """Whether the interval includes zero."""
        return self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class Verdict:
    """Was it worth it?

    Attributes:
        kind: within_noise where the interval of the gain includes zero, however large it looks; else effective (the whole
            interval of the relative gain is above 5 %), not_worth_it (all of it is below 1 %, or ours is worse), or limited.
        metric: what was compared, on `split`.
        against: the name of what it was compared with.
        score: ours; `baseline` is theirs.
        relative_gain: (score - baseline) / baseline; None where the baseline scores 0.
        gain_interval: 95 %, of the absolute difference.
        relative_interval: likewise of the relative gain; None where the baseline scores 0, or does in some resample.
        text: one or two sentences.
    """

    kind: Literal["effective", "limited", "not_worth_it", "within_noise"]
    metric: str
    split: str
    against: str
    score: float
    baseline: float
    relative_gain: float | None
    gain_interval: tuple[float, float]
    relative_interval: tuple[float, float] | None
    text: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        relative = None if self.relative_interval is None else list(self.relative_interval)
        return asdict(self) | {"gain_interval": list(self.gain_interval), "relative_interval": relative}


def compared_metric(metric: str) -> str:
    """The score by which things are compared that `metric` picks adapters with: a loss says nothing about decisions."""
    return "macro_f1" if metric == "loss" else metric


def score_interval(compared: Compared, decisions: Array) -> Interval:
    """The metric of one set of decisions, with its 95 % percentile bootstrap interval over texts."""
    (drawn,) = _resampled(compared, (decisions,))
    return Interval(compared.score(decisions), *bounds(drawn))


def compare_decisions(compared: Compared, ours: Array, theirs: Array) -> Difference:
    """The paired difference `ours - theirs` of the metric.

    The interval is the percentile bootstrap's over texts (Efron and Tibshirani 1993, chapter 13). p is McNemar's mid-p where the
    metric is a share of texts that are right, else twice the smaller tail of the resampled differences around zero.

    Raises:
        DataError: there is no text to compare on.
        ValueError: the shapes do not belong together.
    """
    drawn = _resampled(compared, (ours, theirs))
    differences = drawn[0] - drawn[1]
    if compared.metric in ("accuracy", "subset_accuracy"):
        mine, other = right_texts(compared.targets, ours), right_texts(compared.targets, theirs)
        p = mcnemar(int((mine & ~other).sum()), int((other & ~mine).sum()))
    else:
        tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
        p = min(1.0, 2 * (tail + 1) / (compared.resamples + 1))
    relative = bounds(differences / drawn[1]) if (drawn[1] > 0).all() else None
    return Difference(compared.score(ours) - compared.score(theirs), *bounds(differences), p, relative)


def right_texts(targets: Array, decisions: Array) -> NDArray[np.bool_]:
    """`[N]`: whether the text has its label, or exactly its labels."""
    same = np.equal(targets, decisions)
    return np.asarray(same if same.ndim == 1 else same.all(axis=1), dtype=np.bool_)


def mcnemar(only_ours: int, only_theirs: int) -> float:
    """McNemar's two-sided mid-p value: of the texts that one alone has right, is each side's share a half?

    The exact binomial test counts the observed split whole and is too cautious; mid-p counts it half
    (Fagerland, Lydersen and Laake 2013, doi:10.1186/1471-2288-13-91).
    """
    n, k = only_ours + only_theirs, min(only_ours, only_theirs)
    if n == 0:
        return 1.0
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    i = np.arange(k + 1)
    masses = np.exp(log_factorial[n] - log_factorial[i] - log_factorial[n - i] - n * math.log(2))
    return min(1.0, float(2 * masses.sum() - masses[k]))


def judge(compared: Compared, ours: Array, theirs: Array, *, split: str, against: str) -> Verdict:
    """The verdict on `ours` against `theirs`; within noise wherever the paired 95 % interval of the gain includes zero.

    Args:
        compared: the texts and the metric, on `split` (test, or dev where there is no test).
        ours: decisions in the form of the targets.
        theirs: likewise, of what `against` names.

    Raises:
        DataError: there is no text to compare on.
        ValueError: the shapes do not belong together.
    """
    difference = compare_decisions(compared, ours, theirs)
    score, baseline = compared.score(ours), compared.score(theirs)
    relative = round(difference.value / baseline, 9) if baseline > 0 else None
    kind = _kind(difference)
    text = _text(kind, difference, (score, baseline), f"{len(compared.targets):,} {split} texts", compared.metric, against)
    if split == "dev":
        text += (
            " Both were chosen on these texts, which flatters both, though no text is decided by a rule fitted to it;"
            " a test file would say more."
        )
    interval = (difference.low, difference.high)
    return Verdict(kind, compared.metric, split, against, score, baseline, relative, interval, difference.relative, text)


def _kind(difference: Difference) -> Literal["effective", "limited", "not_worth_it", "within_noise"]:
    if difference.within_noise:
        return "within_noise"
    low, high = difference.relative or (math.copysign(math.inf, difference.value),) * 2
    if low > EFFECTIVE:
        return "effective"
    return "not_worth_it" if high < LIMITED or difference.value < 0 else "limited"


def _text(kind: str, difference: Difference, scores: tuple[float, float], where: str, metric: str, against: str) -> str:
    name = NAMES[metric].split(" (")[0]
    score, baseline = scores
    found = f"this run's {name} on {where} is {score:.3f}, against {baseline:.3f} of {against}"
    interval = f"95 % interval of the difference: {difference.low:+.3f} to {difference.high:+.3f}"
    relative, gain = _relative(score, baseline), score / baseline - 1 if baseline else math.inf
    if kind == "within_noise":
        return f"Within the noise: {found} ({interval}). {_what_would_settle_it(difference)}"
    if difference.value < 0:
        return f"Not worth it: {found}, which is better ({interval})."
    opening = {"effective": "Effective", "limited": "A limited gain", "not_worth_it": "Not worth it"}[kind]
    if kind == "limited" and gain > EFFECTIVE:
        opening = "A gain, but not surely an effective one"
    if difference.relative is not None and gain <= MANY_TIMES:
        low, high = (f"{100 * bound:.1f}" for bound in difference.relative)
        relative += f", 95 % interval {low} to {high} %"
    return f"{opening}: {found}, {relative} ({interval})."


def _relative(score: float, baseline: float) -> str:
    if baseline == 0:
        return "which gets nothing right"
    if score / baseline - 1 > MANY_TIMES:
        return f"{score / baseline:.0f} times as much"
    return f"a relative gain of {100 * (score / baseline - 1):.1f} %"


def _what_would_settle_it(difference: Difference) -> str:
    """An interval narrows with the square root of the number of texts; one of no width has nothing that could narrow."""
    if difference.low == difference.high == 0.0:
        return "No text tells the two apart: they score alike on each, which says nothing of labels that hardly any text has."
    half = (difference.high - difference.low) / 2
    factor = (half / abs(difference.value)) ** 2 if difference.value else math.inf
    if factor > MOST_FACTOR:
        return "These texts do not tell the two apart, and only very many more could: take them to be equally good."
    return f"These texts do not tell the two apart; about {max(2, math.ceil(factor))} times as many labelled test texts would."


def _resampled(compared: Compared, decisions: tuple[Array, ...]) -> NDArray[np.float64]:
    """The metric `[D, R]` of each of D sets of decisions in the same R resamples of the texts."""
    for one in decisions:
        compared.score(one)  # checks the shapes and ids
    joint, times = joint_outcomes(np.asarray(compared.targets), decisions, compared.classes)
    sides = [Outcomes(*one, times) for one in joint]

    def measure(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.stack([metrics_of(side.count(drawn), compared.multi_label)[compared.metric] for side in sides])

    return resampled(times, measure, compared.classes, compared.resamples, compared.seed)
