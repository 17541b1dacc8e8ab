"""Where the rows of a pack lie once its texts stand side by side, gathered by padded length for plain matrix products.

One look-up of rows takes a pack to all of its groups, and one takes it back: copies of one run of texts after the other are many
small operators, which one thread calls while the others wait. Knows lengths alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ROW = 16  # float32 numbers in a 512-bit register
# Finite: a row of padding may see nothing but padding through a window, and its NaN would spread in the backward pass.
HIDDEN = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Places:
    """The rows of `[R, h, d]`, and the G rows of groups of n texts padded to L rows each: `[n·h, L, d]` group after group.

    Attributes:
        shapes: (n·h, L) of each group.
        rows: `[G]`, of the flattened `[R·h, d]`; padding has its text's first row, so that whatever is there is finite.
        rows_or_zero: the same, but padding has R·h, the row behind the last.
        back: `[R·h]`, of the G gathered rows; filler, which no group holds, has any.
        filler: rows of filler at the end of R.
    """

    shapes: tuple[tuple[int, int], ...]
    rows: Tensor
    rows_or_zero: Tensor
    back: Tensor
    filler: int

    def gather(self, source: Tensor) -> Tensor:
        """`[R, h, d]` -> `[G, d]`."""
        return source.reshape(-1, source.shape[-1]).index_select(0, self.rows)

    def gather_or_zero(self, source: Tensor) -> Tensor:
        """`[R, h, d]` -> `[G, d]`, zeros as padding."""
        rows = source.reshape(-1, source.shape[-1])
        return torch.cat([rows, rows.new_zeros(1, rows.shape[1])]).index_select(0, self.rows_or_zero)

    def scatter(self, gathered: Tensor, heads: int) -> Tensor:
        """`[G, d]` -> `[R, h, d]`, zeros as filler."""
        rows = gathered.index_select(0, self.back).view(-1, heads, gathered.shape[-1])
        rows[len(rows) - self.filler :].zero_()
        return rows

    def groups(self, gathered: Tensor) -> list[Tensor]:
        """Views of `[G, d]`, a group each: `[n·h, L, d]`."""
        parts = gathered.split([texts * length for texts, length in self.shapes])  # type: ignore[no-untyped-call]
        return [part.view(*shape, -1) for part, shape in zip(parts, self.shapes, strict=True)]


@dataclass(frozen=True)
class Gathering:
    """The places of queries and keys; they differ where there is one query a text.

    Attributes:
        padding: of each group, `[n·h, 1, L]` float32 to add to scores, which hides the keys that are padding; None without any.
    """

    queries: Places
    keys: Places
    padding: tuple[Tensor | None, ...]


@lru_cache(maxsize=4)  # a step has two kinds: each token's query, and one query a text in the last layer
def gathering(lengths: tuple[int, ...], queries: int, keys: int, heads: int, device: torch.device) -> Gathering:
    """How texts of these `lengths` are gathered.

    Args:
        queries: rows of the queries: `keys` of them, or one a text.
        keys: rows of the keys, T with filler.
    """
    real = np.array(lengths)
    padded = np.where(real > 1, -(-real // _ROW) * _ROW, 1)
    groups = [np.flatnonzero(padded == size) for size in dict.fromkeys(padded.tolist())]
    of_keys = _places(real, padded, groups, heads, keys, device)
    one = np.ones_like(real)
    of_queries = _places(one, one, groups, heads, queries, device) if queries == len(real) else of_keys
    return Gathering(of_queries, of_keys, tuple(_padding(real[texts], int(padded[texts[0]]), heads, device) for texts in groups))


def _places(
    real: NDArray[np.int64],
    padded: NDArray[np.int64],
    groups: Sequence[NDArray[np.int64]],
    heads: int,
    rows: int,
    device: torch.device,
) -> Places:
    starts = np.cumsum(real) - real
    shapes, found, inside = [], [], []
    for texts in groups:
        place = np.arange(padded[texts[0]])
        is_real = place < real[texts, None]  # [n, L]
        tokens = starts[texts, None] + np.where(is_real, place, 0)
        found.append((tokens[:, None, :] * heads + np.arange(heads)[:, None]).ravel())  # [n, h, L]
        inside.append(np.repeat(is_real, heads, axis=0).ravel())
        shapes.append((len(texts) * heads, len(place)))
    gathered, kept = np.concatenate(found), np.concatenate(inside)
    back = np.zeros(rows * heads, np.int64)
    back[gathered[kept]] = np.flatnonzero(kept)
    or_zero = np.where(kept, gathered, rows * heads)
    of_rows, of_zero, of_back = (torch.from_numpy(one).to(device) for one in (gathered, or_zero, back))
    return Places(tuple(shapes), of_rows, of_zero, of_back, rows - int(real.sum()))


def _padding(real: NDArray[np.int64], padded: int, heads: int, device: torch.device) -> Tensor | None:
    if int(real.min()) == padded:
        return None
    hidden = np.where(np.arange(padded) < real[:, None], 0.0, HIDDEN).astype(np.float32)
    return torch.from_numpy(np.repeat(hidden, heads, axis=0)[:, None]).to(device)
