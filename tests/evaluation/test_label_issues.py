"""Confident learning on made-up probabilities: what is doubted, in which order, and what is said instead."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from veneer.errors import ConfigError
from veneer.evaluation.label_issues import find_label_issues

RNG = np.random.default_rng(0)


def single(classes: int, count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Targets and probabilities that agree, the right one between 0.7 and 0.9, but for some that are surer."""
    targets = np.arange(count) % classes
    right = RNG.uniform(0.7, 0.9, count)
    right[[4, 17, 31]] = [0.95, 0.96, 0.94]
    p = np.repeat((1 - right)[:, None] / (classes - 1), classes, axis=1)
    p[np.arange(count), targets] = right
    return targets, p


@pytest.mark.parametrize("classes", [2, 3])
def test_flipped_labels_are_found_and_nothing_else(classes: int) -> None:
    targets, p = single(classes)
    given = targets.copy()
    given[[4, 17, 31]] = (targets[[4, 17, 31]] + 1) % classes
    found = find_label_issues(given, p, multi_label=False)
    assert sorted(found.ranking.tolist()) == [4, 17, 31]
    assert found.scores[found.ranking].tolist() == sorted(found.scores[found.ranking])
    assert (found.suggested[found.ranking] == targets[found.ranking]).all()
    assert found.scores[4] == p[4, given[4]]
    assert found.confidence[4] == p[4].max()


def test_a_class_that_no_row_has_and_one_that_one_row_has() -> None:
    targets, p = single(3)
    wide = np.concatenate([p * 0.98, np.full((len(p), 2), 0.01)], axis=1)
    given = targets.copy()
    given[4], given[17] = (targets[4] + 1) % 3, 3  # class 3 is of one row, class 4 of none
    found = find_label_issues(given, wide, multi_label=False)
    assert found.ranking.tolist() == [4]  # a class's only row is left to it
    assert np.isfinite(found.scores).all()


def test_probabilities_that_say_nothing_doubt_nothing() -> None:
    found = find_label_issues(np.arange(20) % 2, np.full((20, 2), 0.5), multi_label=False)
    assert found.ranking.tolist() == []


def test_marks_of_several_labels_are_doubted_one_by_one() -> None:
    targets = RNG.random((120, 4)) < 0.4
    targets[:, 2], targets[:, 3] = False, True  # nobody has one, everybody the other: neither can be judged
    p = np.where(targets, RNG.uniform(0.7, 0.9, targets.shape), RNG.uniform(0.1, 0.3, targets.shape))
    p[7:9] = np.where(targets[7:9], 0.95, 0.05)
    p[5, 3] = 0.01
    given = targets.copy()
    given[7, 0] = ~given[7, 0]
    given[8, :2] = ~given[8, :2]
    found = find_label_issues(given.astype(np.float32), p, multi_label=True)
    assert sorted(found.ranking.tolist()) == [7, 8]
    assert (found.suggested == targets).all()
    quality = np.where(given, p, 1 - p)
    assert found.scores[8] == quality[8, :2].min()
    assert found.confidence[8] == 1 - found.scores[8]
    assert found.scores[20] == quality[20].min()


@pytest.mark.parametrize("all_have_one", [True, False])
def test_no_row_is_left_without_a_label_where_every_row_has_one(all_have_one: bool) -> None:
    targets = np.eye(3, dtype=bool)[np.arange(90) % 3]
    p = np.where(targets, 0.85, 0.15)
    p[0], p[1] = [0.02, 0.01, 0.01], [0.01, 0.02, 0.3]  # both rows' only label is doubted
    if not all_have_one:
        targets[2] = False
    found = find_label_issues(targets, p, multi_label=True)
    assert {0, 1} - set(found.ranking.tolist()) == ({0} if all_have_one else set())
    assert found.suggested[1].tolist() == [False, False, all_have_one]


def test_without_cleanlab_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cleanlab" else find(name))
    with pytest.raises(ConfigError, match=r"pip install 'veneer\[audit\]'"):
        find_label_issues(np.array([0, 1]), np.eye(2), multi_label=False)
