"""The survey as a whole, and findings from problems of reading."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from survey_cases import reading
from toy_runs import toy_rows
from veneer.bases import find_base, load_tokenizer
from veneer.data import Columns, Problem, read_examples
from veneer.data.survey import ordered, survey
from veneer.data.survey_finding import Finding, from_problem, percent
from veneer.data.survey_tokens import Tokenization
from veneer.labels import LabelSet
from veneer.tasks import TASKS

LABELS = LabelSet(("bad", "good"))


def test_clean_data_gives_no_findings(tiny_base: Callable[..., Path]) -> None:
    rows = list({row["text"]: row["label"] for row in toy_rows(200) if len(row["text"].split()) > 8}.items())
    train = reading([text for text, _ in rows[:60]], [label for _, label in rows[:60]])
    dev = reading([text for text, _ in rows[60:]], [label for _, label in rows[60:]], source="dev.csv")
    by = Tokenization(load_tokenizer(find_base(str(tiny_base()))), 64, 160)
    result = survey({"train": train, "dev": dev}, LABELS, TASKS["single_label"], by, named=False)
    assert result.findings == ()
    assert list(result.tokens) == ["train", "dev"]
    assert [label.name for label in result.labels] == ["bad", "good"]


def test_findings_of_every_part_come_errors_first(tiny_base: Callable[..., Path]) -> None:
    train = reading(["cafÃ© good", "same text", "same text", *(f"血压高 {i}" for i in range(20))], ["good"] * 20 + ["bad"] * 3)
    by = Tokenization(load_tokenizer(find_base(str(tiny_base()))), 64, 160)
    result = survey({"train": train}, LABELS, TASKS["single_label"], by, named=False)
    assert {"mojibake", "duplicate-rows", "unlearned-script", "rare-labels", "imbalance"} <= {one.rule for one in result.findings}
    severities = [finding.severity for finding in result.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    json.dumps([finding.to_json() for finding in result.findings], allow_nan=False)


def test_without_a_base_the_rest_is_surveyed() -> None:
    result = survey({"train": reading(["same", "same"])}, LabelSet(("a", "b")), TASKS["single_label"], None, named=False)
    assert result.tokens == {}
    assert "conflicting-labels" in {finding.rule for finding in result.findings}


def test_problems_of_reading_become_findings(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,label\nfine,a\n,b\n,b\nlost,\n", encoding="utf-8")
    found = read_examples(path, Columns())
    empty, missing = (from_problem(problem, found) for problem in found.problems)
    assert (empty.rule, empty.count, [sample.row for sample in empty.examples]) == ("empty-text", 2, [2, 3])
    assert empty.message == "the text is empty (column 'text'), in 2 rows"
    assert (missing.rule, missing.severity) == ("missing-label", "error")


def test_a_problem_of_no_row_keeps_its_value() -> None:
    problem = Problem("warning", "label-not-in-train", "f.csv", None, None, "a, b", "labels of no row: 2", "add rows")
    expected = Finding("label-not-in-train", "warning", "labels of no row: 2: a, b", 1, "add rows")
    assert from_problem(problem, reading(["x"])) == expected


def test_ordering_is_stable() -> None:
    first, second = Finding("a", "note", "", 1, ""), Finding("b", "error", "", 1, "")
    third, fourth = Finding("c", "note", "", 1, ""), Finding("d", "error", "", 1, "")
    assert ordered([first, second, third, fourth]) == (second, fourth, first, third)


SHARES = [(0, 9, "0.0 %"), (1, 9999, "<0.1 %"), (1, 300, "0.3 %"), (996, 1000, "100 %"), (1, 10, "10 %"), (0, 0, "0.0 %")]


@pytest.mark.parametrize(("part", "whole", "shown"), SHARES)
def test_shares_read_well(part: int, whole: int, shown: str) -> None:
    assert percent(part, whole) == shown
