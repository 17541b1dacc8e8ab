"""Putting LoRA on a classifier: which layers, what else is trained, and which layers and models share what they can.

Knows the classifier and the adapter; knows nothing of files, configurations or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from veneer import lora
from veneer.errors import BaseError, LoraError
from veneer.heads import output_layers
from veneer.lora.dropout import MaskedDropout
from veneer.lora.freeze import Bias
from veneer.lora.inject import Layers
from veneer.lora.layer import Scaling, shared_traits
from veneer.model import Classifier


@dataclass(frozen=True)
class AdapterPlan:
    """Which layers are adapted, how, and what else is trained; the fields of the configuration's `lora` section."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.1
    target_modules: str | Sequence[str] = "auto"
    layers: Layers = "all"
    bias: Bias = "none"
    scaling: Scaling = "standard"
    train_top_layers: int = 0
    train_embeddings: bool = False
    init: Literal["standard", "pissa"] = "standard"
    dora: bool = False

    @property
    def trains_base(self) -> bool:
        """Whether weights of the base itself are trained, which needs them in float32."""
        return self.bias != "none" or self.train_top_layers > 0 or self.train_embeddings


def adapt(model: Classifier, plan: AdapterPlan) -> list[str]:
    """Put LoRA into the model and mark what is trained: LoRA, the head, and what the base did not supply.

    Returns:
        The paths of the adapted layers inside `model.network`.

    Raises:
        LoraError: the plan fits no layer of the model.
    """
    network = model.network
    targets = family_targets(model, plan.target_modules)
    if model.words is not None and plan.train_embeddings and _is_tied(network):
        raise LoraError(
            "lora.train_embeddings: this base's embeddings are its output matrix, too, by which label words are read, and PEFT's "
            "format cannot hold that. Fix: train_embeddings: false"
        )
    trained = list(model.trained_heads)
    trained += lora.top_layers(network, plan.train_top_layers)
    trained += lora.embedding_modules(network) if plan.train_embeddings else ()
    names = lora.apply_lora(
        network,
        targets,
        rank=plan.rank,
        alpha=plan.alpha,
        dropout=plan.dropout,
        scaling=plan.scaling,
        layers=plan.layers,
        exclude=[*trained, *unread_layers(model)],
    )
    if plan.init == "pissa":
        lora.start_pissa(network)
    if plan.dora:
        lora.start_dora(network)
    if plan.trains_base and lora.frozen_elements(network):
        raise LoraError("weights of a base in fewer bits cannot be trained. Fix: base_precision: auto")
    if plan.trains_base and next(model.encoder.parameters()).dtype != torch.float32:
        raise LoraError("training weights of the base needs them in float32. Fix: training.precision: fp32")
    lora.mark_only_lora_as_trainable(network, plan.bias)
    lora.unfreeze(network, trained)
    share_inputs(model)
    model.train(model.training)
    return names


def _is_tied(network: Any) -> bool:
    return network.get_output_embeddings().weight is network.get_input_embeddings().weight


def unread_layers(model: Classifier) -> tuple[str, ...]:
    """Path of the layer whose rows label words are read by, which an update would not reach."""
    return () if model.words is None else output_layers(model.network)


def family_targets(model: Classifier, targets: str | Sequence[str]) -> str | Sequence[str]:
    """`auto` and `query_value` as the names that the model's family has for them; anything else as it is.

    Raises:
        LoraError: the family is not known.
    """
    family = model.config.get_text_config().model_type
    if targets == "auto":
        return lora.default_targets(family)
    return lora.query_value_targets(family) if targets == "query_value" else targets


def can_checkpoint(model: Classifier) -> bool:
    """Whether the base's code can do `checkpoint_activations`."""
    return bool(model.network.supports_gradient_checkpointing)


def checkpoint_activations(model: Classifier) -> None:
    """Compute the activations inside a layer again in the backward pass, which saves their memory.

    Raises:
        BaseError: the base's code cannot do so.
    """
    network: Any = model.network
    if not can_checkpoint(model):
        raise BaseError(
            f"{model.config.model_type} cannot do gradient checkpointing. Fix: training.gradient_checkpointing: false"
        )
    # The name in older versions of transformers; newer ones warn of it.
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def turn_on_dropout(model: Classifier, rate: float | None = None) -> None:
    """Let the base's own dropout layers work in training, at this rate, or at those that the base was made with.

    The dropout of attention weights stays off where texts are packed, since the attention over packs has none.

    Raises:
        LoraError: a rate is given and the base has no such layers.
    """
    layers = {name: one for name, one in model.encoder.named_modules() if isinstance(one, nn.Dropout)}
    if rate and not layers:
        raise LoraError(
            f"training.base_dropout: {model.config.model_type} has no dropout layers. "
            "Fix: training.base_dropout: auto, and --dropout for the adapter's own"
        )
    on = {name: MaskedDropout(one.p if rate is None else rate) for name, one in layers.items()}
    for name, layer in on.items():
        model.encoder.set_submodule(name, layer)
    model.base_dropout = tuple(layer for layer in on.values() if layer.p > 0)
    model.train(model.training)


def share_inputs(model: Classifier) -> None:
    """Let adapted layers that read the same input (query, key and value) and are alike read it once."""
    layers = lora.lora_layers(model.network)
    for group in lora.shared_input_groups(name for name in layers if name != model.narrowed_query):
        alike: dict[tuple[object, ...], list[lora.LoraLinear]] = {}
        for name in group:
            alike.setdefault(shared_traits(layers[name]), []).append(layers[name])
        for same in alike.values():
            if len(same) > 1:
                lora.SharedInput(same)


def share_frozen(model: Classifier, other: Classifier) -> None:
    """Let what neither model trains be that of `other`, a model of the same base: one copy in memory.

    Weights in fewer bits are shared where their codes are equal: they may have been made on another device.
    """
    network = model.network
    theirs = dict(other.network.named_parameters(remove_duplicate=False))
    for name, parameter in list(network.named_parameters(remove_duplicate=False)):  # a tied one at each of its places
        same = theirs.get(name, parameter)
        if not parameter.requires_grad and not same.requires_grad and parameter.dtype == same.dtype:
            _put(network, name, same)
    modules = dict(other.network.named_modules(remove_duplicate=False))
    for name, module in list(network.named_modules(remove_duplicate=False)):
        frozen = modules.get(name)
        if isinstance(module, lora.FrozenWeight) and isinstance(frozen, lora.FrozenWeight) and module.is_same(frozen):
            _put(network, name, frozen)


def _put(network: nn.Module, name: str, one: nn.Parameter | nn.Module) -> None:
    path, _, last = name.rpartition(".")
    setattr(network.get_submodule(path), last, one)


def replace_adapter(model: Classifier, adapter: lora.AdapterFile) -> None:
    """Put another adapter, with what it trains of the base's network, in the place of the model's.

    Raises:
        LoraError: it does not fit the network.
    """
    lora.remove_lora(model.network)
    lora.apply_adapter(model.network, adapter)
    share_inputs(model)
    model.train(model.training)
