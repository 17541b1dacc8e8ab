"""Writing the update into the frozen weights, taking it out again exactly, and going back to plain layers.

Always explicit: nothing is merged in `train()` or `eval()`. A merged layer keeps its frozen weight in the buffer
`original_weight` (not in the state dict), so that unmerging restores it bit for bit, in low precision too, at the price of
holding both.
"""

from __future__ import annotations

import torch
from torch import nn

from veneer.errors import LoraError
from veneer.lora.inject import lora_layers, replace_module
from veneer.lora.layer import LoraLinear


def merge_lora(model: nn.Module) -> None:
    """Add each layer's update to its weight: the same outputs (up to the weight's rounding) at the base's speed.

    A layer that is merged already stays as it is.

    Raises:
        LoraError: the model has no LoRA layers.
    """
    for layer in _layers(model):
        if not layer.merged:
            _merge(layer)


def unmerge_lora(model: nn.Module) -> None:
    """Put the frozen weights back, bit for bit. A layer that is not merged stays as it is.

    Raises:
        LoraError: the model has no LoRA layers.
    """
    for layer in _layers(model):
        if layer.merged:
            _unmerge(layer)


def remove_lora(model: nn.Module, *, keep_update: bool = False) -> list[str]:
    """Put plain layers (`nn.Linear`, Conv1D) back in place of the LoRA layers, whether these are merged or not.

    Args:
        keep_update: True leaves the update in the weights, as `merge_lora` does; False gives the base's weights, bit for bit.

    Returns:
        The paths of the layers, in the model's order.

    Raises:
        LoraError: the model has no LoRA layers.
    """
    if keep_update:
        merge_lora(model)
    else:
        unmerge_lora(model)
    layers = lora_layers(model)
    for name, layer in layers.items():
        replace_module(model, name, _plain(layer))
    return list(layers)


def _layers(model: nn.Module) -> list[LoraLinear]:
    layers = list(lora_layers(model).values())
    if not layers:
        raise LoraError("the model has no LoRA layers")
    return layers


@torch.no_grad()
def _merge(layer: LoraLinear) -> None:
    original = layer.weight.detach()
    delta = layer.delta()
    # A new parameter, not an update in place: the weight may be shared with another layer or another model.
    merged = (original + (delta.T if layer.transposed else delta)).to(original.dtype)
    layer.register_buffer("original_weight", original, persistent=False)
    layer.weight = nn.Parameter(merged, requires_grad=layer.weight.requires_grad)
    layer.merged = True


def _unmerge(layer: LoraLinear) -> None:
    layer.weight = nn.Parameter(layer.get_buffer("original_weight"), requires_grad=layer.weight.requires_grad)
    del layer.original_weight
    layer.merged = False


def _plain(layer: LoraLinear) -> nn.Module:
    with torch.device("meta"):  # only the shell: the weights are the layer's
        if layer.transposed:
            plain = layer.plain_type(layer.out_features, layer.in_features)
        else:
            plain = layer.plain_type(layer.in_features, layer.out_features)
    plain.weight = layer.weight
    plain.bias = layer.bias  # type: ignore[assignment]
    return plain.train(layer.training)
