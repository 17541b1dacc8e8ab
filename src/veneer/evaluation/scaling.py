"""Logits to honest probabilities: a temperature, or Platt scaling a label.

    single-label   z' = slope·z                      temperature scaling (arXiv:1706.04599)
    multi-label    z' = slope_c·z   or   slope_c·z + shift_c    (Platt 1999), each label's shrunk towards a common one

The parameters are maxima a posteriori under a weak prior, so that a label with one positive text, or texts that are separated
without an error, have a finite answer; a label with few texts stays near the common scaling by itself. Which form is taken, none
among them, is decided by the loss on held-out texts: the simplest that is within a standard error of the best.

Knows logits and targets; knows nothing of decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from veneer.tasks import PLAIN, Calibration, Task

Method = Literal["none", "temperature", "platt"]

SLOPES = (0.05, 20.0)  # a temperature of 20 to 0.05
SLOPE_PRIOR = 16.0  # 1/variance of a label's slope about the common one: a standard deviation of 0.25
SHIFT_PRIOR = 4.0
INNER_PARTS = 3
MOST_CELLS = 5_000_000  # texts x labels beyond which the form is not chosen but fixed, a temperature for all; and labels alone
MOST_LABELS = 1000
BLOCK = 1 << 16  # cells computed at once: they stay in the processor's cache
MOST_STEPS = 50
MOST_HALVINGS = 20
SURE = 1.5  # by so much a step may change logits and surely lessen the loss; the proof goes up to 1.79
LEAST_GAIN = 1e-9

Pair = tuple[Tensor, Tensor]  # slopes and shifts


@dataclass(frozen=True, eq=False)
class Sample:
    """N labelled texts.

    Attributes:
        task: single-label or multi-label.
        logits: `[N, C]` float32.
        targets: `[N]` int64, or `[N, C]` float32 of 0 and 1.
    """

    task: Task
    logits: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def multi_label(self) -> bool:
        return self.task.name == "multi_label"

    @property
    def classes(self) -> int:
        """C."""
        return self.logits.shape[1]

    def rows(self, rows: np.ndarray) -> Sample:
        """Some of the texts, by their numbers."""
        chosen = torch.from_numpy(rows)
        return Sample(self.task, self.logits[chosen], self.targets[chosen])

    def parts(self, count: int, seed: int) -> np.ndarray:
        """`[N]` numbers from 0 to `count` - 1 that deal the texts into parts as alike as can be: by label, or by the rarest."""
        order = np.random.default_rng(seed).permutation(len(self))
        if self.multi_label:
            given = self.targets.numpy() > 0
            rarity = np.where(given, given.sum(0), len(self) + 1)
            stratum = np.where(given.any(1), rarity.argmin(1), -1)
        else:
            stratum = self.targets.numpy()
        order = order[np.argsort(stratum[order], kind="stable")]
        parts = np.empty(len(self), dtype=np.int64)
        parts[order] = np.arange(len(self)) % count
        return parts

    def out_of_part(self, count: int, seed: int, use: Callable[[Sample, Sample, np.ndarray], None]) -> None:
        """Call `use(rest, held, rows)` for every part: the texts outside it, those in it, and the numbers of the latter."""
        parts = self.parts(count, seed)
        for part in range(count):
            held = np.flatnonzero(parts == part)
            use(self.rows(np.flatnonzero(parts != part)), self.rows(held), held)


def log_loss(task: Task, logits: Tensor, targets: Tensor) -> float:
    """The mean over texts of −log p of the right class, or of the mean binary cross-entropy over labels."""
    return float(_log_losses(task, logits, targets).mean())


def _log_losses(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """`[N]`, float64."""
    losses = torch.empty(len(logits), dtype=torch.float64)
    for out, z, y in zip(*(_blocks(one, logits.shape[1]) for one in (losses, logits, targets)), strict=True):
        if task.name == "multi_label":
            each = functional.binary_cross_entropy_with_logits(z.double(), y.double(), reduction="none").mean(1)
        else:
            each = functional.cross_entropy(z.double(), y, reduction="none")
        out.copy_(each)
    return losses


def _blocks(rows: Tensor, width: int) -> list[Tensor]:
    """Rows in blocks so small that what is computed of them stays in the processor's cache; rows have `width` cells."""
    most = max(1, BLOCK // width)
    return [rows[start : start + most] for start in range(0, len(rows), most)]


@dataclass(frozen=True, eq=False)
class _Slopes:
    """A fit to `[N, C]` logits: slopes and shifts common to all labels, `[1]`, and of each, `[C]`."""

    common: tuple[Tensor, Tensor]
    labels: tuple[Tensor, Tensor]

    def calibration(self, shifted: bool) -> Calibration:
        slopes, shifts = (tuple(values.tolist()) for values in self.labels)
        return Calibration(slopes=slopes, shifts=shifts if shifted else ())


def choose_scaling(sample: Sample, seed: int) -> tuple[Method, Calibration]:
    """The form with the least loss on held-out texts, fitted on all of the sample."""
    if sample.logits.numel() > MOST_CELLS or (sample.multi_label and sample.classes > MOST_LABELS):
        return "temperature", _common_temperature(sample)
    methods: tuple[Method, ...] = ("none", "temperature", "platt") if sample.multi_label else ("none", "temperature")
    fits = {method: _fit(sample, method) for method in methods}
    losses = np.empty((len(methods), len(sample)))

    def measure(rest: Sample, held: Sample, rows: np.ndarray) -> None:
        for i, method in enumerate(methods):
            # the start decides how soon the least loss is found, not where it is: nothing is learned of the texts held out
            scaling, _ = _fit(rest, method, fits[method][1])
            losses[i, rows] = _log_losses(sample.task, scaling.calibrated(held.logits), held.targets).numpy()

    sample.out_of_part(INNER_PARTS, seed, measure)
    worse = losses - losses[losses.sum(1).argmin()]
    within = worse.mean(1) <= worse.std(1) / np.sqrt(len(sample))
    chosen = methods[int(within.argmax())]  # the first one, which is the simplest
    return chosen, fits[chosen][0]


def fit_scaling(sample: Sample, method: Method) -> Calibration:
    """Slopes, and shifts for `platt`."""
    return _fit(sample, method)[0]


def _fit(sample: Sample, method: Method, near: _Slopes | None = None) -> tuple[Calibration, _Slopes | None]:
    """A scaling, and what a fit to nearly the same texts can start from, as this one did from `near`."""
    if method == "none":
        return PLAIN, None
    if not sample.multi_label:
        return _common_temperature(sample), None
    identity = (torch.ones(1).double(), torch.zeros(1).double())
    z, y, shifted = sample.logits, sample.targets, method == "platt"
    starts = (None, None) if near is None else (near.common, near.labels)
    common = _fit_logistic(z.reshape(-1, 1), y.reshape(-1, 1), identity, shifted, starts[0])
    found = _Slopes(common, _fit_logistic(z, y, common, shifted, starts[1]))
    return found.calibration(shifted), found


def _common_temperature(sample: Sample) -> Calibration:
    """The most likely slope of all logits if its logarithm is normal with the variance 1: Newton's method, within brackets."""
    low, high, log_slope = float(np.log(SLOPES[0])), float(np.log(SLOPES[1])), 0.0
    for _ in range(MOST_STEPS):
        slope = float(np.exp(log_slope))
        by_slope, curvature = _slope_derivatives(sample, slope)
        gradient = slope * by_slope + log_slope
        low, high = (log_slope, high) if gradient < 0 else (low, log_slope)
        before, log_slope = log_slope, log_slope - gradient / (slope**2 * curvature + 1)
        if not low < log_slope < high:
            log_slope = (low + high) / 2
        if abs(log_slope - before) < 1e-6:
            break
    return Calibration(slopes=(float(np.exp(log_slope)),) * (sample.classes if sample.multi_label else 1))


def _slope_derivatives(sample: Sample, slope: float) -> tuple[float, float]:
    """The first and second derivative of the summed `_log_losses` by a slope common to all logits."""
    first = second = 0.0
    for block, y in zip(*(_blocks(one, sample.classes) for one in (sample.logits, sample.targets)), strict=True):
        z = block.double()
        if sample.multi_label:
            p = (z * slope).sigmoid_()
            first += float(((p - y) * z).sum()) / sample.classes
            second += float(p.addcmul_(p, p, value=-1.0).mul_(z).mul_(z).sum()) / sample.classes
        else:
            p = (z * slope).softmax(1)
            mean = (p * z).sum(1)
            first += float((mean - z.gather(1, y[:, None]).squeeze(1)).sum())
            second += float((p.mul_(z).mul_(z).sum(1) - mean**2).sum())
    return first, second


class _Logistic:
    """The loss of slopes and shifts on `[N, C]` logits, and its penalty: the squared distance from the centre."""

    def __init__(self, z: Tensor, y: Tensor, centre: Pair) -> None:
        self.blocks = _blocks(z, z.shape[1])
        self.centre = centre[0].expand(z.shape[1]), centre[1].expand(z.shape[1])
        self.true, self.true_z = torch.zeros(2, z.shape[1], dtype=torch.float64)
        for block, true in zip(self.blocks, _blocks(y, y.shape[1]), strict=True):
            self.true += true.sum(0, dtype=torch.float64)
            self.true_z += (true.double() * block).sum(0)
        self.ends = z.amin(0).double(), z.amax(0).double()

    def loss(self, slopes: Tensor, shifts: Tensor, labels: Tensor) -> Tensor:
        """`[D]`, of some of the labels."""
        fits: Tensor = -slopes * self.true_z[labels] - shifts * self.true[labels]
        for block in self.blocks:
            z = block[:, labels].double()
            fits += functional.softplus(torch.addcmul(shifts, z, slopes), threshold=40).sum(0)
        return (
            fits
            + (SLOPE_PRIOR * (slopes - self.centre[0][labels]) ** 2 + SHIFT_PRIOR * (shifts - self.centre[1][labels]) ** 2) / 2
        )

    def derivatives(self, slopes: Tensor, shifts: Tensor) -> tuple[Pair, tuple[Tensor, Tensor, Tensor]]:
        """The gradient by slope and by shift, and the curvature: by slope twice, by both, by shift twice; each `[C]`."""
        sums = slopes.new_zeros(5, len(slopes))
        for block in self.blocks:
            z = block.double()
            p = torch.addcmul(shifts, z, slopes).sigmoid_()
            sums[0] += p.sum(0)
            sums[1] += (p * z).sum(0)
            weighted = p.addcmul_(p, p, value=-1.0)
            sums[2] += weighted.sum(0)
            sums[3] += weighted.mul_(z).sum(0)
            sums[4] += weighted.mul_(z).sum(0)
        by_slope = sums[1] - self.true_z + SLOPE_PRIOR * (slopes - self.centre[0])
        by_shift = sums[0] - self.true + SHIFT_PRIOR * (shifts - self.centre[1])
        return (by_slope, by_shift), (sums[4] + SLOPE_PRIOR, sums[3], sums[2] + SHIFT_PRIOR)


def _fit_logistic(z: Tensor, y: Tensor, centre: Pair, shifted: bool, start: Pair | None = None) -> Pair:
    """`[C]` slopes and shifts of `[N, C]` logits: Newton's method on the penalised loss, which is convex, all labels at once.

    A step that changes no logit by more than `SURE` lessens the loss, since a logistic loss curves no faster (Bach 2010,
    arXiv:0910.4627, proposition 1). One that might not is tried, and halved until it does.

    Args:
        centre: slopes and shifts, `[C]` or `[1]`, that the penalty is the squared distance from.
        shifted: whether the shifts are fitted too; else they stay.
        start: where to begin, `[C]`; at the centre if None.
    """
    problem = _Logistic(z, y, centre)
    slopes, shifts = (value.expand(z.shape[1]) for value in start or centre)
    for _ in range(MOST_STEPS):
        (by_slope, by_shift), (twice_slope, both, twice_shift) = problem.derivatives(slopes, shifts)
        if not shifted:
            by_shift, both = torch.zeros_like(by_shift), torch.zeros_like(both)
        determinant = twice_slope * twice_shift - both**2
        step = (twice_shift * by_slope - both * by_shift) / determinant
        at_bound = (slopes - step).clamp(*SLOPES) == slopes
        shift_step = torch.where(at_bound, by_shift / twice_shift, (twice_slope * by_shift - both * by_slope) / determinant)
        tried = (slopes - step).clamp(*SLOPES), shifts - shift_step
        moved = tried[0] - slopes, tried[1] - shifts
        gain = -(by_slope * moved[0] + by_shift * moved[1])  # at most: the loss is convex
        clamped = ~at_bound & (tried[0] != slopes - step)
        farthest = torch.maximum(*((moved[0] * end + moved[1]).abs() for end in problem.ends))
        if (doubtful := clamped | (farthest > SURE)).any():
            labels = doubtful.nonzero().squeeze(1)
            here = slopes[labels], shifts[labels]
            (tried[0][labels], tried[1][labels]), gain[labels] = _descend(
                problem, here, (step[labels], shift_step[labels]), labels
            )
        slopes, shifts = tried
        if float(gain.max()) < LEAST_GAIN:
            break
    return slopes, shifts


def _descend(problem: _Logistic, here: Pair, step: Pair, labels: Tensor) -> tuple[Pair, Tensor]:
    """Where each of some labels has a lesser loss, the whole step away or a half or a quarter of it, and by how much lesser."""
    current, share = problem.loss(*here, labels), torch.ones_like(here[0])
    for _ in range(MOST_HALVINGS):
        tried = (here[0] - share * step[0]).clamp(*SLOPES), here[1] - share * step[1]
        reached = problem.loss(*tried, labels)
        if not (worse := reached > current + 1e-12 * current.abs()).any():
            break
        share = torch.where(worse, share / 2, share)
    better = reached < current
    found = torch.where(better, tried[0], here[0]), torch.where(better, tried[1], here[1])
    return found, (current - reached).clamp(min=0.0)
