"""What is wrong with labels: rare or missing ones, imbalance, columns that hold no classes, ids where names are wanted.

Knows label names and their counts; knows no texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from veneer.data.checks import SEPARATORS, check_splits, count_labels, is_whole, joined_labels, why_no_classes
from veneer.data.read import Reading
from veneer.data.survey_finding import Finding, Sample, Severity, Splits, from_problem, samples
from veneer.labels import LabelSet, shorten
from veneer.tasks import Task

RARE = 10  # training rows below which a label is rare
FEW = 5  # rows of dev or test below which a label's score says little
MANY_LABELS = 1000
UNEVEN, LOPSIDED = 3, 10  # rows of the commonest label to one of the rarest: worth a note, worth a warning
MOST_TARGETS = 20_000_000  # N·C of a multi-label task up to which weights are computed

# The survey says these with more of their rows.
_TOLD_ELSEWHERE = {"labels-are-no-classes", "conflicting-labels"} | {
    f"train-{name}-{what}" for name in ("dev", "test") for what in ("duplicates", "conflicts")
}


@dataclass(frozen=True)
class LabelFacts:
    """One label: how many rows of each split have it, and its weight under `class_weights: balanced` (None: not computed)."""

    name: str
    rows: Mapping[str, int]
    weight: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def label_facts(splits: Splits, labels: LabelSet, task: Task) -> tuple[LabelFacts, ...]:
    """The C labels in their order; the weights are those that training computes."""
    counts = {name: count_labels(reading.examples) for name, reading in splits.items()}
    weights = _weights(splits["train"], labels, task)
    return tuple(
        LabelFacts(label, {name: count[label] for name, count in counts.items()}, None if weights is None else weights[i])
        for i, label in enumerate(labels)
    )


def _weights(train: Reading, labels: LabelSet, task: Task) -> list[float] | None:
    ids = [[labels.id(label) for label in example.labels if label in labels] for example in train.examples]
    if task.name == "single_label":
        ids = [row for row in ids if len(row) == 1]  # others are errors, told as such
    if not ids or (task.name == "multi_label" and len(ids) * len(labels) > MOST_TARGETS):
        return None
    return [round(weight, 4) for weight in task.class_weights(task.targets(ids, len(labels)), len(labels)).tolist()]


def label_findings(splits: Splits, labels: LabelSet, facts: tuple[LabelFacts, ...], task: Task, named: bool) -> Iterator[Finding]:
    """Findings on labels; `named` tells that names were given for the labels' ids."""
    train, dev, test = (splits.get(name) for name in ("train", "dev", "test"))
    assert train is not None
    readings = {reading.source: reading for reading in splits.values()}
    for problem in check_splits(train, dev, test, labels, task.name == "multi_label"):
        if problem.kind not in _TOLD_ELSEWHERE:
            told = from_problem(problem, readings[problem.source])
            yield replace(told, examples=_of_check(problem.kind, splits, labels) or told.examples)
    rows = len(train.examples)
    if (finding := _no_classes(train, labels)) is not None:
        yield finding
        return
    counts = Counter({label.name: label.rows["train"] for label in facts})
    yield from _rare(train, counts)
    yield from _few(splits, counts)
    yield from _balance(train, counts, facts)
    yield from _names(train, labels, counts, named)
    if len(labels) > MANY_LABELS:
        message = f"{len(labels):,} labels, {rows / len(labels):.1f} training rows each on average"
        fix = "join labels, or search instead of classifying: the head alone has a row of weights a label"
        yield Finding("many-labels", "warning", message, len(labels), fix, _first_rows(train))


def _of_check(rule: str, splits: Splits, labels: LabelSet) -> tuple[Sample, ...]:
    """Training rows that a check of the splits is about, where it names labels instead; empty for the others."""
    train = splits["train"]
    counts = count_labels(train.examples)
    if rule == "one-class":
        return _first_rows(train)
    if rule == "label-seen-once":
        return _having(train, [label for label in labels if counts[label] == 1])
    if rule == "labels-joined":
        return _having(train, [label for mark in SEPARATORS for label in joined_labels(labels, mark)])
    if rule == "label-not-in-dev":
        return _having(train, counts.keys() - count_labels(splits["dev"].examples).keys())
    return ()


