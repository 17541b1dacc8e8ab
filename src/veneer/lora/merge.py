"""Writing the update into the frozen weights, taking it out again exactly, and going back to plain layers.

Always explicit: nothing is merged in `train()` or `eval()`. A merged layer keeps its frozen weight in the buffer
`original_weight` (not in the state dict), so that unmerging restores it bit for bit, in low precision too, at the price of
holding both. Over a weight of fewer bits the merged one is dense, in the precision that the layer computes in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from veneer.errors import LoraError
from veneer.lora.frozen import FrozenLinear, FrozenWeight, dense
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
    original = layer.weight
    plain, whole = dense(original).detach(), layer.whole_weight()
    # A new parameter, not an update in place: the weight may be shared with another layer or another model.
    merged = (whole.T if layer.transposed else whole).to(plain.dtype).contiguous()
    trained = isinstance(original, nn.Parameter) and original.requires_grad
    if isinstance(original, FrozenWeight):
        layer.register_module("original_weight", original)
    else:
        layer.register_buffer("original_weight", plain, persistent=False)
    _put_weight(layer, merged, trained=trained)
    layer.merged = True


def _unmerge(layer: LoraLinear) -> None:
    original, trained = layer.original_weight, layer.get_parameter("weight").requires_grad
    del layer.original_weight
    _put_weight(layer, original, trained=trained)  # type: ignore[arg-type]
    layer.merged = False


def _put_weight(layer: LoraLinear, weight: Tensor | FrozenWeight, *, trained: bool) -> None:
    del layer.weight  # torch lets no module take a parameter's name
    layer.weight = nn.Parameter(weight, requires_grad=trained) if isinstance(weight, Tensor) else weight


def _plain(layer: LoraLinear) -> nn.Module:
    if not isinstance(layer.weight, Tensor):
        frozen = FrozenLinear(layer.weight, layer.bias, transposed=layer.transposed, plain_type=layer.plain_type)
        return frozen.train(layer.training)
    with torch.device("meta"):  # only the shell: the weights are the layer's
        if layer.transposed:
            plain = layer.plain_type(layer.out_features, layer.in_features)
        else:
            plain = layer.plain_type(layer.in_features, layer.out_features)
    plain.weight = layer.weight
    plain.bias = layer.bias  # type: ignore[assignment]
    return plain.train(layer.training)
