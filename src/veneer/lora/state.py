"""The adapter as a dictionary of tensors under the model's own names, and strict loading of one.

Knows nothing of files (`peft_format.py`). Keys: `<layer>.lora_A` `[r, in]`, `<layer>.lora_B` `[out, r]`, DoRA's
`<layer>.lora_magnitude` `[out]`, trained biases, and the tensors of modules trained in full. Of a layer that PiSSA started r is
twice its rank: the matrices hold what it subtracts, too, and go over the base as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from veneer.errors import LoraError
from veneer.lora.freeze import Bias, bias_names, check_bias
from veneer.lora.inject import is_inside, lora_layers

OWN_TENSORS = ("lora_A", "lora_B", "lora_magnitude")
_SHOWN = 5


def lora_state_dict(model: nn.Module, bias: Bias = "none", modules: Collection[str] = ()) -> dict[str, Tensor]:
    """LoRA's matrices, the biases that `bias` trains, and all tensors of `modules`; detached, copied only where PiSSA started.

    Raises:
        LoraError: the model has no LoRA layers, or no module of that name.
    """
    check_bias(bias)
    layers = lora_layers(model)
    if not layers:
        raise LoraError("the model has no LoRA layers, so there is no adapter to take out of it")
    there = dict(model.named_modules())
    if unknown := [name for name in modules if name not in there]:
        raise LoraError(f"the model has no module {shorten(unknown)}")
    names = {f"{name}.{own}" for name in layers for own in OWN_TENSORS} | bias_names(model, bias)
    state = {name: tensor for name, tensor in model.state_dict().items() if name in names or is_inside(name, modules)}
    for name, layer in layers.items():
        if layer.initial_A is not None:
            a, b = layer.whole_factors()
            state |= {f"{name}.lora_A": a.detach(), f"{name}.lora_B": b.detach()}
    return state


def load_lora_state_dict(
    model: nn.Module, state: Mapping[str, Tensor], bias: Bias = "none", modules: Collection[str] = ()
) -> None:
    """Copy `state`, as `lora_state_dict` gave it for the same `bias` and `modules`, into `model`; all of it or nothing.

    Raises:
        LoraError: tensors are missing, unexpected, of another shape, or of a precision the model's cannot hold; or the model is
            merged, so that the new update would not reach its weights.
    """
    if any(layer.merged for layer in lora_layers(model).values()):
        raise LoraError("the adapter cannot be loaded while the model is merged. Fix: unmerge_lora(model) first")
    if any(layer.initial_A is not None for layer in lora_layers(model).values()):
        raise LoraError("an adapter goes over the base as it is, not over a model that PiSSA started. Fix: apply_lora alone")
    own = lora_state_dict(model, bias, modules)
    problems = []
    if missing := [name for name in own if name not in state]:
        problems.append(f"missing: {shorten(missing)}")
    if unexpected := [name for name in state if name not in own]:
        problems.append(f"unexpected: {shorten(unexpected)}. Fix: the bias and modules that lora_state_dict was given")
    common = [name for name in own if name in state]
    shapes = [f"{name} is {_size(state[name])}, the model's {_size(own[name])}" for name in common if _differ(own, state, name)]
    if shapes:
        problems.append(f"other shape: {shorten(shapes)}")
    lossy = [name for name in common if torch.promote_types(own[name].dtype, state[name].dtype) != own[name].dtype]
    if lossy:
        problems.append(f"held by the model in a lower precision than saved: {shorten(lossy)}")
    if problems:
        raise LoraError("the adapter does not fit the model\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def shorten(items: Sequence[str]) -> str:
    """The first few of `items` and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _differ(own: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str) -> bool:
    return own[name].shape != state[name].shape


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a single number"
