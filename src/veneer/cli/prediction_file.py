"""Texts of a file to classify, and files of predictions.

Knows the formats by their endings; knows nothing of models.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veneer.cli.output import json_of_rows, messages, print_lines
from veneer.cli.runs import run_config
from veneer.data import Columns, raise_on_errors, read_examples
from veneer.durable import write_text
from veneer.errors import DataError, InputError
from veneer.predictor import Prediction

COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ENDINGS = (".csv", ".tsv", ".json", ".jsonl")


@dataclass(frozen=True)
class Texts:
    """N texts, and their N second texts for a model of pairs."""

    texts: list[str]
    pairs: list[str] | None


def check_target(target: Path, source: str | None, force: bool) -> None:
    """Refuse a file that cannot, or should not, be written before any work is done.

    Raises:
        InputError: its ending is no known format, its folder is missing or closed, it is the input, or it is there and not
            `force`.
    """
    if target.suffix.lower() not in ENDINGS:
        raise InputError(f"{target}: predictions are written as {', '.join(ENDINGS)}. Fix: one of these endings")
    if not target.parent.is_dir():
        raise InputError(f"{target}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"{target}: the folder {target.parent} cannot be written to. Fix: another --out")
    if target.is_dir():
        raise InputError(f"{target} is a folder")
    if target.exists():
        if source is not None and Path(source).exists() and target.samefile(source):
            raise InputError(f"{target} is the input, which is never overwritten. Fix: another --out")
        if not force:
            raise InputError(f"{target} exists. Fix: another --out, or --force to overwrite it")


def read_texts(source: str, folder: Path, pair: bool, columns: Mapping[str, str | None]) -> Texts:
    """The texts of a file, whose columns are those of the run in `folder` where `columns` (dotted key -> column) gives none.

    Raises:
        DataError: the file cannot be read; every row that cannot be classified is told.
        InputError: the model wants pairs and no column is known for the second texts.
    """
    given = {key: value for key, value in columns.items() if value is not None}
    data = run_config(folder, given, {"data.text": "--text-column"}).data
    if pair and data.pair is None:
        raise InputError("this model was trained on pairs of texts. Fix: --pair-column COLUMN")
    if not pair and columns.get("data.pair") is not None:
        raise InputError("this model was trained on single texts. Fix: leave out --pair-column")
    try:
        # the label columns need not be there; where they are, a header is told from a row as in training
        labels = tuple(data.label) if isinstance(data.label, list) else (data.label,)
        wanted = Columns(data.text, data.pair if pair else None, labels, encoding=data.encoding)
        reading = read_examples(source, wanted, default_split="test", require_labels=False)
    except DataError as error:  # --text and --pair are the texts themselves here
        raise DataError(str(error).replace("--text ", "--text-column ").replace("--pair ", "--pair-column ")) from None
    raise_on_errors(reading.problems)
    texts = [example.text for example in reading.examples]
    if reading.unnamed and texts[:1] and COLUMN_NAME.fullmatch(texts[0].strip()):
        name = texts[0].strip()
        print_lines(messages(), f"row 1, '{name}', is classified as a text. If it names the column: --text-column {name}")
    return Texts(texts, [example.pair or "" for example in reading.examples] if pair else None)


def split_lines(lines: Sequence[str], pair: bool) -> Texts:
    """A text a line, or two with a tab between them.

    Raises:
        DataError: a line of a model of pairs has not two texts.
    """
    if not pair:
        return Texts(list(lines), None)
    cells = [[cell.strip() for cell in line.split("\t")] for line in lines]
    for number, (line, parts) in enumerate(zip(lines, cells, strict=True), 1):
        if len(parts) != 2 or not all(parts):
            raise DataError(
                f"standard input, line {number} has not two texts with a tab between them, which this model of pairs needs: "
                f"{line[:60]!r}"
            )
    return Texts([first for first, _ in cells], [second for _, second in cells])


def documents(texts: Texts, predictions: Sequence[Prediction], abstains: bool) -> list[dict[str, Any]]:
    """A plain object a text: `text`, `pair` where there is one, `labels`, `scores`.

    And `candidates` where the run promises a coverage, `abstained` where it promises a precision.
    """
    pairs: Sequence[str | None] = texts.pairs or [None] * len(texts.texts)
    rows = []
    for text, pair, one in zip(texts.texts, pairs, predictions, strict=True):
        row = {"text": text, **({} if pair is None else {"pair": pair}), "labels": list(one.labels), "scores": one.scores}
        row |= {} if one.candidates is None else {"candidates": list(one.candidates)}
        rows.append(row | ({"abstained": one.abstained} if abstains else {}))
    return rows


def write_rows(target: Path, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> None:
    """Write `documents` in the format of the file's ending, at once.

    A table has the columns `text`, `pair` where there is one, `labels` (joined by `;`), `candidates` (likewise) and `abstained`
    (yes or no) where the run promises such, and `score:LABEL` for every label.
    """
    ending = target.suffix.lower()
    if ending == ".json":
        text = json_of_rows(rows) + "\n"
    elif ending == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = _table(rows, labels, "," if ending == ".csv" else "\t")
    write_text(target, text)


def _table(rows: Sequence[Mapping[str, Any]], labels: Sequence[str], delimiter: str) -> str:
    written = io.StringIO()
    # The writer leaves a bare carriage return unquoted, and for a reader the row would end there.
    returns = any("\r" in str(row.get(name)) for row in rows for name in ("text", "pair"))
    writer = csv.writer(
        written, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    )
    columns = [name for name in ("text", "pair", "labels", "candidates", "abstained") if rows and name in rows[0]]
    writer.writerow([*(columns or ["text", "labels"]), *(f"score:{label}" for label in labels)])
    for row in rows:
        scores = [f"{row['scores'][label]:.6f}" for label in labels]
        writer.writerow([*(_cell(row[name]) for name in columns), *scores])
    return written.getvalue()


def _cell(value: str | bool | list[str]) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else ";".join(value)
