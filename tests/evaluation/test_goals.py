"""Targets as they are typed, and files of costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from veneer.errors import InputError
from veneer.evaluation.goals import Goal
from veneer.labels import LabelSet

TWO, THREE = LabelSet(("no", "yes")), LabelSet(("a", "b", "c"))


def test_what_can_be_asked_for() -> None:
    assert Goal.parse("f1", THREE, "single_label") == Goal("f1")
    assert Goal.parse("accuracy", THREE, "multi_label").metric(True) == "label_accuracy"
    precision = Goal.parse("precision=0.95", TWO, "single_label")
    assert (precision, precision.text, precision.metric(False)) == (Goal("precision", 0.95), "precision=0.95", "precision")
    assert Goal.parse("recall=.9", THREE, "multi_label").metric(True) == "macro_recall"


@pytest.mark.parametrize("text", ["f2", "f1=0.5", "precision", "precision=2", "recall=x", "recall=nan", "cost", "cost=", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="above 0 and below 1" if "=" in text and text[0] in "pr" else r"f1 \| accuracy"):
        Goal.parse(text, TWO, "single_label")


def test_one_of_many_classes_has_no_single_precision() -> None:
    with pytest.raises(InputError, match="--precision X"):
        Goal.parse("precision=0.9", THREE, "single_label")


def test_costs_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    path.write_text("\ufefflabel,c,a,b\nb,1,2,0\na,3,0,4\n\nc,0,5,6.5\n", encoding="utf-8")
    assert Goal.parse(f"cost={path}", THREE, "single_label").costs == ((0, 4, 3), (2, 0, 1), (5, 6.5, 0))
    path.write_text("label,wrong,missed\nyes,1,10\nno,2,3\n", encoding="utf-8")
    assert Goal.parse(f"cost={path}", TWO, "multi_label").costs == ((3, 2), (10, 1))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "columns are none"),
        ("label,no\nno,0\nyes,1\n", "columns are no; they must be no, yes"),
        ("label,no,yes\nno,0,1\n", "rows are no; they must be no, yes"),
        ("label,no,yes\nno,0,1\nyes,-1,x\n", "'yes', 'no': '-1' is no cost.*\n.*'yes', 'yes': 'x' is no cost"),
        ("label,no,yes\nno,0,1\nyes,0\n", "'yes': 1 costs, not 2"),
        ("label,no,yes\nno,3,1\nyes,1,0\n", "'no': being right"),
        ("label,no,yes\nno,0,inf\nyes,1,0\n", "'inf' is no cost"),
    ],
)
def test_every_fault_of_a_table_of_costs_is_told(tmp_path: Path, table: str, message: str) -> None:
    path = tmp_path / "costs.csv"
    path.write_text(table, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        Goal.parse(f"cost={path}", TWO, "single_label")
    with pytest.raises(InputError, match="cannot read the costs"):
        Goal.parse(f"cost={tmp_path / 'none.csv'}", TWO, "single_label")
