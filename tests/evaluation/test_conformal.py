"""Promises are kept: over many draws sets hold what is right, and answers are as right as was said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom

from veneer.errors import DataError
from veneer.evaluation import calibration as calibration_module
from veneer.evaluation.calibration import fit_calibration
from veneer.evaluation.conformal import (
    _lower_bound,
    _p_value,
    answered,
    candidate_sets,
    check_promises,
    find_coverage,
    find_precision,
)
from veneer.evaluation.scaling import Sample
from veneer.tasks import PLAIN, TASKS, Calibration, Promise

SINGLE, MULTI = TASKS["single_label"], TASKS["multi_label"]
SPLITS = 200


def single(n: int, seed: int = 0) -> Sample:
    """A model that is too sure of itself."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 4, (n,), generator=generator)
    logits = torch.randn(n, 4, generator=generator) + 1.5 * torch.nn.functional.one_hot(targets, 4)
    return Sample(SINGLE, logits * 3, targets)


def multi(n: int, seed: int = 0) -> Sample:
    """A fifth of the texts have no label."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, 3, generator=generator) < 0.42).float()
    return Sample(MULTI, torch.randn(n, 3, generator=generator) + 2 * targets - 1, targets)


def held(sample: Sample, calibration: Calibration) -> float:
    """The share of sets by the bare level that hold every right class."""
    assert calibration.coverage is not None
    sets = sample.task.probabilities(sample.logits, calibration) >= calibration.coverage.level
    right = sample.targets > 0 if sample.multi_label else torch.nn.functional.one_hot(sample.targets, 4) > 0
    return float((sets | ~right).all(1).double().mean())


@pytest.mark.parametrize("share", [0.8, 0.9, 0.95])
def test_the_mean_coverage_over_200_splits_is_within_the_theoretical_band(share: float) -> None:
    """From n texts the expected coverage is at least the share and less than it by 1/(n + 1) more, whatever the model."""
    n, pool = 99, single(6000)
    scaled = Calibration(slopes=(0.4,))
    found = []
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(len(pool))
        fit, new = pool.rows(order[:n]), pool.rows(order[n : n + 1000])
        promise = find_coverage(fit.logits, fit.targets, SINGLE, scaled, share).promise
        found.append(held(new, Calibration(slopes=(0.4,), coverage=promise)))
    error = np.std(found) / np.sqrt(SPLITS)
    assert share - 3 * error <= np.mean(found) <= share + 1 / (n + 1) + 3 * error
    assert error < 0.004  # so that the band says something


def test_sets_hold_all_right_labels_of_texts_that_have_some() -> None:
    n, share, found, overall = 100, 0.9, [], []
    pool = multi(6000)
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(len(pool))
        fit, new = pool.rows(order[:n]), pool.rows(order[n : n + 1000])
        result = find_coverage(fit.logits, fit.targets, MULTI, PLAIN, share)
        assert result.promise.texts == int(fit.targets.any(1).sum())
        some = new.rows(np.flatnonzero(new.targets.any(1).numpy()))
        calibration = Calibration(coverage=result.promise)
        found.append(held(some, calibration))
        overall.append(held(new, calibration))
    error = np.std(found) / np.sqrt(SPLITS)
    assert share - 3 * error <= np.mean(found) <= share + 1 / 60 + 3 * error
    assert np.mean(overall) > np.mean(found)


def test_coverage_holds_through_the_whole_calibration() -> None:
    """Fitted by the public function, which must not use the same texts for the temperature and the level."""
    pool, found = single(6000), []
    for split in range(40):
        order = np.random.default_rng(split).permutation(len(pool))
        fit, new = pool.rows(order[:120]), pool.rows(order[120:1620])
        fitted = fit_calibration(fit.logits, fit.targets, SINGLE, coverage=0.9, bootstrap=0, seed=split)
        assert fitted.promises[0].promise.texts + fitted.texts == 120
        found.append(held(new, fitted.calibration))
    error = np.std(found) / np.sqrt(len(found))
    assert 0.9 - 3 * error <= np.mean(found) <= 0.9 + 1 / 61 + 3 * error


def test_copies_of_texts_do_not_make_a_promise_surer() -> None:
    """Forty texts five times each: what is promised is what twenty texts show, and holds as often."""
    pool, found = single(6000), []
    for split in range(60):
        order = np.random.default_rng(split).permutation(len(pool))
        few, new = pool.rows(np.tile(order[:40], 5)), pool.rows(order[40:1540])
        fitted = fit_calibration(few.logits, few.targets, SINGLE, coverage=0.9, bootstrap=0, seed=split)
        assert fitted.promises[0].promise.texts == 20
        found.append(held(new, fitted.calibration))
    error = np.std(found) / np.sqrt(len(found))
    assert 0.9 - 3 * error <= np.mean(found) <= 0.9 + 1 / 21 + 3 * error


def test_the_texts_of_a_promise_are_drawn_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 and 20, a half has as many of the one as a draw gives it: 10 on average, with a variance of 2.56, not always 10."""
    counts = []
    find = calibration_module.find_coverage

    def record(logits: torch.Tensor, targets: torch.Tensor, *rest: Any) -> Any:
        counts.append(int(targets.sum()))
        return find(logits, targets, *rest)

    monkeypatch.setattr(calibration_module, "find_coverage", record)
    targets = torch.arange(40) % 2
    for seed in range(60):
        fit_calibration(torch.eye(2)[targets], targets, SINGLE, texts=range(40), coverage=0.8, bootstrap=0, seed=seed)
    assert np.mean(counts) == pytest.approx(10, abs=1)
    assert 1.3 < np.var(counts) < 4.5


