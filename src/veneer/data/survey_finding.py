"""What a survey of data says: findings, each with examples that are safe to print.

Knows examples and problems of reading; does not know what is looked for, nor how findings are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Literal

from veneer.data.problems import Problem, shown
from veneer.data.read import Reading
from veneer.data.types import Example

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
MOST_EXAMPLES = 3
SERIOUS_SHARE = 0.01  # of texts, from which on a fault is not a stray row but the file's
MOST_SHOWN = 80  # characters of an example's text
MOST_PATH = 1000

Splits = Mapping[str, Reading]  # train, dev, test; train is always there


@dataclass(frozen=True)
class Sample:
    """One row a finding points at; `text` is one line, shortened and printable; `twin` is the row it is like."""

    source: str
    row: int
    labels: tuple[str, ...]
    text: str
    twin: Sample | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd in the data.

    Attributes:
        rule: a stable code such as `near-duplicates`.
        severity: an error makes training or its scores worthless, a warning makes them worse, a note is good to know.
        message: what was found, with its numbers.
        count: of the rows, or of the labels, that the message is about.
        fix: what to do about it.
        examples: at most three of the rows.
    """

    rule: str
    severity: Severity
    message: str
    count: int
    fix: str
    examples: tuple[Sample, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def samples(found: Iterable[tuple[str, Example]]) -> tuple[Sample, ...]:
    """The first few of (source, row) as they may be printed."""
    return tuple(_sample(source, example) for source, example in islice(found, MOST_EXAMPLES))


def twins(found: Iterable[tuple[str, Example, str, Example]]) -> tuple[Sample, ...]:
    """The first few of (source, row, source of its twin, its twin) as they may be printed."""
    return tuple(
        replace(_sample(source, example), twin=_sample(other, twin))
        for source, example, other, twin in islice(found, MOST_EXAMPLES)
    )


def _sample(source: str, example: Example) -> Sample:
    both = example.text if example.pair is None else f"{shown(example.text, MOST_SHOWN // 2)} | {example.pair}"
    return Sample(
        shown(source, MOST_PATH), example.row, tuple(shown(label, 30) for label in example.labels[:5]), shown(both, MOST_SHOWN)
    )


def from_problem(problem: Problem, reading: Reading) -> Finding:
    """A problem of `reading` as a finding; rows that could not be read have no more than the first one's value."""
    first_rows = problem.rows[:MOST_EXAMPLES]
    known = {example.row: example for example in reading.examples if example.row in first_rows}
    examples = tuple(
        _sample(problem.source, known[row])
        if row in known
        else Sample(shown(problem.source, MOST_PATH), row, (), problem.value if row == problem.row else "")
        for row in first_rows
    )
    message = problem.message
    if problem.column is not None:
        message += f" (column '{shown(problem.column)}')"
    if problem.count > 1:
        message += f", in {problem.count:,} rows"
    if problem.value and not (examples and examples[0].text == problem.value):
        message += f": {problem.value}"
    return Finding(problem.kind, problem.severity, message, problem.count, problem.fix, examples)


def percent(part: int, whole: int) -> str:
    """A share such as `12 %`, `0.3 %` or `<0.1 %`."""
    share = 100 * part / max(whole, 1)
    return "<0.1 %" if 0 < share < 0.05 else f"{share:.1f} %" if share < 9.95 else f"{share:.0f} %"
