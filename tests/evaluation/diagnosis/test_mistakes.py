"""Confused pairs, the surest mistakes, and decisions that make the given label doubtful."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from diagnosis_cases import binary, evidence, many, multi

from veneer.evaluation.diagnosis.evidence import MOST_CHARACTERS, labelwise
from veneer.evaluation.diagnosis.mistakes import MOST_MISTAKES, confused_pairs, doubtful_labels, surest_mistakes


def test_confused_pairs_are_the_cells_off_the_diagonal():
    given = many(600, separation=1.5)
    found = confused_pairs(given, labelwise(given))
    assert found[0]["texts"] == max(one["texts"] for one in found)
    for one in found:
        texts = (given.targets == int(one["target"][1])) & (given.decisions == int(one["decided"][1]))
        assert one["texts"] == texts.sum()
        rows = [example["row"] - 1 for example in one["examples"]]
        assert len(rows) == min(3, texts.sum())
        surest = given.probabilities[texts, int(one["decided"][1])].max()
        assert given.probabilities[rows[0], int(one["decided"][1])] == surest
    assert sum(one["texts"] for one in found) == (~given.right).sum()


def test_multi_label_pairs_are_a_missed_and_a_wrongly_given_label():
    targets = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1], [1, 1, 0]], dtype=bool)
    logits = np.array([[-1, 1, -1], [-1, 2, -1], [-1, -1, 1], [-1, 1, -1]], dtype=np.float32)
    given = evidence("multi_label", ("a", "b", "c"), logits, targets)
    (found,) = confused_pairs(given, labelwise(given))  # text 4 misses a, but has b
    assert (found["target"], found["decided"], found["texts"]) == ("a", "b", 2)
    assert [one["row"] for one in found["examples"]] == [2, 1]


def test_the_surest_mistakes_come_first_with_both_labels():
    given = binary(800, separation=1.0)
    found = surest_mistakes(replace(given, pairs=["second"] * 800))
    assert len(found) == MOST_MISTAKES
    assert [one["confidence"] for one in found] == sorted((one["confidence"] for one in found), reverse=True)
    for one in found:
        assert {*one["given"], *one["decided"]} == {"no", "yes"}
        assert one["given"] == [given.labels[given.targets[one["row"] - 1]]]
        assert one["pair"] == "second"
    wrong = ~given.right
    assert found[0]["confidence"] == pytest.approx(given.probabilities[wrong].max())


def test_a_multi_label_mistake_is_as_sure_as_its_surest_wrong_label():
    targets = np.array([[1, 0, 1], [0, 0, 0]], dtype=bool)
    logits = np.array([[-3, 1, 9], [-9, -9, -9]], dtype=np.float32)
    given = evidence("multi_label", ("a", "b", "c"), logits, targets)
    (found,) = surest_mistakes(given)
    assert (found["given"], found["decided"]) == (["a", "c"], ["b", "c"])
    assert found["confidence"] == pytest.approx(1 / (1 + np.exp(-3.0)))


def test_long_texts_are_shortened():
    given = replace(binary(60, separation=0.0), texts=["x" * 10_000] * 60)
    assert {len(one["text"]) for one in surest_mistakes(given)} == {MOST_CHARACTERS}


@pytest.mark.parametrize("separation", [0.0, 0.3, 0.7, 1.0, 1.4, 2.0])
@pytest.mark.parametrize("make", [binary, many, multi])
def test_hard_texts_are_hardly_ever_decided_clearly_wrong(make, separation):
    given = make(4000, separation=separation)
    doubtful, wrong = doubtful_labels(given, labelwise(given))
    assert wrong <= (given.targets != given.decisions).sum()
    assert doubtful <= 0.15 * wrong


def test_a_rare_class_that_is_not_told_apart_is_not_mislabelled():
    given = binary(4000, separation=0.2, shift=-2.0, positives=0.05)
    assert given.right.mean() > 0.9
    assert doubtful_labels(given, labelwise(given)) == (0, 0)


@pytest.mark.parametrize("make", [binary, many, multi])
def test_half_of_the_wrong_labels_are_found_doubtful(make):
    given = make(4000, separation=3.0)
    flip = np.random.default_rng(5).random(given.targets.shape) < 0.05
    classes = len(given.labels)
    targets = given.targets ^ flip if given.multi_label else np.where(flip, (given.targets + 1) % classes, given.targets)
    noisy = replace(given, targets=targets)
    doubtful, _ = doubtful_labels(noisy, labelwise(noisy))
    assert doubtful == pytest.approx(flip.sum() / 2, rel=0.25)


def test_equal_logits_make_nothing_doubtful():
    given = evidence("single_label", ("a", "b"), np.zeros((50, 2), np.float32), np.arange(50) % 2)
    assert doubtful_labels(given, labelwise(given)) == (0, 0)


def test_a_model_that_is_mostly_wrong_accuses_no_label():
    given = many(600, separation=4.0)
    wrong = replace(given, targets=np.where(np.arange(600) < 100, given.targets, (given.decisions + 1) % len(given.labels)))
    assert wrong.right.mean() < 0.5 < given.right.mean()
    assert doubtful_labels(wrong, labelwise(wrong))[0] == 0
