"""The survey as a whole, and findings from problems of reading."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
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


# What has no row to show: nothing was read, the base is at fault, or no row has the label.
WITHOUT_ROWS = {"unreadable", "no-rows", "no-base", "no-training-step", "label-not-in-train"}
OF_READING = {"empty-text", "missing-label"}  # see the next test


def every_finding(base: Path) -> Iterator[Finding]:
    """Findings of data made to have every fault."""
    long = "could you please send the results of my blood test to the other clinic before friday morning"
    texts = [
        "cafÃ© good",
        "lost \ufffd",
        "a\x07bell",
        "?!",
        "good 🤪🤪🤪🤪",
        "film " * 99,
        "same",
        "same",
        long,
        f"{long}!",
        "血压高",
    ]
    texts += ["血压低", *["one and the same"] * 30]
    labels = [*"ab" * 6, *["a"] * 25, *"bb", "a|b", "once", "A"]
    dev = reading(
        ["same", "film " * 98, long.upper(), long.replace("friday", "monday"), "same"], [*"abab", "new"], source="dev.csv"
    )
    several = reading(["x", "y", "z"], ["a", ("a", "b"), "b"], source="test.csv")
    by = Tokenization(load_tokenizer(find_base(str(base))), 64, 160)
    single = TASKS["single_label"]
    known = LabelSet.from_labels(labels)
    yield from survey({"train": reading(texts, labels), "dev": dev, "test": several}, known, single, by, named=False).findings
    yield from survey({"train": reading(["x", "x", "y"], ["1"] * 3)}, LabelSet(("1",)), single, by, named=False).findings
    ids = [f"id {i}" for i in range(60)]
    yield from survey({"train": reading(ids, ids)}, LabelSet.from_labels(ids), single, None, named=False).findings
    many = [f"l{i % 1001}" for i in range(3003)]
    yield from survey({"train": reading(many, many)}, LabelSet.from_labels(many), single, None, named=False).findings
    emoji = reading(["good 🤪", "bad ☃ 🤪", "the film"])
    yield from survey({"train": emoji}, LabelSet(("a", "b")), single, by, named=False).findings


def test_every_finding_that_has_rows_shows_some(tiny_base: Callable[..., Path]) -> None:
    found = list(every_finding(tiny_base()))
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    documented = {name for name in re.findall(r"`([a-z-]+)`", " ".join(table)) if "-test-" not in name}  # as of dev
    assert documented - {one.rule for one in found} <= WITHOUT_ROWS | OF_READING | {"no-label"}
    assert [one.rule for one in found if not one.examples and one.rule not in WITHOUT_ROWS] == []
    assert max(len(one.examples) for one in found) == 3


def test_the_rows_of_a_finding_on_labels_have_those_labels(tiny_base: Callable[..., Path]) -> None:
    examples: dict[str, set[tuple[str, ...]]] = {}
    for one in every_finding(tiny_base()):
        examples.setdefault(one.rule, {sample.labels for sample in one.examples})
    assert examples["imbalance"] <= {("a|b",), ("once",), ("A",)}
    assert (examples["labels-alike"], examples["labels-joined"]) == ({("A",)}, {("a|b",)})
    assert examples["label-seen-once"] == {("a|b",), ("once",), ("A",)}
    assert examples["numeric-labels"] == {("1",)}


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
