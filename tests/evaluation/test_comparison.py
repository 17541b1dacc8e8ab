"""Paired comparisons: the bootstrap against a loop over texts, McNemar's test against scipy, and the verdict's boundaries."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, binomtest
from sklearn.metrics import accuracy_score, f1_score

from veneer.errors import DataError
from veneer.evaluation import comparison, metrics
from veneer.evaluation.comparison import (
    Compared,
    Difference,
    compare_decisions,
    compared_metric,
    judge,
    mcnemar,
    right_texts,
    score_interval,
)

Array = NDArray[Any]


def make(n: int, classes: int, *, multi_label: bool, seed: int = 0) -> tuple[Compared, Array, Array]:
    """Targets, decisions that are mostly right, and worse ones that are right on other texts."""
    rng = np.random.default_rng(seed)
    shape = (n, classes) if multi_label else (n,)
    targets = rng.random(shape) < 0.3 if multi_label else rng.integers(0, classes, shape)

    def decide(share: float) -> Array:
        other = ~targets if multi_label else rng.integers(0, classes, shape)
        return np.where(rng.random(shape) < share, targets, other)

    return Compared(targets, classes, multi_label, "macro_f1"), decide(0.8), decide(0.7)


def of(right: int, n: int) -> Array:
    """Decisions on `n` texts whose target is 0: the first `right` of them right."""
    return (np.arange(n) >= right).astype(np.int64)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("metric", ["macro_f1", "micro_f1", "accuracy"])
def test_the_interval_is_a_loop_over_resampled_texts(metric: str, multi_label: bool) -> None:
    """As scikit-learn scores each resample; other resamples than ours, so equal within their own noise."""
    compared, ours, theirs = make(150, 4, multi_label=multi_label)
    compared = Compared(compared.targets, 4, multi_label, metric, seed=3)
    found = compare_decisions(replace(compared, resamples=4000), ours, theirs)
    average = metric.removesuffix("_f1")

    def score(rows: Array, decisions: Array) -> float:
        if metric == "accuracy":
            return float(accuracy_score(compared.targets[rows], decisions[rows]))
        return float(f1_score(compared.targets[rows], decisions[rows], average=average, zero_division=0))

    rng = np.random.default_rng(7)
    differences = [score(rows, ours) - score(rows, theirs) for rows in rng.integers(0, 150, (250, 150))]
    everything = np.arange(150)
    assert found.value == pytest.approx(score(everything, ours) - score(everything, theirs))
    spread = float(np.std(differences))
    assert (found.low, found.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.4 * spread)


def test_equal_decisions_differ_by_nothing() -> None:
    """Unpaired resamples would give an interval around zero; paired ones give zero itself."""
    compared, ours, _ = make(80, 3, multi_label=False)
    assert compare_decisions(compared, ours, ours) == Difference(0.0, 0.0, 0.0, 1.0, (0.0, 0.0))
    same = compare_decisions(Compared(compared.targets, 3, False, "accuracy"), ours, ours)
    assert (same.p, same.within_noise) == (1.0, True)


def test_the_difference_has_a_sign_and_a_seed() -> None:
    compared, ours, theirs = make(200, 5, multi_label=False)
    there, back = compare_decisions(compared, ours, theirs), compare_decisions(compared, theirs, ours)
    assert there.value > 0
    assert back.value == pytest.approx(-there.value)
    assert compare_decisions(compared, ours, theirs) == there
    other = Compared(compared.targets, 5, False, "macro_f1", seed=1)
    assert compare_decisions(other, ours, theirs).low != there.low


def test_the_resampled_p_value_falls_with_the_difference() -> None:
    compared, ours, theirs = make(400, 3, multi_label=False)
    assert compare_decisions(compared, ours, theirs).p < 0.05
    assert compare_decisions(compared, ours, np.where(np.arange(400) < 398, ours, theirs)).p > 0.2


def test_thousands_of_classes_are_only_those_that_occur() -> None:
    compared, ours, theirs = make(60, 4, multi_label=False)
    many = Compared(compared.targets * 2500, 10_000, False, "macro_f1")
    found, plain = compare_decisions(many, ours * 2500, theirs * 2500), compare_decisions(compared, ours, theirs)
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_large_splits_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, ours, theirs = make(60, 3, multi_label=True)
    at_once = compare_decisions(replace(compared, resamples=50), ours, theirs)
    monkeypatch.setattr(metrics, "MOST_DRAWS_AT_ONCE", 300)
    assert compare_decisions(replace(compared, resamples=50), ours, theirs) == at_once


def test_a_score_has_its_interval() -> None:
    compared, ours, _ = make(120, 4, multi_label=True)
    score = score_interval(compared, ours)
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    assert score.value == pytest.approx(f1_score(compared.targets, ours, average="macro"))


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (1, 0), (5, 5), (3, 12), (12, 3), (40, 61), (3000, 3200)])
def test_mcnemar_is_the_binomial_test_less_half_the_observed_split(ours: int, theirs: int) -> None:
    n, k = ours + theirs, min(ours, theirs)
    exact = binomtest(k, n, 0.5).pvalue if n else 1.0
    expected = exact - binom.pmf(k, n, 0.5) if ours != theirs else 1.0
    assert mcnemar(ours, theirs) == pytest.approx(expected, rel=1e-9)


def test_accuracy_is_tested_by_mcnemar() -> None:
    targets = np.zeros(30, np.int64)
    found = compare_decisions(Compared(targets, 2, False, "accuracy"), of(20, 30), of(14, 30))
    assert found.p == pytest.approx(mcnemar(6, 0))


def test_a_text_is_right_with_exactly_its_labels() -> None:
    assert right_texts(np.array([0, 1, 2]), np.array([0, 2, 2])).tolist() == [True, False, True]
    targets, decided = np.array([[1, 0], [1, 1], [0, 0]]), np.array([[True, False], [True, False], [False, False]])
    assert right_texts(targets, decided).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("ours", "theirs", "kind", "opening"),
    [
        (8450, 8000, "effective", "Effective"),  # 5.6 %, and 5.1 % at least
        (8410, 8000, "limited", "A gain, but not surely an effective one"),  # 5.1 %, and 4.6 % at least
        (8400, 8000, "limited", "A limited gain"),
        (8079, 8000, "limited", "A limited gain"),  # 0.99 %, and 1.2 % at most
        (8060, 8000, "not_worth_it", "Not worth it"),  # 0.75 %, and 0.95 % at most
        (7000, 8000, "not_worth_it", "Not worth it"),
        (4000, 0, "effective", "Effective"),
        (8000, 8000, "within_noise", "Within the noise"),
    ],
)
def test_the_boundaries_of_the_verdict(ours: int, theirs: int, kind: str, opening: str) -> None:
    """The better side is right wherever the other is, so that intervals are narrow."""
    n = 10_000
    compared = Compared(np.zeros(n, np.int64), 2, False, "accuracy")
    verdict = judge(compared, of(ours, n), of(theirs, n), split="test", against="a baseline")
    assert (verdict.kind, verdict.score, verdict.baseline) == (kind, ours / n, theirs / n)
    assert verdict.text.startswith(f"{opening}: this run's accuracy on 10,000 test texts is {ours / n:.3f}")
    assert "a baseline" in verdict.text
    assert ("which is better" in verdict.text) == (ours < theirs)


def test_a_gain_is_effective_only_where_all_of_its_interval_is() -> None:
    """A relative gain of 6 % that may be 1 % is none that is surely above 5 %; its interval is that of the ratio's resamples."""
    n = 1000
    compared = Compared(np.zeros(n, np.int64), 2, False, "accuracy")
    ours, theirs = of(848, n), np.roll(of(800, n), 80)
    verdict = judge(compared, ours, theirs, split="test", against="a baseline")
    assert verdict.relative_gain == pytest.approx(0.06)
    assert verdict.gain_interval[0] > 0
    assert verdict.relative_interval is not None
    low, high = verdict.relative_interval
    rng, right, other = np.random.default_rng(0), ours == 0, theirs == 0
    drawn = [(right[rows].mean() / other[rows].mean() - 1) for rows in rng.integers(0, n, (2000, n))]
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.004)
    assert low < 0.05 < high
    assert verdict.kind == "limited"
    said = f"a relative gain of 6.0 %, 95 % interval {100 * low:.1f} to {100 * high:.1f} % (95 % interval of the difference: +0."
    assert said in verdict.text


