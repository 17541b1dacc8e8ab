"""Batches of texts as models take them: laid end to end (packed), or side by side (padded) for models that cannot pack.

Knows torch and lengths; knows nothing of tokenizers, labels or model families.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pooling = Literal["cls", "mean", "last"]  # which vector of a text stands for it: its first token's, the mean, its last's


@dataclass(frozen=True)
class Segments:
    """Where each of the N texts of a pack lies in its T tokens.

    Attributes:
        lengths: tokens of each text, N of them, none of them 0.
        cu_seqlens: `[N+1]` int32, cumulative lengths, on the batch's device.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Segments:
        """Segments of texts with these `lengths`.

        Raises:
            ValueError: no text, or a text without tokens.
        """
        if not lengths or min(lengths) < 1:
            raise ValueError(f"a pack holds one text or more, each of one token or more; lengths are {list(lengths)[:10]}")
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        return cls(tuple(int(length) for length in lengths), torch.from_numpy(offsets).to(device))

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.lengths)


@dataclass(frozen=True)
class PackedBatch:
    """N texts end to end, without padding between them; a few rows of filler, which no text sees, may lie behind the last.

    Attributes:
        ids: `[T]` int64 token ids.
        type_ids: `[T]` int64 segment ids.
        positions: `[T]` int64, starting again at `first_position` for each text.
        segments: where each text lies.
    """

    ids: Tensor
    type_ids: Tensor
    positions: Tensor
    segments: Segments

    def __len__(self) -> int:
        return len(self.segments.lengths)

    @property
    def tokens(self) -> int:
        """Tokens without filler."""
        return sum(self.segments.lengths)

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on `device`."""
        segments = Segments(self.segments.lengths, self.segments.cu_seqlens.to(device))
        return PackedBatch(self.ids.to(device), self.type_ids.to(device), self.positions.to(device), segments)


@dataclass(frozen=True)
class PaddedBatch:
    """N texts side by side, padded on the right to the longest (L tokens), for models that cannot pack.

    Attributes:
        ids: `[N, L]` int64 token ids, `pad_id` behind each text.
        type_ids: `[N, L]` int64 segment ids.
        mask: `[N, L]` int64, 1 on tokens and 0 on padding.
        segments: where each text would lie in a pack.
    """

    ids: Tensor
    type_ids: Tensor
    mask: Tensor
    segments: Segments

    def __len__(self) -> int:
        return len(self.segments.lengths)

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(self.segments.lengths)

    @property
    def rows(self) -> Tensor:
        """`[T]` int64, where the texts' tokens lie in the flattened `[N·L]`: by lengths, so that no device is waited for."""
        starts = np.cumsum((0, *self.segments.lengths[:-1]))
        jumps = np.arange(len(self)) * self.ids.shape[1] - starts
        return torch.from_numpy(np.arange(self.tokens) + np.repeat(jumps, self.segments.lengths)).to(self.ids.device)

    def to(self, device: torch.device) -> PaddedBatch:
        """The same batch on `device`."""
        segments = Segments(self.segments.lengths, self.segments.cu_seqlens.to(device))
        return PaddedBatch(self.ids.to(device), self.type_ids.to(device), self.mask.to(device), segments)


Batch = PackedBatch | PaddedBatch


def pack(
    ids: Sequence[NDArray[np.int32]],
    type_ids: Sequence[NDArray[np.uint8]],
    first_position: int = 0,
    *,
    multiple: int = 1,
    filler: int = 0,
) -> PackedBatch:
    """Texts, each `[L_i]` ids and segment ids, end to end.

    Args:
        multiple: of which T is made one, by rows of the token `filler`.

    Raises:
        ValueError: no text, or a text without tokens.
    """
    segments = Segments.of([len(text) for text in ids])
    starts = np.repeat(segments.cu_seqlens[:-1].numpy(), segments.lengths)
    positions = np.arange(first_position, first_position + len(starts)) - starts
    behind = -len(starts) % multiple
    return PackedBatch(
        torch.from_numpy(np.pad(np.concatenate(ids).astype(np.int64), (0, behind), constant_values=filler)),
        torch.from_numpy(np.pad(np.concatenate(type_ids).astype(np.int64), (0, behind))),
        torch.from_numpy(np.pad(positions, (0, behind), constant_values=first_position)),
        segments,
    )


def pad(ids: Sequence[NDArray[np.int32]], type_ids: Sequence[NDArray[np.uint8]], pad_id: int) -> PaddedBatch:
    """Texts, each `[L_i]` ids and segment ids, padded on the right to the longest.

    Raises:
        ValueError: no text, or a text without tokens.
    """
    segments = Segments.of([len(text) for text in ids])
    shape = (len(ids), segments.longest)
    padded, types, mask = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, (text, text_types) in enumerate(zip(ids, type_ids, strict=True)):
        padded[row, : len(text)], types[row, : len(text)], mask[row, : len(text)] = text, text_types, 1
    return PaddedBatch(torch.from_numpy(padded), torch.from_numpy(types), torch.from_numpy(mask), segments)
