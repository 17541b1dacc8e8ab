"""Several adapters of one base as one: the weighted sum of their updates, exact by laying their ranks side by side.

    Σ wᵢ·sᵢ·Bᵢ·Aᵢ = s·[B₁ B₂ …]·[w₁s₁/s·A₁; w₂s₂/s·A₂; …]

Knows tensors; does not know labels, scores or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from veneer.errors import LoraError
from veneer.lora.peft_format import AdapterFile
from veneer.lora.shrink import layer_scale, with_shapes


def combine_adapters(adapters: Sequence[AdapterFile], weights: Sequence[float]) -> AdapterFile:
    """One adapter whose updates are the weighted sums of those of `adapters`, whatever their ranks, scales and layers.

    A layer's rank is the sum of its ranks, and its scale that of the first adapter which has the layer. What is stored whole
    (heads, biases) has no update to weigh: it is averaged, by the weights' shares of their sum.

    Args:
        weights: one an adapter, of a sum above 0.

    Raises:
        LoraError: the adapters store different things beside their updates, or have DoRA's lengths.
    """
    settings = adapters[0].settings
    if any(one.settings.dora for one in adapters):
        raise LoraError("DoRA's lengths are of the adapted weight, not of its update: no sum of updates has them")
    layers = tuple(dict.fromkeys(name for adapter in adapters for name in adapter.settings.layers))
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    tensors: dict[str, Tensor] = {}
    for name in layers:
        having = [(one, weight) for one, weight in zip(adapters, weights, strict=True) if name in one.settings.layers]
        scale = layer_scale(having[0][0].settings, name)
        a = [one.tensors[f"{name}.lora_A"].float() * (weight * layer_scale(one.settings, name) / scale) for one, weight in having]
        tensors[f"{name}.lora_A"] = torch.cat(a)
        tensors[f"{name}.lora_B"] = torch.cat([one.tensors[f"{name}.lora_B"].float() for one, _ in having], 1)
        ranks[name] = sum(map(len, a))
        alphas[name] = scale * ranks[name]
    return AdapterFile(
        with_shapes(settings, ranks, alphas), tensors | average_tensors([_whole(one) for one in adapters], weights)
    )


def average_tensors(sets: Sequence[dict[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Name -> mean of the tensors of that name, by the weights' shares of their sum.

    Raises:
        LoraError: the sets do not hold the same names and shapes.
    """
    shapes = [{name: tensor.shape for name, tensor in one.items()} for one in sets]
    for number, one in enumerate(shapes[1:], start=2):
        if differing := sorted(name for name in shapes[0].keys() | one.keys() if shapes[0].get(name) != one.get(name)):
            raise LoraError(
                f"the first adapter and number {number} do not store the same beside LoRA: {', '.join(differing[:5])}"
            )
    total = sum(weights)
    return {
        name: sum(one[name].double() * (weight / total) for one, weight in zip(sets, weights, strict=True)).float()  # type: ignore[union-attr]
        for name in sets[0]
    }


def _whole(adapter: AdapterFile) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in adapter.tensors.items() if not name.endswith((".lora_A", ".lora_B"))}