def test_a_large_gain_on_few_texts_is_within_the_noise() -> None:
    """Half as good again, and still nothing is claimed: three texts of twelve."""
    compared = Compared(np.zeros(12, np.int64), 2, False, "accuracy")
    ours, theirs = of(9, 12), np.roll(of(6, 12), 6)
    verdict = judge(compared, ours, theirs, split="test", against="a baseline")
    assert verdict.relative_gain == 0.5
    assert verdict.gain_interval[0] < 0 < verdict.gain_interval[1]
    assert verdict.kind == "within_noise"
    assert "times as many labelled test texts" in verdict.text


def test_how_many_texts_would_settle_it() -> None:
    assert "about 4 times as many" in comparison._what_would_settle_it(Difference(0.01, -0.01, 0.03, 0.2))
    assert "equally good" in comparison._what_would_settle_it(Difference(0.0, -0.01, 0.01, 1.0))
    assert "equally good" in comparison._what_would_settle_it(Difference(0.0005, -0.01, 0.011, 0.9))


def test_the_verdict_as_json() -> None:
    compared, ours, theirs = make(300, 3, multi_label=True)
    verdict = judge(compared, ours, theirs, split="dev", against="TF-IDF + logistic regression")
    tree = verdict.to_json()
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
    assert tree.keys() == {
        *(
            "kind",
            "metric",
            "split",
            "against",
            "score",
            "baseline",
            "relative_gain",
            "gain_interval",
            "relative_interval",
            "text",
        ),
    }
    assert tree["score"] - tree["baseline"] == pytest.approx(tree["relative_gain"] * tree["baseline"])
    assert "a test file would say more" in tree["text"]
    nothing = judge(Compared(np.zeros(50, np.int64), 2, False, "accuracy"), of(40, 50), of(0, 50), split="test", against="none")
    assert (nothing.relative_gain, nothing.relative_interval, nothing.kind) == (None, None, "effective")
    assert "gets nothing right" in nothing.text
    many = judge(Compared(np.zeros(50, np.int64), 2, False, "accuracy"), of(40, 50), of(4, 50), split="test", against="none")
    assert "10 times as much" in many.text


