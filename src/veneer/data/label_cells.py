"""Raw label cells to label names, in each of the shapes in which files write them.

Knows one label a row, lists, separated strings, 0/1 columns and columns that are joined; knows no file format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from veneer.data.problems import Flaw, ProblemLog
from veneer.data.table import Table, note
from veneer.labels import shorten

_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_INDICATORS = {"0": False, "1": True, "false": False, "true": True}
_INDICATOR_SHARE = 0.9

_MISSING = Flaw(
    "missing-label",
    "the label is missing",
    "label the row or remove it; where no label applies, write an empty list (JSON, Parquet) or use 0/1 columns",
)
_NO_INDICATOR = Flaw("bad-indicator", "the other label cells are 0 or 1, this one is not", "write 0 or 1")


@dataclass(frozen=True)
class LabelColumn:
    """One column of labels: its name and its `[N]` raw cells."""

    name: str
    cells: Sequence[object]


@dataclass(frozen=True)
class RowLabels:
    """The labels of N rows, the primary one first; None where a row's labels cannot be used, with a problem in the log."""

    labels: list[tuple[str, ...] | None]
    multi_label: bool


class UnusableLabel(ValueError):
    """A cell that names no label."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(flaw.message)
        self.flaw = flaw


def label_name(value: object) -> str:
    """The name of one label: `1`, `1.0`, `"1"` and `" 1.0 "` are `"1"`; a true or false value is `"True"` or `"False"`, as
    pandas writes it; other strings are stripped of outer white space; None and not-a-number are `""`, no label.

    Raises:
        UnusableLabel: the value is a list, an object or bytes.
    """
    if isinstance(value, str):
        text = value.strip()
    elif value is None or value != value:  # not-a-number alone differs from itself
        return ""
    elif isinstance(value, (list, tuple, dict, set, bytes)):
        message = f"the label is a {type(value).__name__}, not a string or a number"
        raise UnusableLabel(Flaw("bad-label", message, "write the label's name or its number"))
    else:
        text = str(value)
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def read_labels(
    table: Table,
    columns: Sequence[LabelColumn],
    log: ProblemLog,
    *,
    separator: str | None,
    names: Sequence[str] | None,
    required: bool,
) -> RowLabels:
    """The labels of each row of `table`.

    Several columns are indicators when nine in ten of their cells that are not empty are 0 or 1 (or true or false): the
    columns' names, or else `names`, are the labels. Otherwise their labels are joined, in the order of the columns. `names`
    turns a label that is a number from 0 into a name.
    """
    if len(columns) > 1:
        says = _indicators(columns)
        if says is not None:
            return _from_indicators(table, columns, says, log, names, required)
    parse = _CellParser(separator, names)
    multi = separator is not None or len(columns) > 1
    found: list[tuple[str, ...] | None] = []
    for place, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        listed = any(isinstance(cell, (list, tuple)) for cell in cells)
        multi = multi or listed
        labels = _row(table, place, columns, cells, parse, log)
        if labels == () and required and not listed:  # an empty list says that no label applies; an empty cell says nothing
            note(log, table, place, columns[0].name, cells[0], _MISSING)
            labels = None
        found.append(labels)
    return RowLabels(found, multi)


def _row(
    table: Table, place: int, columns: Sequence[LabelColumn], cells: Sequence[object], parse: _CellParser, log: ProblemLog
) -> tuple[str, ...] | None:
    labels: tuple[str, ...] = ()
    for column, cell in zip(columns, cells, strict=True):
        try:
            labels += parse(cell)
        except UnusableLabel as error:
            note(log, table, place, column.name, cell, error.flaw)
            return None
    return tuple(dict.fromkeys(labels)) if len(labels) > 1 else labels


class _CellParser:
    """A cell to its labels, each distinct string parsed once."""

    def __init__(self, separator: str | None, names: Sequence[str] | None) -> None:
        self._separator = separator
        self._names = names
        self._by_name = frozenset(names or ())
        self._seen: dict[str, tuple[str, ...]] = {}

    def __call__(self, cell: object) -> tuple[str, ...]:
        if not isinstance(cell, str):
            return self._distinct(cell if isinstance(cell, (list, tuple)) else [cell])
        labels = self._seen.get(cell)
        if labels is None:
            parts = cell.split(self._separator) if self._separator is not None else [cell]
            labels = self._seen[cell] = self._distinct(parts)
        return labels

    def _distinct(self, values: Iterable[object]) -> tuple[str, ...]:
        labels = dict.fromkeys(label_name(value) for value in values)
        return tuple(self._named(label) for label in labels if label)

    def _named(self, label: str) -> str:
        if self._names is None or label in self._by_name:
            return label
        if label.isascii() and label.isdecimal() and int(label) < len(self._names):
            return self._names[int(label)]
        known = f"0 to {len(self._names) - 1}, or {shorten(self._names)}"
        raise UnusableLabel(Flaw("unknown-label", f"'{label}' is not among the label names", f"use {known}"))


def _indicator(value: object) -> bool | None:
    """What a 0/1 cell says; None when it is no such cell."""
    try:
        return _INDICATORS.get(label_name(value).lower())
    except UnusableLabel:
        return None


def _indicators(columns: Sequence[LabelColumn]) -> dict[str, bool | None] | None:
    """What each distinct cell, as `str`, says in 0/1 columns; None when the columns are not of this shape."""
    written = [str(cell) for column in columns for cell in column.cells if cell is not None and cell != ""]
    says = {text: _indicator(text) for text in set(written)}
    fit = sum(says[text] is not None for text in written)
    return says if written and fit >= _INDICATOR_SHARE * len(written) else None


def _from_indicators(
    table: Table,
    columns: Sequence[LabelColumn],
    says: dict[str, bool | None],
    log: ProblemLog,
    names: Sequence[str] | None,
    required: bool,
) -> RowLabels:
    labels = tuple(names) if names is not None and len(names) == len(columns) else tuple(column.name for column in columns)
    found: list[tuple[str, ...] | None] = []
    for place, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        row = [says.get(str(cell)) for cell in cells]
        if required and None in row:
            wrong = row.index(None)
            note(log, table, place, columns[wrong].name, cells[wrong], _NO_INDICATOR)
            found.append(None)
        else:
            found.append(tuple(label for label, applies in zip(labels, row, strict=True) if applies))
    return RowLabels(found, multi_label=True)
