"""What the data room hands on: a row as the user wrote it, and the same row as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Columns:
    """Where in a row the text, its pair and its labels are: names, or numbers from 0.

    Several label columns are either 0/1 indicators (the column's name is the label) or columns whose labels are joined,
    such as `primary` and `secondary`. `slices` are others, which the model never sees: the report counts by them. Without
    `labels_required` the label columns need not be there, and their cells may be empty.
    """

    text: str | int = "text"
    pair: str | int | None = None
    label: tuple[str | int, ...] = ("label",)
    label_separator: str | None = None
    label_names: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    slices: tuple[str | int, ...] = ()
    labels_required: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """One row: a text, perhaps its pair, and its labels (the primary one first).

    Attributes:
        row: 1-based row in the file.
        slices: the cells of the columns in `Columns.slices`, as text; empty where a cell is.
    """

    text: str
    pair: str | None
    labels: tuple[str, ...]
    row: int
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedTexts:
    """N texts as token ids, end to end.

    Attributes:
        ids: `[T]` int32 token ids with the tokenizer's special tokens.
        type_ids: `[T]` uint8 segment ids (all 0 for single texts).
        offsets: `[N+1]` int64; text i is `ids[offsets[i]:offsets[i+1]]`.
        cut: how many texts were longer than `max_length`.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    cut: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`[N]` tokens of each text."""
        return np.diff(self.offsets)
