"""Which layers of a model family LoRA adapts when nobody says otherwise.

Knows names of linear layers by transformers' `model_type`; does not know any model class. A name is the ending of a module's
path, as `apply_lora` takes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from veneer.errors import LoraError


@dataclass(frozen=True)
class FamilyTargets:
    """Layers of one family.

    Attributes:
        query_value: the attention layers that produce queries and values (a fused product where the family has one).
        every: all attention and feed-forward projections.
    """

    query_value: tuple[str, ...]
    every: tuple[str, ...]


_BERT = FamilyTargets(("query", "value"), ("query", "key", "value", "dense"))
_LLAMA = FamilyTargets(("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))

FAMILIES: dict[str, FamilyTargets] = {
    "albert": FamilyTargets(("query", "value"), ("query", "key", "value", "dense", "ffn", "ffn_output")),
    "bert": _BERT,
    "camembert": _BERT,
    "deberta": FamilyTargets(("in_proj",), ("in_proj", "dense")),
    "deberta-v2": FamilyTargets(("query_proj", "value_proj"), ("query_proj", "key_proj", "value_proj", "dense")),
    "distilbert": FamilyTargets(("q_lin", "v_lin"), ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")),
    "electra": _BERT,
    "ernie": _BERT,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gpt2": FamilyTargets(("c_attn",), ("c_attn", "c_proj", "c_fc")),
    "gpt_neox": FamilyTargets(("query_key_value",), ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "modernbert": FamilyTargets(("Wqkv",), ("Wqkv", "Wo", "Wi")),
    "mpnet": FamilyTargets(("attn.q", "attn.v"), ("attn.q", "attn.k", "attn.v", "attn.o", "dense")),
    "phi3": FamilyTargets(("qkv_proj",), ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "xlm-roberta-xl": _BERT,
    # XLNet's attention holds bare parameters, so that only its feed-forward layers can be adapted.
    "xlnet": FamilyTargets((), ("layer_1", "layer_2")),
}


def default_targets(model_type: str) -> tuple[str, ...]:
    """All attention and feed-forward projections of a family, as name endings.

    Raises:
        LoraError: the family is not in `FAMILIES`.
    """
    return _family(model_type).every


def query_value_targets(model_type: str) -> tuple[str, ...]:
    """The query and value projections of a family, as name endings; a fused product (`Wqkv`, `c_attn`) counts as both.

    Raises:
        LoraError: the family is not in `FAMILIES`, or its attention has no linear layers.
    """
    targets = _family(model_type).query_value
    if not targets:
        raise LoraError(
            f"the attention of '{model_type}' has no linear layers for query and value. "
            f"Fix: adapt {', '.join(default_targets(model_type))}"
        )
    return targets


def _family(model_type: str) -> FamilyTargets:
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    near = get_close_matches(model_type, FAMILIES, n=1)
    hint = f" (nearest known: '{near[0]}')" if near else ""
    raise LoraError(
        f"no default target layers for the model family '{model_type}'{hint}. "
        "Fix: give target_modules: 'all-linear', a list of name endings, or a regular expression"
    )
