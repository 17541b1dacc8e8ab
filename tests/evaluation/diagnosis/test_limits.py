"""The sweep against brute force, F1 against scikit-learn, intervals against the bootstrap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from diagnosis_cases import binary, evidence, leads, many, multi
from sklearn.metrics import f1_score, precision_score, recall_score

from veneer.evaluation.diagnosis.evidence import labelwise
from veneer.evaluation.diagnosis.limits import curves, half_width, least_half_width, limits, macro_f1
from veneer.evaluation.metrics import score


def test_the_best_f1_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(3)
    targets = rng.random((60, 4)) < 0.3
    logits = rng.integers(-4, 5, targets.shape).astype(np.float32)  # many ties
    given = evidence("multi_label", "abcd", logits, targets)
    for k, limit in enumerate(limits(given, labelwise(given))):
        p = given.probabilities[:, k]
        every = [f1_score(targets[:, k], p >= t, zero_division=0) for t in [*np.unique(p), 2.0]]
        assert limit.best_f1 == pytest.approx(max(every))
        assert f1_score(targets[:, k], p >= limit.threshold) == pytest.approx(limit.best_f1)
        assert limit.f1 == pytest.approx(f1_score(targets[:, k], logits[:, k] > 0))
        assert limit.support == targets[:, k].sum()


@pytest.mark.parametrize("given", [binary(300), many(300)])
def test_of_single_labels_each_is_ranked_by_its_probability(given):
    for k, limit in enumerate(limits(given, labelwise(given))):
        p, truth = given.probabilities[:, k].astype(np.float64), given.targets == k
        assert limit.auc == pytest.approx((p[truth][:, None] > p[~truth]).mean(), abs=1e-4)
        assert f1_score(truth, p >= limit.threshold) == pytest.approx(limit.best_f1)


def test_ranks_survive_probabilities_that_are_all_one():
    given = leads(np.array([0, 0, 1, 1]), np.array([100.0, 150.0, 200.0, 250.0]))
    assert set(given.probabilities[:, 1]) == {1.0}
    assert limits(given, labelwise(given))[1].best_f1 == 1.0


def test_what_is_not_defined_is_null():
    given = leads(np.ones(5, dtype=np.int64), np.arange(5.0))
    no, yes = limits(given, labelwise(given))
    assert (no.auc, no.threshold, no.best_f1, no.f1, no.support) == (None, None, 0.0, 0.0, 0)
    assert (yes.auc, yes.best_f1, yes.support) == (None, 1.0, 5)


def test_macro_f1_is_that_of_the_scores():
    given = multi(200, separation=0.7)
    truth, decided = given.targets.copy(), given.decisions.copy()
    truth[:, 2] = decided[:, 2] = False
    for all_labels, expected in ((True, f1_score(truth, decided, average="macro", zero_division=0)), (False, None)):
        value, influence = macro_f1(truth, decided, all_labels)
        used = [0, 1, 3, 4]
        assert value == pytest.approx(expected or f1_score(truth[:, used], decided[:, used], average="macro"))
        assert influence.mean() == pytest.approx(0.0, abs=1e-12)


def test_the_interval_is_about_that_of_the_bootstrap():
    given = binary(600, separation=0.8, positives=0.3)
    labels = labelwise(given)
    half = half_width(macro_f1(labels.truth, labels.decided, False)[1])
    interval = score(given.targets, given.decisions, given.labels, multi_label=False).metrics["macro_f1"]
    assert half == pytest.approx((interval.high - interval.low) / 2, rel=0.1)


def test_curves_are_what_scikit_learn_says_at_every_threshold():
    given = multi(150, classes=2, separation=0.8)
    for k, curve in enumerate(curves(given, labelwise(given))):
        assert len(curve.thresholds) == 101
        for i, threshold in enumerate(curve.thresholds):
            truth, decided = given.targets[:, k], given.probabilities[:, k] >= np.float32(threshold)
            expected = precision_score(truth, decided) if decided.any() else None
            assert curve.precision[i] == (None if expected is None else pytest.approx(expected, abs=1e-4))
            assert curve.recall[i] == pytest.approx(recall_score(truth, decided), abs=1e-4)


def test_a_text_at_the_threshold_is_given_the_label():
    given = leads(np.array([0, 1]), np.zeros(2))
    assert curves(given, labelwise(given))[1].recall[50:52] == (1.0, 0.0)


def test_a_label_that_no_text_has_has_no_recall():
    given = multi(50)
    targets = given.targets.copy()
    targets[:, 1] = False
    curve = curves(replace(given, targets=targets), labelwise(replace(given, targets=targets)))[1]
    assert set(curve.recall) == {None}


def test_without_an_error_a_mean_is_as_sure_as_its_labels_are():
    wilson = 3.841 / (20 + 3.841) / 2
    assert least_half_width(np.array([20])) == pytest.approx(wilson, rel=1e-3)
    assert least_half_width(np.array([20] * 16)) == pytest.approx(wilson / 4, rel=1e-3)  # errors of 16 labels even out
    assert least_half_width(np.array([20, 0, 0])) == pytest.approx(wilson, rel=1e-3)  # of which the mean says nothing
    assert least_half_width(np.array([99, 1])) == pytest.approx(0.2, abs=0.005)
    assert least_half_width(np.zeros(3, dtype=np.int64)) == 0.0
