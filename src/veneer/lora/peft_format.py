"""PEFT's adapter files: `adapter_config.json` and `adapter_model.safetensors`. The only file that knows PEFT's names.

Written and checked against PEFT 0.21. A file is read as untrusted: every field is either honoured, known not to change the
outputs of a finished adapter, or refused by name. Which layers are adapted is told by the tensors, so that PEFT's ways of
choosing layers (patterns, exclusions, layer numbers) need no second implementation here. No pickle.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from safetensors.torch import save_file
from torch import Tensor, nn

from veneer.errors import LoraError
from veneer.lora.files import read_json_object, read_tensors
from veneer.lora.freeze import Bias, bias_names, check_bias, mark_only_lora_as_trainable, trained_modules, unfreeze
from veneer.lora.inject import apply_lora, is_inside, lora_layers
from veneer.lora.layer import Scaling
from veneer.lora.state import load_lora_state_dict, shorten

TaskType = Literal["SEQ_CLS", "FEATURE_EXTRACTION", "CAUSAL_LM"]

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"

_PREFIX = "base_model.model."
# PEFT adds these to modules_to_save where the task is SEQ_CLS, and takes every module whose path *ends* so (pre_classifier too).
_PEFT_HEADS = ("classifier", "score")

# Every field of PEFT's LoraConfig is in one of the three; fields that are in none are refused unless empty.
HONOURED_FIELDS = frozenset(
    {"base_model_name_or_path", "bias", "init_lora_weights", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type"}
    | {"r", "target_modules", "task_type", "use_rslora"}
)
HARMLESS_FIELDS: dict[str, str] = {
    "auto_mapping": "how PEFT finds the model class",
    "exclude_modules": "the tensors tell which layers are adapted",
    "fan_in_fan_out": "the model's layers tell how they store their weight",
    "inference_mode": "whether PEFT loads the adapter frozen",
    "layers_pattern": "the tensors tell which layers are adapted",
    "layers_to_transform": "the tensors tell which layers are adapted",
    "megatron_core": "a module name that is used with megatron_config alone",
    "peft_version": "which PEFT wrote the file",
    "qalora_group_size": "a number that is used with use_qalora alone",
    "revision": "of the base",
    "runtime_config": "not part of the adapter",
}
REFUSED_FIELDS: dict[str, str] = {
    "alora_invocation_tokens": "activated LoRA",
    "alpha_pattern": "an alpha of its own for some layers",
    "arrow_config": "Arrow routing",
    "corda_config": "CorDA, which changes the base's weights",
    "ensure_weight_tying": "adapters tied like the base's weights",
    "eva_config": "EVA",
    "kasa_config": "KaSA",
    "layer_replication": "repeated layers",
    "loftq_config": "LoftQ, which changes the base's weights",
    "lora_bias": "a bias in B",
    "lora_ga_config": "LoRA-GA, which changes the base's weights",
    "megatron_config": "Megatron's parallel layers",
    "monteclora_config": "MonteCLoRA",
    "rank_pattern": "a rank of its own for some layers",
    "target_parameters": "adapted parameters outside linear layers",
    "trainable_token_indices": "trained tokens",
    "use_bdlora": "block-diagonal LoRA",
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "velora_config": "VeLoRA",
}
# Initial values that leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoftQ, …) belong to a changed base.
_PLAIN_INITIALS = (True, False, "gaussian", "orthogonal")


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter's tensors do not say by themselves.

    Attributes:
        layers: paths of the adapted layers.
        saved_modules: paths of the modules whose tensors are saved whole: trained in full (the head, what the base did not
            supply), or frozen but taken by PEFT for the head.
        transposed: the adapted layers store `[in, out]` (GPT-2's Conv1D).
        base: name or folder of the base, None where unknown.
        task_type: SEQ_CLS for a model with its family's own head, FEATURE_EXTRACTION for a bare encoder, CAUSAL_LM for a language
            model.
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


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as read: its settings, and its tensors under the names of `lora_state_dict`."""

    settings: AdapterSettings
    tensors: dict[str, Tensor]


def adapter_settings(model: nn.Module, *, bias: Bias, base: str | None, task_type: TaskType) -> AdapterSettings:
    """The settings of the adapter in `model`; its tensors are `lora_state_dict(model, bias, settings.saved_modules)`.

    Raises:
        LoraError: PEFT's format cannot hold the adapter: layers of different shapes, a trained parameter in no module that is
            trained in full, or an adapted layer inside the head.
    """
    check_bias(bias)
    layers = lora_layers(model)
    shapes = {(layer.rank, layer.alpha, layer.dropout, layer.scaling, layer.transposed) for layer in layers.values()}
    if len(shapes) != 1:
        raise LoraError(
            "PEFT's format holds one rank, alpha, dropout, scaling and layer class an adapter; the model has "
            f"{len(shapes)} combinations of them"
        )
    saved = list(trained_modules(model))
    # PEFT takes every module whose path ends like one of these, and adapts nothing inside it.
    endings = (*saved, *(_PEFT_HEADS if task_type == "SEQ_CLS" else ()))
    taken = [name for name, _ in model.named_modules() if name.endswith(endings)] if endings else []
    saved += [name for name in taken if not is_inside(name, [*saved, *(other for other in taken if other != name)])]
    if clash := [name for name in layers if is_inside(name, saved) or set(endings) & set(name.split("."))]:
        raise LoraError(f"PEFT saves a head whole and adapts nothing inside it. Fix: exclude {shorten(clash)} in apply_lora")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    loose = trained - {f"{name}.{matrix}" for name in layers for matrix in ("lora_A", "lora_B")} - bias_names(model, bias)
    if loose := {name for name in loose if not is_inside(name, saved)}:
        raise LoraError(f"PEFT's format cannot hold a module that is trained in part: {shorten(sorted(loose))}")
    rank, alpha, dropout, scaling, transposed = shapes.pop()
    return AdapterSettings(rank, alpha, dropout, scaling, bias, tuple(layers), tuple(saved), transposed, base, task_type)


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], settings: AdapterSettings) -> None:
    """Write both files into `folder`, which exists. `tensors` is the `lora_state_dict` that goes with `settings`.

    Raises:
        LoraError: tensors and settings do not go together.
    """
    if problems := _mismatches(settings, tensors):
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
    problems = _field_problems(fields)
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
    )
    mark_only_lora_as_trainable(model, settings.bias)
    unfreeze(model, settings.saved_modules)
    load_lora_state_dict(model, adapter.tensors, settings.bias, settings.saved_modules)


