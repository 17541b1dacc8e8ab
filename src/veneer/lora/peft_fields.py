"""The fields of PEFT's `adapter_config.json`: which are honoured, which do not matter to a finished adapter, which are refused.

Checked against PEFT 0.21. Knows names and kinds of values; knows nothing of tensors or models (`peft_format.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from veneer.lora.patterns import is_pattern

TaskType = Literal["SEQ_CLS", "FEATURE_EXTRACTION", "CAUSAL_LM"]

# Every field of PEFT's LoraConfig is in one of the three; fields that are in none are refused unless empty.
HONOURED_FIELDS = frozenset(
    {"alpha_pattern", "base_model_name_or_path", "bias", "init_lora_weights", "lora_alpha", "lora_dropout", "modules_to_save"}
    | {"peft_type", "r", "rank_pattern", "target_modules", "task_type", "use_dora", "use_rslora"}
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
    "target_parameters": "adapted parameters outside linear layers",
    "trainable_token_indices": "trained tokens",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "velora_config": "VeLoRA",
}
# Initial values that leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoftQ, …) belong to a changed base.
_PLAIN_INITIALS = (True, False, "gaussian", "orthogonal")


def field_problems(fields: Mapping[str, Any]) -> list[str]:
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


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _is_alpha(value: object) -> bool:
    return _is_number(value) and float(str(value)) > 0


_ACCEPTED: dict[str, tuple[Any, str]] = {
    "peft_type": (lambda value: value == "LORA", "LORA, the one method veneer reads"),
    "task_type": (lambda value: value in (None, *get_args(TaskType)), "SEQ_CLS, FEATURE_EXTRACTION or CAUSAL_LM"),
    "r": (_is_rank, "a whole number from 1"),
    "rank_pattern": (lambda value: is_pattern(value, _is_rank), "names or paths of layers, each with a whole number from 1"),
    "lora_alpha": (_is_alpha, "a number above 0"),
    "alpha_pattern": (lambda value: is_pattern(value, _is_alpha), "names or paths of layers, each with a number above 0"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "use_dora": (lambda value: isinstance(value, bool), "true or false"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "target_modules": (lambda value: value is None or isinstance(value, str) or _is_names(value), "a string or a list of names"),
    "modules_to_save": (lambda value: value is None or _is_names(value), "a list of names"),
    "base_model_name_or_path": (lambda value: value is None or isinstance(value, str), "a name"),
    "init_lora_weights": (
        lambda value: isinstance(value, bool | str) and value in _PLAIN_INITIALS,
        "an initial value that leaves the base as it is (" + ", ".join(map(str, _PLAIN_INITIALS)) + ")",
    ),
}
