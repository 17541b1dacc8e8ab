"""Packs and padded batches hold every token once, in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from veneer.packing import Segments, pack, pad

IDS = [np.array([5, 6, 7], np.int32), np.array([8], np.int32), np.array([9, 10, 11], np.int32)]
TYPES = [np.array([0, 0, 1], np.uint8), np.array([0], np.uint8), np.array([0, 1, 1], np.uint8)]


def test_packed_texts_lie_end_to_end() -> None:
    batch = pack(IDS, TYPES, first_position=2)
    assert batch.ids.tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert batch.type_ids.tolist() == [0, 0, 1, 0, 0, 1, 1]
    assert batch.positions.tolist() == [2, 3, 4, 2, 2, 3, 4]
    assert {batch.ids.dtype, batch.type_ids.dtype, batch.positions.dtype} == {torch.int64}
    assert batch.segments.cu_seqlens.tolist() == [0, 3, 4, 7]
    assert batch.segments.cu_seqlens.dtype == torch.int32
    assert (len(batch), batch.tokens, batch.segments.longest) == (3, 7, 3)


def test_padded_texts_lie_side_by_side() -> None:
    batch = pad(IDS, TYPES, pad_id=1)
    assert batch.ids.tolist() == [[5, 6, 7], [8, 1, 1], [9, 10, 11]]
    assert batch.type_ids.tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 1]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]
    assert (len(batch), batch.tokens) == (3, 7)


@pytest.mark.parametrize("make", [pack, pad])
def test_a_batch_moves_whole(make: Callable[..., Any]) -> None:
    moved = make(IDS, TYPES, 0).to(torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 3
    assert {tensor.device.type for tensor in [*tensors, moved.segments.cu_seqlens]} == {"meta"}
    assert moved.segments.lengths == (3, 1, 3)


@pytest.mark.parametrize("lengths", [[], [3, 0, 2]])
def test_a_pack_without_texts_or_tokens_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="one text or more, each of one token or more"):
        Segments.of(lengths)
    texts = [np.ones(length, np.int32) for length in lengths]
    for make in (pack, pad):
        with pytest.raises(ValueError, match="one text or more"):
            make(texts, [text.astype(np.uint8) for text in texts], 0)


def test_filler_lies_behind_the_last_text() -> None:
    batch = pack(IDS, TYPES, first_position=2, multiple=4, filler=9)
    assert batch.ids.tolist() == [5, 6, 7, 8, 9, 10, 11, 9]
    assert (batch.type_ids[-1], batch.positions[-1]) == (0, 2)
    assert batch.segments.lengths == (3, 1, 3)
    assert (len(batch), batch.tokens) == (3, 7)
    assert len(pack(IDS, TYPES, multiple=7).ids) == 7


def test_the_tokens_of_a_padded_batch_are_found_by_their_lengths() -> None:
    batch = pad(IDS, TYPES, pad_id=7)
    assert torch.equal(batch.rows, batch.mask.flatten().nonzero()[:, 0])
    assert batch.ids.flatten()[batch.rows].tolist() == [5, 6, 7, 8, 9, 10, 11]
