"""A calibration from labelled texts: honest probabilities, a decision rule, and whether either is worth having.

Everything that is reported about the calibration is measured on texts that did not take part in fitting it: the texts are dealt
into parts, and each part is judged by what was fitted on the others (cross-fitting). A rule that does not beat the plain one
beyond what chance explains is not kept. All of this counts texts, not rows: copies of a text tell nothing about other texts.

Knows logits, targets and tasks; knows nothing of files and models.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from veneer.errors import DataError
from veneer.evaluation.conformal import Found, find_coverage, find_precision
from veneer.evaluation.goals import Costs, Goal
from veneer.evaluation.metrics import Outcomes, bounds, joint_outcomes, metrics_of, resampled
from veneer.evaluation.reliability import Bin, brier, expected_calibration_error, mean_error_by_label, reliability
from veneer.evaluation.rules import MOST_CLASSES, fit_rule, keep_plain
from veneer.evaluation.scaling import Method, Sample, choose_scaling, log_loss
from veneer.tasks import PLAIN, Calibration, Task

PARTS = 5
LEAST_TEXTS = 20  # with fewer, nothing is fitted

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """The decision rule that was kept, and why.

    Attributes:
        kept: plain | fitted.
        metric: what the two were compared by; of `mean_cost` less is better.
        plain: its value under the plain rule, on held-out texts; `fitted`: under the fitted one.
        gain: how much better the fitted rule is, above 0 for better; `interval` is its 95 % paired bootstrap interval.
        reason: one sentence.
    """

    kept: str
    metric: str
    plain: float
    fitted: float
    gain: float
    interval: tuple[float, float] | None
    reason: str


@dataclass(frozen=True)
class Quality:
    """How good probabilities are: calibration error, Brier score, loss, and the bins behind the first.

    Attributes:
        ece: multi-label, of all texts and labels together, most of which are far from being given.
        ece_label_mean: the mean over the labels that some text has of the error of each alone; None for single-label.
    """

    ece: float
    brier: float
    nll: float
    bins: tuple[Bin, ...]
    ece_label_mean: float | None = None

    def scores(self) -> dict[str, float]:
        """Without the bins; `ece_label_mean` only where there is one."""
        by_label = {} if self.ece_label_mean is None else {"ece_label_mean": self.ece_label_mean}
        return {"ece": self.ece, **by_label, "brier": self.brier, "nll": self.nll}


@dataclass(frozen=True)
class Fitted:
    """A calibration, and everything that is known about it.

    Attributes:
        calibration: what `veneer.json` keeps.
        goal: what the rule was fitted for.
        source: the name of the texts; `texts` is how many different ones fitted it.
        method: how probabilities are made: none | temperature | platt.
        before, after: the probabilities without and with it, both of held-out texts.
        held_out: decisions in the form of the targets, each by the kept kind of rule, fitted without that text: of all N rows, or
            of the half of the texts that fit beside a promise.
        left: ids of the classes whose decision the fitted rule leaves as it was.
        promises: what was found for `coverage` and `precision`, where asked for.
    """

    calibration: Calibration
    goal: Goal
    source: str
    texts: int
    method: Method
    rule: Rule
    parts: int
    before: Quality
    after: Quality
    held_out: Tensor = field(repr=False, compare=False)
    left: tuple[int, ...] = ()
    promises: tuple[Found, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the `calibration` of `report.json`."""
        measured = f"{self.source}, cross-fitted in {self.parts} parts" if self.parts else f"{self.source}; nothing was fitted"
        return {
            "target": self.goal.text,
            "texts": self.texts,
            "split": self.source,
            "parameters": self.calibration.to_json(),
            "method": self.method,
            "rule": asdict(self.rule) | {"interval": None if self.rule.interval is None else list(self.rule.interval)},
            "measured_on": measured,
            "before": self.before.scores(),
            "after": self.after.scores(),
            "reliability": {"before": _plain_bins(self.before.bins), "after": _plain_bins(self.after.bins)},
            "left": list(self.left),
            "promises": {found.kind: found.to_json() for found in self.promises},
        }


