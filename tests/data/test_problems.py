"""Problems are grouped, rendered together, and raised together."""

from __future__ import annotations

from pathlib import Path

import pytest

from veneer.data import Columns, Problem, raise_on_errors, read_examples, render_problems
from veneer.data.problems import shown
from veneer.errors import DataError

WARNING = Problem("warning", "label-seen-once", "train.csv", None, None, "rare", "a label is rare", "add rows")
ERROR = Problem("error", "empty-text", "dev.csv", 3, "text", "", "the text is empty", "fill it in", 1200, (3, 7, 9), 4)


def test_all_problems_stand_in_one_text_errors_first() -> None:
    assert render_problems([WARNING, ERROR]).splitlines() == [
        "1 error and 1 warning in the data",
        "  error: dev.csv, row 3 (line 4), column 'text': the text is empty [empty-text]",
        "      1,200 rows: 3, 7, 9, …",
        "      Fix: fill it in",
        "  warning: train.csv: a label is rare [label-seen-once]",
        "      value: rare",
        "      Fix: add rows",
    ]
    assert render_problems([]) == ""


def test_errors_are_raised_with_everything_and_warnings_are_not() -> None:
    raise_on_errors([WARNING, WARNING])
    with pytest.raises(DataError) as error:
        raise_on_errors([WARNING, ERROR])
    assert str(error.value) == render_problems([WARNING, ERROR])


def test_problems_of_a_kind_are_counted_with_five_example_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + "good,1\n,0\n" * 7)
    (problem,) = read_examples(tmp_path / "rows.csv", Columns()).problems
    assert (problem.row, problem.line, problem.count, problem.rows) == (2, 3, 7, (2, 4, 6, 8, 10))


def test_values_are_shown_short_and_printable() -> None:
    assert shown("a\x1b[31m\tb\u202e") == r"a\x1b[31m\tb\u202e"
    assert shown("清华") == "清华"
    assert shown("x" * 100) == "x" * 59 + "…"
    assert shown(["a", 1]) == "['a', 1]"
    assert shown(None) == ""
