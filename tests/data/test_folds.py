"""Folds: every row held out once, twins together, every class shared out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from veneer.data import Example
from veneer.data.folds import assign_folds
from veneer.errors import DataError


def rows(count: int, *labels: str) -> list[Example]:
    return [Example(f"text {i} {labels}", None, labels, i) for i in range(count)]


def test_folds_are_of_one_size_and_share_out_every_class() -> None:
    examples = rows(40, "common") + rows(11, "rare") + rows(7, "common", "odd")
    folds = assign_folds(examples, 4, seed=3)
    assert max(Counter(folds.tolist()).values()) - min(Counter(folds.tolist()).values()) <= 1
    for some in (slice(0, 40), slice(40, 51), slice(51, 58)):
        counts = np.bincount(folds[some], minlength=4)
        assert counts.max() - counts.min() <= 1, counts


def test_the_seed_alone_decides() -> None:
    examples = rows(30, "a") + rows(30, "b")
    first = assign_folds(examples, 5, seed=1)
    assert (first == assign_folds(examples, 5, seed=1)).all()
    assert (first != assign_folds(examples, 5, seed=2)).any()


def test_equal_texts_are_in_one_fold_whatever_their_labels() -> None:
    twins = [Example(f" {'same'} ", None, ("a",), 100), Example("same", None, ("b",), 101), Example("same", None, ("a",), 102)]
    pairs = [Example("same", "one", ("a",), 103), Example("same", "two", ("a",), 104)]
    found = set()
    for seed in range(20):
        folds = assign_folds(rows(20, "a") + twins + pairs, 3, seed)
        assert len(set(folds[20:23].tolist())) == 1
        found.add(len(set(folds[22:25].tolist())))
    assert max(found) > 1  # another pair is another text


def test_a_text_repeated_often_does_not_swell_a_fold() -> None:
    examples = rows(30, "a") + [Example("same", None, ("a",), 50 + i) for i in range(10)]
    assert np.bincount(assign_folds(examples, 4, seed=0)).tolist() == [10, 10, 10, 10]


def test_too_few_texts() -> None:
    with pytest.raises(DataError, match="1 text cannot be dealt into 2 folds"):
        assign_folds([Example("same", None, ("a",), i) for i in range(9)], 2, seed=0)


def test_rows_without_a_label_are_dealt_out_too() -> None:
    assert np.bincount(assign_folds(rows(6, "a") + rows(6), 3, seed=0)).tolist() == [4, 4, 4]
