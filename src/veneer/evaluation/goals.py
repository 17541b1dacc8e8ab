"""What a decision rule is fitted for: macro-F1, accuracy, a precision or a recall, or what mistakes cost.

Knows label names and the file of costs; knows nothing of logits.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from veneer.errors import InputError
from veneer.labels import LabelSet, shorten
from veneer.tasks import TaskName

GoalName = Literal["f1", "accuracy", "precision", "recall", "cost"]
FORMS = "f1 | accuracy | precision=0.95 | recall=0.9 | cost=FILE"

Costs = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Goal:
    """What is maximised, or reached, or kept small.

    Attributes:
        name: f1 (the macro-F1) | accuracy | precision | recall | cost.
        least: the precision or recall to reach: of each label, or of the second one of two classes.
        costs: single-label: `[C][C]`, of deciding on the second where the first is right; multi-label: `[C][2]`, of a label that
            is missed and of one that is wrongly given.
    """

    name: GoalName = "f1"
    least: float | None = None
    costs: Costs | None = None

    @classmethod
    def parse(cls, text: str, labels: LabelSet, task: TaskName) -> Goal:
        """The goal that `f1`, `accuracy`, `precision=0.95`, `recall=0.9` or `cost=FILE` stands for.

        Raises:
            InputError: it is none of these, or the file of costs cannot be used; every problem of it is listed.
        """
        name, equals, value = text.partition("=")
        if name in ("f1", "accuracy") and not equals:
            return cls(name)  # type: ignore[arg-type]
        if name == "cost" and value:
            return cls("cost", costs=_read_costs(Path(value), labels, task))
        if name in ("precision", "recall") and equals:
            if task == "single_label" and len(labels) != 2:
                raise InputError(
                    f"{text}: with {len(labels)} classes of which a text has one, no single {name} is meant. "
                    "Fix: --precision X, which abstains from answers that are not sure enough, or another --target"
                )
            return cls(name, least=_share(text, value))  # type: ignore[arg-type]
        raise InputError(f"unknown target '{text}'. Fix: one of {FORMS}")

    @property
    def text(self) -> str:
        """As it was asked for; a file of costs is not named."""
        return self.name if self.least is None else f"{self.name}={self.least:g}"

    def metric(self, multi_label: bool) -> str:
        """The score that tells how well it is met."""
        names = {"f1": "macro_f1", "accuracy": "label_accuracy" if multi_label else "accuracy", "cost": "mean_cost"}
        return names.get(self.name, f"macro_{self.name}" if multi_label else self.name)


def _share(text: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise InputError(f"{text}: '{value}' is not a share above 0 and below 1")
    return share


def _read_costs(path: Path, labels: LabelSet, task: TaskName) -> Costs:
    """A CSV table, a row a label. Single-label: a column a label; multi-label: the columns `missed` and `wrong`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the costs in {path}: {error}") from None
    columns = labels.names if task == "single_label" else ("missed", "wrong")
    problems, table = _cells(rows, labels.names, columns)
    if not problems and task == "single_label":
        problems = [
            f"'{label}': being right ({row[i]:g}) costs more than a mistake ({min(row):g})"
            for i, (label, row) in enumerate(zip(labels.names, table, strict=True))
            if row[i] > min(row)
        ]
    if problems:
        form = f"a first row of 'label,{','.join(shorten(columns, 4).split(', '))}' and then a row a label"
        raise InputError(f"{path}: costs cannot be used\n  " + "\n  ".join(problems[:20]) + f"\n  Fix: {form}")
    return table


def _cells(rows: Sequence[Sequence[str]], labels: Sequence[str], columns: Sequence[str]) -> tuple[list[str], Costs]:
    """What is wrong with the table, and its numbers in the order of the labels and columns."""
    header = list(rows[0][1:]) if rows else []
    if sorted(header) != sorted(columns):
        return [f"the columns are {shorten(header) or 'none'}; they must be {shorten(columns)}"], ()
    problems: list[str] = []
    if sorted(row[0] for row in rows[1:]) != sorted(labels):
        return [f"the rows are {shorten(row[0] for row in rows[1:]) or 'none'}; they must be {shorten(labels)}"], ()
    by_label: dict[str, tuple[float, ...]] = {}
    for row in rows[1:]:
        if len(row) != len(header) + 1:
            problems.append(f"'{row[0]}': {len(row) - 1} costs, not {len(header)}")
            continue
        given = dict(zip(header, row[1:], strict=True))
        numbers = {column: _cost(cell) for column, cell in given.items()}
        problems += [
            f"'{row[0]}', '{column}': '{given[column]}' is no cost of 0 or more" for column in given if numbers[column] < 0
        ]
        by_label[row[0]] = tuple(numbers[column] for column in columns)
    return problems, () if problems else tuple(by_label[label] for label in labels)


def _cost(cell: str) -> float:
    """The number in a cell; −1 where it is none that can be used."""
    try:
        number = float(cell)
    except ValueError:
        return -1.0
    return number if math.isfinite(number) and number >= 0 else -1.0
