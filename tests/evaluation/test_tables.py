"""The tables as a terminal of 80 columns shows them."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from veneer.evaluation.metrics import Evaluation, score
from veneer.evaluation.tables import MOST_CLASSES, bar, confusion_table, per_class_table, scores_table

LONG = "a label whose name is far longer than a column has room for"
CJK = "预约医生的时间和地点以及需要带来的全部材料清单"


def shown(table: Table) -> list[str]:
    console = Console(width=80, file=StringIO(), force_terminal=False)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def evaluation(names: list[str], *, multi_label: bool = False, texts: int = 400) -> Evaluation:
    rng = np.random.default_rng(0)
    classes = len(names)
    if multi_label:
        targets = rng.random((texts, classes)) < 0.3
        return score(targets, targets ^ (rng.random(targets.shape) < 0.2), names, multi_label=True, bootstrap=50)
    targets = rng.integers(0, classes, texts)
    decisions = np.where(rng.random(texts) < 0.4, rng.integers(0, classes, texts), targets)
    return score(targets, decisions, names, multi_label=False, bootstrap=50)


def names_of(classes: int) -> list[str]:
    return [LONG, CJK, *(f"class {i}" for i in range(2, classes))]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(("classes", "texts"), [(2, 900_000), (8, 20_000), (10, 3000), (28, 20_000)])
def test_nothing_is_wider_than_80_columns_and_no_number_is_cut(classes, texts, multi_label):
    found = evaluation(names_of(classes), multi_label=multi_label, texts=texts)
    for make in (scores_table, per_class_table, confusion_table):
        lines = shown(make(found))
        assert max(cell_len(line) for line in lines) <= 80
    lines = shown(per_class_table(found))
    assert len(lines) == classes + 2
    for line, item in zip(lines[2:], found.per_class, strict=True):
        assert line.split()[-2:] == [f"{item.support:,}", f"{item.predicted:,}"]


def test_a_matrix_of_ten_classes_still_fits():
    found = evaluation(names_of(10), texts=3000)
    lines = shown(confusion_table(found))
    assert lines[0] == "Confusion"
    for line, row in zip(lines[2:], found.confusion.tolist(), strict=True):
        assert [int(cell) for cell in line.split()[-10:]] == row


def test_a_wide_terminal_does_not_stretch_the_labels():
    console = Console(width=200, file=StringIO(), force_terminal=False)
    console.print(per_class_table(evaluation(names_of(2))))
    assert "a label whose name is f…" in console.file.getvalue()


@pytest.mark.parametrize("make", [per_class_table, confusion_table])
@pytest.mark.parametrize("multi_label", [False, True])
def test_a_label_is_never_read_as_markup(make, multi_label):
    text = "\n".join(shown(make(evaluation(["[red]x[/]", "[/]", ":smile:"], multi_label=multi_label))))
    assert all(name in text for name in ("[red]x[/]", "[/]", ":smile:"))


def test_scores_come_with_their_intervals():
    found = evaluation(["no", "yes"])
    item = found.metrics["macro_f1"]
    assert f"macro F1         {item.value:.3f}  {item.low:.3f} – {item.high:.3f}" in shown(scores_table(found))
    assert shown(scores_table(found))[0] == "Scores on 400 texts"


def test_scores_of_several_labels_name_the_accuracy_once():
    lines = shown(scores_table(evaluation(["a", "b"], multi_label=True)))
    assert [line.split("  ")[0] for line in lines if "accuracy" in line] == ["subset accuracy (all labels right)"]
    assert any(line.startswith("Hamming loss") for line in lines)


def test_scores_without_resamples():
    lines = shown(scores_table(score([0], [0], ["a", "b"], multi_label=False, bootstrap=0)))
    assert lines[0] == "Scores on 1 text"
    assert lines[2].split() == ["accuracy", "1.000", "–"]


def matrix(*names: str) -> list[list[str]]:
    found = score([0, 0, 0, 1], [0, 1, 1, 1], names, multi_label=False, bootstrap=0)
    return [line.split() for line in shown(confusion_table(found))[1:]]


def test_few_classes_are_a_matrix_with_the_targets_in_rows():
    head = ["true", "↓", "decided", "→"]
    assert matrix("no", "perhaps") == [[*head, "1", "2"], ["1", "no", "1", "2"], ["2", "perhaps", "·", "1"]]
    assert matrix("no", "yes") == [[*head, "no", "yes"], ["no", "1", "2"], ["yes", "·", "1"]]
    assert matrix("无", "可以预约") == [[*head, "1", "2"], ["1", "无", "1", "2"], ["2", "可以预约", "·", "1"]]


def test_a_column_of_a_label_that_is_a_number_has_that_number():
    assert matrix("0", "1")[0][-2:] == ["0", "1"]
    assert matrix("0", "1")[1:] == [["0", "1", "2"], ["1", "·", "1"]]


@pytest.mark.parametrize(("classes", "names"), [(6, True), (7, False)])
def test_short_labels_head_their_columns_where_there_is_room(classes, names):
    lines = shown(confusion_table(evaluation([f"lab{i:03d}" for i in range(classes)])))
    assert ("lab001" in lines[1]) is names
    assert max(map(cell_len, lines)) <= 80
    assert lines[0] == "Confusion"


def test_many_classes_are_the_most_confused_pairs_first():
    targets = np.repeat(np.arange(20), 10)
    decisions = targets.copy()
    decisions[30:34] = 5  # four of class 3
    decisions[70] = 1
    found = score(targets, decisions, [f"c{i}" for i in range(20)], multi_label=False, bootstrap=0)
    lines = shown(confusion_table(found))
    assert lines[0] == "Most confused pairs"
    assert [line.split() for line in lines[2:]] == [["c3", "c5", "4", "40.0%"], ["c7", "c1", "1", "10.0%"]]


def test_many_classes_without_a_mistake():
    targets = np.arange(20)
    lines = shown(confusion_table(score(targets, targets, [f"c{i}" for i in range(20)], multi_label=False, bootstrap=0)))
    assert lines[0] == "Most confused pairs: none"
    assert len(lines) == 2


def test_a_long_list_of_confusions_is_cut_and_says_so():
    lines = shown(confusion_table(evaluation(names_of(28))))
    assert lines[0].startswith("Most confused pairs: 12 of ")
    assert len(lines) == 14


def test_several_labels_show_what_was_missed_and_what_was_wrongly_given():
    targets = [[1, 0], [1, 0], [1, 1], [0, 0]]
    decisions = [[1, 0], [0, 0], [0, 1], [1, 0]]
    lines = shown(confusion_table(score(targets, decisions, ["a", "b"], multi_label=True, bootstrap=0)))
    assert [line.split() for line in lines[2:]] == [["a", "1", "2", "1"]]


def test_bars():
    assert [bar(share) for share in (0.0, 0.5, 0.5125, 1.0)] == ["", "█████", "█████▏", "██████████"]


def test_of_very_many_classes_the_worst_are_shown():
    found = evaluation(names_of(300))
    assert len(shown(per_class_table(found))) == MOST_CLASSES + 2
    assert f"the lowest {MOST_CLASSES} of 300" in shown(per_class_table(found))[0]
    assert found.confusion is None
    assert shown(confusion_table(found))[0].startswith("Most confused pairs")
