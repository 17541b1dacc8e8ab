"""The counting formula against scikit-learn, exactly; the bootstrap against a plain loop over resampled texts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from veneer.errors import DataError
from veneer.evaluation import metrics
from veneer.evaluation.metrics import Evaluation, point_metrics, score

EXACT = {"rtol": 0, "atol": 1e-12}
NAMES = ("a", "b", "c", "d", "e")


def single(n: int = 300) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Five classes with very different sizes; class 3 is never true and class 4 neither true nor decided."""
    rng = np.random.default_rng(7)
    targets = rng.choice(3, size=n, p=[0.7, 0.25, 0.05])
    decisions = np.where(rng.random(n) < 0.3, rng.integers(0, 4, n), targets)
    return targets, decisions


def multi(n: int = 300) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Five labels, the last neither true nor decided, with texts that have none."""
    rng = np.random.default_rng(8)
    targets = rng.random((n, 5)) < [0.5, 0.2, 0.1, 0.05, 0.0]
    decisions = targets ^ (rng.random((n, 5)) < [0.1, 0.1, 0.1, 0.1, 0.0])
    return targets, decisions


def by_scikit_learn(
    targets: NDArray[np.generic], decisions: NDArray[np.generic], averaged: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """The documented metrics from scikit-learn alone, of class ids or of the indicator matrix, with its own choice of classes if
    macro means are not of those `averaged`."""
    macro = {"average": "macro", "zero_division": 0, "labels": averaged}
    found = {
        "accuracy": sk.accuracy_score(targets, decisions),
        "macro_f1": sk.f1_score(targets, decisions, **macro),
        "micro_f1": sk.f1_score(targets, decisions, average="micro", zero_division=0),
        "weighted_f1": sk.f1_score(targets, decisions, average="weighted", zero_division=0),
        "macro_precision": sk.precision_score(targets, decisions, **macro),
        "macro_recall": sk.recall_score(targets, decisions, **macro),
    }
    if targets.ndim == 2:
        found["subset_accuracy"] = sk.accuracy_score(targets, decisions)
        found["hamming_loss"] = sk.hamming_loss(targets, decisions)
    return found


@pytest.mark.parametrize(("make", "multi_label"), [(single, False), (multi, True)])
@pytest.mark.parametrize("n", [1, 2, 300])
def test_point_values_are_scikit_learns(make, multi_label, n):
    targets, decisions = (values[:n] for values in make())
    expected = by_scikit_learn(targets, decisions)
    found = {
        name: item.value for name, item in score(targets, decisions, NAMES, multi_label=multi_label, bootstrap=0).metrics.items()
    }
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), **EXACT)
    assert point_metrics(targets, decisions, 5, multi_label) == found


def test_a_label_of_several_that_never_occurs_counts_as_zero():
    """As in the literature, so that figures compare."""
    targets, decisions = multi()
    with_all, without = point_metrics(targets, decisions, 5, True), point_metrics(targets[:, :4], decisions[:, :4], 4, True)
    for name in ("macro_f1", "macro_precision", "macro_recall"):
        assert with_all[name] == pytest.approx(without[name] * 4 / 5)
    assert with_all["macro_f1"] == pytest.approx(sk.f1_score(targets, decisions, average="macro", zero_division=0), abs=1e-12)


def test_macro_f1_of_single_labels_is_scikit_learns_default():
    targets, decisions = single()
    default = sk.f1_score(targets, decisions, average="macro")
    assert point_metrics(targets, decisions, 5, False)["macro_f1"] == pytest.approx(default, abs=1e-12)


@pytest.mark.parametrize(("make", "multi_label"), [(single, False), (multi, True)])
def test_per_class_scores_are_scikit_learns(make, multi_label):
    targets, decisions = make()
    precision, recall, f1, support = sk.precision_recall_fscore_support(targets, decisions, labels=range(5), zero_division=0)
    found = score(targets, decisions, NAMES, multi_label=multi_label, bootstrap=0).per_class
    assert [item.label for item in found] == list(NAMES)
    for field, expected in {"precision": precision, "recall": recall, "f1": f1, "support": support}.items():
        np.testing.assert_allclose([getattr(item, field) for item in found], expected, **EXACT)
    decided = decisions.sum(axis=0) if multi_label else np.bincount(decisions, minlength=5)
    assert [item.predicted for item in found] == decided.tolist()


def test_confusion_is_scikit_learns():
    targets, decisions = single()
    found = score(targets, decisions, NAMES, multi_label=False, bootstrap=0).confusion
    np.testing.assert_array_equal(found, sk.confusion_matrix(targets, decisions, labels=range(5)))
    targets, decisions = multi()
    found = score(targets, decisions, NAMES, multi_label=True, bootstrap=0).confusion
    np.testing.assert_array_equal(found, sk.multilabel_confusion_matrix(targets, decisions))


@pytest.mark.parametrize(("make", "multi_label"), [(single, False), (multi, True)])
def test_a_resample_scores_as_the_resampled_texts_do(make, multi_label):
    """Each drawn multiset of outcomes, written out as texts, has scikit-learn's scores; means are of the classes of all 40."""
    outcomes = metrics.Outcomes.of(*make(40), 5, multi_label)
    averaged = None if multi_label else np.unique(np.concatenate(make(40)))
    assert multi_label or len(averaged) == 4
    drawn = np.random.default_rng(3).multinomial(40, outcomes.times / 40, size=20)
    found = metrics.metrics_of(outcomes.count(drawn), multi_label)
    for i, times in enumerate(drawn):
        targets, decisions = (np.repeat(one.toarray(), times, axis=0) for one in (outcomes.targets, outcomes.decisions))
        if not multi_label:
            targets, decisions = targets.argmax(axis=1), decisions.argmax(axis=1)
        for name, expected in by_scikit_learn(targets, decisions, averaged).items():
            assert found[name][i] == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize(("make", "multi_label"), [(single, False), (multi, True)])
