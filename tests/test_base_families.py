"""Families: who can pack, where positions start and end, and which way attention looks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from veneer.families import first_position, is_causal, max_positions, packing_support


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2", "xlnet", "funnel", "t5"])
def test_what_cannot_pack_says_why(family: str) -> None:
    assert f"{family} cannot pack: " in (packing_support(AutoConfig.for_model(family)) or "")


@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta", "qwen3", "gemma3_text"])
def test_what_can_pack_has_no_reason_not_to(family: str) -> None:
    assert packing_support(AutoConfig.for_model(family)) is None


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet", "gpt2"])
def test_positions_are_those_the_model_counts(family: str) -> None:
    """The longest text the limits allow runs, one token more does not, and the first position is the model's own."""
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = AutoConfig.for_model(family, vocab_size=10, max_position_embeddings=12, bos_token_id=0, eos_token_id=2, **small)
    model = transformers.AutoModel.from_config(config).eval()
    limit = max_positions(config)
    assert limit == 12 - first_position(config)
    ids = torch.full((1, limit + 1), 5)
    positions = torch.arange(first_position(config), first_position(config) + limit)[None]
    implicit, explicit = model(ids[:, :-1]), model(ids[:, :-1], position_ids=positions)
    assert torch.equal(implicit.last_hidden_state, explicit.last_hidden_state)
    with pytest.raises((IndexError, RuntimeError)):
        model(ids)


def test_a_base_without_positions_has_no_limit() -> None:
    assert max_positions(AutoConfig.for_model("t5")) is None


@pytest.mark.parametrize(
    ("family", "settings", "causal"),
    [
        *((family, {}, True) for family in ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "opt")),
        *((family, {}, False) for family in ("bert", "roberta", "distilbert", "modernbert", "albert", "xlnet", "mpnet")),
        ("bert", {"is_decoder": True}, True),
        ("gemma3_text", {"use_bidirectional_attention": True}, False),
    ],
)
def test_which_way_attention_looks(family: str, settings: dict[str, Any], causal: bool) -> None:
    assert is_causal(AutoConfig.for_model(family, **settings)) is causal
