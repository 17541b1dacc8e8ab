"""A labelled file, or a hub data set, to `Example`s and every problem it has.

Knows which column is the text, the pair and the label, and what makes a row unusable; knows no format's details and no task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from veneer.data.formats import load_file
from veneer.data.hub import PREFIX, load_hub
from veneer.data.label_cells import LabelColumn, RowLabels, label_name, read_labels
from veneer.data.problems import Flaw, Problem, ProblemLog
from veneer.data.table import Table, find_column, missing_columns, note
from veneer.data.types import Columns, Example
from veneer.errors import ConfigError, UnlabelledError
from veneer.labels import shorten

_EMPTY = Flaw("empty-text", "the text is empty", "fill it in or remove the row")
_NO_ROWS = Flaw("no-rows", "there are no rows below the header", "give at least one row")
_SURROGATE = Flaw("bad-unicode", "the text holds half of a character (a lone surrogate)", "repair the text or remove the row")


@dataclass(frozen=True)
class Reading:
    """What a source holds.

    Attributes:
        source: the file or hub address.
        examples: the rows that can be used, in order.
        problems: what is wrong with the others.
        multi_label: the source writes labels in a shape that allows several a row.
        fingerprint: sha256 (hex) of texts, pairs and labels; the same rows in another format have the same one.
        label_column: name of the labels' column, several joined by commas; None where there is none.
        unnamed: the file has no header; its first row is data.
    """

    source: str
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]
    multi_label: bool
    fingerprint: str
    label_column: str | None = None
    unnamed: bool = False


def read_examples(source: str | Path, columns: Columns, *, default_split: str = "train", require_labels: bool = True) -> Reading:
    """The rows of a file, or of `hub:NAME[/SUBSET][:SPLIT]` (of `default_split` when it names none).

    Rows that cannot be used are left out and told as problems. Without `require_labels` the label columns may be absent and
    their cells empty.

    Raises:
        DataError: the source as a whole cannot be read: missing, of unknown format or encoding, or without such columns.
        ConfigError: one column is named for two of text, pair and labels.
    """
    columns = replace(columns, labels_required=require_labels)
    hub = isinstance(source, str) and source.startswith(PREFIX)
    table = load_hub(str(source), default_split) if hub else load_file(Path(source), columns)
    log = ProblemLog(table.source)
    examples: tuple[Example, ...] = ()
    multi_label, label_column = False, None
    if table.rows:
        text, pair, label, slices = _find(table, columns, require_labels)
        texts = _texts(table, text, log)
        pairs = _texts(table, pair, log) if pair is not None else [None] * len(table.rows)
        whole = [pair is None or one is not None for one in pairs]
        labels = _labels(table, label, columns, log, require_labels)
        others = _slices(table, slices)
        examples = tuple(
            Example(text, second, names, row, other)
            for text, second, usable, names, row, other in zip(
                texts, pairs, whole, labels.labels, table.rows, others, strict=True
            )
            if text is not None and usable and names is not None
        )
        multi_label, label_column = labels.multi_label, ", ".join(table.names[place] for place in label) or None
    elif not table.problems:
        log.add(_NO_ROWS)
    problems = table.problems + log.problems()
    return Reading(table.source, examples, problems, multi_label, fingerprint(examples), label_column, _is_unnamed(table))


def _is_unnamed(table: Table) -> bool:
    return table.header and table.names == tuple(map(str, range(len(table.names))))


def fingerprint(examples: Iterable[Example]) -> str:
    """sha256 (hex) of the examples' texts, pairs and labels, in order; the labels of one example count as a set."""
    digest = hashlib.sha256()
    for example in examples:
        texts = [example.text] if example.pair is None else [example.text, example.pair]
        parts = [*texts, *sorted(example.labels)]
        # the lengths go before the strings, so that no two rows are written alike
        written = f"{len(texts)}{[len(part) for part in parts]}{''.join(parts)}"
        digest.update(written.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _find(table: Table, columns: Columns, require_labels: bool) -> tuple[int, int | None, list[int], list[int]]:
    """The places of the text, its pair, the labels that are there, and the columns to slice by."""
    text = find_column(table, columns.text)
    pair = find_column(table, columns.pair) if columns.pair is not None else None
    labels = [find_column(table, column) for column in columns.label]
    slices = [find_column(table, column) for column in columns.slices]
    missing: list[tuple[str, str | int]] = []
    if text is None:
        missing.append(("text", columns.text))
    if pair is None and columns.pair is not None:
        missing.append(("pair", columns.pair))
    if require_labels:
        missing += [("label", column) for column, place in zip(columns.label, labels, strict=True) if place is None]
    missing += [("slices", column) for column, place in zip(columns.slices, slices, strict=True) if place is None]
    if text is None or missing:
        error = missing_columns(table, missing, labels=require_labels)
        unlabelled = require_labels and not any(place is not None for place in labels)
        raise UnlabelledError(str(error)) if unlabelled and len(missing) == len(labels) else error
    there = [place for place in labels if place is not None]
    if require_labels:  # a file to predict need not have them, and may use their name for something else
        _check_roles(table, [("--text", text), ("--pair", pair), *(("--label", place) for place in there)])
    return text, pair, there, [place for place in slices if place is not None]


def _check_roles(table: Table, roles: list[tuple[str, int | None]]) -> None:
    """Refuse one column for two roles, each given as (its flag, the column's place)."""
    first: dict[int, str] = {}
    for flag, place in roles:
        if place in first:
            raise ConfigError(
                f"{table.source}: column '{table.names[place]}' is named by {first[place]} and by {flag} too. "
                f"Fix: another column for one of them; there are {shorten(table.names, 20)}"
            )
        if place is not None:
            first[place] = flag


def _texts(table: Table, column: int, log: ProblemLog) -> list[str | None]:
    """The column's texts as they are; None where one cannot be used. A number is its own text."""
    texts: list[str | None] = []
    for place, cell in enumerate(table.cells(column)):
        if isinstance(cell, str) and cell and not cell.isspace() and (cell.isascii() or _encodes(cell)):
            texts.append(cell)
            continue
        flaw = _flaw(cell)
        texts.append(label_name(cell) if flaw is None else None)
        if flaw is not None:
            note(log, table, place, table.names[column], cell, flaw)
    return texts


def _flaw(cell: object) -> Flaw | None:
    """What is wrong with a cell that is not a sound string; None for a number."""
    if isinstance(cell, (list, tuple, dict, set, bytes)):
        message = f"the text is a {type(cell).__name__}, not a string"
        return Flaw("not-text", message, "write the text as a string, or name another column")
    if isinstance(cell, str):
        return _SURROGATE if cell.strip() else _EMPTY
    return None if label_name(cell) else _EMPTY


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _labels(table: Table, places: list[int], columns: Columns, log: ProblemLog, required: bool) -> RowLabels:
    if not places:
        several = len(columns.label) > 1 or columns.label_separator is not None
        return RowLabels([()] * len(table.rows), several)
    cells = [LabelColumn(table.names[place], table.cells(place)) for place in places]
    separator, names = columns.label_separator, columns.label_names
    return read_labels(table, cells, log, separator=separator, names=names, required=required)


def _slices(table: Table, places: list[int]) -> list[tuple[str, ...]]:
    """`[N]`: each row's cells in the columns at `places`, a number as its own text."""
    if not places:
        return [()] * len(table.rows)
    columns = [[_plain(cell) for cell in table.cells(place)] for place in places]
    return list(zip(*columns, strict=True))


def _plain(cell: object) -> str:
    return str(cell) if isinstance(cell, (list, tuple, dict, set, bytes)) else label_name(cell)
