"""Rare and missing labels, imbalance, and columns that hold no classes."""

from __future__ import annotations

import pytest
import torch

from survey_cases import reading, rules
from veneer.data.survey_finding import Finding
from veneer.data.survey_labels import LabelFacts, label_facts, label_findings
from veneer.labels import LabelSet
from veneer.tasks import TASKS

Labels = list[str] | list[tuple[str, ...]]


def survey(
    train: Labels, dev: Labels | None = None, *, task: str = "single_label", named: bool = False
) -> tuple[tuple[LabelFacts, ...], dict[str, Finding]]:
    splits = {"train": reading([f"text {i}" for i in range(len(train))], train)}
    if dev is not None:
        splits["dev"] = reading([f"dev text {i}" for i in range(len(dev))], dev, source="dev.csv")
    labels = LabelSet.from_labels(label for example in splits["train"].examples for label in example.labels)
    chosen = TASKS[task]  # type: ignore[index]
    facts = label_facts(splits, labels, chosen)
    return facts, rules(label_findings(splits, labels, facts, chosen, named))


def found(train: Labels, dev: Labels | None = None, *, named: bool = False) -> dict[str, Finding]:
    return survey(train, dev, named=named)[1]


def test_balanced_labels_give_nothing() -> None:
    assert found(["yes", "no"] * 20, ["yes", "no"] * 5) == {}


def test_weights_are_those_of_training() -> None:
    train = ["yes"] * 30 + ["no"] * 10
    facts, findings = survey(train)
    task = TASKS["single_label"]
    expected = task.class_weights(task.targets([[1]] * 30 + [[0]] * 10, 2), 2)
    torch.testing.assert_close(torch.tensor([label.weight for label in facts]), expected, atol=1e-4, rtol=0)
    assert [(label.name, label.rows) for label in facts] == [("no", {"train": 10}), ("yes", {"train": 30})]
    assert findings["imbalance"].severity == "note"
    assert "balanced weights are 0.67 and 2.00" in findings["imbalance"].message
    assert "training.class_weights=balanced" in findings["imbalance"].fix


def test_imbalance_begins_at_three_to_one_and_is_a_warning_from_ten() -> None:
    assert found(["yes"] * 29 + ["no"] * 10) == {}
    assert found(["yes"] * 100 + ["no"] * 10)["imbalance"].severity == "warning"


def test_multi_label_weights_are_those_of_training() -> None:
    rows: list[tuple[str, ...]] = [("a", "b")] * 10 + [("a",)] * 26 + [()] * 4
    facts, findings = survey(rows, task="multi_label")
    assert [label.weight for label in facts] == pytest.approx([(4 / 36) ** 0.5, 3**0.5], abs=1e-4)
    assert list(findings) == ["imbalance"]


def test_a_single_example_of_a_label() -> None:
    findings = found(["yes"] * 40 + ["no"])
    assert {"label-seen-once", "imbalance"} == findings.keys()
    assert [sample.row for sample in findings["label-seen-once"].examples] == [41]


def test_rare_labels() -> None:
    rare = found(["yes", "no"] * 12 + ["maybe"] * 9)["rare-labels"]
    assert (rare.count, rare.severity) == (1, "warning")
    assert "1 of 3 labels" in rare.message
    assert [sample.labels for sample in rare.examples] == [("maybe",)] * 3
    assert "rare-labels" not in found(["yes", "no", "maybe"] * 10)


def test_labels_missing_from_dev_or_nearly_so() -> None:
    findings = found(["yes", "no", "maybe"] * 10, ["yes"] * 8 + ["no"])
    assert {"label-not-in-dev", "few-in-dev"} == findings.keys()
    assert "maybe" in findings["label-not-in-dev"].message
    assert [sample.row for sample in findings["few-in-dev"].examples] == [9]
    assert findings["few-in-dev"].examples[0].source == "dev.csv"


def test_a_label_of_dev_that_training_does_not_know_is_an_error() -> None:
    unknown = found(["yes", "no"] * 10, ["yes", "no"] * 5 + ["mabye", "mabye"])["unknown-label"]
    assert (unknown.severity, unknown.count) == ("error", 2)
    assert "in 2 rows" in unknown.message
    assert [(sample.row, sample.text) for sample in unknown.examples] == [(11, "dev text 10"), (12, "dev text 11")]


def test_one_class_alone_is_an_error() -> None:
    assert found(["yes"] * 30)["one-class"].severity == "error"


def test_labels_that_look_numeric() -> None:
    numeric = found(["0", "1"] * 20)["numeric-labels"]
    assert numeric.severity == "note"
    assert "--label-names" in numeric.fix
    assert found(["0", "1"] * 20, named=True) == {}
    assert found(["a0", "1"] * 20) == {}


def test_a_column_of_quantities_or_of_ids_holds_no_classes() -> None:
    quantities = found([f"{i % 25 / 10}" for i in range(100)])
    assert quantities.keys() == {"labels-are-no-classes"}
    ids = found([f"id {i}" for i in range(60)])["labels-are-no-classes"]
    assert (ids.severity, ids.count) == ("error", 60)
    assert "labels-are-no-classes" not in found([f"{i % 19 / 10}" for i in range(190)])
    assert "labels-are-no-classes" not in found([f"id {i % 30}" for i in range(60)])


def test_ten_thousand_labels_are_a_warning() -> None:
    facts, findings = survey([f"label {i % 10_000}" for i in range(20_000)])
    assert (len(facts), findings["many-labels"].count) == (10_000, 10_000)
    assert findings.keys() == {"many-labels", "rare-labels"}
    assert max(len(finding.message) for finding in findings.values()) < 200


def test_ten_thousand_labels_of_a_multi_label_task_take_no_matrix() -> None:
    facts, _ = survey([(f"label {i % 10_000}", "all") for i in range(20_000)], task="multi_label")
    assert {label.weight for label in facts} == {None}


def test_labels_that_differ_in_case_alone() -> None:
    findings = found(["Very good", "very_good", "bad"] * 10)
    assert findings.keys() == {"labels-alike"}
    assert "'Very good' (10) and 'very_good' (10)" in findings["labels-alike"].message
