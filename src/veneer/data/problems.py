"""What can be wrong with data, collected instead of raised, so that a file's problems are all told at once.

Knows how problems are grouped, shown and raised; does not know what makes a row wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from veneer.errors import DataError

Severity = Literal["error", "warning"]
EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one column of one source, with how often it occurs.

    Attributes:
        severity: an error stops the run, a warning does not.
        kind: a stable code such as `empty-text`.
        source: the file or hub address.
        row: the first such row, 1-based, header and blank lines not counted; None when no single row is to blame.
        column: the column's name, or its number where there is no header.
        value: the first such row's value, shortened and printable.
        message: what is wrong.
        fix: what to do about it.
        count: rows with this problem.
        rows: the first few of them.
        line: the file's line on which the first such row begins, where the format has lines.
    """

    severity: Severity
    kind: str
    source: str
    row: int | None
    column: str | None
    value: str
    message: str
    fix: str
    count: int = 1
    rows: tuple[int, ...] = ()
    line: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"rows": list(self.rows)}


class Flaw(NamedTuple):
    """What is wrong with a row, without its place: a stable code, the message and the fix."""

    kind: str
    message: str
    fix: str


@dataclass
class _Group:
    first: Problem
    count: int
    rows: list[int]


class ProblemLog:
    """Collects the problems of one source, grouped by kind and column."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._groups: dict[tuple[str, str | None], _Group] = {}

    def add(
        self,
        flaw: Flaw,
        *,
        row: int | None = None,
        line: int | None = None,
        column: str | None = None,
        value: object = "",
        severity: Severity = "error",
    ) -> None:
        """Note one row's problem; message and fix of the first of its kind stand for all."""
        group = self._groups.get((flaw.kind, column))
        if group is None:
            kind, message, fix = flaw
            first = Problem(severity, kind, self._source, row, column, shown(value), message, fix, line=line)
            group = self._groups[kind, column] = _Group(first, 0, [])
        group.count += 1
        if row is not None and len(group.rows) < EXAMPLE_ROWS:
            group.rows.append(row)

    def problems(self) -> tuple[Problem, ...]:
        """One problem a group, in the order in which they were first met."""
        return tuple(_close(group) for group in self._groups.values())


def _close(group: _Group) -> Problem:
    return replace(group.first, count=group.count, rows=tuple(group.rows))


def shown(value: object, most: int = 60) -> str:
    """`value` (nothing for None) on one line, control characters escaped, cut to `most` characters."""
    text = value if isinstance(value, str) else "" if value is None else repr(value)
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def render_problems(problems: Iterable[Problem]) -> str:
    """All problems as one plain text: errors first, each with its place, value, count and fix; empty when there are none."""
    ordered = sorted(problems, key=lambda problem: problem.severity != "error")
    if not ordered:
        return ""
    errors = sum(problem.severity == "error" for problem in ordered)
    warnings = len(ordered) - errors
    parts = [_plural(n, word) for n, word in ((errors, "error"), (warnings, "warning")) if n]
    return "\n".join([" and ".join(parts) + " in the data", *(_render(problem) for problem in ordered)])


def raise_on_errors(problems: Iterable[Problem]) -> None:
    """Stop if any problem is an error.

    Raises:
        DataError: its message shows every problem, warnings too.
    """
    problems = tuple(problems)
    if any(problem.severity == "error" for problem in problems):
        raise DataError(render_problems(problems))


def _render(problem: Problem) -> str:
    place = [problem.source]
    if problem.row is not None:
        place.append(f"row {problem.row}" + (f" (line {problem.line})" if problem.line is not None else ""))
    if problem.column is not None:
        place.append(f"column '{problem.column}'")
    lines = [f"  {problem.severity}: {', '.join(place)}: {problem.message} [{problem.kind}]"]
    if problem.value:
        lines.append(f"      value: {problem.value}")
    if problem.count > 1:
        lines.append(f"      {_plural(problem.count, 'row')}{_example_rows(problem.rows, problem.count)}")
    lines.append(f"      Fix: {problem.fix}")
    return "\n".join(lines)


def _example_rows(rows: Sequence[int], count: int) -> str:
    if not rows:
        return ""
    return ": " + ", ".join(map(str, rows)) + (", …" if count > len(rows) else "")


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("" if n == 1 else "s")
