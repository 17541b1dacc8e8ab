"""Each problem between rows and between splits is found, and sound splits have none."""

from __future__ import annotations

from veneer.data import Example, Problem, Reading, check_splits, count_labels
from veneer.labels import LabelSet

Row = tuple[str, str]
TRAIN = [("good", "pos"), ("fine", "pos"), ("bad", "neg"), ("sad", "neg")]
DEV = [("nice", "pos"), ("poor", "neg")]
LABELS = LabelSet(("neg", "pos"))


def reading(rows: list[Row], source: str = "train.csv", pair: str | None = None) -> Reading:
    """Rows of a text and its labels, separated by commas."""
    examples = [Example(text, pair, tuple(filter(None, label.split(","))), row) for row, (text, label) in enumerate(rows, 1)]
    return Reading(source, tuple(examples), (), any("," in label for _, label in rows), "")


def check(train: list[Row], dev: list[Row] | None = None, test: list[Row] | None = None, **options: object) -> dict[str, Problem]:
    labels = options.get("labels", LABELS)
    assert isinstance(labels, LabelSet)
    splits = [reading(rows, source) if rows is not None else None for rows, source in ((dev, "dev.csv"), (test, "test.csv"))]
    problems = check_splits(reading(train), *splits, labels, multi_label=bool(options.get("multi_label")))
    assert len({problem.kind for problem in problems}) == len(problems)
    return {problem.kind: problem for problem in problems}


def test_sound_splits_have_no_problem() -> None:
    assert check(TRAIN, DEV, [("odd", "pos")]) == {}
    assert check(TRAIN) == {}
    assert check([("a", "x,y"), ("b", "x,y"), ("c", "x"), ("d", "")], labels=LabelSet(("x", "y")), multi_label=True) == {}


def test_a_label_unknown_to_training() -> None:
    found = check(TRAIN, [*DEV, ("meh", "posi"), ("huh", "neutral"), ("hm", "posi")])
    problem = found["unknown-label"]
    assert (problem.severity, problem.source, problem.row, problem.count) == ("error", "dev.csv", 3, 3)
    assert problem.value == "posi, neutral"
    assert "neg, pos" in problem.fix
    assert "perhaps 'pos'" in problem.fix
    assert check(TRAIN, DEV, [("x", "other")])["unknown-label"].source == "test.csv"


def test_one_class_only() -> None:
    problem = check([("a", "pos"), ("b", "pos")], labels=LabelSet(("pos",)))["one-class"]
    assert (problem.severity, problem.value) == ("error", "pos")
    same = check([("a", "x,y"), ("b", "y,x")], labels=LabelSet(("x", "y")), multi_label=True)
    assert same["one-class"].severity == "error"


def test_labels_seen_once_or_never() -> None:
    found = check([*TRAIN, ("meh", "mid")], labels=LabelSet(("mid", "neg", "never", "pos")))
    once = found["label-seen-once"]
    assert (once.severity, once.row, once.value, once.count) == ("warning", 5, "mid", 1)
    assert (found["label-not-in-train"].severity, found["label-not-in-train"].value) == ("warning", "never")


def test_a_column_that_holds_no_classes() -> None:
    def kinds(labels: list[str]) -> set[str]:
        rows = [(f"text {i}", label) for i, label in enumerate(labels)]
        return {kind for kind, problem in check(rows, labels=LabelSet.from_labels(labels)).items() if problem.severity == "error"}

    assert kinds([f"id {i}" for i in range(60)]) == {"labels-are-no-classes"}
    assert kinds([f"{i % 25 / 10}" for i in range(100)]) == {"labels-are-no-classes"}  # quantities
    assert kinds([f"{i % 25 / 10}" for i in range(250)]) == set()  # codes such as 1.1: ten rows of each
    assert kinds([f"id {i % 40}" for i in range(60)]) == set()  # many rare classes, but half of them more than once
    assert kinds([f"id {i}" for i in range(19)]) == set()


def test_labels_that_dev_lacks() -> None:
    problem = check(TRAIN, [("nice", "pos")])["label-not-in-dev"]
    assert (problem.severity, problem.source, problem.value) == ("warning", "dev.csv", "neg")
    assert "label-not-in-dev" not in check(TRAIN, [("nice", ""), ("poor", "")])  # a dev file without any label


def test_texts_of_train_in_dev_and_test() -> None:
    found = check(TRAIN, [*DEV, (" good ", "pos"), ("bad", "neg")], [("sad", "neg")])
    dev, test = found["train-dev-duplicates"], found["train-test-duplicates"]
    assert (dev.severity, dev.source, dev.row, dev.count, dev.rows) == ("warning", "dev.csv", 3, 2, (3, 4))
    assert "2 of 4 dev rows" in dev.message
    assert (test.source, test.row, test.count) == ("test.csv", 1, 1)


def test_texts_of_train_in_dev_with_other_labels_are_told_as_such() -> None:
    found = check(TRAIN, [*DEV, ("good", "neg"), ("bad", "neg")])
    leak, conflict = found["train-dev-duplicates"], found["train-dev-conflicts"]
    assert (leak.rows, conflict.rows) == ((4,), (3,))
    assert conflict.message == "1 of 4 dev rows have a text that training rows label differently"
    assert "decide which labels are right" in conflict.fix


def test_the_pair_is_part_of_the_text() -> None:
    train, dev = reading(TRAIN, pair="one"), reading([("good", "pos"), ("bad", "neg")], "dev.csv", pair="two")
    assert check_splits(train, dev, None, LABELS, False) == ()


def test_the_same_text_with_other_labels() -> None:
    problem = check([*TRAIN, ("good ", "neg"), ("bad", "neg")])["conflicting-labels"]
    assert (problem.severity, problem.row, problem.count) == ("warning", 5, 1)
    assert problem.value == "neg, before pos: good "
    assert "row 1" in problem.message


def test_several_labels_in_a_single_label_task() -> None:
    problem = check([*TRAIN, ("both", "pos,neg")])["several-labels"]
    assert (problem.severity, problem.row, problem.value) == ("error", 5, "pos, neg")


def test_labels_are_counted_by_row() -> None:
    assert count_labels(reading([("a", "x,y"), ("b", "x"), ("c", "")]).examples) == {"x": 2, "y": 1}


def test_labels_that_are_several_in_one_cell() -> None:
    rows = [("a", "x"), ("b", "y"), ("c", "x|y"), ("d", "x|y"), ("e", "n|a")]
    problem = check(rows, labels=LabelSet(("x", "y", "x|y", "n|a")))["labels-joined"]
    assert (problem.severity, problem.value) == ("warning", "x|y")
    assert "--label-separator '|'" in problem.fix
    assert "labels-joined" not in check(rows, labels=LabelSet(("x", "x|y", "n|a")))
