"""Pooling picks the right vectors of a pack, and each base gets the head it asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from veneer.errors import BaseError
from veneer.families import is_causal
from veneer.heads import HeadPlan, plan_head, pool
from veneer.packing import Segments

HIDDEN = torch.arange(14.0).view(7, 2)
SEGMENTS = Segments.of([3, 1, 3])


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("cls", [[0, 1], [6, 7], [8, 9]]),
        ("last", [[4, 5], [6, 7], [12, 13]]),
        ("mean", [[2, 3], [6, 7], [10, 11]]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_takes_each_texts_own_vector(pooling: Any, expected: list[list[float]], dtype: torch.dtype) -> None:
    pooled = pool(HIDDEN.to(dtype), SEGMENTS, pooling)
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == expected


def test_the_mean_of_many_bf16_vectors_is_taken_in_float32() -> None:
    hidden = torch.full((3000, 1), 1.0078125, dtype=torch.bfloat16)  # 1 + 2^-7: sums above 256 would lose it
    assert pool(hidden, Segments.of([3000]), "mean").item() == pytest.approx(1.0078125, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "pooling", "advised", "expected"),
    [
        ("bert", "auto", None, HeadPlan("cls", True)),
        ("bert", "cls", None, HeadPlan("cls", True)),
        ("bert", "mean", None, HeadPlan("mean", False)),
        ("bert", "auto", "mean", HeadPlan("mean", False)),
        ("bert", "auto", "cls", HeadPlan("cls", False)),  # a sentence-embedding base means the bare vector
        ("bert", "cls", "cls", HeadPlan("cls", False)),  # the same head as under auto, which came to cls
        ("bert", "cls", "mean", HeadPlan("cls", True)),
        ("modernbert", "auto", None, HeadPlan("cls", True)),
        ("modernbert", "mean", None, HeadPlan("mean", False)),
        ("gpt2", "auto", None, HeadPlan("last", True)),
        ("qwen2", "last", None, HeadPlan("last", True)),
        ("qwen3", "auto", "last", HeadPlan("last", True)),  # its head is a bare linear layer as ours would be
        ("llama", "mean", None, HeadPlan("mean", False)),
        ("xlnet", "auto", None, HeadPlan("last", False)),
        ("deberta-v2", "auto", None, HeadPlan("cls", True)),
        ("roformer", "auto", None, HeadPlan("cls", False)),  # a family whose own head veneer does not know
    ],
)
def test_the_head_follows_from_the_base_and_the_pooling(family: str, pooling: str, advised: Any, expected: HeadPlan) -> None:
    config = AutoConfig.for_model(family)
    assert plan_head(config, pooling, advised, is_causal(config)) == expected


def test_modernbert_says_itself_how_it_pools() -> None:
    config = AutoConfig.for_model("modernbert", classifier_pooling="mean")
    assert plan_head(config, "auto", None, False) == HeadPlan("mean", True)
    assert plan_head(config, "cls", None, False) == HeadPlan("cls", False)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_causal_base_cannot_be_read_at_its_first_token(family: str) -> None:
    config = AutoConfig.for_model(family)
    with pytest.raises(BaseError, match="pooling: last"):
        plan_head(config, "cls", None, is_causal(config))
