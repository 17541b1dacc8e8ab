"""LoRA, usable by itself: adapted layers, putting them in and taking them out, merging, counting, and PEFT's file format.

Knows torch and safetensors; does not know transformers, texts, labels or run folders.
"""

from veneer.lora.bank import BankGroup, BankLinear, Routing
from veneer.lora.combine import average_tensors, combine_adapters
from veneer.lora.count import LayerRow, ParameterCounts, ParameterRow, adapted_layers, count_parameters, parameter_rows
from veneer.lora.families import default_targets, query_value_targets
from veneer.lora.freeze import embedding_modules, mark_only_lora_as_trainable, top_layers, trained_modules, unfreeze
from veneer.lora.frozen import FrozenLinear, FrozenWeight, frozen_elements
from veneer.lora.inject import apply_lora, linear_layers, lora_layers, shared_input_groups
from veneer.lora.layer import LoraLinear, SharedInput
from veneer.lora.merge import merge_lora, remove_lora, unmerge_lora
from veneer.lora.peft_format import AdapterFile, AdapterSettings, adapter_settings, apply_adapter, read_adapter, write_adapter
from veneer.lora.shrink import Spectrum, cut_ranks, kept_energy, spectra, strongest
from veneer.lora.starts import start_dora, start_pissa
from veneer.lora.state import load_lora_state_dict, lora_state_dict

__all__ = [
    "AdapterFile",
    "AdapterSettings",
    "BankGroup",
    "BankLinear",
    "FrozenLinear",
    "FrozenWeight",
    "LayerRow",
    "LoraLinear",
    "ParameterCounts",
    "ParameterRow",
    "Routing",
    "SharedInput",
    "Spectrum",
    "adapted_layers",
    "adapter_settings",
    "apply_adapter",
    "apply_lora",
    "average_tensors",
    "combine_adapters",
    "count_parameters",
    "cut_ranks",
    "default_targets",
    "embedding_modules",
    "frozen_elements",
    "kept_energy",
    "linear_layers",
    "load_lora_state_dict",
    "lora_layers",
    "lora_state_dict",
    "mark_only_lora_as_trainable",
    "merge_lora",
    "parameter_rows",
    "query_value_targets",
    "read_adapter",
    "remove_lora",
    "shared_input_groups",
    "spectra",
    "start_dora",
    "start_pissa",
    "strongest",
    "top_layers",
    "trained_modules",
    "unfreeze",
    "unmerge_lora",
    "write_adapter",
]