def test_the_level_is_the_rank_of_the_formula() -> None:
    """ceil((n + 1)·0.9) = 9 of n = 9 scores 1 − p: the least probability of a right class."""
    p = torch.linspace(0.1, 0.9, 9)
    logits = torch.stack([p.log(), (1 - p).log()], dim=1)
    result = find_coverage(logits, torch.zeros(9, dtype=torch.int64), SINGLE, PLAIN, 0.9)
    assert result.promise.level == pytest.approx(0.1, abs=1e-6)
    assert find_coverage(logits, torch.zeros(9, dtype=torch.int64), SINGLE, PLAIN, 0.5).promise.level == pytest.approx(
        0.5, abs=1e-6
    )
    with pytest.raises(DataError, match=r"0\.95 needs at least 19 labelled texts .* there are 9"):
        find_coverage(logits, torch.zeros(9, dtype=torch.int64), SINGLE, PLAIN, 0.95)


def test_a_coverage_of_texts_without_any_label_cannot_be_found() -> None:
    with pytest.raises(DataError, match="there are 0"):
        find_coverage(torch.zeros(30, 3), torch.zeros(30, 3), MULTI, PLAIN, 0.9)


def test_the_decided_class_is_always_a_candidate() -> None:
    logits = torch.tensor([[1.0, 0.9, 0.0], [9.0, 0.0, 0.0]])
    calibration = Calibration(coverage=Promise(0.5, 0.8, 10))
    assert candidate_sets(SINGLE, logits, calibration).tolist() == [[True, False, False], [True, False, False]]
    assert not candidate_sets(MULTI, -logits - 1, calibration).any()
    with pytest.raises(ValueError, match="no coverage"):
        candidate_sets(SINGLE, logits, PLAIN)
    with pytest.raises(ValueError, match="no precision"):
        answered(SINGLE, logits, PLAIN)


def test_every_decided_label_is_a_candidate() -> None:
    """A threshold may be below the level."""
    logits = torch.tensor([[-1.0, -3.0], [-1.0, 2.0]])
    calibration = Calibration(slopes=(1.0, 1.0), thresholds=(0.1, 0.1), coverage=Promise(0.6, 0.4, 100))
    assert MULTI.decide(logits, calibration).tolist() == [[True, False], [True, True]]
    assert candidate_sets(MULTI, logits, calibration).tolist() == [[True, False], [True, True]]


