"""A source as named columns of raw cells: what every format is turned into before anyone looks for texts and labels.

Knows columns by name and by number; knows no format, and does not know which column means what.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from veneer.data.problems import Flaw, Problem, ProblemLog
from veneer.errors import DataError
from veneer.labels import shorten


@dataclass(frozen=True)
class Table:
    """N rows under their columns' names.

    Attributes:
        source: the file or hub address.
        names: the columns' names in order; their numbers where there is no header.
        cells: column number -> its `[N]` raw cells. Cells are what the format holds: strings, numbers, lists, None.
        rows: `[N]` 1-based rows, header and blank lines not counted.
        lines: `[N]` lines of the file on which the rows begin, 1-based; None where the format has no lines.
        problems: rows that could not be read at all; they are not among the N.
        header: whether the format has a first row that may name the columns or not.
        hint: why the names may not be what they look like, and what to do, where that is known.
    """

    source: str
    names: tuple[str, ...]
    cells: Callable[[int], Sequence[object]]
    rows: Sequence[int]
    lines: Sequence[int] | None = None
    problems: tuple[Problem, ...] = ()
    header: bool = False
    hint: str = ""


def note(log: ProblemLog, table: Table, place: int, column: str, value: object, flaw: Flaw) -> None:
    """Log a flaw of one cell, `place` being its place among the N rows."""
    line = table.lines[place] if table.lines is not None else None
    log.add(flaw, row=table.rows[place], line=line, column=column, value=value)


def number_of(column: str | int) -> int | None:
    """The number that `column` is, or None for a name; `"0"` counts as a number."""
    if isinstance(column, int):
        return column
    return int(column) if column.isascii() and column.isdecimal() else None


def find_column(table: Table, column: str | int) -> int | None:
    """The place of `column` in the table, or None; a name that is there goes before a number.

    Raises:
        DataError: two columns have this name.
    """
    if isinstance(column, str) and column in table.names:
        if table.names.count(column) > 1:
            places = [str(i) for i, name in enumerate(table.names) if name == column]
            raise DataError(f"{table.source}: columns {' and '.join(places)} are both named '{column}'. Fix: give the number")
        return table.names.index(column)
    number = number_of(column)
    return number if number is not None and 0 <= number < len(table.names) else None


def missing_columns(table: Table, missing: Sequence[tuple[str, str | int]], labels: bool) -> DataError:
    """The error for columns that are not in the table, each given as (what it is for, its name or number).

    Args:
        labels: whether columns of labels are wanted.
    """
    there = shorten((f"{i} '{name}'" if name != str(i) else name for i, name in enumerate(table.names)), 20)
    lines = [f"{table.source}: " + "; ".join(f"no column '{column}' for the {role}" for role, column in missing)]
    lines.append(f"  Columns there are: {there or 'none'}")
    if table.hint:  # then these are no columns, and no name of them would help
        return DataError("\n".join([*lines, f"  {table.hint}"]))
    fixes = []
    for role, column in missing:
        near = _nearest(str(column), table.names)
        name = "NAME" if near is None else near
        fixes.append(shlex.join(["--set", f"data.slice_columns=[{name}]"] if role == "slices" else [f"--{role}", name]))
    numbers = "--text 0 --label 1" if labels else "--text 0"
    unnamed = f"; in a file without a header give all columns by number, from 0: {numbers}" if table.header else ""
    lines.append(f"  Fix: {' '.join(fixes)}{unnamed}")
    return DataError("\n".join(lines))


def _nearest(name: str, names: Sequence[str]) -> str | None:
    lowered = {known.lower(): known for known in names}
    near = get_close_matches(name.lower(), list(lowered), n=1)
    return lowered[near[0]] if near else None
