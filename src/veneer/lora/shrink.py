"""Smaller ranks for a finished adapter: each layer's update `s·B·A` by its singular values, cut off and factored again.

The decomposition goes through QR of B and Aᵀ and one of an `[r, r]` matrix, so that no `[out, in]` matrix is formed:

    B = Q_b R_b,   Aᵀ = Q_a R_a,   s·R_b R_aᵀ = U Σ Vᵀ   =>   s·B·A = (Q_b U) Σ (Q_a V)ᵀ

Cutting Σ gives the nearest update of its rank (Eckart and Young 1936). Knows tensors; does not know scores or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from veneer.errors import LoraError
from veneer.lora.layer import lora_scale
from veneer.lora.patterns import common_value
from veneer.lora.peft_format import AdapterFile, AdapterSettings


@dataclass(frozen=True)
class Spectrum:
    """One layer's update `U·diag(σ)·Vᵀ` of rank r, in float64.

    Attributes:
        left: U, `[out, r]`.
        values: σ, `[r]`, the largest first.
        right: Vᵀ, `[r, in]`.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def energy(self) -> Tensor:
        """`[r]`: σ², which sum to the update's squared Frobenius norm."""
        return self.values.square()

    @property
    def width(self) -> int:
        """Parameters that one rank takes: in + out."""
        return self.left.shape[0] + self.right.shape[1]


def spectra(adapter: AdapterFile) -> dict[str, Spectrum]:
    """Layer -> spectrum of its update."""
    settings = adapter.settings
    return {
        name: _spectrum(adapter.tensors[f"{name}.lora_A"], adapter.tensors[f"{name}.lora_B"], layer_scale(settings, name))
        for name in settings.layers
    }


def layer_scale(settings: AdapterSettings, layer: str) -> float:
    """s of a layer's update."""
    return lora_scale(settings.rank_of(layer), settings.alpha_of(layer), settings.scaling)


def strongest(found: Mapping[str, Spectrum], count: int) -> dict[str, int]:
    """Layer -> rank that remains of the `count` singular values with most energy for the parameters they take.

    A layer of which none remains has rank 0. What remains of a layer are its largest values, whatever `count` is.
    """
    worth = torch.cat([spectrum.energy / spectrum.width for spectrum in found.values()])
    owner = torch.cat([torch.full((len(spectrum.values),), i) for i, spectrum in enumerate(found.values())])
    kept = owner[worth.argsort(descending=True, stable=True)[:count]]
    return dict(zip(found, torch.bincount(kept, minlength=len(found)).tolist(), strict=True))


def kept_energy(found: Mapping[str, Spectrum], ranks: Mapping[str, int]) -> float:
    """The share of all layers' energy that remains at `ranks`; 1 where there is none."""
    whole = sum(float(spectrum.energy.sum()) for spectrum in found.values())
    rest = sum(float(spectrum.energy[: ranks[name]].sum()) for name, spectrum in found.items())
    return rest / whole if whole else 1.0


def cut_ranks(adapter: AdapterFile, found: Mapping[str, Spectrum], ranks: Mapping[str, int]) -> AdapterFile:
    """The adapter with each layer's update cut to its rank and factored again; everything else as it was.

    A layer keeps its scale s, so that its alpha is s times its new rank. A layer of rank 0 is no longer adapted: PEFT reads
    which layers are from the list of their paths.

    Raises:
        LoraError: the adapter has DoRA's lengths, no layer remains, or a layer whose bias is trained as part of the adapter
            would not.
    """
    settings = adapter.settings
    if settings.dora:
        raise LoraError("DoRA's lengths are of the adapted weight, not of its update: a smaller update would need others")
    layers = tuple(name for name in settings.layers if ranks[name] > 0)
    if not layers:
        raise LoraError("an adapter needs a layer of rank 1 at least")
    if settings.bias == "lora_only" and len(layers) < len(settings.layers):
        raise LoraError("with lora.bias: lora_only every layer needs rank 1 at least: its bias is trained with it")
    alphas = {name: layer_scale(settings, name) * ranks[name] for name in layers}
    factors: dict[str, Tensor] = {}
    for name in layers:
        rank, spectrum = ranks[name], found[name]
        root = (spectrum.values[:rank] / lora_scale(rank, alphas[name])).sqrt()
        factors[f"{name}.lora_A"] = (root[:, None] * spectrum.right[:rank]).float()
        factors[f"{name}.lora_B"] = (spectrum.left[:, :rank] * root).float()
    rest = {name: tensor for name, tensor in adapter.tensors.items() if not name.endswith((".lora_A", ".lora_B"))}
    return AdapterFile(with_shapes(settings, {name: ranks[name] for name in layers}, alphas), factors | rest)


def with_shapes(settings: AdapterSettings, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> AdapterSettings:
    """The settings with these layers, ranks and alphas, all scaled by alpha/r."""
    rank, own_ranks = common_value(ranks)
    alpha, own_alphas = common_value(alphas)
    return replace(settings, rank=rank, alpha=alpha, scaling="standard", layers=tuple(ranks), ranks=own_ranks, alphas=own_alphas)


def _spectrum(a: Tensor, b: Tensor, scale: float) -> Spectrum:
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, values, v = torch.linalg.svd(scale * r_b @ r_a.T, full_matrices=False)
    return Spectrum(q_b @ u, values, v @ q_a.T)