def test_intervals_agree_with_a_plain_loop_over_texts(make, multi_label):
    targets, decisions = make(200)
    rng = np.random.default_rng(11)
    rows = [rng.integers(0, 200, 200) for _ in range(1000)]
    plain = [point_metrics(targets[row], decisions[row], 5, multi_label) for row in rows]
    found = score(targets, decisions, NAMES, multi_label=multi_label, bootstrap=4000).metrics
    for name, item in found.items():
        low, high = np.quantile([values[name] for values in plain], [0.025, 0.975])
        width = high - low
        assert item.low == pytest.approx(low, abs=0.12 * width), name
        assert item.high == pytest.approx(high, abs=0.12 * width), name
        assert item.low < item.value < item.high


def test_resampling_in_parts_changes_nothing(monkeypatch):
    whole = score(*multi(), NAMES, multi_label=True, bootstrap=50).metrics
    monkeypatch.setattr(metrics, "MOST_DRAWS_AT_ONCE", 200)
    assert score(*multi(), NAMES, multi_label=True, bootstrap=50).metrics == whole


def test_the_seed_decides_the_intervals():
    first, again, other = (score(*single(), NAMES, multi_label=False, seed=seed).metrics for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_perfect_decisions_score_one_even_when_a_class_is_missing():
    targets, _ = single()
    found = score(targets, targets, NAMES, multi_label=False)
    assert {(item.value, item.low, item.high) for item in found.metrics.values()} == {(1.0, 1.0, 1.0)}
    assert found.per_class[4].f1 == 0.0
    assert found.per_class[4].support == 0


def test_no_label_true_and_none_decided():
    nothing = np.zeros((3, 2), dtype=bool)
    values = point_metrics(nothing, nothing, 2, True)
    assert values["accuracy"] == values["subset_accuracy"] == 1.0
    assert values["hamming_loss"] == values["macro_f1"] == values["micro_f1"] == values["weighted_f1"] == 0.0


@pytest.mark.parametrize("decided", [0, 1])
def test_one_text(decided):
    found = score([0], [decided], ("no", "yes"), multi_label=False)
    assert found.n == 1
    assert found.metrics["accuracy"] == metrics.Interval(1.0 - decided, 1.0 - decided, 1.0 - decided)


def test_one_class():
    assert point_metrics([0, 0], [0, 0], 1, False)["macro_f1"] == 1.0
    assert point_metrics([[1], [0], [1]], [[1], [0], [0]], 1, True)["macro_f1"] == pytest.approx(2 / 3)


def test_no_text_is_an_error():
    with pytest.raises(DataError, match="no rows"):
        score([], [], NAMES, multi_label=False)
    with pytest.raises(DataError, match="no rows"):
        point_metrics(np.zeros((0, 5), dtype=bool), np.zeros((0, 5), dtype=bool), 5, True)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="shape"):
        score([0, 1], [0], NAMES, multi_label=False)
    with pytest.raises(ValueError, match="shape"):
        score(*multi(), ("a", "b"), multi_label=True)
    for targets, decisions in [([0, 2], [0, 1]), ([0, 1], [0, -1])]:
        with pytest.raises(ValueError, match="from 0 to 1"):
            point_metrics(targets, decisions, 2, False)