def fit_calibration(
    logits: Tensor,
    targets: Tensor,
    task: Task,
    *,
    texts: Sequence[Hashable] | None = None,
    goal: Goal | None = None,
    coverage: float | None = None,
    precision: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    source: str = "dev",
) -> Fitted:
    """Fit a calibration on N labelled rows that took no part in training.

    A text that occurs several times counts once, with one of its rows drawn at random: copies on both sides of a fit, or counted
    as so many witnesses, would prove anything.

    Where `coverage` or `precision` is asked for, half of the texts fit and the other half back the promise, so that it does not
    rest on texts the probabilities were fitted to. Which half a text is in is drawn at random, not label by label: what is
    promised holds over draws of texts.

    Args:
        logits: `[N, C]`.
        targets: as `task.targets` gives them.
        texts: N keys, equal for rows with the same text. If None, rows with equal logits are taken for the same text: where other
            texts have them too, there are fewer texts than there might be, never more.
        goal: what the decision rule is fitted for; macro-F1 if None.
        coverage: the share of texts whose set of classes shall hold the right ones.
        precision: the share of answers that shall be right.
        bootstrap: resamples behind the interval of the rule's gain; with 0 the plain rule is kept.
        source: what the texts are called in the report.

    Raises:
        DataError: there are no texts, a logit is not finite, or a target or promise cannot be reached with these texts.
    """
    if not len(logits):
        raise DataError(f"{source}: there are no texts to calibrate on")
    if not logits.isfinite().all():
        raise DataError(f"{source}: logits that are not finite numbers cannot be calibrated. Fix: train again, e.g. in fp32")
    rows, place = _one_a_text([row.tobytes() for row in logits.numpy()] if texts is None else texts, seed)
    everything, goal = Sample(task, logits.float(), targets).rows(rows), goal or Goal()
    if coverage is None and precision is None:
        fitted = _fit(everything, goal, bootstrap, seed, source)
        return replace(fitted, held_out=fitted.held_out[torch.from_numpy(place)])
    order, half = np.random.default_rng(seed).permutation(len(everything)), (len(everything) + 1) // 2
    first, second = everything.rows(order[:half]), everything.rows(order[half:])
    if len(second) == 0:
        raise DataError(f"{source}: a promise cannot be made from {len(everything)} text. Fix: give more with --data")
    fitted = _fit(first, goal, bootstrap, seed, f"half of {source}")
    calibration, promises = fitted.calibration, []
    if coverage is not None:
        promises.append(find_coverage(second.logits, second.targets, task, fitted.calibration, coverage))
        calibration = replace(calibration, coverage=promises[-1].promise)
    if precision is not None:
        promises.append(find_precision(first, second, fitted.calibration, precision))
        calibration = replace(calibration, precision=promises[-1].promise)
    return replace(fitted, calibration=calibration, promises=tuple(promises))


def _one_a_text(texts: Sequence[Hashable], seed: int) -> tuple[Ints, Ints]:
    """`[M]` rows that stand for the M different texts, in the order of the texts; and `[N]`, which of those each row is of."""
    numbers: dict[Hashable, int] = {}
    place = np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(place))
    _, first = np.unique(place[order], return_index=True)
    return order[first], place


def _fit(sample: Sample, goal: Goal, bootstrap: int, seed: int, source: str) -> Fitted:
    if len(sample) < LEAST_TEXTS:
        return _nothing(sample, goal, source, f"it takes {LEAST_TEXTS} different texts to fit a rule; found {len(sample)}")
    if not sample.multi_label and (sample.targets == sample.targets[0]).all():
        return _nothing(sample, goal, source, "all texts have the same label: what tells it from others cannot be seen")
    if (sample.logits == sample.logits[0]).all():
        return _nothing(sample, goal, source, "all texts have the same logits, by which nothing can be told apart")
    held = _hold_out(sample, goal, seed)
    rule = _judge(sample, held, goal, bootstrap, seed)
    method, scaling = choose_scaling(sample, seed)
    fits = rule.kept == "fitted"
    calibration, left = fit_rule(sample, scaling, goal, seed) if fits else (keep_plain(scaling), ())
    if goal.least is not None and len(left) == (sample.classes if sample.multi_label else 1):
        raise DataError(f"{goal.text} is not reached by any label on {source}. Fix: a lower one, or more texts with --data")
    before = _quality(sample, sample.logits)
    after = before if method == "none" else _quality(sample, held.logits)
    decisions = held.fitted if fits else held.plain
    return Fitted(calibration, goal, source, len(sample), method, rule, PARTS, before, after, decisions, left)


def _nothing(sample: Sample, goal: Goal, source: str, reason: str) -> Fitted:
    """The plain rule, where none can be fitted."""
    plain = sample.task.decide(sample.logits)
    quality = _quality(sample, sample.logits)
    value = _point(sample, plain, goal)
    rule = Rule("plain", goal.metric(sample.multi_label), value, value, 0.0, None, reason)
    return Fitted(PLAIN, goal, source, len(sample), "none", rule, 0, quality, quality, plain)


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """What N texts get from a calibration fitted without them: `[N, C]` calibrated logits, decisions; and the plain ones."""

    logits: Tensor
    fitted: Tensor
    plain: Tensor
    swept: bool


def _hold_out(sample: Sample, goal: Goal, seed: int) -> _HeldOut:
    plain = sample.task.decide(sample.logits)
    logits, fitted = torch.empty_like(sample.logits), plain.clone()
    swept = sample.classes <= MOST_CLASSES[sample.task.name]

    def judge(rest: Sample, held: Sample, rows: NDArray[np.int64]) -> None:
        _, scaling = choose_scaling(rest, seed)
        chosen = torch.from_numpy(rows)
        logits[chosen] = scaling.calibrated(held.logits)
        if swept:
            calibration, _ = fit_rule(rest, scaling, goal, seed)
            fitted[chosen] = sample.task.decide(held.logits, calibration)

    sample.out_of_part(PARTS, seed, judge)
    return _HeldOut(logits, fitted, plain, swept)


