"""Label names and their ids."""

from __future__ import annotations

import pytest

from veneer.errors import DataError
from veneer.labels import LabelSet, shorten


def test_names_and_ids_go_both_ways() -> None:
    labels = LabelSet(("b", "a", "c"))
    assert (len(labels), list(labels)) == (3, ["b", "a", "c"])
    assert [labels.id(name) for name in labels] == [0, 1, 2]
    assert [labels[index] for index in range(3)] == ["b", "a", "c"]
    assert "a" in labels
    assert "d" not in labels


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        (["good", "bad", "good"], ("bad", "good")),
        (["10", "9", "-1", "9"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["01", "1"], ("01", "1")),
        (["1", "01"], ("01", "1")),
        (["-", "--2", "²"], ("-", "--2", "²")),
        ([], ()),
    ],
)
def test_labels_seen_are_ordered_by_value_or_name(seen: list[str], names: tuple[str, ...]) -> None:
    assert LabelSet.from_labels(seen).names == names


def test_names_must_differ() -> None:
    with pytest.raises(DataError, match="named more than once: a, b"):
        LabelSet(("b", "a", "b", "a", "c"))
    with pytest.raises(DataError, match="a label name is empty"):
        LabelSet(("a", ""))


def test_an_unknown_label_is_answered_with_the_nearest() -> None:
    labels = LabelSet(("positive", "negative"))
    with pytest.raises(DataError, match=r"unknown label 'positiv'\. Did you mean 'positive'"):
        labels.id("positiv")
    with pytest.raises(DataError, match=r"unknown label 'x'\. Known labels: positive, negative"):
        labels.id("x")


def test_equal_names_are_equal_sets() -> None:
    assert LabelSet(("a", "b")) == LabelSet(("a", "b")) != LabelSet(("b", "a"))


def test_long_lists_are_shortened() -> None:
    assert shorten("abc") == "a, b, c"
    assert shorten((str(n) for n in range(15)), most=3) == "0, 1, 2, … (12 more)"