def test_the_promised_precision_is_missed_as_rarely_as_said() -> None:
    """Of 200 calibrations at most 5 % may be off; 17 are what chance would exceed once in a hundred times at exactly that."""
    pool, share, missed, shares = single(12_000), 0.75, 0, []
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(len(pool))
        first, second, new = (pool.rows(order[a:b]) for a, b in ((0, 300), (300, 600), (600, 8000)))
        try:
            promise = find_precision(first, second, PLAIN, share).promise
        except DataError:
            continue
        given = answered(SINGLE, new.logits, Calibration(precision=promise))
        right = SINGLE.decide(new.logits) == new.targets
        missed += float(right[given].double().mean()) < share
        shares.append(float(given.double().mean()))
    assert missed <= binom.ppf(0.99, SPLITS, 0.05)
    assert len(shares) > 0.9 * SPLITS
    assert np.mean(shares) > 0.5  # of the 0.86 that knowing everything would give


def test_a_precision_that_cannot_be_shown_is_refused() -> None:
    small = single(40)
    with pytest.raises(DataError, match=r"0\.99 cannot be promised: of the .* without a mistake it takes 299 texts"):
        find_precision(small, small, PLAIN, 0.99)
    with pytest.raises(DataError, match="above 0 and below 1"):
        find_precision(small, small, PLAIN, 1.0)


def test_the_precision_that_can_be_promised_is_named() -> None:
    """It is the highest hundredth that passes; where all answers are wrong there is none."""
    first, second = single(300), single(300, seed=1)
    with pytest.raises(DataError, match=r"or --precision (0\.\d+), which can be promised$") as refused:
        find_precision(first, second, PLAIN, 0.99)
    named = float(str(refused.value).split("--precision ")[1].split(",")[0])
    assert 0.6 < named < 0.99
    assert find_precision(first, second, PLAIN, named).promise.target == named
    with pytest.raises(DataError):
        find_precision(first, second, PLAIN, named + 0.01)
    wrong = Sample(SINGLE, second.logits, (SINGLE.decide(second.logits) + 1) % 4)
    with pytest.raises(DataError, match=r"no precision can be$"):
        find_precision(first, wrong, PLAIN, 0.9)


def test_the_bound_is_clopper_and_pearsons() -> None:
    bound = _lower_bound(95, 100)
    assert binom.sf(94, 100, bound) == pytest.approx(0.05)
    assert _lower_bound(0, 10) == 0.0
    assert _lower_bound(0, 0) == 0.0


@pytest.mark.parametrize("share", [0.05, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("count", [0, 1, 7, 100, 20_000])
def test_tests_and_bounds_are_those_of_scipy_stats(count: int, share: float) -> None:
    for hits in sorted({0, min(count, 1), count // 2, max(count - 3, 0), count}):
        right = np.arange(count) < hits
        expected = binom.sf(hits - 1, count, share)
        assert _p_value(np.ones(count, np.float32), right, 0.5, share) == pytest.approx(expected, rel=1e-9, abs=1e-300)
        if hits:
            assert _lower_bound(hits, count) == pytest.approx(beta.ppf(0.05, hits, count - hits + 1), rel=1e-9)


@pytest.mark.parametrize("pool", [single(800), multi(800)], ids=["single", "multi"])
def test_promises_are_checked_on_other_texts(pool: Sample) -> None:
    calibration = Calibration(coverage=Promise(0.9, 0.3, 10), precision=Promise(0.8, 0.9, 10))
    facts = check_promises(pool.logits, pool.targets, pool.task, calibration)
    given = answered(pool.task, pool.logits, calibration)
    sets = candidate_sets(pool.task, pool.logits, calibration)
    decided = pool.task.decide(pool.logits, calibration)
    right = (decided == pool.targets) if not pool.multi_label else (decided == (pool.targets > 0)).all(1)
    assert facts["precision"]["answered"] == int(given.sum())
    assert facts["precision"]["right"] == int(right[given].sum())
    assert facts["coverage"]["mean_size"] == pytest.approx(float(sets.sum(1).double().mean()))
    assert facts["coverage"]["held"] >= held(pool, calibration)
    assert check_promises(pool.logits, pool.targets, pool.task, PLAIN) == {}