def _first_rows(train: Reading) -> tuple[Sample, ...]:
    return samples((train.source, example) for example in train.examples)


def _having(reading: Reading, labels: Iterable[str]) -> tuple[Sample, ...]:
    """The first rows with any of these labels."""
    wanted = set(labels)
    return samples((reading.source, example) for example in reading.examples if not wanted.isdisjoint(example.labels))


def _no_classes(train: Reading, labels: LabelSet) -> Finding | None:
    if (flaw := why_no_classes(train)) is None:
        return None
    return Finding(flaw.kind, "error", flaw.message, len(labels), flaw.fix, _first_rows(train))


def _rare(train: Reading, counts: Counter[str]) -> Iterator[Finding]:
    rare = [label for label, count in counts.items() if 1 < count < RARE]  # one row or none is told by itself
    if rare:
        fewest = min(rare, key=counts.__getitem__)
        message = f"{len(rare):,} of {len(counts):,} labels have only 2 to {RARE - 1} training rows "
        message += f"(fewest: '{fewest}', {counts[fewest]}): {shorten(rare, 6)}"
        fix = "add rows with them, or join them with others"
        yield Finding("rare-labels", "warning", message, len(rare), fix, _having(train, rare))


def _few(splits: Splits, counts: Counter[str]) -> Iterator[Finding]:
    for name in [name for name in splits if name != "train"]:
        there = count_labels(splits[name].examples)
        few = [label for label in counts if 0 < there[label] < FEW]
        if few:
            message = f"{len(few):,} of {len(counts):,} labels have only 1 to {FEW - 1} {name} rows: {shorten(few, 6)}"
            fix = f"add {name} rows with them; until then their scores, and macro F1 with them, are mostly chance"
            yield Finding(f"few-in-{name}", "warning", message, len(few), fix, _having(splits[name], few))


def _balance(train: Reading, counts: Counter[str], facts: tuple[LabelFacts, ...]) -> Iterator[Finding]:
    there = {label: count for label, count in counts.items() if count}
    if len(there) < 2:
        return
    most, least = max(there, key=there.__getitem__), min(there, key=there.__getitem__)
    ratio = there[most] / there[least]
    if ratio < UNEVEN:
        return
    message = f"'{most}' has {there[most]:,} training rows, '{least}' {there[least]:,}: {ratio:,.0f} to 1"
    weights = {label.name: label.weight for label in facts if label.weight is not None and label.name in (most, least)}
    if weights:
        message += f"; balanced weights are {weights[most]:.2f} and {weights[least]:.2f}"
    fix = "--set training.class_weights=balanced (class_weights: balanced under training:); judge by macro_f1, not accuracy"
    severity: Severity = "warning" if ratio >= LOPSIDED else "note"
    yield Finding("imbalance", severity, message, there[least], fix, _having(train, [least]))


def _names(train: Reading, labels: LabelSet, counts: Counter[str], named: bool) -> Iterator[Finding]:
    if not named and all(map(is_whole, labels)):
        message = f"the labels are numbers ({shorten(labels, 6)}); predictions and reports will show those"
        fix = "--label-names FILE, one name a line, in the order of the numbers from 0"
        yield Finding("numeric-labels", "note", message, len(labels), fix, _first_rows(train))
    folded: dict[str, str] = {}
    alike, rarer = [], []
    for label in labels:
        first = folded.setdefault(" ".join(label.casefold().replace("_", " ").replace("-", " ").split()), label)
        if first != label:
            alike.append(f"'{first}' ({counts[first]:,}) and '{label}' ({counts[label]:,})")
            rarer.append(min(first, label, key=counts.__getitem__))
    if alike:
        message = f"labels that differ in case or spacing alone: {shorten(alike, 4)}"
        yield Finding(
            "labels-alike", "warning", message, len(alike), "write them alike if they mean the same", _having(train, rarer)
        )