def _judge(sample: Sample, held: _HeldOut, goal: Goal, bootstrap: int, seed: int) -> Rule:
    """Whether the fitted rule is kept."""
    metric = goal.metric(sample.multi_label)
    values = _point(sample, held.plain, goal), _point(sample, held.fitted, goal)
    sign = -1.0 if goal.name == "cost" else 1.0
    gain = sign * (values[1] - values[0])
    if not held.swept:
        reason = f"{sample.classes:,} classes are too many for a rule of their own"
        return Rule("plain", metric, *values, 0.0, None, reason)
    interval = _gain_interval(sample, held, goal, bootstrap, seed) if bootstrap else None
    if interval is not None:
        interval = tuple(sorted(sign * bound for bound in interval))  # type: ignore[assignment]
    if goal.least is not None:
        kept, reason = "fitted", f"asked for: a {goal.name} of {goal.least:g}; held-out texts get {values[1]:.3f}"
    elif interval is None:
        kept, reason = "plain", "without resamples a gain cannot be told from chance"
    elif interval[0] > 0:
        kept, reason = "fitted", f"it gains {gain:.3f}, and its 95 % interval is above zero"
    elif interval[1] < 0:
        kept, reason = "plain", f"the fitted rule loses {-gain:.3f} on held-out texts"
    else:
        kept, reason = "plain", "the interval of the gain includes zero: it may be chance"
    return Rule(kept, metric, *values, gain, interval, reason)


def _truth(sample: Sample) -> Bools:
    """`[N, C]`, True where a text has a class."""
    if sample.multi_label:
        return sample.targets.numpy() > 0
    return np.asarray(sample.targets.numpy()[:, None] == np.arange(sample.classes))


def _point(sample: Sample, decisions: Tensor, goal: Goal) -> float:
    (outcomes,), times = _outcomes(sample, decisions)
    return float(_values(outcomes, times[None], goal, sample.multi_label)[0])


def _gain_interval(sample: Sample, held: _HeldOut, goal: Goal, bootstrap: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of fitted − plain over resamples of the texts, both on the same ones."""
    sides, times = _outcomes(sample, held.plain, held.fitted)

    def measure(drawn: Ints) -> Floats:
        return np.stack([_values(side, drawn, goal, sample.multi_label) for side in sides])

    plain, fitted = resampled(times, measure, sample.classes, bootstrap, seed)
    return bounds(fitted - plain)


def _outcomes(sample: Sample, *decisions: Tensor) -> tuple[list[Outcomes], Ints]:
    joint, times = joint_outcomes(sample.targets.numpy(), [one.numpy() for one in decisions], sample.classes)
    return [Outcomes(*one, times) for one in joint], times


def _values(outcomes: Outcomes, drawn: Ints, goal: Goal, multi_label: bool) -> Floats:
    """`[R]` values of the goal's metric when the K outcomes occur `drawn` `[R, K]` times."""
    if goal.costs is not None:
        return np.asarray(drawn @ _costs(outcomes, goal.costs, multi_label) / drawn.sum(1))
    supported = np.asarray(outcomes.targets.sum(axis=0) > 0)  # else to decide on no other class would look like a gain
    counts = replace(outcomes.count(drawn), averaged=supported)
    if goal.name in ("precision", "recall") and not multi_label:
        bottom = counts.decided if goal.name == "precision" else counts.true
        return np.asarray(counts.right[:, 1] / np.maximum(bottom[:, 1], 1))
    metrics = metrics_of(counts, multi_label)
    return 1 - metrics["hamming_loss"] if goal.name == "accuracy" and multi_label else metrics[goal.metric(multi_label)]


def _costs(outcomes: Outcomes, costs: Costs, multi_label: bool) -> Floats:
    """`[K]`, of one text of each outcome."""
    table, true, given = np.asarray(costs), outcomes.targets, outcomes.decisions
    if not multi_label:
        return np.asarray(table[true.indices, given.indices])
    missed, wrong = table.T
    return np.asarray(true @ missed + given @ wrong - true.multiply(given) @ (missed + wrong))


def _quality(sample: Sample, logits: Tensor) -> Quality:
    """Of `[N, C]` logits: single-label the confidence in the most probable class, multi-label every text and label."""
    probabilities = sample.task.probabilities(logits).double().numpy()
    truth = _truth(sample).astype(np.float64)
    by_label = None
    if sample.multi_label:
        bins = reliability(probabilities.ravel(), truth.ravel())
        by_label = mean_error_by_label(probabilities, truth)
    else:
        rows, top = np.arange(len(sample)), probabilities.argmax(1)
        bins = reliability(probabilities[rows, top], truth[rows, top])
    loss = log_loss(sample.task, logits, sample.targets)
    return Quality(expected_calibration_error(bins), brier(probabilities, truth, sample.multi_label), loss, bins, by_label)


def _plain_bins(bins: Sequence[Bin]) -> list[Mapping[str, float]]:
    return [asdict(item) for item in bins]
