"""Overlap against what is known in closed form, and histograms that count every text."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from diagnosis_cases import binary, leads, many, multi

from veneer.evaluation.diagnosis.evidence import labelwise
from veneer.evaluation.diagnosis.margins import MOST_MARGINS, margins, overlap


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0, 4.0])
def test_normal_distributions_overlap_as_in_closed_form(distance):
    rng = np.random.default_rng(0)
    found = overlap(rng.normal(distance, 1, 20_000), rng.normal(0, 1, 30_000))
    assert found == pytest.approx(2 * NormalDist().cdf(-distance / 2), abs=0.012)


def test_no_scale_and_no_bins_matter():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 300), rng.normal(0, 1, 500)
    assert overlap(np.exp(5 * inside), np.exp(5 * outside)) == overlap(inside, outside)


def test_it_is_the_least_sum_of_error_shares_of_a_threshold():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(3, 9, 40).astype(float), rng.integers(0, 7, 60).astype(float)  # with ties
    errors = [(inside < t).mean() + (outside >= t).mean() for t in np.arange(-1, 11)]
    assert overlap(inside, outside) == pytest.approx(min(errors))


def test_the_ends():
    assert overlap(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 0.0
    assert overlap(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1.0  # a threshold is of no use the wrong way round
    assert overlap(np.zeros(5), np.zeros(7)) == 1.0
    assert overlap(np.zeros(0), np.zeros(7)) is None


def test_two_classes_have_one_margin_with_every_text_in_it():
    given = binary(500, positives=0.3)
    (margin,) = margins(given, labelwise(given))
    assert margin.name == "yes against no"
    assert (sum(margin.inside), sum(margin.outside), margin.fewest) == (150, 350, 150)
    assert len(margin.edges) == len(margin.inside) + 1
    assert margin.overlap == pytest.approx(2 * NormalDist().cdf(-2), abs=0.03)
    middle = np.array(margin.edges[:-1])
    assert middle @ margin.inside / 150 > middle @ margin.outside / 350 + 3


def test_of_more_classes_the_most_confused_pairs_come_first():
    given = many(400, classes=4, separation=9.0)
    logits = given.logits.copy()
    for text in [0, 4, 8]:  # of class 0
        logits[text] = [0, 0, 50, 0]
    logits[1] = [0, 0, 0, 1]  # of class 1
    given = type(given)(**{**vars(given), "logits": logits, "decisions": logits.argmax(axis=1)})
    found = margins(given, labelwise(given))
    assert [one.name for one in found] == ["c0 against c2", "c1 against c3"]
    assert sum(found[0].inside) + sum(found[0].outside) == 200
    assert found[0].overlap == pytest.approx(0.03)


def test_multi_label_margins_are_of_the_most_frequent_labels():
    given = multi(300, classes=MOST_MARGINS + 5)
    found = margins(given, labelwise(given))
    assert len(found) == MOST_MARGINS
    supports = [sum(one.inside) for one in found]
    assert supports == sorted(supports, reverse=True)
    assert supports[0] == given.targets.sum(axis=0).max()


def test_equal_logits_have_a_histogram():
    given = leads(np.array([0, 1, 1]), np.zeros(3))
    (margin,) = margins(given, labelwise(given))
    assert (sum(margin.inside), sum(margin.outside), margin.overlap) == (2, 1, 1.0)
