"""What a base's family can do: facts that transformers does not state.

Knows from a configuration whether texts can be packed, where positions start and end, and which way attention looks. Reads
no files.
"""

from __future__ import annotations

from transformers import (
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

# Read in transformers 5.23: attention goes through the attention interface, positions come from `position_ids`, and nothing
# else looks across tokens.
_CAN_PACK = frozenset(
    """albert bert camembert distilbert electra ernie gemma3_text gpt2 llama mistral modernbert qwen2 qwen3 roberta
    xlm-roberta""".split()
)
_OWN_POSITIONS = frozenset({"deberta", "deberta-v2", "mpnet", "xlnet"})
_POSITIONS_AFTER_PADDING = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta"})


def packing_support(config: PreTrainedConfig) -> str | None:
    """None if texts of this base can be packed, else the reason, one line for the log."""
    family = config.model_type
    if family in _CAN_PACK:
        return None
    reason = "its attention computes relative positions itself" if family in _OWN_POSITIONS else "its family has not been checked"
    return f"{family} cannot pack: {reason}"


def first_position(config: PreTrainedConfig) -> int:
    """The position of a text's first token: 0, or `pad_token_id + 1` for RoBERTa and its kin."""
    if config.model_type not in _POSITIONS_AFTER_PADDING:
        return 0
    padding = getattr(config, "pad_token_id", None)
    return 2 if padding is None or config.model_type == "mpnet" else int(padding) + 1


def max_positions(config: PreTrainedConfig) -> int | None:
    """The most tokens a text may have, or None where the base sets no limit."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if positions is None or positions < 1 else int(positions) - first_position(config)


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a token sees only the tokens before it, as in GPT-2 or LLaMA."""
    if config.model_type == "xlnet" or getattr(config.get_text_config(), "use_bidirectional_attention", False):
        return False
    family = config.model_type
    only_causal = family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return only_causal or bool(getattr(config, "is_decoder", False))
