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
from scipy.optimize import minimize_scalar
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
    if task.name == "multi_label":
        return functional.binary_cross_entropy_with_logits(logits.double(), targets.double(), reduction="none").mean(1)
    return functional.cross_entropy(logits.double(), targets, reduction="none")


def choose_scaling(sample: Sample, seed: int) -> tuple[Method, Calibration]:
    """The form with the least loss on held-out texts, fitted on all of the sample."""
    if sample.logits.numel() > MOST_CELLS or (sample.multi_label and sample.classes > MOST_LABELS):
        return "temperature", _common_temperature(sample)
    methods: tuple[Method, ...] = ("none", "temperature", "platt") if sample.multi_label else ("none", "temperature")
    losses = np.empty((len(methods), len(sample)))

    def measure(rest: Sample, held: Sample, rows: np.ndarray) -> None:
        for i, method in enumerate(methods):
            scaled = fit_scaling(rest, method).calibrated(held.logits)
            losses[i, rows] = _log_losses(sample.task, scaled, held.targets).numpy()

    sample.out_of_part(INNER_PARTS, seed, measure)
    worse = losses - losses[losses.sum(1).argmin()]
    within = worse.mean(1) <= worse.std(1) / np.sqrt(len(sample))
    chosen = methods[int(within.argmax())]  # the first one, which is the simplest
    return chosen, fit_scaling(sample, chosen)


def fit_scaling(sample: Sample, method: Method) -> Calibration:
    """Slopes, and shifts for `platt`."""
    if method == "none":
        return PLAIN
    if not sample.multi_label:
        return _common_temperature(sample)
    z, y = sample.logits.double(), sample.targets.double()
    shifted = method == "platt"
    identity = (torch.ones(1).double(), torch.zeros(1).double())
    common = _fit_logistic(z.reshape(-1, 1), y.reshape(-1, 1), identity, shifted)
    slopes, shifts = _fit_logistic(z, y, common, shifted)
    return Calibration(slopes=tuple(slopes.tolist()), shifts=tuple(shifts.tolist()) if shifted else ())


def _common_temperature(sample: Sample) -> Calibration:
    logits = sample.logits.double()

    def loss(log_slope: float) -> float:
        return log_loss(sample.task, logits * float(np.exp(log_slope)), sample.targets) * len(sample) + log_slope**2 / 2

    best = minimize_scalar(loss, bounds=tuple(np.log(SLOPES)), method="bounded", options={"xatol": 1e-4})
    return Calibration(slopes=(float(np.exp(best.x)),) * (sample.classes if sample.multi_label else 1))


def _fit_logistic(z: Tensor, y: Tensor, centre: tuple[Tensor, Tensor], shifted: bool) -> tuple[Tensor, Tensor]:
    """`[C]` slopes and shifts of `[N, C]` logits: Newton's method on the penalised loss, which is convex, all labels at once.

    Args:
        centre: slopes and shifts, `[C]` or `[1]`, that the penalty is the squared distance from.
        shifted: whether the shifts are fitted too; else they stay.
    """
    slopes, shifts = (value.expand(z.shape[1]).clone() for value in centre)
    squares, true, true_z = z * z, y.sum(0), (y * z).sum(0)

    def loss(slopes: Tensor, shifts: Tensor) -> Tensor:
        fits = functional.softplus(torch.addcmul(shifts, z, slopes), threshold=40).sum(0) - slopes * true_z - shifts * true
        return fits + (SLOPE_PRIOR * (slopes - centre[0]) ** 2 + SHIFT_PRIOR * (shifts - centre[1]) ** 2) / 2

    current = loss(slopes, shifts)
    for _ in range(50):
        p = torch.addcmul(shifts, z, slopes).sigmoid_()
        weights = p - p * p
        slope_by_shift = _inner(weights, z) if shifted else torch.zeros_like(slopes)
        gradient = (
            _inner(p, z) - true_z + SLOPE_PRIOR * (slopes - centre[0]),
            p.sum(0) - true + SHIFT_PRIOR * (shifts - centre[1]),
        )
        curvature = _inner(weights, squares) + SLOPE_PRIOR, weights.sum(0) + SHIFT_PRIOR
        determinant = curvature[0] * curvature[1] - slope_by_shift**2
        step = (curvature[1] * gradient[0] - slope_by_shift * gradient[1]) / determinant
        shift_step = (curvature[0] * gradient[1] - slope_by_shift * gradient[0]) / determinant * shifted
        share = torch.ones_like(slopes)
        for _ in range(20):
            tried = (slopes - share * step).clamp(*SLOPES), shifts - share * shift_step
            reached = loss(*tried)
            if not (worse := reached > current + 1e-12 * current.abs()).any():
                break
            share = torch.where(worse, share / 2, share)
        better = reached < current
        slopes, shifts = torch.where(better, tried[0], slopes), torch.where(better, tried[1], shifts)
        gained = float((current - reached).max())
        current = torch.minimum(reached, current)
        if gained < 1e-9:
            break
    return slopes, shifts


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """`[C]` sums of products over N."""
    return torch.einsum("nc,nc->c", one, other)
