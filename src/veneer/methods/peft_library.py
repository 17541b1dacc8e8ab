"""The peft library behind one boundary: its layers put into a classifier, and its adapter files written and read.

The only file that imports peft (the extra `methods`). The base is changed in place and run by our own path: of peft there are
layers, never a model. Files are read as untrusted: the caller builds peft's configuration from the tensors and the few fields it
checks itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from veneer import lora
from veneer.errors import ConfigError, LoraError
from veneer.lora.files import read_json_object, read_tensors
from veneer.lora.inject import is_conv1d, replace_module
from veneer.methods.tensors import check_finite, load_trained, task_type, trained_in_network
from veneer.model import Classifier
from veneer.quantise import quiet_bitsandbytes

CONFIG_FILE, TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ADAPTER = "default"  # what peft calls the one adapter of a model


def import_peft(method: str) -> Any:
    """peft.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        with quiet_bitsandbytes():
            import peft
    except ImportError:
        raise ConfigError(f"the method {method} needs the package peft. Fix: pip install 'veneer[methods]'") from None
    return peft


def inject(model: Classifier, config: Any) -> None:
    """Put peft's layers for `config` into the base; they are float32 and trained, and so is the head.

    Raises:
        LoraError: layers are in fewer bits, or of another kind that peft does not know.
    """
    method = config.peft_type.value.lower()
    peft = import_peft(method)
    if lora.frozen_elements(model.network):
        raise LoraError(
            f"{method} is put into a base by peft, which does not know veneer's layers in fewer bits. "
            "Fix: base_precision: auto, or method: lora"
        )
    try:
        with quiet_bitsandbytes():
            peft.inject_adapter_in_model(config, model.network)
    except ValueError as error:
        said = " ".join(str(error).split())
        raise LoraError(f"{method}: peft cannot change these layers: {said}. Fix: method: lora, or another base") from None
    for parameter in model.network.parameters():
        if parameter.requires_grad:  # peft makes them in the base's precision
            parameter.data = parameter.data.float()
    lora.unfreeze(model.network, model.trained_heads)


def transposed(model: Classifier, names: list[str]) -> bool:
    """Whether the layers store `[in, out]` (GPT-2's Conv1D), which peft wants to be told."""
    return any(is_conv1d(model.network.get_submodule(name)) for name in names)


def save(model: Classifier, folder: Path, base: str, fields: Mapping[str, Any]) -> None:
    """Write the adapter and the head as peft does, with the method's own `fields`."""
    tensors = {
        _PREFIX + _without_adapter(name): tensor.detach().cpu().clone().contiguous()
        for name, tensor in trained_in_network(model).items()
    }
    save_file(tensors, folder / TENSOR_FILE, metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": list(model.trained_heads) or None,
        "task_type": task_type(model),
        **fields,
    }
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def read(folder: Path, peft_type: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields of the configuration, and the tensors by their names in the network, without peft's additions.

    Raises:
        LoraError: a file is missing or damaged, or of another method.
    """
    fields = read_json_object(folder / CONFIG_FILE)
    if fields.get("peft_type") != peft_type:
        raise LoraError(f"{folder / CONFIG_FILE}: peft_type is {fields.get('peft_type')!r}, not {peft_type}")
    tensors = read_tensors(folder / TENSOR_FILE)
    check_finite(tensors)
    if strays := [name for name in tensors if not name.startswith(_PREFIX)]:
        raise LoraError(f"{folder / TENSOR_FILE}: unexpected: {strays[0]}")
    return fields, {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def require_layers(model: Classifier, names: Iterable[str]) -> None:
    """Raise a LoraError unless the network has a module of each name."""
    there = {name for name, _ in model.network.named_modules()}
    if unknown := [name for name in names if name not in there]:
        raise LoraError(f"what was trained does not fit the model\n  unexpected: {unknown[0]}")


def fill(model: Classifier, tensors: Mapping[str, Tensor]) -> None:
    """Copy what `read` gave into the layers that `inject` made.

    Raises:
        LoraError: tensors do not fit the model, or are missing.
    """
    names = {_without_adapter(name): name for name, _ in model.network.named_parameters()}
    own = {_without_adapter(name) for name in trained_in_network(model)}
    if lacking := sorted(own - tensors.keys()):
        raise LoraError(f"what was trained does not fit the model\n  missing: {lacking[0]}")
    load_trained(model, {names.get(name, name): tensor for name, tensor in tensors.items()})


@torch.no_grad()
def merge(model: Classifier) -> None:
    """Put the base's own layers back, with what peft's layers had learned in their weights."""
    for name, module in _tuned_layers(model.network).items():
        module.merge()
        replace_module(model.network, name, module.get_base_layer())


def _tuned_layers(network: nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)}


def _without_adapter(name: str) -> str:
    return name.removesuffix(f".{_ADAPTER}")
