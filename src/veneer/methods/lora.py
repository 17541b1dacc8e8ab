"""`lora`: a low-rank update of linear layers (arXiv:2106.09685), stored as PEFT stores it."""

from __future__ import annotations

from pathlib import Path

from veneer import lora
from veneer.adaptation import adapt, share_inputs
from veneer.methods.contract import Method, MethodPlan, Stored
from veneer.methods.tensors import LANGUAGE_MODEL, task_type
from veneer.model import Classifier


def _apply(model: Classifier, plan: MethodPlan) -> None:
    adapt(model, plan.lora)


def _save(model: Classifier, folder: Path, base: str) -> None:
    bias = "none"
    trained = {name for name in model.trainable() if name.startswith("network.") and name.endswith(".bias")}
    if trained:
        bias = _bias_mode(model, trained)
    settings = lora.adapter_settings(model.network, bias=bias, base=base, task_type=task_type(model))  # type: ignore[arg-type]
    tensors = lora.lora_state_dict(model.network, bias, settings.saved_modules)  # type: ignore[arg-type]
    lora.write_adapter(folder, tensors, settings)


def _bias_mode(model: Classifier, trained: set[str]) -> str:
    modules = lora.trained_modules(model.network)
    loose = {name.removeprefix("network.") for name in trained}
    loose = {name for name in loose if not any(name.startswith(f"{module}.") for module in modules)}
    if not loose:
        return "none"
    adapted = {f"{name}.bias" for name in lora.lora_layers(model.network)}
    return "lora_only" if loose <= adapted else "all"


def _read(folder: Path) -> Stored:
    adapter = lora.read_adapter(folder)

    def fill(model: Classifier) -> None:
        lora.apply_adapter(model.network, adapter)
        share_inputs(model)

    def trains_base(model: Classifier) -> bool:
        return adapter.settings.bias != "none" or not set(adapter.settings.saved_modules) <= set(model.trained_heads)

    return Stored(fill, trains_base, adapter.settings.task_type == LANGUAGE_MODEL)


def _merge(model: Classifier) -> None:
    if lora.lora_layers(model.network):  # none where it was merged before
        lora.remove_lora(model.network, keep_update=True)


LORA = Method(
    name="lora",
    trains="a low-rank update of linear layers",
    files=("adapter_config.json", "adapter_model.safetensors"),
    apply=_apply,
    trains_base=lambda plan: plan.lora.trains_base,
    save=_save,
    read=_read,
    merge=_merge,
)