def test_a_loss_is_compared_by_macro_f1() -> None:
    assert [compared_metric(name) for name in ("loss", "accuracy")] == ["macro_f1", "accuracy"]


def test_nothing_to_compare_on() -> None:
    empty = np.zeros(0, np.int64)
    with pytest.raises(DataError, match="no text"):
        compare_decisions(Compared(empty, 2, False, "accuracy"), empty, empty)
    with pytest.raises(ValueError, match="shape"):
        compare_decisions(Compared(of(2, 3), 2, False, "accuracy"), of(2, 3), of(2, 4))
    assert math.isfinite(compare_decisions(Compared(of(1, 1), 2, False, "macro_f1"), of(1, 1), of(0, 1)).low)


def test_a_class_of_one_text_stays_in_the_mean_of_both_sides() -> None:
    """Where a resample misses it, no side is the better for never having decided on it."""
    targets = (np.arange(100) == 7).astype(np.int64)
    often = np.where(np.arange(100) < 3, 1, 0)  # wrongly
    compared = Compared(targets, 2, False, "macro_f1")
    none = score_interval(compared, np.zeros(100, np.int64))
    assert none.high is not None
    assert none.high <= 0.5
    found = compare_decisions(compared, np.zeros(100, np.int64), often)
    assert 0 < found.value < 0.02
    assert found.high < 0.03


def test_equal_decisions_are_not_called_equally_good() -> None:
    targets = (np.arange(100) == 7).astype(np.int64)
    never = np.zeros(100, np.int64)
    verdict = judge(Compared(targets, 2, False, "macro_f1"), never, never, split="test", against="a baseline")
    assert verdict.kind == "within_noise"
    assert "No text tells the two apart" in verdict.text
    assert "equally good" not in verdict.text
