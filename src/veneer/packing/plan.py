"""Which texts go into which batch: pure functions of lengths, seed and epoch, so that any batch can be found again.

Knows numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WINDOW = 50  # batches whose texts are sorted by length together

Indices = NDArray[np.int64]


def plan_training(lengths: Indices, batch_size: int, *, seed: int, epoch: int) -> list[Indices]:
    """Batches of `batch_size` texts for one epoch; the last one may be smaller.

    Texts are shuffled, sorted by length inside windows of `WINDOW` batches, so that a batch holds few distinct lengths,
    and the batches are shuffled again.

    Args:
        lengths: `[N]` tokens of each text.
        seed: of the run.
        epoch: from 0.

    Returns:
        Arrays of indices into `lengths`; every index occurs once.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    span = WINDOW * batch_size
    windows = [order[start : start + span] for start in range(0, len(order), span)]
    order = np.concatenate([window[np.argsort(lengths[window], kind="stable")] for window in windows])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def plan_inference(lengths: Indices, token_budget: int) -> list[Indices]:
    """Batches of at most `token_budget` tokens (a longer text goes alone), longest first, so that memory peaks at once.

    Returns:
        Arrays of indices into `lengths`; every index occurs once.
    """
    return _cut(np.argsort(-lengths, kind="stable"), lengths, token_budget)


def split_batch(batch: Indices, lengths: Indices, token_budget: int) -> list[Indices]:
    """A batch cut into micro-batches of at most `token_budget` tokens each (a longer text goes alone), in order."""
    return _cut(batch, lengths, token_budget)


def _cut(order: Indices, lengths: Indices, token_budget: int) -> list[Indices]:
    parts: list[list[int]] = []
    filled = token_budget + 1
    for index in order.tolist():
        tokens = int(lengths[index])
        if filled + tokens > token_budget:
            parts.append([])
            filled = 0
        parts[-1].append(index)
        filled += tokens
    return [np.asarray(part, dtype=np.int64) for part in parts]


def describe_plan(lengths: Sequence[int] | Indices, batch_size: int, seed: int) -> str:
    """A short name of the plan's rule and inputs, by which a resumed run knows that its batches are the same."""
    return f"shuffle-sort-shuffle window={WINDOW} batch_size={batch_size} seed={seed} texts={len(lengths)}"
