"""Counting parameters, and the rows that show them. Works on the meta device, from a configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from veneer.lora.freeze import trained_modules
from veneer.lora.frozen import frozen_elements
from veneer.lora.inject import lora_layers
from veneer.lora.layer import LoraLinear


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; a shared one counts once.

    Attributes:
        lora: in LoRA's matrices.
        trainable: all that are trained: LoRA, head, biases.
        total: all of the model.
        peft_trainable: what PEFT prints as trainable.
        peft_total: what PEFT prints as all. PEFT keeps a frozen copy of each module trained in full, and counts it too.
    """

    lora: int
    trainable: int
    total: int
    peft_trainable: int
    peft_total: int


@dataclass(frozen=True)
class LayerRow:
    """One adapted layer; `parameters` are those of its two LoRA matrices, and of DoRA's lengths."""

    name: str
    in_features: int
    out_features: int
    rank: int
    parameters: int


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of the model and whether it is trained."""

    name: str
    shape: tuple[int, ...]
    trained: bool


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count the parameters of a model, in our way and in PEFT's."""
    parameters = list(model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in parameters) + frozen_elements(model)
    copied = sum(parameter.numel() for name in trained_modules(model) for parameter in model.get_submodule(name).parameters())
    lora = sum(row.parameters for row in adapted_layers(model))
    return ParameterCounts(lora, trainable, total, peft_trainable=trainable, peft_total=total + copied)


def adapted_layers(model: nn.Module) -> list[LayerRow]:
    """A row a LoRA layer, in the model's order."""
    return [
        LayerRow(name, layer.in_features, layer.out_features, layer.rank, _trained_of(layer))
        for name, layer in lora_layers(model).items()
    ]


def _trained_of(layer: LoraLinear) -> int:
    magnitude = 0 if layer.lora_magnitude is None else layer.lora_magnitude.numel()
    return layer.lora_A.numel() + layer.lora_B.numel() + magnitude


def parameter_rows(model: nn.Module) -> list[ParameterRow]:
    """A row a parameter, in the model's order."""
    return [ParameterRow(name, tuple(parameter.shape), parameter.requires_grad) for name, parameter in model.named_parameters()]
