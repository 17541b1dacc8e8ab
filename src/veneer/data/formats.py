"""CSV, TSV, JSON, JSON lines and Parquet files to a `Table`.

Knows each format's rows and how they break; does not know which column is the text and which the label.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from veneer.data.decode import decode
from veneer.data.problems import Flaw, ProblemLog, shown
from veneer.data.table import Table, number_of
from veneer.data.types import Columns
from veneer.errors import DataError

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_JSON_FIX = "write the rows as one JSON array of objects, or as one object a line"


def load_file(path: Path, columns: Columns) -> Table:
    """The table of a file; its ending says which format it has.

    Raises:
        DataError: the file is missing, empty, of an unknown ending, in another encoding, or cannot be parsed at all.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not a file{_beside(path / 'x')}")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(f"{path}: the ending '{ending}' names no known format. Fix: use one of {', '.join(ENDINGS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file{_beside(path)}")
    if ending == ".parquet":
        return _parquet(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    text = decode(data, columns.encoding, str(path))
    if not text.strip():
        raise DataError(f"{path}: the file is empty. Fix: give a file with at least one row")
    if ending == ".csv":
        return _csv(text, str(path), columns)
    if ending == ".tsv":
        return _tsv(text, str(path), columns)
    return _json(text, str(path)) if ending == ".json" else _json_lines(text, str(path))


def _beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    there = sorted(other.name for other in path.parent.iterdir() if other.suffix.lower() in ENDINGS)[:8]
    return f". Fix: data files in {path.parent} are {', '.join(there)}" if there else f" (no data file is in {path.parent})"


# Rows of cells: CSV and TSV.


def _csv(text: str, source: str, columns: Columns) -> Table:
    """Comma-separated, quoted as RFC 4180 has it; a quoted cell may span lines."""
    records: list[list[str]] = []
    lines: list[int] = []
    # A cell may be as long as the file; csv's own limit, 131,072 characters, is one of the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for record in reader:
            if record:
                records.append(record)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(_broken_csv(error, source, line, reader.line_num)) from None
    first = text.lstrip("\r\n").partition("\n")[0]
    other = next((name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in first and "," not in first), None)
    fix = "save it as .tsv" if other == "tabs" else "save it with commas"
    hint = f"The first line is separated by {other}, not commas. Fix: {fix}" if other else ""
    return _delimited(records, lines, source, columns, hint, "put a cell that holds a comma in double quotes")


def _broken_csv(error: csv.Error, source: str, line: int, met: int) -> str:
    """What is wrong with the row that begins on `line`; csv met it on the line `met`, further on where a quote was left open."""
    where = f"{source}: the row that begins on line {line} is not valid CSV"
    if "unexpected end" in str(error) or met > line:
        return f"{where}: a double quote is opened and not closed. Fix: close it, or double the quotes that belong to the text"
    return f"{where}: {error}. Fix: double the quotes inside a quoted cell; a file that quotes nothing is best saved as .tsv"


def _tsv(text: str, source: str, columns: Columns) -> Table:
    """Tab-separated without quoting: a quote is a character like any other, as in GLUE's files.

    A file whose writer quoted after all is unquoted: every cell that holds a quote is wholly quoted, with doubled quotes
    inside, as pandas and GoEmotions write it, or a column is quoted in every row.
    """
    text = text.replace("\r\n", "\n")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    numbered = [(i, line.split("\t")) for i, line in enumerate(text.split("\n"), 1) if line and not line.isspace()]
    records = [record for _, record in numbered]
    quoted = [cell for record in records for cell in record if '"' in cell]
    if quoted and all(map(_QUOTED.fullmatch, quoted)) and ('""' in text or _has_quoted_column(records)):
        records = [[cell[1:-1].replace('""', '"') if '"' in cell else cell for cell in record] for record in records]
    first = records[0]
    hint = "The first line has commas and no tabs. Fix: rename the file to .csv" if len(first) == 1 and "," in first[0] else ""
    lines = [i for i, _ in numbered]
    return _delimited(records, lines, source, columns, hint, "take the tab out of the text, or save the file as .csv")


def _has_quoted_column(records: list[list[str]]) -> bool:
    """Whether all cells of some column hold quotes, but for its name."""
    below = records[1:] or records
    return any(all(i < len(record) and '"' in record[i] for record in below) for i in range(len(below[0])))


def _delimited(records: list[list[str]], lines: list[int], source: str, columns: Columns, hint: str, fix: str) -> Table:
    header = _has_header(records, columns)
    names = tuple(cell.strip() for cell in records[0]) if header else tuple(map(str, range(len(records[0]))))
    width = len(names)
    log = ProblemLog(source)
    kept, rows, begins = [], [], []
    for row, (record, line) in enumerate(zip(records[header:], lines[header:], strict=True), 1):
        if len(record) == width:
            kept.append(record)
            rows.append(row)
            begins.append(line)
            continue
        flaw = Flaw("column-count", f"the row has not the {width} cells of the {'header' if header else 'first row'}", fix)
        log.add(flaw, row=row, line=line, value=f"{len(record)} cells: {' | '.join(record)}")
    return Table(source, names, lambda i: [record[i] for record in kept], rows, begins, log.problems(), header=True, hint=hint)


def _has_header(records: list[list[str]], columns: Columns) -> bool:
    """Whether the first row names the columns.

    It does when any column is given by name; names of label columns that need not be there say so only if all of them are. When
    all are given by number it does only if its cells are distinct names and its label cells occur nowhere below, or if it counts
    its own cells (`0`, `1`, …) as pandas does.
    """
    first = [cell.strip() for cell in records[0]]
    named = {str(label) for label in columns.label if number_of(label) is None}
    told = columns.label if columns.labels_required or named <= set(first) else ()
    asked = [columns.text, *told, *([] if columns.pair is None else [columns.pair])]
    counts = first == [str(i) for i in range(len(first))] and len(first) > 1
    if counts or any(number_of(column) is None for column in asked):
        return True
    labels = [number for number in map(number_of, columns.label) if number is not None and number < len(first)]
    if not labels or len(set(first)) < len(first) or not all(map(_NAME.fullmatch, first)):
        return False
    below = {record[i].strip() for record in records[1:] for i in labels if i < len(record)}
    return below.isdisjoint(first[i] for i in labels)


# Rows of keys and values: JSON.


def _json(text: str, source: str) -> Table:
    if not text.lstrip().startswith("["):
        return _json_lines(text, source)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"{source}: not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        near = shown(text[max(error.pos - 20, 0) : error.pos + 20])
        raise DataError(f"{message}, near {near}. Fix: {_JSON_FIX}") from None
    except (RecursionError, ValueError) as error:  # too deep, or a number of thousands of digits
        raise DataError(f"{source}: the JSON cannot be read: {error}. Fix: {_JSON_FIX}") from None
    return _objects(enumerate(rows, 1), None, ProblemLog(source), source)


def _json_lines(text: str, source: str) -> Table:
    log = ProblemLog(source)
    rows: list[tuple[int, object]] = []
    lines: list[int] = []
    number = 0
    for line, written in enumerate(text.split("\n"), 1):
        if not written or written.isspace():
            continue
        number += 1
        try:
            rows.append((number, json.loads(written)))
            lines.append(line)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            flaw = Flaw("bad-json", f"the line is not valid JSON: {why}", "repair or remove it")
            log.add(flaw, row=number, line=line, value=written)
    if not any(isinstance(value, dict) for _, value in rows):
        raise DataError(f"{source}: no line is a JSON object. Fix: {_JSON_FIX}")
    return _objects(rows, lines, log, source)


def _objects(numbered: Iterable[tuple[int, object]], lines: Sequence[int] | None, log: ProblemLog, source: str) -> Table:
    kept: list[dict[str, object]] = []
    rows: list[int] = []
    begins: list[int] = []
    for place, (row, value) in enumerate(numbered):
        line = lines[place] if lines is not None else None
        if not isinstance(value, dict):
            flaw = Flaw("not-an-object", "the row is not an object of keys and values", _JSON_FIX)
            log.add(flaw, row=row, line=line, value=value)
            continue
        kept.append(value)
        rows.append(row)
        if line is not None:
            begins.append(line)
    names = tuple(dict.fromkeys(chain.from_iterable(kept)))

    def cells(i: int) -> list[object]:
        return [row.get(names[i]) for row in kept]

    return Table(source, names, cells, rows, begins if lines is not None else None, log.problems())


def _parquet(path: Path) -> Table:
    # pyarrow takes a second to load, and only these files need it
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {' '.join(str(error).split())}") from None

    def cells(i: int) -> Sequence[object]:
        column: Sequence[object] = table.column(i).to_pylist()
        return column

    return Table(str(path), tuple(table.column_names), cells, range(1, table.num_rows + 1))