def _to_json(settings: AdapterSettings) -> dict[str, Any]:
    alpha = settings.alpha
    return {
        "peft_type": "LORA",
        "task_type": settings.task_type,
        "base_model_name_or_path": settings.base,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.scaling == "rslora",
        "bias": settings.bias,
        "fan_in_fan_out": settings.transposed,
        "target_modules": list(settings.layers),
        "modules_to_save": list(settings.saved_modules) or None,
        "init_lora_weights": True,
    }


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
    )


def _to_peft(name: str, layers: tuple[str, ...]) -> str:
    module, _, last = name.rpartition(".")
    if last in ("lora_A", "lora_B"):
        return f"{_PREFIX}{name}.weight"
    if last == "bias" and module in layers:
        return f"{_PREFIX}{module}.base_layer.bias"
    return _PREFIX + name


def _from_peft_name(name: str) -> str:
    if name.endswith((".lora_A.weight", ".lora_B.weight")):
        return name.removesuffix(".weight")
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
    return [] if last in ("lora_A", "lora_B") else [".".join(parts[: i + 1]) for i in range(len(parts))]


def _endings(fields: Mapping[str, Any]) -> tuple[str, ...]:
    heads = _PEFT_HEADS if fields.get("task_type") == "SEQ_CLS" else ()
    return (*(fields.get("modules_to_save") or ()), *heads)


def _mismatches(settings: AdapterSettings, tensors: Mapping[str, Tensor]) -> list[str]:
    """Where tensors and settings do not go together."""
    problems = [] if settings.layers else ["no layer is adapted: there is no lora_A"]
    expected = {f"{layer}.{matrix}" for layer in settings.layers for matrix in ("lora_A", "lora_B")}
    if missing := sorted(expected - tensors.keys()):
        problems.append(f"missing: {shorten(missing)}")
    if lone := sorted(name for name in tensors if name.endswith((".lora_A", ".lora_B")) and name not in expected):
        problems.append(f"half a layer only: {shorten(lone)}")
    problems += [
        f"no tensors for {module!r}"
        for module in settings.saved_modules
        if not any(is_inside(name, [module]) for name in tensors)
    ]
    for name in sorted(expected & tensors.keys()):
        shape = tuple(tensors[name].shape)
        if len(shape) != 2 or shape[0 if name.endswith("A") else 1] != settings.rank:
            problems.append(f"{name} has the shape {shape}, which is not of rank {settings.rank}")
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


def _field_problems(fields: Mapping[str, Any]) -> list[str]:
    """Every field that is wrong, or that veneer cannot honour exactly."""
    problems = []
    for key, value in fields.items():
        if key in HONOURED_FIELDS or key in HARMLESS_FIELDS or _is_empty(value):
            continue
        meaning = REFUSED_FIELDS.get(key, "a field that veneer does not know, and that may change the outputs")
        problems.append(f"{key}: {_brief(value)} is not supported ({meaning})")
    for key, (accepts, wanted) in _ACCEPTED.items():
        if key not in fields and key not in ("peft_type", "r", "lora_alpha"):
            continue
        if not accepts(fields.get(key)):
            problems.append(f"{key}: {_brief(fields.get(key))} is not {wanted}")
    return problems


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_empty(value: object) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value)


_ACCEPTED: dict[str, tuple[Any, str]] = {
    "peft_type": (lambda value: value == "LORA", "LORA, the one method veneer reads"),
    "task_type": (lambda value: value in (None, *get_args(TaskType)), "SEQ_CLS, FEATURE_EXTRACTION or CAUSAL_LM"),
    "r": (lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31, "a whole number from 1"),
    "lora_alpha": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "target_modules": (lambda value: value is None or isinstance(value, str) or _is_names(value), "a string or a list of names"),
    "modules_to_save": (lambda value: value is None or _is_names(value), "a list of names"),
    "base_model_name_or_path": (lambda value: value is None or isinstance(value, str), "a name"),
    "init_lora_weights": (
        lambda value: isinstance(value, bool | str) and value in _PLAIN_INITIALS,
        "an initial value that leaves the base as it is (" + ", ".join(map(str, _PLAIN_INITIALS)) + ")",
    ),
}
