"""Pooling and head: from the hidden states of a batch to logits, as each model family does it.

A family's own head reads one vector a text, but its code takes it from `hidden[:, 0]` (in a pack: the first text's token, of
all texts) or from "the last token that is no padding". Here the vectors are gathered first, by where the texts lie, and the head
is called with them.

Knows the heads of transformers' sequence classifiers; knows nothing of LoRA, batching or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from veneer.errors import BaseError
from veneer.packing import Pooling, Segments

OUTPUT_LAYERS = frozenset({"classifier", "score"})  # of the families' own heads: the module that gives the C logits


@dataclass(frozen=True)
class HeadPlan:
    """Which vector of a text is classified, and by what.

    Attributes:
        pooling: the first token's vector, the last one's, or the mean of all.
        own: True for the family's own head (which PEFT can read), False for one linear layer of ours.
    """

    pooling: Pooling
    own: bool


def plan_head(config: PreTrainedConfig, pooling: str, advised: Pooling | None, causal: bool) -> HeadPlan:
    """What `pooling` (auto, cls, mean or last) means for this base.

    Args:
        advised: how a sentence-embedding base says that it pools, or None.

    Raises:
        BaseError: a causal base with `cls`, whose first token has seen nothing of the text.
    """
    family: Pooling = "last" if causal or config.model_type == "xlnet" else "cls"
    if config.model_type == "modernbert":
        family = config.classifier_pooling
    if causal and pooling == "cls":
        raise BaseError(f"a causal base ({config.model_type}) sees nothing of a text at its first token. Fix: pooling: last")
    chosen = (advised or family) if pooling == "auto" else pooling
    # A sentence-embedding base means the bare vector, not what its family's pooler makes of it.
    own = chosen == family and (causal or advised != chosen) and config.model_type in _OWN_HEADS.keys() | _CAUSAL_HEADS
    return HeadPlan(chosen, own)  # type: ignore[arg-type]


def pool(hidden: Tensor, segments: Segments, pooling: Pooling) -> Tensor:
    """`[T, H]` hidden states of a pack -> `[N, H]` float32, one vector a text."""
    cu = segments.cu_seqlens.long()
    if pooling == "cls":
        return hidden[cu[:-1]].float()
    if pooling == "last":
        return hidden[cu[1:] - 1].float()
    lengths = torch.diff(cu)
    texts = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths, output_size=len(hidden))
    sums = torch.zeros(len(lengths), hidden.shape[-1], device=hidden.device).index_add_(0, texts, hidden.float())
    return sums / lengths[:, None]


def own_head(network: nn.Module, pooled: Tensor) -> Tensor:
    """`[N, H]` float32 pooled vectors -> `[N, C]` logits by the head of a transformers sequence classifier."""
    net: Any = network
    family = net.config.model_type
    if family in _CAUSAL_HEADS:
        logits: Tensor = net.score(pooled)
        return logits
    return _OWN_HEADS[family](net, pooled)


def head_modules(network: nn.Module) -> dict[str, nn.Module]:
    """The modules of a sequence classifier that `own_head` runs, dropout included, by name.

    They are float32, in training mode while the classifier is, and trained where the base lacks them.
    """
    net: Any = network
    inside = {f"{net.base_model_prefix}.pooler": getattr(net.base_model, "pooler", None)}
    outside = {name: module for name, module in net.named_children() if name != net.base_model_prefix}
    used = {**(inside if net.config.model_type in _INNER_POOLER else {}), **outside}
    return {name: module for name, module in used.items() if module is not None}


def _bert(net: Any, pooled: Tensor) -> Tensor:
    return net.classifier(net.dropout(net.base_model.pooler(pooled[:, None])))  # type: ignore[no-any-return]


def _albert(net: Any, pooled: Tensor) -> Tensor:
    inner = net.base_model
    return net.classifier(net.dropout(inner.pooler_activation(inner.pooler(pooled))))  # type: ignore[no-any-return]


def _distilbert(net: Any, pooled: Tensor) -> Tensor:
    return net.classifier(net.dropout(torch.relu(net.pre_classifier(pooled))))  # type: ignore[no-any-return]


def _modernbert(net: Any, pooled: Tensor) -> Tensor:
    return net.classifier(net.drop(net.head(pooled)))  # type: ignore[no-any-return]


def _first_token(net: Any, pooled: Tensor) -> Tensor:
    return net.classifier(pooled[:, None])  # type: ignore[no-any-return]


def _deberta(net: Any, pooled: Tensor) -> Tensor:
    return net.classifier(net.dropout(net.pooler(pooled[:, None])))  # type: ignore[no-any-return]


_INNER_POOLER = frozenset({"albert", "bert", "ernie"})
_CAUSAL_HEADS = frozenset({"gemma3_text", "gpt2", "llama", "mistral", "qwen2", "qwen3"})
_OWN_HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "albert": _albert,
    "bert": _bert,
    "camembert": _first_token,
    "deberta": _deberta,
    "deberta-v2": _deberta,
    "distilbert": _distilbert,
    "electra": _first_token,
    "ernie": _bert,
    "modernbert": _modernbert,
    "mpnet": _first_token,
    "roberta": _first_token,
    "xlm-roberta": _first_token,
}
