"""Groups of texts, and intervals against published values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from diagnosis_cases import binary, multi
from scipy.stats import binomtest

from veneer.evaluation.diagnosis.evidence import labelwise
from veneer.evaluation.diagnosis.limits import Z95
from veneer.evaluation.diagnosis.slices import Slice, shortfall, slices, unseen_shares, wilson


@pytest.mark.parametrize(("right", "texts"), [(0, 1), (1, 1), (7, 10), (0, 50), (480, 500)])
def test_wilsons_interval(right, texts):
    expected = binomtest(right, texts).proportion_ci(method="wilson")
    assert wilson(right, texts, Z95) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_newcombes_interval_is_the_published_one():
    difference, least = shortfall(Slice("length", "", 80, 48), 150, 48 + 56, Z95)
    assert difference == pytest.approx(0.2)
    assert least == pytest.approx(0.0524, abs=5e-5)  # 56/70 − 48/80, Newcombe 1998, table II, method 10


def groups(given):
    found = {}
    for one in slices(given, labelwise(given)):
        found.setdefault(one.by, []).append(one)
    return found


def test_lengths_fall_into_quarters_of_the_texts():
    given = replace(binary(400), lengths=np.arange(400) % 40 + 1)
    found = groups(given)["length"]
    assert [one.value for one in found] == ["1–11 tokens", "12–21 tokens", "22–31 tokens", "32–40 tokens"]
    assert sum(one.texts for one in found) == 400
    assert sum(one.right for one in found) == given.right.sum()


def test_groups_of_one_kind_are_no_slices():
    found = groups(replace(binary(50), lengths=np.full(50, 7)))
    assert set(found) == {"label"}


def test_a_single_long_text_is_a_group_of_its_own():
    found = groups(replace(binary(5), lengths=np.array([7, 7, 7, 7, 9])))["length"]
    assert [(one.value, one.texts) for one in found] == [("7 tokens", 4), ("8–9 tokens", 1)]


def test_truncation_columns_and_labels():
    given = binary(100)
    cut = np.arange(100) < 10
    found = groups(replace(given, cut=cut, columns={"source": ["web"] * 70 + ["mail"] * 30}))
    assert [(one.value, one.texts) for one in found["truncated"]] == [("cut", 10), ("whole", 90)]
    assert found["truncated"][0].right == given.right[:10].sum()
    assert [(one.value, one.texts) for one in found["column"]] == [("source: web", 70), ("source: mail", 30)]
    assert {(one.value, one.texts) for one in found["label"]} == {("no", 50), ("yes", 50)}


def test_a_multi_label_text_is_right_when_all_its_labels_are():
    given = multi(300)
    wrong = (given.targets != given.decisions).any(axis=1)
    for one in groups(given)["label"]:
        assert one.right == (given.targets[:, int(one.value[1])] & ~wrong).sum()


def test_words_that_training_never_showed():
    shares = unseen_shares(["The CAT ran", "cat!", "...", "猫坐着"], None, ["the cat", "猫"])
    assert shares.tolist() == pytest.approx([1 / 3, 0.0, 0.0, 2 / 3])
    assert unseen_shares(["cat"], ["dog"], ["cat"]).tolist() == [0.5]


def test_texts_are_grouped_by_unseen_words():
    given = replace(binary(4), texts=["cat", "the cat sat on zebras", "zebras", "cat dog"])
    assert [(one.value[:2], one.texts) for one in groups(given)["vocabulary"]] == [("ev", 1), ("up", 1), ("mo", 2)]
