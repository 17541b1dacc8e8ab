"""What the page chooses from the report: the split that stands for the run, the labels shown first, how much of a long list.

Functions from the content to rows for the template. Knows nothing of HTML.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, Generic, TypeVar

from veneer.evaluation.page.content import ClassScore, Confused, Confusion, Curve, Diagnosis, Limit, Margin, Report, Scores, Slice
from veneer.evaluation.page.made import MadeFrom
from veneer.evaluation.page.text import cut, visible
from veneer.evaluation.tables import are_short

MOST_CLASSES = 20  # of a confusion matrix that is shown as one
ENOUGH_TEXTS = 10  # of a label for its curve to say something
FEW = 4  # labels whose charts are seen at once; as many more are folded away
MOST_ROWS = 30  # of a table at once
MOST_FOLDED = 100  # of a table below that
MOST_PAIRS = 20
HEAT_LEVELS = 6
NEWEST_SPLITS = ("test", "dev")  # the first there is stands for the run

T = TypeVar("T")

SLICES = {
    "length": "By length",
    "label": "By label",
    "column": "By source column",
    "truncated": "Cut or whole",
    "vocabulary": "By vocabulary",
}


@dataclass(frozen=True)
class Folded(Generic[T]):
    """A list of which some rows are seen, some folded away, and `left_out` only counted."""

    seen: tuple[T, ...]
    folded: tuple[T, ...] = ()
    left_out: int = 0


def fold(rows: Sequence[T], seen: int = MOST_ROWS, most: int = MOST_FOLDED) -> Folded[T]:
    """`seen` rows at once, and those up to `most` folded away; one or two too many are not worth folding."""
    if len(rows) <= seen + 2:
        return Folded(tuple(rows))
    return Folded(tuple(rows[:seen]), tuple(rows[seen:most]), max(0, len(rows) - most))


def main_split(report: Report) -> str | None:
    """The split whose scores stand for the run: of the verdict, else test, else dev, else whatever there is."""
    if report.verdict is not None and report.verdict.split in report.evaluations:
        return report.verdict.split
    return next((name for name in (*NEWEST_SPLITS, *report.evaluations) if name in report.evaluations), None)


def metric_names(report: Report) -> list[str]:
    """The metrics of all splits, the one that chose the best step first; an accuracy under its plainer name once."""
    names = dict.fromkeys(name for scores in report.evaluations.values() for name in scores.metrics)
    if "subset_accuracy" in names:
        names.pop("accuracy", None)
    return sorted(names, key=lambda name: name != report.metric)


@dataclass(frozen=True)
class RankRow:
    """A layer's rank in each run that this one was made from, and its own; None where the layer is not adapted."""

    layer: str
    before: tuple[int | None, ...]
    now: int | None


def rank_rows(made: MadeFrom) -> Folded[RankRow]:
    """The layers of all runs; none where no ranks are told, as of an ensemble."""
    layers = dict.fromkeys(layer for ranks in (*(run.ranks for run in made.runs), made.ranks) for layer in ranks)
    rows = [RankRow(layer, tuple(run.ranks.get(layer) for run in made.runs), made.ranks.get(layer) or None) for layer in layers]
    return fold(rows if made.ranks else [])


def class_rows(scores: Scores) -> Folded[ClassScore]:
    """The classes in their order; of many, those that occur, the lowest F1 first."""
    rows = list(scores.per_class)
    if len(rows) > MOST_ROWS:
        rows.sort(key=lambda row: (row.support == 0, row.f1))
    return fold(rows)


@dataclass(frozen=True)
class HeatRow:
    """A row of the matrix: the target, and for each class the count, the heat (0 to 5) and whether it is right.

    `number` stands for the label at the head of its column; None where the label itself is short enough.
    """

    number: int | None
    label: str
    cells: tuple[tuple[int, int, bool], ...]


def heat_rows(confusion: Confusion) -> list[HeatRow]:
    """The matrix of a single-label task, each cell's heat its share of the row; empty where there are too many classes."""
    if len(confusion.labels) > MOST_CLASSES:
        return []
    rows, short = [], are_short(confusion.labels)
    for i, (label, counts) in enumerate(zip(confusion.labels, confusion.counts, strict=False)):
        total = max(1, sum(counts))
        number = None if short else i + 1
        rows.append(HeatRow(number, label, tuple((count, _heat(count / total), i == j) for j, count in enumerate(counts))))
    return rows


@dataclass(frozen=True)
class LabelErrors:
    """The outcomes of one label of a multi-label task, in texts."""

    label: str
    right: int
    wrongly_given: int
    missed: int
    rightly_not: int


