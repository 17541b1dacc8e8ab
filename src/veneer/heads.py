"""Pooling and head: from the hidden states of a batch to logits, as each model family does it.

A family's own head reads one vector a text, but its code takes it from `hidden[:, 0]` (in a pack: the first text's token, of
all texts) or from "the last token that is no padding". Here the vectors are gathered first, by where the texts lie, and the head
is called with them.

Where one token of a text is pooled, nothing reads the last layer's other outputs: `narrow_last_layer` spares them.

Knows the heads and last layers of transformers' models; knows nothing of LoRA, batching or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from veneer.errors import BaseError
from veneer.packing import Pooling, Segments, attend_from_one

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


def word_softcap(config: PreTrainedConfig) -> float | None:
    """What a causal family bounds the logits of its vocabulary by, or None.

    Raises:
        BaseError: the base is not causal, or its family's output is not known here.
    """
    if config.model_type not in _CAUSAL_HEADS:
        raise BaseError(
            f"{config.model_type} does not answer a prompt with a label word: it is no causal base that veneer knows as one "
            f"({', '.join(sorted(_CAUSAL_HEADS))}). Fix: one of those, or no verbaliser.template, for a head"
        )
    return getattr(config, "final_logit_softcapping", None)


def output_layers(network: Any) -> tuple[str, ...]:
    """Path of a language model's output matrix, whose rows label words are read by: no layer of it runs.

    So an update of it would not be seen, nor would it save anything in fewer bits, as its rows are gathered dense; it may be the
    embeddings, too.
    """
    output = network.get_output_embeddings()
    return tuple(name for name, module in network.named_modules() if module is output)


def pool(hidden: Tensor, segments: Segments, pooling: Pooling) -> Tensor:
    """`[T, H]` hidden states of a pack -> `[N, H]` float32, one vector a text."""
    if pooling != "mean":
        return hidden[_pooled_tokens(segments, pooling)].float()
    lengths = torch.diff(segments.cu_seqlens.long())
    tokens = sum(segments.lengths)  # what lies behind is filler
    texts = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths, output_size=tokens)
    sums = torch.zeros(len(lengths), hidden.shape[-1], device=hidden.device).index_add_(0, texts, hidden[:tokens].float())
    return sums / lengths[:, None]


def _pooled_tokens(segments: Segments, pooling: Pooling) -> Tensor:
    """`[N]`: where the token that stands for a text lies in the pack."""
    cu = segments.cu_seqlens.long()
    return cu[:-1] if pooling == "cls" else cu[1:] - 1


def narrow_last_layer(network: nn.Module, pooling: Pooling) -> str | None:
    """Let the last layer of a packed encoder give the pooled tokens alone, `[1, N, H]` instead of `[1, T, H]`.

    Keys and values are still of all tokens; query, attention's output and feed-forward are of one token a text. The layer's
    modules stay as they are, so that LoRA and state dicts do not notice. Gradient checkpointing leaves this layer out, which
    costs no memory at the peak: the backward pass begins with it.

    Returns:
        The path of the last layer's query, which then reads another input than key and value; None where nothing was
        changed: mean pooling reads all tokens, and not every family's layer is known here.
    """
    net: Any = network
    family = _LAST_LAYERS.get(net.config.model_type)
    if family is None or pooling == "mean" or getattr(net.config, "is_decoder", False):
        return None
    path, query, forward = family
    layers: Any = net.base_model.get_submodule(path)
    layers[-1].forward = partial(forward, layers[-1], pooling)
    name = f"{path}.{len(layers) - 1}.{query}"
    return name if net is net.base_model else f"{net.base_model_prefix}.{name}"


def _bert_last(layer: Any, pooling: Pooling, hidden: Tensor, *_: Any, segments: Segments, **__: Any) -> Tensor:
    inner, rows = layer.attention.self, hidden[0]  # [T, H]
    pooled = rows[_pooled_tokens(segments, pooling)]  # [N, H]
    context = _attend(inner, inner.query(pooled), inner.key(rows), inner.value(rows), segments)
    output: Tensor = layer.feed_forward_chunk(layer.attention.output(context, pooled))
    return output[None]


def _distilbert_last(layer: Any, pooling: Pooling, hidden: Tensor, *_: Any, segments: Segments, **__: Any) -> Tensor:
    inner, rows = layer.attention, hidden[0]
    pooled = rows[_pooled_tokens(segments, pooling)]
    context = inner.out_lin(_attend(inner, inner.q_lin(pooled), inner.k_lin(rows), inner.v_lin(rows), segments))
    attended = layer.sa_layer_norm(context + pooled)
    output: Tensor = layer.output_layer_norm(layer.ffn(attended[None])[0] + attended)
    return output[None]


def _attend(inner: Any, query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """`[N, H]` of `[N, H]` queries and `[T, H]` keys and values."""
    query, key, value = (rows.view(len(rows), -1, inner.attention_head_size) for rows in (query, key, value))
    return attend_from_one(query, key, value, segments, inner.scaling).flatten(1)


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


def label_tensors(network: nn.Module) -> tuple[str, ...]:
    """Names of the tensors of a sequence classifier that have a row a label: those of the layer that gives the C logits."""
    layers = {name: module for name, module in network.named_children() if name in OUTPUT_LAYERS}
    paths = {name if isinstance(module, nn.Linear) else f"{name}.out_proj": module for name, module in layers.items()}
    inside = {
        path: module if isinstance(module, nn.Linear) else module.get_submodule("out_proj") for path, module in paths.items()
    }
    return tuple(f"{path}.{name}" for path, module in inside.items() for name, _ in module.named_parameters())


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

# Family -> path of its layers inside the base model, path of the query inside a layer, and what the last one does instead.
_BERT_LAST = ("encoder.layer", "attention.self.query", _bert_last)
_LAST_LAYERS: dict[str, tuple[str, str, Callable[..., Tensor]]] = {
    "bert": _BERT_LAST,
    "camembert": _BERT_LAST,
    "distilbert": ("transformer.layer", "attention.q_lin", _distilbert_last),
    "electra": _BERT_LAST,
    "ernie": _BERT_LAST,
    "roberta": _BERT_LAST,
    "xlm-roberta": _BERT_LAST,
}
