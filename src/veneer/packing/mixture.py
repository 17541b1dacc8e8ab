"""Which texts of several tasks go into which batch: pure functions of lengths, seed and epoch, as in `plan.py`.

An epoch is as many texts as all tasks have together. Task i gives a share of them in proportion to `n_i^(1/T)` of its n_i texts:
at the temperature T = 1 each task's own texts, once; the hotter, the more even, so that a small task's texts come several times
in an epoch and a large one's not all. A task's texts come in passes, each in an order of its own, and go on in the next epoch
where they stopped: no text comes again before all others of its task have.

Every batch holds texts of every task in the same proportion, to within one text.

Knows numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from veneer.packing.plan import WINDOW, Indices


def task_shares(counts: Sequence[int], temperature: float) -> list[float]:
    """The share of each task's texts in an epoch, `n_i^(1/T) / Σ_j n_j^(1/T)`.

    Args:
        counts: texts of each task.
        temperature: T, above 0.
    """
    logs = np.log(np.asarray(counts, np.float64)) / temperature
    weights = np.exp(logs - logs.max())  # the power itself overflows for a small T
    return list(map(float, weights / weights.sum()))


def task_quotas(counts: Sequence[int], temperature: float) -> list[int]:
    """The texts that each task gives to an epoch: its share of all texts in whole numbers by largest remainders, one at least."""
    total = sum(counts)
    exact = np.asarray(task_shares(counts, temperature)) * total
    quotas = np.maximum(np.floor(exact + 1e-9).astype(np.int64), 1)
    while (missing := total - int(quotas.sum())) != 0:
        place = int(np.argmax((exact - quotas) * np.sign(missing) - 1e9 * ((missing < 0) & (quotas == 1))))
        quotas[place] += int(np.sign(missing))
    return list(map(int, quotas))


def plan_mixture(lengths: Sequence[Indices], batch_size: int, temperature: float, *, seed: int, epoch: int) -> list[Indices]:
    """Batches of `batch_size` texts of all tasks for one epoch; the last one may be smaller.

    Of each task, texts are sorted by length inside windows of `WINDOW` batches, so that a batch holds few distinct lengths.

    Args:
        lengths: of each task, `[N_i]` tokens of each text.
        temperature: T of the shares.
        seed: of the run.
        epoch: from 0.

    Returns:
        Arrays of indices into the texts of all tasks end to end, those of a batch in the order of their tasks.
    """
    counts = [len(one) for one in lengths]
    quotas = task_quotas(counts, temperature)
    sizes = batch_composition(quotas, batch_size)
    parts, start = [], 0
    for task, (one, quota) in enumerate(zip(lengths, quotas, strict=True)):
        drawn = _drawn(len(one), quota, epoch, (seed, task))
        parts.append([start + texts for texts in _dealt(drawn, one, sizes[:, task], (seed, task, epoch))])
        start += len(one)
    return [np.concatenate(batch) for batch in zip(*parts, strict=True)]


def batch_composition(quotas: Sequence[int], batch_size: int) -> Indices:
    """`[batches, K]`: texts of each of K tasks in each batch of an epoch, in constant proportion but for rounding."""
    places = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in quotas])
    tasks = np.repeat(np.arange(len(quotas)), quotas)[np.argsort(places, kind="stable")]
    starts = range(0, len(tasks), batch_size)
    return np.stack([np.bincount(tasks[start : start + batch_size], minlength=len(quotas)) for start in starts])


def describe_mixture(lengths: Sequence[Indices], batch_size: int, temperature: float, seed: int) -> str:
    """As `describe_plan`, of `plan_mixture`."""
    texts = "+".join(str(len(one)) for one in lengths)
    return f"mixture temperature={temperature:g} window={WINDOW} batch_size={batch_size} seed={seed} texts={texts}"


def _drawn(count: int, quota: int, epoch: int, seed: tuple[int, int]) -> Indices:
    """A task's texts of an epoch: `quota` of the endless row of its shuffled passes, from where the last epoch stopped."""
    start, stop = epoch * quota, (epoch + 1) * quota
    passes = range(start // count, -(-stop // count))
    row = np.concatenate([np.random.default_rng((*seed, number, 0)).permutation(count) for number in passes])
    return row[start - passes.start * count :][:quota]


def _dealt(texts: Indices, lengths: Indices, sizes: Indices, seed: tuple[int, int, int]) -> list[Indices]:
    """A task's texts dealt to batches of these `sizes`: neighbours in length together, the lengths in random order."""
    rng = np.random.default_rng((*seed, 1))
    dealt: list[Indices] = [texts[:0]] * len(sizes)
    ends = np.cumsum(sizes)
    for first in range(0, len(sizes), WINDOW):
        batches = np.arange(first, min(first + WINDOW, len(sizes)))
        window = texts[ends[first] - sizes[first] : ends[batches[-1]]]
        window = window[np.argsort(lengths[window], kind="stable")]
        for batch in rng.permutation(batches):
            dealt[batch], window = window[: sizes[batch]], window[sizes[batch] :]
    return dealt