def label_errors(confusion: Confusion) -> Folded[LabelErrors]:
    """The labels of a multi-label task; of many, those with the most errors first."""
    rows = []
    for label, outcome in zip(confusion.labels, confusion.outcomes, strict=False):
        (rightly_not, wrongly_given), (missed, right) = outcome
        rows.append(LabelErrors(label, right, wrongly_given, missed, rightly_not))
    if len(rows) > MOST_ROWS:
        rows.sort(key=lambda row: -(row.wrongly_given + row.missed))
    return fold(rows)


def confused_pairs(confusion: Confusion | None, diagnosis: Diagnosis | None) -> list[Confused]:
    """What is most often taken for what: with examples from the diagnosis, else from the matrix."""
    if diagnosis is not None and diagnosis.confused:
        return list(diagnosis.confused[:MOST_PAIRS])
    if confusion is None:
        return []
    cells = ((n, i, j) for i, row in enumerate(confusion.counts) for j, n in enumerate(row) if i != j and n)
    names = confusion.labels
    top = nlargest(MOST_PAIRS, cells, key=lambda cell: cell[0])
    return [Confused(target=names[i], decided=names[j], texts=count) for count, i, j in top]


def interesting_curves(diagnosis: Diagnosis) -> Folded[tuple[Curve, Limit | None]]:
    """The curves with what is known of their labels: the lowest F1 first, labels of few texts last."""
    limits = {limit.label: limit for limit in diagnosis.limits}
    known = [(curve, limits.get(curve.label)) for curve in diagnosis.curves]
    return fold(sorted(known, key=lambda item: _interest(item[1])), FEW)


def interesting_limits(diagnosis: Diagnosis) -> Folded[Limit]:
    """What limits each label, in the order of the curves."""
    return fold(sorted(diagnosis.limits, key=_interest), MOST_ROWS // 2)


def interesting_margins(diagnosis: Diagnosis) -> Folded[Margin]:
    """The margins, the largest overlap first, groups of few texts last."""

    def rank(margin: Margin) -> tuple[bool, float]:
        return min(sum(margin.inside), sum(margin.outside)) < ENOUGH_TEXTS, -(margin.overlap or 0.0)

    return fold(sorted(diagnosis.margins, key=rank), FEW)


def slice_tables(diagnosis: Diagnosis) -> list[tuple[str, Folded[Slice]]]:
    """The slices by what they are slices of."""
    found: dict[str, list[Slice]] = {}
    for one in diagnosis.slices:
        found.setdefault(one.by, []).append(one)
    return [(SLICES.get(by, f"By {by}"), fold(rows, MOST_ROWS // 2)) for by, rows in found.items()]


@dataclass(frozen=True)
class LabelCalibration:
    """What was fitted for one label; None where nothing was."""

    label: str
    temperature: float | None
    shift: float | None
    offset: float | None
    threshold: float | None


def label_calibrations(report: Report) -> Folded[LabelCalibration]:
    """A row for each label that something of its own was fitted for."""
    parameters = report.calibration.parameters if report.calibration is not None else None
    if parameters is None:
        return Folded(())
    columns = [
        parameters.slopes if len(parameters.slopes) > 1 else (),
        parameters.shifts,
        parameters.offsets,
        parameters.thresholds,
    ]
    rows = []
    for i, label in enumerate(report.labels):
        slope, *others = (column[i] if i < len(column) else None for column in columns)
        if any(value is not None for value in (slope, *others)):
            rows.append(LabelCalibration(label, 1 / slope if slope else None, *others))
    return fold(rows)


def settings(configuration: Mapping[str, Any] | None, prefix: str = "") -> list[tuple[str, str]]:
    """The configuration as dotted keys and what a reader sees of their values."""
    rows = []
    for key, value in (configuration or {}).items():
        name = f"{prefix}{visible(cut(str(key), 80))}"
        if isinstance(value, Mapping) and value:
            rows += settings(value, f"{name}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((name, visible(cut(shown, 300))))
    return rows


def _interest(limit: Limit | None) -> tuple[bool, float]:
    """A key to sort by: the lowest F1 first, labels of few texts last."""
    if limit is None or limit.f1 is None:
        return True, 1.0
    return limit.support < ENOUGH_TEXTS, limit.f1


def _heat(share: float) -> int:
    """0 for nothing, else 1 to 5."""
    return 0 if share <= 0 else min(HEAT_LEVELS - 1, 1 + int(share * (HEAT_LEVELS - 1)))
