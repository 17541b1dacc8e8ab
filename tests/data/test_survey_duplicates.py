"""Equal and nearly equal texts, within and across splits."""

from __future__ import annotations

import numpy as np
import pytest

from survey_cases import reading, rules
from veneer.data import survey_duplicates
from veneer.data.survey_duplicates import codes, duplicate_findings, similarity
from veneer.data.survey_finding import Finding

WORDS = "room cold doctor friday knee pill bill letter nurse week order clinic".split()
APART = [f"{a} {b} {c}" for i, a in enumerate(WORDS) for b, c in [(WORDS[(i * 5 + 1) % 12], WORDS[(i * 7 + 3) % 12])]]
LONG = "could you please send the results of my blood test to the other clinic before friday morning"
CHINESE = "我想预约下周一上午的医生看一下膝盖疼的问题谢谢"


def found(train: list[str], labels: list[str] | None = None, **others: list[str]) -> dict[str, Finding]:
    """Rows of the other splits have the label `a`, and so have those of train unless given."""
    splits = {"train": reading(train, labels or ["a"] * len(train), source="train.csv")}
    splits |= {name: reading(texts, ["a"] * len(texts), source=f"{name}.csv") for name, texts in others.items()}
    return rules(duplicate_findings(splits))


def test_texts_that_differ_give_nothing() -> None:
    assert found(APART[:8], dev=APART[8:10], test=APART[10:]) == {}
    assert found([LONG, CHINESE, "今天天气", "今天心情"]) == {}


def test_equal_texts_with_equal_labels_are_duplicates_alone() -> None:
    findings = found([*APART, "same", " same "], [*"ab" * 6, "a", "a"])
    assert list(findings) == ["duplicate-rows"]
    assert findings["duplicate-rows"].count == 1
    assert [sample.row for sample in findings["duplicate-rows"].examples] == [14]


def test_equal_texts_with_other_labels_conflict() -> None:
    conflict = found([*APART, "same", "same", "same"], [*"ab" * 6, "a", "a", "b"])["conflicting-labels"]
    (sample,) = conflict.examples
    assert sample.twin is not None
    assert (conflict.count, sample.row, sample.labels, sample.twin.row, sample.twin.labels) == (3, 15, ("b",), 13, ("a",))


def test_the_order_of_several_labels_is_no_conflict() -> None:
    splits = {"train": reading(["same", "same"], [("a", "b"), ("b", "a")])}
    assert list(rules(duplicate_findings(splits))) == ["duplicate-rows"]


def test_a_text_of_dev_or_test_that_is_in_train_leaks() -> None:
    findings = found(APART, dev=[APART[3], *(f"{n} other" for n in range(99))], test=[APART[3], APART[4], "new"])
    assert {"train-dev-duplicates", "train-test-duplicates", "dev-test-duplicates"} <= findings.keys()
    assert findings["train-dev-duplicates"].severity == "warning"
    assert findings["train-test-duplicates"].severity == "error"
    assert findings["train-test-duplicates"].count == 2
    (sample,) = findings["train-dev-duplicates"].examples
    assert sample.twin is not None
    assert (sample.source, sample.row, sample.twin.source, sample.twin.row) == ("dev.csv", 1, "train.csv", 4)


def test_a_text_of_dev_with_other_labels_than_in_train_is_no_leak_but_a_conflict() -> None:
    findings = found(
        [*APART, "same", "same"], [*"b" * 12, "a", "b"], dev=[*APART[:3], "same", *(f"{n} other" for n in range(36))]
    )
    assert {"conflicting-labels", "duplicate-rows", "train-dev-conflicts", "train-dev-duplicates"} <= findings.keys()
    conflict, leak = findings["train-dev-conflicts"], findings["train-dev-duplicates"]
    assert (conflict.count, conflict.severity, leak.count) == (3, "warning", 1)  # of 'same', one label agrees
    assert conflict.message == "3 of 40 dev rows (7.5 %) have a text in common with train, but other labels"
    assert "decide which labels are right" in conflict.fix
    assert "too good" not in conflict.fix
    assert [(one.row, one.labels, one.twin.row, one.twin.labels) for one in conflict.examples if one.twin] == [
        (row, ("a",), row, ("b",)) for row in (1, 2, 3)
    ]


def test_so_are_nearly_equal_ones() -> None:
    near = LONG.replace("friday", "monday")
    findings = found([*APART, LONG], [*"a" * 12, "b"], dev=[near, *(f"{n} other" for n in range(99))])
    assert list(findings) == ["train-dev-near-conflicts"]
    assert findings["train-dev-near-conflicts"].message.endswith("nearly the same as one of train, but other labels")


@pytest.mark.parametrize("other", [LONG.upper() + "!!", LONG.replace("friday", "monday"), "ok " + LONG, LONG.replace(" ", "  ")])
def test_nearly_equal_texts_are_found_within_and_across_splits(other: str) -> None:
    within = found([*APART, LONG, other], [*"ab" * 6, "a", "b"])
    assert list(within) == ["near-duplicates"]
    assert "1 of them with other labels" in within["near-duplicates"].message
    across = found([*APART, LONG], dev=[other, *(f"{n} other" for n in range(99))])
    assert list(across) == ["train-dev-near-duplicates"]


def test_so_are_chinese_ones() -> None:
    for other in (CHINESE.replace("下周", "，下周").replace("谢谢", " 谢谢！"), CHINESE + "啦"):
        assert list(found([*APART, CHINESE, other])) == ["near-duplicates"]
    assert found([*APART, CHINESE, CHINESE[:8]]) == {}


def test_pairs_are_near_only_where_both_texts_are() -> None:
    other = "when will the letter from the hospital come and who is going to read it with me"
    splits = {"train": reading([LONG, LONG], pairs=[other, other + "!"])}
    assert "near-duplicates" in rules(duplicate_findings(splits))
    swapped = {"train": reading([LONG, other], pairs=[other, LONG])}
    assert rules(duplicate_findings(swapped)) == {}


def test_emoji_count() -> None:
    assert similarity(codes("i'm sorry 🤪"), codes("i'm sorry ...")) < 1 == similarity(codes("Sorry!"), codes("sorry"))


def test_similarity_is_jaccards() -> None:
    first, second = codes("abcd"), codes("abce")  # ␣␣a ␣ab abc bcd cd␣ | ␣␣a ␣ab abc bce ce␣
    assert similarity(first, second) == pytest.approx(3 / 7)
    assert len(codes("")) == 1
    assert first.dtype == np.uint64


def test_of_large_data_a_sample_is_compared_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{text} {number}" for number in range(20) for text in [*APART, LONG]]
    monkeypatch.setattr(survey_duplicates, "MOST_CHARACTERS", sum(map(len, texts)) // 2)
    near = found(texts)["near-duplicates"]
    assert "in a sample of 50% of the rows" in near.message
    assert 0 < near.count < len(texts) // 2


def test_no_more_is_compared_than_there_are_different_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand copies that differ in little would otherwise be compared with each other."""
    compared = 0

    def counted(first: survey_duplicates.Codes, second: survey_duplicates.Codes) -> float:
        nonlocal compared
        compared += 1
        return similarity(first, second)

    monkeypatch.setattr(survey_duplicates, "similarity", counted)
    assert found([f"{LONG} {'!' * number}" for number in range(300)])["near-duplicates"].count == 299
    assert compared == 299