@pytest.mark.parametrize(("make", "multi_label"), [(single, False), (multi, True)])
def test_json_has_every_number_and_only_json_types(make, multi_label):
    evaluation = score(*make(), NAMES, multi_label=multi_label, bootstrap=20)
    document = evaluation.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["n"] == 300
    assert document["metrics"]["macro_f1"] == evaluation.metrics["macro_f1"].value
    assert document["intervals"]["macro_f1"] == [evaluation.metrics["macro_f1"].low, evaluation.metrics["macro_f1"].high]
    assert document["per_class"][1]["label"] == "b"
    assert set(document["per_class"][1]) == {"label", "precision", "recall", "f1", "support", "predicted"}
    assert document["confusion"] == {"labels": list(NAMES), "matrix": evaluation.confusion.tolist()}


def test_without_resamples_there_are_no_intervals():
    evaluation: Evaluation = score(*single(), NAMES, multi_label=False, bootstrap=0)
    assert evaluation.metrics["accuracy"].low is None
    assert evaluation.to_json()["intervals"] == {}


def test_of_many_classes_there_is_no_matrix_but_what_is_confused_with_what():
    targets, decisions = np.array([0, 0, 0, 7, 299]), np.array([0, 3, 3, 299, 299])
    found = score(targets, decisions, [str(i) for i in range(300)], multi_label=False, bootstrap=5)
    assert found.confusion is None
    assert found.to_json()["confusion"]["matrix"] is None
    assert found.confused == ((0, 3, 2), (7, 299, 1))
    assert found.metrics["accuracy"].value == 0.4


def test_what_is_confused_is_what_the_matrix_has_off_its_diagonal():
    found = score(*single(), NAMES, multi_label=False, bootstrap=0)
    wrong = [(a, b, found.confusion[a, b]) for a, b in np.ndindex(5, 5) if a != b and found.confusion[a, b]]
    assert sorted(found.confused) == wrong
    counts = [texts for *_, texts in found.confused]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(("found", "low", "high"), [(False, 0.49, 0.5), (True, 0.5, 1.0)])
def test_a_class_of_one_text_stays_in_the_mean_of_every_resample(found, low, high):
    """More than a third of the resamples miss it: there it counts as 0, found or not, and never is the other class the mean."""
    targets = (np.arange(100) == 7).astype(np.int64)
    interval = score(targets, targets * found, ("no", "yes"), multi_label=False).metrics["macro_f1"]
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.01)
