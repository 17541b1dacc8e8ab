"""Where in a transformer layer keys, values and outputs are made, by transformers' `model_type`.

A name is the path of a linear layer below the number of its transformer layer, as a regular expression.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from veneer import lora
from veneer.errors import LoraError
from veneer.model import Classifier


@dataclass(frozen=True)
class Places:
    """Linear layers of a transformer layer.

    Attributes:
        keys_values: those that give keys and values.
        outputs: the last of attention and the last of feed-forward, whose results are added to their inputs.
        feed_forward: the last of feed-forward alone.
        apart: whether keys and values have a layer each, that reads the texts and nothing else.
    """

    keys_values: tuple[str, ...]
    outputs: tuple[str, ...]
    feed_forward: tuple[str, ...]
    apart: bool = True


_BERT = Places((r"attention\.self\.(key|value)",), (r"attention\.output\.dense", r"output\.dense"), (r"output\.dense",))
_LLAMA = Places((r"self_attn\.(k|v)_proj",), (r"self_attn\.o_proj", r"mlp\.down_proj"), (r"mlp\.down_proj",))

_FAMILIES: dict[str, Places] = {
    # ALBERT's layers share their weights: a change in one is a change in all.
    "albert": Places((r"attention\.(key|value)",), (r"attention\.dense", r"ffn_output"), (r"ffn_output",)),
    "bert": _BERT,
    "camembert": _BERT,
    "deberta-v2": Places(
        (r"attention\.self\.(key|value)_proj",), _BERT.outputs, _BERT.feed_forward, apart=False
    ),  # its keys read relative positions, too
    "distilbert": Places((r"attention\.(k|v)_lin",), (r"attention\.out_lin", r"ffn\.lin2"), (r"ffn\.lin2",)),
    "electra": _BERT,
    "ernie": _BERT,
    "gemma3_text": _LLAMA,
    "gpt2": Places((r"attn\.c_attn",), (r"attn\.c_proj", r"mlp\.c_proj"), (r"mlp\.c_proj",), apart=False),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "modernbert": Places((r"attn\.Wqkv",), (r"attn\.Wo", r"mlp\.Wo"), (r"mlp\.Wo",), apart=False),
    "mpnet": Places((r"attention\.attn\.(k|v)",), (r"attention\.attn\.o", r"output\.dense"), (r"output\.dense",)),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}


def places_of(model: Classifier, method: str) -> Places:
    """Those of the model's family.

    Raises:
        LoraError: the family is not known here.
    """
    family = model.config.get_text_config().model_type
    if family not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise LoraError(f"{method} does not know the layers of '{family}'. Fix: method: lora, or a base of {known}")
    return _FAMILIES[family]


def layers_at(network: nn.Module, patterns: tuple[str, ...]) -> dict[str, nn.Module]:
    """Path -> linear layer of every transformer layer at one of `patterns`, in the model's order."""
    wanted = re.compile(rf"(?:.*\.)?\d+\.(?:{'|'.join(patterns)})")
    return {name: layer for name, layer in lora.linear_layers(network).items() if wanted.fullmatch(name)}
