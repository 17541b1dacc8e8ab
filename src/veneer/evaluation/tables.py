"""An evaluation as tables for a terminal of 80 columns.

Label names are shown as they are: they are never read as rich's markup. Knows nothing about how the scores came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # the page of a report reads the names below, and needs no score computed
    from veneer.evaluation.metrics import Evaluation

NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "weighted_f1": "weighted F1",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "subset_accuracy": "subset accuracy (all labels right)",
    "hamming_loss": "Hamming loss (lower is better)",
}
LOWER_IS_BETTER = frozenset({"loss", "hamming_loss"})
EIGHTHS = " ▏▎▍▌▋▊▉"
BAR_CELLS = 10
LABEL_CELLS = 24
HEAD_CELLS = 6  # of a label that may head a column of a matrix
MOST_ROWS = 12
MOST_CLASSES = 40  # beyond, a terminal shows the worst of them; all are in report.json and --json
MATRIX_CELLS = 50  # what is left of 80 columns for the numbers of a matrix


def scores_table(evaluation: Evaluation) -> Table:
    """Every score with its 95 % interval."""
    table = _table(f"Scores on {evaluation.n:,} {'text' if evaluation.n == 1 else 'texts'}")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, item in evaluation.metrics.items():
        if name == "accuracy" and "subset_accuracy" in evaluation.metrics:
            continue  # the same number under its plainer name
        interval = "–" if item.low is None or item.high is None else f"{item.low:.3f} – {item.high:.3f}"
        table.add_row(NAMES[name], f"{item.value:.3f}", interval)
    return table


def per_class_table(evaluation: Evaluation) -> Table:
    """Precision, recall and F1 of every class, with how many texts have it and how many were given it.

    Of more than `MOST_CLASSES`, those with the lowest F1 among the classes that occur.
    """
    rows = evaluation.per_class
    title = "Scores by class"
    if len(rows) > MOST_CLASSES:
        rows = tuple(sorted(rows, key=lambda row: (row.support == 0, row.f1))[:MOST_CLASSES])
        title += f": the lowest {MOST_CLASSES} of {len(evaluation.per_class):,}"
    table = _table(title)
    _add_label_column(table, "class")
    for heading in ("precision", "recall", "F1"):
        table.add_column(heading, justify="right")
    table.add_column("", width=BAR_CELLS, no_wrap=True)
    for heading in ("texts", "decided"):
        table.add_column(heading, justify="right")
    for item in rows:
        shares = [f"{value:.3f}" for value in (item.precision, item.recall, item.f1)]
        counts = [f"{count:,}" for count in (item.support, item.predicted)]
        table.add_row(Text(item.label), *shares, Text(bar(item.f1), style="cyan"), *counts)
    return table


def confusion_table(evaluation: Evaluation) -> Table:
    """What is taken for what: the matrix where it fits in 80 columns, else its largest cells off the diagonal.

    For multi-label, where no label is taken *for* another: the labels with the most errors, missed and wrongly given.
    """
    if evaluation.multi_label:
        return _errors_by_label(evaluation)
    matrix = evaluation.confusion
    if matrix is not None:
        number = max(len(f"{matrix.max():,}"), 2)
        names = evaluation.label_names
        for heads in (names, None) if are_short(names) else (None,):
            width = number if heads is None else max(number, *map(cell_len, heads))
            if len(matrix) * (width + 2) <= MATRIX_CELLS:
                return _matrix(evaluation, matrix, heads)
    return _most_confused(evaluation)


def are_short(names: Sequence[str]) -> bool:
    """Whether these labels can head the columns of a matrix. Others are numbered, which labels such as `0` and `1` must not be:
    the second column would be called `2`, and be that of `1`."""
    return all(name.strip() and cell_len(name) <= HEAD_CELLS for name in names)


def bar(share: float, cells: int = BAR_CELLS) -> str:
    """`share` of 0 to 1 as a bar of `cells` characters, exact to an eighth of one."""
    eighths = round(share * cells * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "")


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 2, 0, 0))


def _add_label_column(table: Table, heading: str) -> None:
    table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=LABEL_CELLS)


def _matrix(evaluation: Evaluation, matrix: NDArray[np.int64], heads: Sequence[str] | None) -> Table:
    """The columns headed by `heads`, or by the numbers of the rows."""
    table = _table("Confusion")  # longer than a narrow matrix, a title would wrap
    if heads is None:
        table.add_column("", justify="right")
    _add_label_column(table, "true ↓  decided →")
    for i in range(len(evaluation.per_class)):
        table.add_column(str(i + 1) if heads is None else Text(heads[i]), justify="right")
    for i, row in enumerate(matrix.tolist()):
        cells = [Text(f"{count:,}" if count else "·", style=_cell_style(i == j, count)) for j, count in enumerate(row)]
        number = [str(i + 1)] if heads is None else []
        table.add_row(*number, Text(evaluation.label_names[i]), *cells)
    return table


def _cell_style(diagonal: bool, count: int) -> str:
    if not count:
        return "dim"
    return "green" if diagonal else "red"


def _most_confused(evaluation: Evaluation) -> Table:
    table = _table(f"Most confused pairs{_of(len(evaluation.confused))}")
    _add_label_column(table, "true class")
    _add_label_column(table, "decided")
    table.add_column("texts", justify="right")
    table.add_column("of the class", justify="right")
    for true, decided, count in evaluation.confused[:MOST_ROWS]:
        of_class = evaluation.per_class[true]
        other = evaluation.label_names[decided]
        table.add_row(Text(of_class.label), Text(other), f"{count:,}", f"{count / of_class.support:.1%}")
    return table


def _errors_by_label(evaluation: Evaluation) -> Table:
    assert evaluation.confusion is not None, "there always is one of a multi-label task"
    outcomes = zip(evaluation.label_names, evaluation.confusion.tolist(), strict=True)
    rows = [(label, found, missed, wrongly_given) for label, ((_, wrongly_given), (missed, found)) in outcomes]
    rows = sorted((row for row in rows if row[2] + row[3]), key=lambda row: -(row[2] + row[3]))
    table = _table(f"Labels with the most errors{_of(len(rows))}")
    _add_label_column(table, "label")
    for heading in ("found", "missed", "wrongly given"):
        table.add_column(heading, justify="right")
    for label, *counts in rows[:MOST_ROWS]:
        table.add_row(Text(label), *(f"{count:,}" for count in counts))
    return table


def _of(rows: int) -> str:
    if rows == 0:
        return ": none"
    return f": {MOST_ROWS} of {rows:,}" if rows > MOST_ROWS else ""
