"""Which parameters are trained: LoRA's own, biases, and modules trained in full (the head, what the base did not supply).

Knows nothing of heads or families: modules are named by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from torch import nn

from veneer.errors import LoraError
from veneer.lora.inject import lora_layers
from veneer.lora.layer import LoraLinear

Bias = Literal["none", "all", "lora_only"]


def mark_only_lora_as_trainable(model: nn.Module, bias: Bias = "none") -> None:
    """Freeze everything but LoRA's matrices and, by `bias`, no bias, every bias, or the biases of adapted layers.

    Raises:
        LoraError: the model has no LoRA layers, or `bias` is none of the three.
    """
    layers = lora_layers(model)
    if not layers:
        raise LoraError("the model has no LoRA layers. Fix: apply_lora(model, …) first")
    check_bias(bias)
    model.requires_grad_(False)
    for layer in layers.values():
        layer.lora_A.requires_grad_(True)
        layer.lora_B.requires_grad_(True)
        if layer.lora_magnitude is not None:
            layer.lora_magnitude.requires_grad_(True)
    names = bias_names(model, bias)
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(True)


def unfreeze(model: nn.Module, modules: Iterable[str]) -> None:
    """Train the named modules in full: a head, layers the base did not supply, `top_layers`, `embedding_modules`.

    Raises:
        LoraError: a path is not in the model, or holds LoRA layers (a file in PEFT's format cannot hold both; give the path to
            `apply_lora` as `exclude`).
    """
    there = dict(model.named_modules())
    for name in modules:
        if name not in there:
            raise LoraError(f"cannot train '{name}' in full: the model has no such module")
        if lora_layers(there[name]):
            raise LoraError(f"cannot train '{name}' in full: it holds LoRA layers. Fix: exclude it in apply_lora")
        there[name].requires_grad_(True)


def top_layers(model: nn.Module, count: int) -> tuple[str, ...]:
    """Paths of the last `count` transformer layers.

    Raises:
        LoraError: there are fewer layers, or none can be told.
    """
    stack = _layer_stack(model)
    layers = [name for name, _ in model.get_submodule(stack).named_children()]
    if not 0 <= count <= len(layers):
        raise LoraError(f"train_top_layers: {count} is not between 0 and the {len(layers)} layers of the model")
    return tuple(f"{stack}.{layer}" for layer in layers[len(layers) - count :])


def embedding_modules(model: nn.Module) -> tuple[str, ...]:
    """Paths of the embeddings (words, positions, segments): every `nn.Embedding` outside the transformer layers.

    Raises:
        LoraError: there are none, or no transformer layers can be told.
    """
    stack = _layer_stack(model)
    names = [
        name for name, module in model.named_modules() if isinstance(module, nn.Embedding) and not name.startswith(f"{stack}.")
    ]
    if not names:
        raise LoraError("train_embeddings: the model has no embeddings")
    return tuple(names)


def trained_modules(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules trained in full, none inside another: whole heads, but transformer layers one by one."""
    return tuple(_trained_below(model, ""))


def bias_names(model: nn.Module, bias: Bias) -> set[str]:
    """Names of the parameters that the mode `bias` trains."""
    if bias == "all":
        return {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"}
    if bias == "lora_only":
        return {f"{name}.bias" for name, layer in lora_layers(model).items() if layer.bias is not None}
    return set()


def check_bias(bias: str) -> None:
    """Raise a LoraError unless `bias` is one of the modes."""
    if bias not in get_args(Bias):
        raise LoraError(f"bias must be one of {', '.join(map(repr, get_args(Bias)))}, not {bias!r}")


def _layer_stack(model: nn.Module) -> str:
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = {name: module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    if not outermost:
        raise LoraError("the model has no list of transformer layers that could be told apart")
    sizes: dict[str, int] = {name: len(list(module.parameters())) for name, module in outermost.items()}
    return max(sizes, key=sizes.__getitem__)


def _trained_below(module: nn.Module, path: str) -> list[str]:
    parameters = list(module.parameters())
    if not parameters or isinstance(module, LoraLinear):
        return []
    whole = all(parameter.requires_grad for parameter in parameters) and not lora_layers(module)
    # Layers are named one by one: a list has no forward, so it cannot be one module of PEFT's modules_to_save.
    lists = any(isinstance(inner, nn.ModuleList | nn.ModuleDict) for inner in module.modules())
    if path and whole and not lists:
        return [path]
    prefix = f"{path}." if path else ""
    return [found for name, child in module.named_children() for found in _trained_below(child, prefix + name)]
