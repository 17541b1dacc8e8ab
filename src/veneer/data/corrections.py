"""Suspected labels as a CSV that a person marks, and the marked ones applied to the rows they are about.

Knows that file's columns and how to find its rows again; does not know how suspects are found.

Cells are written as they are, a text that begins with `=` too: a changed text could not be found again. So spreadsheets must
take the columns as text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from veneer.data.formats import load_file
from veneer.data.label_cells import label_name
from veneer.data.problems import Flaw, ProblemLog, raise_on_errors
from veneer.data.read import Reading, fingerprint
from veneer.data.table import Table, find_column, note
from veneer.data.types import Columns, Example
from veneer.errors import DataError
from veneer.labels import shorten

BYTE_ORDER_MARK = "\ufeff"  # without it Excel reads UTF-8 as the machine's own encoding
_YES, _NO = frozenset({"y", "yes", "x", "1", "true"}), frozenset({"", "n", "no", "0", "false"})
_AGAIN = "the training file is not the one that was audited: audit it again"


@dataclass(frozen=True)
class Suspect:
    """A row whose labels are doubted.

    Attributes:
        row: its 1-based row in the file.
        given: the labels the file gives it.
        suggested: the labels it would rather have.
        score: probability of the given label; with several labels a row, of the most doubted of its yes-or-no marks.
        probability: of the suggested label, or mark.
    """

    row: int
    text: str
    pair: str | None
    given: tuple[str, ...]
    suggested: tuple[str, ...]
    score: float
    probability: float


def suspects_table(suspects: Sequence[Suspect], labels: Iterable[str], accept: float | None = None) -> str:
    """The suspects as CSV, in their order, with an empty column `use` for the person's marks.

    Args:
        labels: all labels of the task; they decide what separates several in a cell.
        accept: mark suggestions of at least this probability with `y`.
    """
    separator = separator_of(labels)
    pair = any(suspect.pair is not None for suspect in suspects)
    written = io.StringIO()
    # every string is quoted: csv leaves one with a bare carriage return as it is, and reads it as the end of the row
    writer = csv.writer(written, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    texts = ["text", "pair"] if pair else ["text"]
    writer.writerow(["rank", "row", *texts, "given", "suggested", "score", "probability", "use"])
    for rank, one in enumerate(suspects, 1):
        cells = [one.text, one.pair] if pair else [one.text]
        use = "y" if accept is not None and one.probability >= accept else ""
        names = [separator.join(one.given), separator.join(one.suggested)]
        writer.writerow([rank, one.row, *cells, *names, round(one.score, 6), round(one.probability, 6), use])
    return BYTE_ORDER_MARK + written.getvalue()


def separator_of(labels: Iterable[str]) -> str:
    """What separates several labels in one cell: the first usual mark that is in no label."""
    names = list(labels)
    return next((mark for mark in ";|,/" if not any(mark in name for name in names)), "\n")


def correct(reading: Reading, source: str | Path, label_names: Sequence[str] | None, multi_label: bool) -> tuple[Reading, int]:
    """`reading` with the labels that the marked rows of `source` suggest, and how many rows were marked.

    A row is found by its number, and its text must be the same but for white space, which spreadsheets change.

    Args:
        label_names: the labels there are; those of the reading's rows by default.

    Raises:
        DataError: the file cannot be read, nothing in it is marked, or a marked row cannot be applied; every problem is listed.
    """
    table = load_file(Path(source), Columns(label=("suggested",)))
    known = tuple(label_names or sorted({label for example in reading.examples for label in example.labels}))
    log = ProblemLog(table.source)
    rows = {example.row: example for example in reading.examples}
    corrected: dict[int, Example] = {}
    for marked in _marked(table, log):
        example = _find(marked, rows, reading.source, table, log)
        labels = _labels(marked, known, multi_label, table, log)
        if example is None or labels is None:
            continue
        if corrected.setdefault(example.row, replace(example, labels=labels)).labels != labels:
            flaw = Flaw("corrected-twice", f"row {example.row} is given other labels further up", "remove one of the two")
            note(log, table, marked.place, "row", marked.row, flaw)
    raise_on_errors([*table.problems, *log.problems()])
    if not corrected:
        raise DataError(
            f"{source}: no row has a y in the column 'use'. Fix: mark the rows to correct, or leave out --corrections"
        )
    examples = tuple(corrected.get(example.row, example) for example in reading.examples)
    return replace(reading, examples=examples, fingerprint=fingerprint(examples)), len(corrected)


@dataclass(frozen=True)
class _Marked:
    """The cells of a marked row; `place` is its place in the table."""

    place: int
    row: str
    text: str
    pair: str | None
    suggested: str


def _marked(table: Table, log: ProblemLog) -> list[_Marked]:
    cells = {name: _column(table, name) for name in ("row", "text", "suggested", "use")}
    pairs = _column(table, "pair") if "pair" in table.names else None
    marked = []
    for place, mark in enumerate(cells["use"]):
        said = label_name(mark).lower()
        if said in _YES:
            pair = None if pairs is None else pairs[place]
            marked.append(_Marked(place, cells["row"][place], cells["text"][place], pair, cells["suggested"][place]))
        elif said not in _NO:
            flaw = Flaw("bad-mark", "the cell says neither y nor n", "write y to take what 'suggested' says, n or nothing else")
            note(log, table, place, "use", mark, flaw)
    return marked


def _column(table: Table, name: str) -> Sequence[str]:
    place = find_column(table, name)
    if place is None:
        hint = f" ({table.hint})" if table.hint else ""
        raise DataError(
            f"{table.source}: no column '{name}'{hint}; the columns are {shorten(table.names)}. "
            "Fix: give a file that veneer audit wrote, saved as CSV with all its columns"
        )
    return ["" if cell is None else str(cell) for cell in table.cells(place)]


def _find(marked: _Marked, rows: dict[int, Example], file: str, table: Table, log: ProblemLog) -> Example | None:
    """The example a marked row is about, if it still is what it was."""
    number = label_name(marked.row)  # a spreadsheet may write 17.0
    if not (number.isascii() and number.isdecimal()):
        note(log, table, marked.place, "row", marked.row, Flaw("bad-row", "this is no row number", "restore it, or audit again"))
        return None
    example = rows.get(int(number))
    if example is None:
        note(log, table, marked.place, "row", marked.row, Flaw("no-such-row", f"{file} has no row {number} to correct", _AGAIN))
        return None
    for column, before, now in (("text", marked.text, example.text), ("pair", marked.pair, example.pair)):
        if (before or "").split() != (now or "").split():
            flaw = Flaw("other-text", f"row {number} of {file} has another {column}", _AGAIN)
            note(log, table, marked.place, column, before, flaw)
            return None
    return example


def _labels(marked: _Marked, known: Sequence[str], multi_label: bool, table: Table, log: ProblemLog) -> tuple[str, ...] | None:
    """The labels a marked row shall have, if they are some."""
    parts = marked.suggested.split(separator_of(known)) if multi_label else [marked.suggested]
    labels = tuple(dict.fromkeys(name for part in parts if (name := label_name(part))))
    flaw = None
    if not labels and not multi_label:
        flaw = Flaw("no-label", "a row of a single-label task needs a label", "write one, or take the y away")
    elif unknown := [label for label in labels if label not in known]:
        near = get_close_matches(unknown[0], known, n=1)
        hint = f" (for '{unknown[0]}' perhaps '{near[0]}')" if near else ""
        flaw = Flaw("unknown-label", "the label is not one of the training rows'", f"use one of {shorten(known)}{hint}")
    if flaw is not None:
        note(log, table, marked.place, "suggested", marked.suggested, flaw)
        return None
    return labels
