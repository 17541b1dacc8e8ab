"""Scalings are the best under their prior, and stand the texts that break plain maximum likelihood."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar

from veneer.evaluation import scaling
from veneer.evaluation.scaling import Sample, choose_scaling, fit_scaling, log_loss
from veneer.tasks import TASKS

SINGLE, MULTI = TASKS["single_label"], TASKS["multi_label"]


def honest(n: int, classes: int, seed: int = 0) -> Sample:
    """Targets drawn from the softmax of the logits."""
    logits = 2 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))
    targets = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(seed + 1)).squeeze(1)
    return Sample(SINGLE, logits, targets)


def honest_labels(n: int, classes: int, seed: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator) - 1
    return Sample(MULTI, logits, (torch.rand(n, classes, generator=generator) < logits.sigmoid()).float())


def test_a_temperature_is_found_again() -> None:
    sample = honest(4000, 3)
    (slope,) = fit_scaling(Sample(SINGLE, sample.logits * 3, sample.targets), "temperature").slopes
    assert slope == pytest.approx(1 / 3, rel=0.08)


def test_platt_is_found_again_for_every_label() -> None:
    sample = honest_labels(4000, 3)
    slopes, shifts = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 0.0, -1.0])
    fitted = fit_scaling(Sample(MULTI, (sample.logits - shifts) / slopes, sample.targets), "platt")
    assert fitted.slopes == pytest.approx(slopes.tolist(), rel=0.15)
    assert fitted.shifts == pytest.approx(shifts.tolist(), abs=0.15)


def test_newton_finds_what_a_library_finds() -> None:
    sample = honest_labels(150, 1, seed=3)
    z, y = sample.logits.double(), sample.targets.double()

    def penalised(x: np.ndarray) -> float:
        loss = log_loss(MULTI, z * x[0] + x[1], y) * len(sample)
        return float(loss + (scaling.SLOPE_PRIOR * (x[0] - 1) ** 2 + scaling.SHIFT_PRIOR * x[1] ** 2) / 2)

    expected = minimize(penalised, np.array([1.0, 0.0]), method="BFGS").x
    slopes, shifts = scaling._fit_logistic(z, y, (torch.ones(1).double(), torch.zeros(1).double()), True)
    assert (float(slopes), float(shifts)) == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("scale", [0.2, 1.0, 100.0])
@pytest.mark.parametrize("shifted", [False, True])
def test_newton_finds_what_a_library_finds_for_each_label(scale: float, shifted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label by label, in blocks of ten texts, from wherever it starts; with a slope at its bound too."""
    monkeypatch.setattr(scaling, "BLOCK", 40)
    drawn = honest_labels(150, 4, seed=3)
    sample = Sample(MULTI, drawn.logits * scale, drawn.targets)
    centre = (torch.tensor([0.9]).double(), torch.tensor([0.3]).double())
    expected = np.array([_slow_fit(sample.logits[:, label], sample.targets[:, label], centre, shifted) for label in range(4)])
    far = torch.tensor([5.0, 0.1, 1.0, 19.0]).double(), torch.tensor([0.0, 3.0, -2.0, 0.3]).double()
    for start in (None, far if shifted else (far[0], centre[1].expand(4))):
        found = torch.stack(scaling._fit_logistic(sample.logits, sample.targets, centre, shifted, start), dim=1)
        assert found.numpy() == pytest.approx(expected, abs=1e-4)


def _slow_fit(z: torch.Tensor, y: torch.Tensor, centre: scaling.Pair, shifted: bool) -> np.ndarray:
    centres = [float(value) for value in centre]

    def penalised(x: np.ndarray) -> float:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z.double() * x[0] + x[1], y.double(), reduction="sum")
        return float(loss + (scaling.SLOPE_PRIOR * (x[0] - centres[0]) ** 2 + scaling.SHIFT_PRIOR * (x[1] - centres[1]) ** 2) / 2)

    limits = [scaling.SLOPES, (-20, 20) if shifted else (centres[1], centres[1])]
    return np.asarray(minimize(penalised, np.array([0.5, centres[1]]), method="L-BFGS-B", bounds=limits, tol=1e-14).x)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("sample", [honest(150, 3), honest_labels(150, 3)], ids=["single", "multi"])
def test_a_temperature_is_the_least_loss_a_search_finds(sample: Sample, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "BLOCK", 40)
    logits = sample.logits * scale

    def loss(log_slope: float) -> float:
        return log_loss(sample.task, logits.double() * float(np.exp(log_slope)), sample.targets) * 150 + log_slope**2 / 2

    best = minimize_scalar(loss, bounds=tuple(np.log(scaling.SLOPES)), method="bounded", options={"xatol": 1e-7})
    found = scaling._common_temperature(Sample(sample.task, logits, sample.targets)).slopes
    assert found == pytest.approx([np.exp(best.x)] * (3 if sample.multi_label else 1), abs=1e-4)


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_labels_of_a_single_text_none_or_all_have_finite_answers(method: str) -> None:
    sample = honest_labels(60, 4)
    targets = sample.targets.clone()
    targets[:, 0], targets[:, 1], targets[:, 2] = 0.0, 0.0, 1.0
    targets[7, 1] = 1.0
    fitted = fit_scaling(Sample(MULTI, sample.logits * 100, targets), method)  # type: ignore[arg-type]
    assert all(scaling.SLOPES[0] <= slope <= scaling.SLOPES[1] for slope in fitted.slopes)
    assert len(fitted.slopes) == 4
    assert np.isfinite(fitted.shifts).all()


def test_separated_texts_have_a_finite_temperature() -> None:
    logits = torch.tensor([[4.0, -4.0], [-4.0, 4.0]]).repeat(20, 1)
    (slope,) = fit_scaling(Sample(SINGLE, logits, torch.tensor([0, 1]).repeat(20)), "temperature").slopes
    assert 1.0 < slope < scaling.SLOPES[1]


def test_the_form_is_chosen_by_texts_held_out() -> None:
    assert choose_scaling(honest(400, 3), 0)[0] == "none"
    wild = honest(400, 3)
    assert choose_scaling(Sample(SINGLE, wild.logits * 4, wild.targets), 0)[0] == "temperature"
    labels = honest_labels(600, 3)
    assert choose_scaling(labels, 0)[0] == "none"
    assert choose_scaling(Sample(MULTI, labels.logits * 4, labels.targets), 0)[0] == "temperature"
    assert choose_scaling(Sample(MULTI, labels.logits + 2, labels.targets), 0)[0] == "platt"


@pytest.mark.parametrize("sample", [honest(103, 4), honest_labels(103, 4)], ids=["single", "multi"])
def test_parts_are_alike(sample: Sample) -> None:
    parts = sample.parts(5, 0)
    sizes = np.bincount(parts)
    assert sizes.max() - sizes.min() <= 1
    if not sample.multi_label:
        counts = np.array([np.bincount(sample.targets.numpy()[parts == part], minlength=4) for part in range(5)])
        assert (counts.max(0) - counts.min(0) <= 1).all()
    assert np.array_equal(parts, sample.parts(5, 0))
    assert not np.array_equal(parts, sample.parts(5, 1))
    seen: list[int] = []
    sample.out_of_part(5, 0, lambda rest, held, rows: seen.extend(rows.tolist()))
    assert sorted(seen) == list(range(103))


def test_a_difference_within_its_error_takes_the_simpler_form() -> None:
    """Over draws of honest logits a temperature is often better by a little, which is chance."""
    chosen = [choose_scaling(honest(150, 3, seed), 0)[0] for seed in range(30)]
    assert chosen.count("temperature") <= 6
