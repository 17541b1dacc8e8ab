"""PEFT's adapter files: `adapter_config.json` and `adapter_model.safetensors`. The only file that knows PEFT's names.

Written and checked against PEFT 0.21. A file is read as untrusted: every field is either honoured, known not to change the
outputs of a finished adapter, or refused by name. Which layers are adapted is told by the tensors, so that PEFT's ways of
choosing layers (patterns, exclusions, layer numbers) need no second implementation here. No pickle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from veneer.errors import LoraError
from veneer.lora.files import read_json_object, read_tensors
from veneer.lora.freeze import Bias, bias_names, check_bias, mark_only_lora_as_trainable, trained_modules, unfreeze
from veneer.lora.inject import apply_lora, is_inside, lora_layers
from veneer.lora.layer import Scaling
from veneer.lora.patterns import common_value, matched, misread
from veneer.lora.peft_fields import TaskType, field_problems
from veneer.lora.starts import start_dora
from veneer.lora.state import OWN_TENSORS, load_lora_state_dict, shorten

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"

_PREFIX = "base_model.model."
# PEFT adds these to modules_to_save where the task is SEQ_CLS, and takes every module whose path *ends* so (pre_classifier too).
_PEFT_HEADS = ("classifier", "score")


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter's tensors do not say by themselves.

    Attributes:
        rank: of the layers that have none of their own; `alpha` likewise.
        layers: paths of the adapted layers.
        saved_modules: paths of the modules whose tensors are saved whole: trained in full (the head, what the base did not
            supply), or frozen but taken by PEFT for the head.
        transposed: the adapted layers store `[in, out]` (GPT-2's Conv1D).
        base: name or folder of the base, None where unknown.
        task_type: SEQ_CLS for a model with its family's own head, FEATURE_EXTRACTION for a bare encoder, CAUSAL_LM for a language
            model.
        ranks: path -> rank of the layers that have their own.
        alphas: path -> alpha, likewise.
        dora: whether the layers have DoRA's lengths.
    """

    rank: int
    alpha: float
    dropout: float
    scaling: Scaling
    bias: Bias
    layers: tuple[str, ...]
    saved_modules: tuple[str, ...]
    transposed: bool
    base: str | None
    task_type: TaskType | None
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    dora: bool = False

    def rank_of(self, layer: str) -> int:
        """The rank of an adapted layer."""
        return self.ranks.get(layer, self.rank)

    def alpha_of(self, layer: str) -> float:
        """The alpha of an adapted layer."""
        return self.alphas.get(layer, self.alpha)


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as read: its settings, and its tensors under the names of `lora_state_dict`."""

    settings: AdapterSettings
    tensors: dict[str, Tensor]


def adapter_settings(model: nn.Module, *, bias: Bias, base: str | None, task_type: TaskType) -> AdapterSettings:
    """The settings of the adapter in `model`; its tensors are `lora_state_dict(model, bias, settings.saved_modules)`.

    Raises:
        LoraError: PEFT's format cannot hold the adapter: layers of different dropout or kind, a trained parameter in no module
            that is trained in full, or an adapted layer inside the head.
    """
    check_bias(bias)
    layers = lora_layers(model)
    kinds = {(layer.dropout, layer.scaling, layer.transposed, layer.lora_magnitude is not None) for layer in layers.values()}
    if len(kinds) != 1:
        raise LoraError(
            "PEFT's format holds one dropout, scaling and layer class an adapter; the model has "
            f"{len(kinds)} combinations of them"
        )
    saved = list(trained_modules(model))
    # PEFT takes every module whose path ends like one of these, and adapts nothing inside it.
    endings = (*saved, *(_PEFT_HEADS if task_type == "SEQ_CLS" else ()))
    taken = [name for name, _ in model.named_modules() if name.endswith(endings)] if endings else []
    saved += [name for name in taken if not is_inside(name, [*saved, *(other for other in taken if other != name)])]
    if clash := [name for name in layers if is_inside(name, saved) or set(endings) & set(name.split("."))]:
        raise LoraError(f"PEFT saves a head whole and adapts nothing inside it. Fix: exclude {shorten(clash)} in apply_lora")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    loose = trained - {f"{name}.{matrix}" for name in layers for matrix in OWN_TENSORS} - bias_names(model, bias)
    if loose := {name for name in loose if not is_inside(name, saved)}:
        raise LoraError(f"PEFT's format cannot hold a module that is trained in part: {shorten(sorted(loose))}")
    dropout, scaling, transposed, dora = kinds.pop()
    rank, ranks = common_value({name: layer.whole_rank for name, layer in layers.items()})
    alpha, alphas = common_value({name: layer.whole_alpha for name, layer in layers.items()})
    names, modules = tuple(layers), tuple(saved)
    return AdapterSettings(rank, alpha, dropout, scaling, bias, names, modules, transposed, base, task_type, ranks, alphas, dora)


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], settings: AdapterSettings) -> None:
    """Write both files into `folder`, which exists. `tensors` is the `lora_state_dict` that goes with `settings`.

    Raises:
        LoraError: tensors and settings do not go together.
    """
    problems = _mismatches(settings, tensors)
    if wrong := misread(settings.ranks, settings.layers) + misread(settings.alphas, settings.layers):
        problems.append(f"PEFT would take the rank or alpha of another layer for {shorten(wrong)}, whose path ends as that one's")
    if problems:
        raise LoraError("the adapter cannot be written\n  " + "\n  ".join(problems))
    # Copies: safetensors refuses tensors that share memory, as stacked matrices do.
    renamed = {_to_peft(name, settings.layers): tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(renamed, folder / TENSOR_FILE, metadata={"format": "pt"})
    text = json.dumps(_to_json(settings), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def read_adapter(folder: Path) -> AdapterFile:
    """Read an adapter that veneer or PEFT wrote.

    Raises:
        LoraError: a file is missing, damaged or a pickle, or the adapter cannot be honoured exactly; every problem is named.
    """
    fields = read_json_object(folder / CONFIG_FILE)
    problems = field_problems(fields)
    if problems:
        raise LoraError(_refusal(folder / CONFIG_FILE, problems))
    stored = _read_tensors(folder)
    tensors, strays = _from_peft(stored, fields)
    settings = _from_json(fields, tensors)
    problems = [f"unexpected: {shorten(strays)}"] if strays else []
    problems += _mismatches(settings, tensors) + _unfilled(fields, settings.layers, tensors)
    if problems:
        raise LoraError(_refusal(folder / TENSOR_FILE, problems))
    return AdapterFile(settings, tensors)


def apply_adapter(model: nn.Module, adapter: AdapterFile) -> None:
    """Adapt `model` as the file says and load its tensors, with what the adapter trains marked as trained.

    Raises:
        LoraError: the adapter does not fit the model.
    """
    settings = adapter.settings
    apply_lora(
        model,
        settings.layers,
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        scaling=settings.scaling,
        ranks=settings.ranks,
        alphas=settings.alphas,
    )
    if settings.dora:
        start_dora(model)
    mark_only_lora_as_trainable(model, settings.bias)
    unfreeze(model, settings.saved_modules)
    load_lora_state_dict(model, adapter.tensors, settings.bias, settings.saved_modules)


def _to_json(settings: AdapterSettings) -> dict[str, Any]:
    patterns = {
        "rank_pattern": dict(settings.ranks),
        "alpha_pattern": {name: _plain_number(alpha) for name, alpha in settings.alphas.items()},
    }
    return {
        "peft_type": "LORA",
        "task_type": settings.task_type,
        "base_model_name_or_path": settings.base,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": _plain_number(settings.alpha),
        "lora_dropout": settings.dropout,
        "use_rslora": settings.scaling == "rslora",
        "bias": settings.bias,
        "fan_in_fan_out": settings.transposed,
        "target_modules": list(settings.layers),
        "modules_to_save": list(settings.saved_modules) or None,
        "init_lora_weights": True,
        **({"use_dora": True} if settings.dora else {}),
        **{key: pattern for key, pattern in patterns.items() if pattern},
    }


def _plain_number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _from_json(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> AdapterSettings:
    layers = tuple(name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A"))
    saved = dict.fromkeys(module for name in tensors if (module := _saved_module(name, fields)) is not None)
    return AdapterSettings(
        rank=fields["r"],
        alpha=float(fields["lora_alpha"]),
        dropout=float(fields.get("lora_dropout", 0.0)),
        scaling="rslora" if fields.get("use_rslora") else "standard",
        bias=cast(Bias, fields.get("bias", "none")),
        layers=layers,
        saved_modules=tuple(saved),
        transposed=bool(fields.get("fan_in_fan_out")),
        base=fields.get("base_model_name_or_path"),
        task_type=cast("TaskType | None", fields.get("task_type")),
        ranks=matched(fields.get("rank_pattern") or {}, layers),
        dora=bool(fields.get("use_dora")),
        alphas={name: float(alpha) for name, alpha in matched(fields.get("alpha_pattern") or {}, layers).items()},
    )


def _to_peft(name: str, layers: tuple[str, ...]) -> str:
    module, _, last = name.rpartition(".")
    if last in ("lora_A", "lora_B"):
        return f"{_PREFIX}{name}.weight"
    if last == "lora_magnitude":
        return f"{_PREFIX}{name}_vector"
    if last == "bias" and module in layers:
        return f"{_PREFIX}{module}.base_layer.bias"
    return _PREFIX + name


def _from_peft_name(name: str) -> str:
    if name.endswith((".lora_A.weight", ".lora_B.weight")):
        return name.removesuffix(".weight")
    if name.endswith(".lora_magnitude_vector"):
        return name.removesuffix("_vector")
    if name.endswith(".base_layer.bias"):
        return name.removesuffix(".base_layer.bias") + ".bias"
    return name


def _from_peft(stored: Mapping[str, Tensor], fields: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under our names, and the keys that an adapter of these settings does not have."""
    bias = fields.get("bias", "none")
    tensors: dict[str, Tensor] = {}
    strays: list[str] = []
    for key, tensor in stored.items():
        stored_name = key.removeprefix(_PREFIX)
        if bias == "all" and _is_copy(stored_name, stored):
            continue
        name = _from_peft_name(stored_name)
        adapted = name != stored_name and not name.endswith(".bias")
        adapted = adapted and (not name.endswith(".lora_magnitude") or bool(fields.get("use_dora")))
        trained_bias = name.endswith(".bias") and (bias == "all" or (bias == "lora_only" and name != stored_name))
        known = adapted or trained_bias or _saved_module(name, fields) is not None
        if known and key.startswith(_PREFIX) and name not in tensors:
            tensors[name] = tensor
        else:
            strays.append(key)
    return tensors, strays


