"""The split is seeded, stratified, complete, and keeps equal texts together."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from veneer.data import Example, count_labels, split_examples
from veneer.errors import DataError


def single(counts: dict[str, int]) -> list[Example]:
    labels = [label for label, count in counts.items() for _ in range(count)]
    random.Random(1).shuffle(labels)
    return [Example(f"text {i}", None, (label,), i + 1) for i, label in enumerate(labels)]


def multi(rows: int) -> list[Example]:
    """Rows whose labels l0, l1, … are each half as frequent as the one before; some rows have none."""
    chance = random.Random(2)
    labels = [tuple(f"l{k}" for k in range(8) if chance.random() < 0.5 ** (k + 1)) for _ in range(rows)]
    return [Example(f"text {i}", None, names, i + 1) for i, names in enumerate(labels)]


def test_every_class_is_split_in_proportion() -> None:
    examples = single({"a": 700, "b": 203, "c": 95, "d": 2})
    train, dev, test = split_examples(examples, (0.1, 0.2), seed=3, multi_label=False)
    assert (len(train), len(dev), len(test)) == (700, 100, 200)
    for label, rows in count_labels(examples).items():
        assert abs(count_labels(dev)[label] - 0.1 * rows) < 1
        assert abs(count_labels(test)[label] - 0.2 * rows) < 1
    assert sorted([*train, *dev, *test], key=lambda example: example.row) == examples
    assert all([example.row for example in part] == sorted(example.row for example in part) for part in (train, dev, test))


def test_a_class_of_one_row_stays_in_train() -> None:
    for seed in range(5):
        train, dev, _ = split_examples(single({"a": 20, "b": 20, "rare": 1}), (0.9, 0.0), seed, multi_label=False)
        assert count_labels(train)["rare"] == 1
        assert set(count_labels(train)) == {"a", "b", "rare"}
        assert set(count_labels(dev)) == {"a", "b"}
    lonely = {f"rare {i}": 1 for i in range(10)}
    train, dev, _ = split_examples(single({"a": 100} | lonely), (0.1, 0.0), 1, multi_label=False)
    assert (len(train), count_labels(dev)) == (99, {"a": 11})  # the share that they do not give comes from elsewhere


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_seed_decides_the_split(multi_label: bool) -> None:
    examples = multi(400) if multi_label else single({"a": 300, "b": 100})
    first = split_examples(examples, (0.1, 0.1), 7, multi_label)
    assert split_examples(examples, (0.1, 0.1), 7, multi_label) == first
    assert split_examples(examples, (0.1, 0.1), 8, multi_label) != first


def test_the_split_is_the_same_on_every_machine() -> None:
    _, dev, test = split_examples(single({"a": 30, "b": 10}), (0.1, 0.1), 7, multi_label=False)
    assert ([example.row for example in dev], [example.row for example in test]) == ([13, 16, 22, 31], [9, 12, 20, 40])
    _, dev, test = split_examples(multi(40), (0.1, 0.1), 7, multi_label=True)
    assert ([example.row for example in dev], [example.row for example in test]) == ([4, 5, 17, 34], [10, 14, 21, 37])


def test_multi_label_keeps_the_share_of_every_label() -> None:
    examples = multi(4000)
    train, dev, test = split_examples(examples, (0.1, 0.2), seed=3, multi_label=True)
    assert sorted([*train, *dev, *test], key=lambda example: example.row) == examples
    total = count_labels(examples)
    assert min(total.values()) < 30  # a rare label is among them
    for part, share in ((dev, 0.1), (test, 0.2), (train, 0.7)):
        assert abs(len(part) - share * len(examples)) < 0.01 * len(examples)
        for label, rows in total.items():
            assert abs(count_labels(part)[label] - share * rows) <= max(2, 0.02 * rows)
    bare = [sum(not example.labels for example in part) for part in (train, dev, test)]
    assert all(count > 0 for count in bare)


@pytest.mark.parametrize("multi_label", [False, True])
def test_equal_texts_stay_on_one_side(multi_label: bool) -> None:
    examples = [Example(f"text {i % 120}" + " " * (i % 3), "pair", (f"l{i % 4}",), i + 1) for i in range(480)]
    parts = split_examples(examples, (0.2, 0.2), 1, multi_label)
    texts = [{example.text.strip() for example in part} for part in parts]
    assert all(texts)
    assert texts[0].isdisjoint(texts[1] | texts[2])
    assert texts[1].isdisjoint(texts[2])
    others = [Example("same", f"pair {i}", (f"l{i % 2}",), i + 1) for i in range(40)]
    assert [len(part) for part in split_examples(others, (0.2, 0.0), 1, multi_label)] == [32, 8, 0]


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_side_of_share_nought_stays_empty(multi_label: bool) -> None:
    train, dev, test = split_examples(multi(300) if multi_label else single({"a": 200, "b": 100}), (0.0, 0.25), 1, multi_label)
    assert dev == []
    assert Counter(map(len, (train, test))) == {225: 1, 75: 1}


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(DataError, match="2 rows are too few to split off dev"):
        split_examples(single({"a": 1, "b": 1}), (0.1, 0.0), 1, multi_label=False)
    with pytest.raises(DataError, match="leave nothing for training"):
        split_examples(single({"a": 10, "b": 10}), (0.5, 0.5), 1, multi_label=False)
