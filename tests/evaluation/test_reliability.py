"""Bins of equal mass, calibration error and Brier score."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from veneer.evaluation import reliability as reliability_module
from veneer.evaluation.reliability import brier, expected_calibration_error, mean_error_by_label, reliability


def test_bins_have_equal_mass() -> None:
    confidence = np.random.default_rng(0).random(600) ** 4
    bins = reliability(confidence, (confidence > 0.5).astype(np.float64))
    assert [item.texts for item in bins] == [40] * 15
    assert [item.confidence for item in bins] == sorted(item.confidence for item in bins)


def test_the_error_is_the_distance_by_mass() -> None:
    confidence, true = np.repeat([0.2, 0.9], [30, 70]), np.concatenate([np.ones(12), np.zeros(18), np.ones(56), np.zeros(14)])
    bins = reliability(confidence, true)
    assert [(item.texts, item.accuracy) for item in bins] == [(30, 0.4), (70, pytest.approx(0.8))]
    assert expected_calibration_error(bins) == pytest.approx(0.3 * 0.2 + 0.7 * 0.1)


def test_equal_confidences_are_one_bin() -> None:
    """Parted by their place, a bin of the right ones and one of the wrong ones would be an error that is not there."""
    bins = reliability(np.full(100, 0.5), np.repeat([0.0, 1.0], 50))
    assert [(item.texts, item.accuracy) for item in bins] == [(100, 0.5)]
    assert expected_calibration_error(bins) == 0.0


def test_honest_probabilities_have_a_small_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    true = (rng.random(20_000) < p).astype(np.float64)
    assert expected_calibration_error(reliability(p, true)) < 0.015
    assert expected_calibration_error(reliability(p**3, true)) > 0.1


def test_brier_is_the_librarys() -> None:
    rng = np.random.default_rng(0)
    p, true = rng.random((50, 3)), (rng.random((50, 3)) < 0.4).astype(np.float64)
    assert brier(p, true, True) == pytest.approx(brier_score_loss(true.ravel(), p.ravel()))
    assert brier(p, true, False) == pytest.approx(3 * brier_score_loss(true.ravel(), p.ravel()))


@pytest.mark.parametrize("n", [7, 45, 400])
def test_the_errors_of_labels_are_those_of_each_alone(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability_module, "CELLS_AT_ONCE", 2 * n)
    rng = np.random.default_rng(0)
    probabilities = rng.random((n, 5)).round(1 if n == 45 else 6)  # ties are never parted
    truth = (rng.random((n, 5)) < [0.5, 0.1, 0.9, 0.3, 0.0]).astype(np.float64)
    given = np.flatnonzero(truth.any(0))
    errors = [expected_calibration_error(reliability(probabilities[:, label], truth[:, label])) for label in given]
    assert mean_error_by_label(probabilities, truth) == pytest.approx(np.mean(errors), abs=1e-12)
