"""Problems that show only between rows and between splits: classes, duplicates, unknown labels.

Knows examples and label names; reads no file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from veneer.data.problems import Flaw, Problem, ProblemLog
from veneer.data.read import Reading
from veneer.data.types import Example
from veneer.labels import LabelSet, shorten

SEPARATORS = "|;,/"  # usual ones between labels in a cell
FEWEST_ROWS = 20  # below it, as many labels as rows say nothing
ROWS_OF_A_CLASS = 10  # on average; numbers with fractions that have fewer are quantities

Key = tuple[str, str | None]


def text_key(example: Example) -> Key:
    """What makes two rows the same text: text and pair without outer white space."""
    return example.text.strip(), None if example.pair is None else example.pair.strip()


def count_labels(examples: Iterable[Example]) -> Counter[str]:
    """How many rows carry each label."""
    return Counter(label for example in examples for label in example.labels)


def check_splits(
    train: Reading, dev: Reading | None, test: Reading | None, labels: LabelSet, multi_label: bool
) -> tuple[Problem, ...]:
    """What is wrong with the splits of one data set, C classes being `labels`.

    Errors: a label that is not in `labels`, several labels a row or none in a single-label task, training rows of one class only,
    training labels that are no classes. Warnings: labels seen once or never in training, labels made of other labels, labels
    absent from dev, equal texts with other labels, and texts of dev or test that are in train too, labelled alike or not.
    """
    problems: list[Problem] = []
    for reading in (train, dev, test):
        if reading is not None:
            problems += check_labels(reading, labels, multi_label)
    problems += _check_train(train, labels)
    seen: defaultdict[Key, set[frozenset[str]]] = defaultdict(set)
    for example in train.examples:
        seen[text_key(example)].add(frozenset(example.labels))
    for name, reading in (("dev", dev), ("test", test)):
        if reading is not None:
            problems += _check_overlap(name, reading, seen)
    if dev is not None and any(example.labels for example in dev.examples):
        problems += _check_dev(train, dev, labels)
    return tuple(problems)


def check_labels(reading: Reading, labels: LabelSet, multi_label: bool) -> tuple[Problem, ...]:
    """Errors: a label that is not in `labels`, several labels a row or none in a single-label task."""
    log = ProblemLog(reading.source)
    unknown = [(example.row, label) for example in reading.examples for label in example.labels if label not in labels]
    if unknown:
        names = list(dict.fromkeys(label for _, label in unknown))
        near = get_close_matches(names[0], labels.names, n=1)
        fix = f"use one of {shorten(labels)}" + (f" (for '{names[0]}' perhaps '{near[0]}')" if near else "")
        flaw = Flaw("unknown-label", "the label is not one of those to be told apart", fix)
        for row, _ in unknown:
            log.add(flaw, row=row, column=reading.label_column, value=shorten(names))
    for example in reading.examples:
        if not multi_label and len(example.labels) > 1:
            flaw = Flaw("several-labels", "a row of a single-label task has several labels", "give one, or set task: multi_label")
            log.add(flaw, row=example.row, column=reading.label_column, value=", ".join(example.labels))
        if not multi_label and not example.labels:
            flaw = Flaw("no-label", "a row of a single-label task has no label", "give one, or set task: multi_label")
            log.add(flaw, row=example.row, column=reading.label_column)
    return log.problems()


def _check_train(train: Reading, labels: LabelSet) -> tuple[Problem, ...]:
    log = ProblemLog(train.source)
    counts = count_labels(train.examples)
    if (no_classes := why_no_classes(train)) is not None:
        log.add(no_classes, column=train.label_column, value=shorten(labels))
    if train.examples and len({frozenset(example.labels) for example in train.examples}) < 2:
        only = ", ".join(train.examples[0].labels)
        flaw = Flaw("one-class", f"all {len(train.examples):,} training rows have the same label", "add rows with other labels")
        log.add(flaw, value=only)
    once = [label for label in labels if counts[label] == 1]
    if once:
        flaw = Flaw(
            "label-seen-once",
            f"labels that only one training row has: {len(once)}",
            "add rows with them, or join them with others",
        )
        row = next(example.row for example in train.examples if once[0] in example.labels)
        log.add(flaw, row=row, value=shorten(once), severity="warning")
    never = [label for label in labels if counts[label] == 0]
    if never:
        flaw = Flaw(
            "label-not-in-train", f"labels that no training row has: {len(never)}", "add rows with them, or leave them out"
        )
        log.add(flaw, value=shorten(never), severity="warning")
    _check_joined(labels, log)
    _check_conflicts(train, log)
    return log.problems()


def why_no_classes(train: Reading) -> Flaw | None:
    """What the label column holds instead of classes: nearly a label a row, or quantities; None where it holds classes."""
    counts = count_labels(train.examples)
    rows, labels = len(train.examples), len(counts)
    once = sum(count == 1 for count in counts.values())
    quantities = labels >= FEWEST_ROWS and labels * ROWS_OF_A_CLASS > rows and _are_quantities(counts)
    if not quantities and (rows < FEWEST_ROWS or labels * 2 <= rows or once < 0.9 * labels):
        return None
    what = "numbers with fractions" if quantities else "nearly a label a row"
    message = f"the label column holds {labels:,} different labels in {rows:,} rows, {what}: these are no classes"
    fix = "see whether --label names the right column; put quantities into classes such as low and high first"
    return Flaw("labels-are-no-classes", message, fix)


def is_whole(label: str) -> bool:
    """Whether a label is written as a whole number."""
    return label.removeprefix("-").isdecimal()


def _are_quantities(labels: Iterable[str]) -> bool:
    labels = list(labels)
    return all(map(_is_number, labels)) and not all(map(is_whole, labels))


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _check_joined(labels: LabelSet, log: ProblemLog) -> None:
    """Labels made of other labels: the cells hold several, and nobody said what is between them."""
    for mark in SEPARATORS:
        joined = joined_labels(labels, mark)
        if joined:
            fix = f"--label-separator '{mark}', if they are several labels of one row"
            log.add(
                Flaw("labels-joined", f"labels that are others with '{mark}' between: {len(joined)}", fix),
                value=shorten(joined),
                severity="warning",
            )


def joined_labels(labels: LabelSet, mark: str) -> list[str]:
    """The labels that are other labels with `mark` between."""
    return [label for label in labels if mark in label and all(part.strip() in labels for part in label.split(mark))]


def _check_conflicts(train: Reading, log: ProblemLog) -> None:
    first: dict[Key, Example] = {}
    for example in train.examples:
        earlier = first.setdefault(text_key(example), example)
        if earlier is not example and set(earlier.labels) != set(example.labels):
            flaw = Flaw(
                "conflicting-labels",
                f"the same text has other labels in an earlier row (the first: row {earlier.row})",
                "decide which is right; what is left as it is cannot be learned",
            )
            value = f"{', '.join(example.labels)}, before {', '.join(earlier.labels)}: {example.text}"
            log.add(flaw, row=example.row, value=value, severity="warning")


def _check_overlap(name: str, reading: Reading, seen: Mapping[Key, set[frozenset[str]]]) -> tuple[Problem, ...]:
    log = ProblemLog(reading.source)
    total = len(reading.examples)
    both = [example for example in reading.examples if text_key(example) in seen]
    alike = [example for example in both if frozenset(example.labels) in seen[text_key(example)]]
    other = [example for example in both if frozenset(example.labels) not in seen[text_key(example)]]
    message = f"{len(alike):,} of {total:,} {name} rows have a text that is in the training rows too"
    leak = Flaw(f"train-{name}-duplicates", message, f"remove them from one side; they make the {name} score too good")
    message = f"{len(other):,} of {total:,} {name} rows have a text that training rows label differently"
    conflict = Flaw(f"train-{name}-conflicts", message, "decide which labels are right, and keep the rows on one side")
    for flaw, examples in ((leak, alike), (conflict, other)):
        for example in examples:
            log.add(flaw, row=example.row, value=example.text, severity="warning")
    return log.problems()


def _check_dev(train: Reading, dev: Reading, labels: LabelSet) -> tuple[Problem, ...]:
    log = ProblemLog(dev.source)
    trained, there = count_labels(train.examples), count_labels(dev.examples)
    absent = [label for label in labels if trained[label] and not there[label]]
    if absent:
        message = f"labels of the training rows that no dev row has: {len(absent)}"
        flaw = Flaw("label-not-in-dev", message, "add dev rows with them; until then their quality is not measured")
        log.add(flaw, value=shorten(absent), severity="warning")
    return log.problems()
