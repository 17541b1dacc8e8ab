"""Spectra of updates, which values are kept, and adapters cut to them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from veneer.errors import LoraError
from veneer.lora import AdapterFile, AdapterSettings, Spectrum, cut_ranks, kept_energy, spectra, strongest

SHAPES = {"a": (12, 20), "b": (20, 3)}  # [out, in]; `b` reads fewer values than its rank


def adapter(rank: int = 5, **changes: object) -> AdapterFile:
    torch.manual_seed(0)
    tensors = {}
    for name, (out, into) in SHAPES.items():
        tensors |= {f"{name}.lora_A": torch.randn(rank, into), f"{name}.lora_B": torch.randn(out, rank)}
    settings: dict[str, object] = {"bias": "none", "scaling": "standard", "alphas": {"b": 3.0}} | changes
    return AdapterFile(
        AdapterSettings(
            rank=rank,
            alpha=10.0,
            dropout=0.0,
            layers=tuple(SHAPES),
            saved_modules=("head",),
            transposed=False,
            base=None,
            task_type=None,
            **settings,  # type: ignore[arg-type]
        ),
        tensors | {"head.weight": torch.ones(2, 2)},
    )


def update(one: AdapterFile, layer: str) -> Tensor:
    settings = one.settings
    rank, alpha = settings.rank_of(layer), settings.alpha_of(layer)
    scale = alpha / (math.sqrt(rank) if settings.scaling == "rslora" else rank)
    return scale * one.tensors[f"{layer}.lora_B"] @ one.tensors[f"{layer}.lora_A"]


@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_a_spectrum_is_that_of_the_whole_update(scaling: str) -> None:
    one = adapter(scaling=scaling)
    for layer, spectrum in spectra(one).items():
        whole = update(one, layer).double()
        count = len(spectrum.values)
        assert count == min(5, *SHAPES[layer])
        torch.testing.assert_close(spectrum.values, torch.linalg.svdvals(whole)[:count], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(spectrum.left * spectrum.values @ spectrum.right, whole, rtol=1e-5, atol=1e-5)


def test_no_matrix_of_the_layers_size_is_formed() -> None:
    """A layer whose update would take 80 GB."""
    out, into = 100_000, 100_000
    tensors = {"a.lora_A": torch.ones(1, into), "a.lora_B": torch.ones(out, 1)}
    settings = AdapterSettings(1, 1.0, 0.0, "standard", "none", ("a",), (), False, None, None)
    (spectrum,) = spectra(AdapterFile(settings, tensors)).values()
    assert spectrum.values.tolist() == pytest.approx([100_000.0])


def test_cutting_gives_the_nearest_update_of_its_rank() -> None:
    one = adapter(scaling="rslora")
    found = spectra(one)
    cut = cut_ranks(one, found, {"a": 2, "b": 3})
    left, values, right = torch.linalg.svd(update(one, "a"), full_matrices=False)
    torch.testing.assert_close(update(cut, "a"), left[:, :2] * values[:2] @ right[:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(update(cut, "b"), update(one, "b"), rtol=1e-4, atol=1e-4)
    assert {name: tuple(tensor.shape) for name, tensor in cut.tensors.items()} == {
        "a.lora_A": (2, 20),
        "a.lora_B": (12, 2),
        "b.lora_A": (3, 3),
        "b.lora_B": (20, 3),
        "head.weight": (2, 2),
    }


def test_a_layer_keeps_its_scale() -> None:
    one = adapter()
    cut = cut_ranks(one, spectra(one), {"a": 2, "b": 3}).settings
    assert (cut.alpha_of("a") / cut.rank_of("a"), cut.alpha_of("b") / cut.rank_of("b")) == pytest.approx((10 / 5, 3 / 5))


def test_a_layer_of_rank_zero_is_no_longer_adapted() -> None:
    one = adapter()
    cut = cut_ranks(one, spectra(one), {"a": 0, "b": 1})
    assert cut.settings.layers == ("b",)
    assert set(cut.tensors) == {"b.lora_A", "b.lora_B", "head.weight"}
    with pytest.raises(LoraError, match="a layer of rank 1 at least"):
        cut_ranks(one, spectra(one), {"a": 0, "b": 0})
    with pytest.raises(LoraError, match="lora_only"):
        cut_ranks(adapter(bias="lora_only"), spectra(one), {"a": 0, "b": 1})


def spectrum(values: list[float], out: int = 1, into: int = 1) -> Spectrum:
    count = len(values)
    return Spectrum(torch.ones(out, count).double(), torch.tensor(values).double(), torch.ones(count, into).double())


def test_the_strongest_values_for_their_size_are_kept() -> None:
    found = {"a": spectrum([3.0, 1.0]), "b": spectrum([2.0, 1.5]), "wide": spectrum([6.0], out=5, into=5)}
    assert [strongest(found, count) for count in (1, 2, 3, 5)] == [
        {"a": 1, "b": 0, "wide": 0},  # 9/2, 4/2, 36/10
        {"a": 1, "b": 0, "wide": 1},
        {"a": 1, "b": 1, "wide": 1},
        {"a": 2, "b": 2, "wide": 1},
    ]


def test_the_energy_that_is_left() -> None:
    found = {"a": spectrum([3.0, 1.0]), "b": spectrum([2.0])}
    assert kept_energy(found, {"a": 1, "b": 0}) == pytest.approx(9 / 14)
    assert kept_energy({"a": spectrum([0.0])}, {"a": 1}) == 1.0