def _is_copy(name: str, stored: Mapping[str, Tensor]) -> bool:
    """PEFT with bias="all" also writes the biases of both its copies of a saved module, which it does not read again."""
    originals = {re.sub(copy, ".", name) for copy in (r"\.(modules_to_save|original_module)\.", r"\.modules_to_save\.[^.]+\.")}
    return name.endswith(".bias") and any(_PREFIX + original in stored for original in originals - {name})


def _saved_module(name: str, fields: Mapping[str, Any]) -> str | None:
    """The module of modules_to_save that holds the tensor `name`: the shortest path that ends as PEFT would have it."""
    endings = _endings(fields)
    return next((path for path in _paths(name) if endings and path.endswith(endings)), None)


def _paths(name: str) -> list[str]:
    """The paths of all modules that the tensor `name` lies in, the outermost first; none for LoRA's own tensors."""
    *parts, last = name.split(".")
    return [] if last in OWN_TENSORS else [".".join(parts[: i + 1]) for i in range(len(parts))]


def _endings(fields: Mapping[str, Any]) -> tuple[str, ...]:
    heads = _PEFT_HEADS if fields.get("task_type") == "SEQ_CLS" else ()
    return (*(fields.get("modules_to_save") or ()), *heads)


def _mismatches(settings: AdapterSettings, tensors: Mapping[str, Tensor]) -> list[str]:
    """Where tensors and settings do not go together."""
    problems = [] if settings.layers else ["no layer is adapted: there is no lora_A"]
    own = OWN_TENSORS if settings.dora else ("lora_A", "lora_B")
    expected = {f"{layer}.{matrix}" for layer in settings.layers for matrix in own}
    if missing := sorted(expected - tensors.keys()):
        problems.append(f"missing: {shorten(missing)}")
    if lone := sorted(name for name in tensors if name.rpartition(".")[2] in OWN_TENSORS and name not in expected):
        problems.append(f"half a layer only: {shorten(lone)}")
    problems += [
        f"no tensors for {module!r}"
        for module in settings.saved_modules
        if not any(is_inside(name, [module]) for name in tensors)
    ]
    for name in sorted(expected & tensors.keys()):
        shape, rank = tuple(tensors[name].shape), settings.rank_of(name.rpartition(".")[0])
        if name.endswith("lora_magnitude"):
            continue
        if len(shape) != 2 or shape[0 if name.endswith("A") else 1] != rank:
            problems.append(f"{name} has the shape {shape}, which is not of rank {rank}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            problems.append(f"{name} holds values that are not finite numbers")
    return problems[:10]


def _unfilled(fields: Mapping[str, Any], layers: tuple[str, ...], tensors: Mapping[str, Tensor]) -> list[str]:
    """What the configuration names and the tensors lack: signs of a file cut short."""
    problems = []
    for target in fields["target_modules"] if isinstance(fields.get("target_modules"), list) else []:
        if not any(layer == target or layer.endswith(f".{target}") for layer in layers):
            problems.append(f"no tensors for the target {target!r}")
    saved = {path for name in tensors for path in _paths(name)}
    for ending in fields.get("modules_to_save") or []:
        if ending not in _PEFT_HEADS and not any(path.endswith(ending) for path in saved):
            problems.append(f"no tensors for {ending!r} of modules_to_save")
    endings = _endings(fields)
    whole = {path for path in saved if endings and path.endswith(endings)}
    if nested := sorted(path for path in whole if is_inside(path, whole - {path})):
        problems.append(f"modules_to_save holds {shorten(nested)} inside another of its modules, which PEFT cannot load either")
    if fields.get("task_type") == "SEQ_CLS" and not whole:
        problems.append("no tensors of a classification head")
    return problems[:10]


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / TENSOR_FILE).exists() and (folder / PICKLE_FILE).exists():
        raise LoraError(
            f"{folder} holds its tensors as {PICKLE_FILE}, a pickle, which can run any code when it is read. "
            f"Fix: load it with PEFT where you trust it, and save it again as {TENSOR_FILE}"
        )
    return read_tensors(folder / TENSOR_FILE)


def _refusal(path: Path, problems: list[str]) -> str:
    return f"{path}: the adapter cannot be used as it is\n  " + "\n  ".join(problems)
