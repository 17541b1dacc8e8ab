"""`ia3`: a trained factor for every key, value and inner feed-forward activation (arXiv:2205.05638), by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from veneer.errors import LoraError
from veneer.methods import peft_library
from veneer.methods.contract import Method, MethodPlan, Stored
from veneer.methods.places import layers_at, places_of
from veneer.methods.tensors import LANGUAGE_MODEL
from veneer.model import Classifier


def _apply(model: Classifier, _plan: MethodPlan) -> None:
    places = places_of(model, "ia3")
    inner = list(layers_at(model.network, places.feed_forward))
    _inject(model, [*layers_at(model.network, places.keys_values), *inner], inner)


def _inject(model: Classifier, names: list[str], inner: list[str]) -> None:
    config = peft_library.import_peft("ia3").IA3Config(
        target_modules=names, feedforward_modules=inner, fan_in_fan_out=peft_library.transposed(model, names)
    )
    peft_library.inject(model, config)


def _save(model: Classifier, folder: Path, base: str) -> None:
    layers: dict[str, Any] = {
        name.removesuffix(".ia3_l"): module
        for name, module in model.network.named_modules()
        if name.endswith(".ia3_l")  # peft's dictionary of vectors inside its layer
    }
    inner = [name for name in layers if model.network.get_submodule(name).is_feedforward]
    fields = {
        "peft_type": "IA3",
        "target_modules": list(layers),
        "feedforward_modules": inner,
        "fan_in_fan_out": bool(model.network.get_submodule(next(iter(layers))).fan_in_fan_out),
        "init_ia3_weights": True,
    }
    peft_library.save(model, folder, base, fields)


def _read(folder: Path) -> Stored:
    fields, tensors = peft_library.read(folder, "IA3")
    names = [name.removesuffix(".ia3_l") for name in tensors if name.endswith(".ia3_l")]
    inner = fields.get("feedforward_modules")
    if not names or not isinstance(inner, list) or not set(map(str, inner)) <= set(names):
        raise LoraError(f"{folder}: feedforward_modules is not among the layers whose tensors are there")

    def fill(model: Classifier) -> None:
        peft_library.require_layers(model, names)
        _inject(model, names, [str(name) for name in inner])
        peft_library.fill(model, tensors)

    return Stored(fill, lambda _: False, fields.get("task_type") == LANGUAGE_MODEL)


IA3 = Method(
    name="ia3",
    trains="a factor for each key, value and inner activation",
    files=(peft_library.CONFIG_FILE, peft_library.TENSOR_FILE),
    apply=_apply,
    trains_base=lambda _: False,
    save=_save,
    read=_read,
    merge=peft_library.merge,
)
