"""Attention in which the texts of a pack do not see each other, registered with transformers.

`enable()` registers the attention *and* its mask function; a model whose configuration names `PACKED_ATTENTION` then takes
`[1, T]` ids with restarting positions and the keyword `segments`. Knows how to attend; knows nothing of batches' origin.

On CUDA in half precision the variable-length kernel runs. Elsewhere texts are gathered into groups of equal padded length and
attended to by plain matrix products. Two traps decide that shape (`benchmarks/attention.py` shows both on a CPU): the flash
kernel costs more than the products on short texts, and a softmax over rows shorter than a vector register falls back to
scalar code, up to ten times slower. So a group's length is a multiple of 16, and the softmax runs in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from veneer.packing.batch import Segments
from veneer.packing.gather import HIDDEN, Gathering, gathering

PACKED_ATTENTION = "veneer_packed"
_LEAST_MASK = 256  # tokens


def enable() -> None:
    """Register the attention and its mask function with transformers; does nothing the second time."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, _no_mask)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(Q·Kᵀ·scaling)·V within each text.

    Rows of filler behind the last text give zeros.

    Args:
        query: `[1, h, T, d]`.
        key: `[1, h_kv, T, d]`, where h is a multiple of h_kv.
        value: `[1, h_kv, T, d]`.

    Returns:
        `[1, T, h, d]`, and None for the weights.

    Raises:
        ValueError: no `segments` (a padded batch would attend to its padding), or something this attention does not do.
    """
    if segments is None:
        raise ValueError(f"{PACKED_ATTENTION} attention needs the keyword 'segments'; padded batches need another attention")
    if dropout or softcap or query.shape[0] != 1:
        raise ValueError("packed attention takes one row, and neither dropout on its weights nor a soft cap on its scores")
    causal = bool(is_causal if is_causal is not None else getattr(module, "is_causal", False))
    scale = scaling if scaling is not None else 1.0 / math.sqrt(query.shape[-1])
    # [1, h, T, d] -> [T, h, d]
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    if k.shape[1] != q.shape[1]:
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        return _varlen(q, k, v, segments, scale, causal, sliding_window).unsqueeze(0), None
    out: Tensor = _GroupedAttention.apply(q, k, v, segments, scale, causal, sliding_window)  # type: ignore[no-untyped-call]
    return out.unsqueeze(0), None


def attend_from_one(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float) -> Tensor:
    """softmax(Q·Kᵀ·scaling)·V of one query a text, which sees all tokens of its text.

    Args:
        query: `[N, h, d]`.
        key: `[T, h, d]`.
        value: `[T, h, d]`.

    Returns:
        `[N, h, d]`.
    """
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _varlen(query, key, value, segments, scaling, causal=False, window=None)
    out: Tensor = _GroupedAttention.apply(query, key, value, segments, scaling, False, None)  # type: ignore[no-untyped-call]
    return out


def _no_mask(*_: Any, **__: Any) -> None:
    """Packed texts need no mask: `segments` says who sees whom."""


def _varlen(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, causal: bool, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    back = window - 1 if window else -1
    ahead = 0 if causal else back
    cu, longest = segments.cu_seqlens, segments.longest
    one = len(q) == len(segments.lengths)  # a query a text
    return varlen_attn(  # type: ignore[return-value]
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        torch.arange(len(q) + 1, dtype=cu.dtype, device=cu.device) if one else cu,
        cu,
        1 if one else longest,
        longest,
        scale=scale,
        window_size=(back, ahead),
    )


def _window_mask(length: int, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """`[L, L]` additive mask of a causal or windowed attention, or None."""
    if not causal and window is None:
        return None
    size = max(_LEAST_MASK, 1 << (length - 1).bit_length())  # one mask for many lengths: a shorter one's is its corner
    return _square_mask(size, causal, window, device)[:length, :length]


@lru_cache(maxsize=4)  # a model has two kinds at most; at 8,192 tokens each is 256 MiB
def _square_mask(size: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """`[size, size]`, float32: filling by a mask of bools takes ten times as long as adding."""
    places = torch.arange(size, device=device)
    distance = places[:, None] - places[None, :]
    hidden = distance < 0 if causal else torch.zeros_like(distance, dtype=torch.bool)
    if window is not None:
        hidden = hidden | (distance.abs() >= window)
    return torch.zeros(size, size, device=device).masked_fill_(hidden, HIDDEN)


def _scores(queries: Tensor, keys: Tensor, scale: float, padding: Tensor | None, causal: bool, window: int | None) -> Tensor:
    """`[n·h, L, d]` queries and keys -> `[n·h, L, L]` scores in the softmax's precision, what a token must not see hidden."""
    products = torch.bmm(queries, keys.transpose(1, 2))
    precise = _precise(products.dtype)
    # scaled and masked in one pass
    scores = products.to(precise).mul_(scale) if padding is None else torch.add(padding, products.to(precise), alpha=scale)
    mask = _window_mask(keys.shape[1], causal, window, scores.device)
    return scores if mask is None else scores.add_(mask)


def _precise(dtype: torch.dtype) -> torch.dtype:
    """What the softmax runs in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


class _GroupedAttention(torch.autograd.Function):
    """Attention of `[T, h, d]` or `[N, h, d]` queries over `[T, h, d]` keys and values, group by group, with its own backward."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, causal: bool, window: int | None
    ) -> Tensor:
        places = gathering(segments.lengths, len(q), len(k), q.shape[1], q.device)
        queries, keys, values = places.queries.gather(q), places.keys.gather(k), places.keys.gather(v)
        out, weights = torch.empty_like(queries), []
        for into, *group, padding in zip(*_views(places, (out, queries), (keys, values)), places.padding, strict=True):
            scores = _scores(group[0], group[1], scale, padding, causal, window)
            weights.append(torch.softmax(scores, dim=-1).to(q.dtype))
            torch.bmm(weights[-1], group[2], out=into)
        ctx.save_for_backward(queries, keys, values, *weights)
        ctx.places, ctx.scale, ctx.heads = places, scale, q.shape[1]  # type: ignore[attr-defined]
        return places.queries.scatter(out, q.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        places: Gathering = ctx.places
        queries, keys, values, *weights = ctx.saved_tensors
        grad_out = places.queries.gather_or_zero(grad)  # what padding answers is nobody's
        grads = [torch.empty_like(one) for one in (queries, keys, values)]
        views = _views(places, (grad_out, queries, grads[0]), (keys, values, grads[1], grads[2]))
        for one_weights, grad_of, query, grad_q, key, value, grad_k, grad_v in zip(weights, *views, strict=True):
            torch.bmm(one_weights.transpose(1, 2), grad_of, out=grad_v)
            grad_weights = torch.bmm(grad_of, value.transpose(1, 2))
            # softmax's own backward: S·(dS − Σ S·dS), in float32
            precise = _precise(grad.dtype)
            grad_scores = torch._softmax_backward_data(grad_weights.to(precise), one_weights.to(precise), -1, precise)
            grad_scores = grad_scores.mul_(ctx.scale).to(grad.dtype)
            torch.bmm(grad_scores, key, out=grad_q)
            torch.bmm(grad_scores.transpose(1, 2), query, out=grad_k)
        of_queries = places.queries.scatter(grads[0], ctx.heads)
        return of_queries, *(places.keys.scatter(one, ctx.heads) for one in grads[1:]), None, None, None, None


def _views(places: Gathering, of_queries: Sequence[Tensor], of_keys: Sequence[Tensor]) -> list[list[Tensor]]:
    """The groups of gathered tensors: of those laid out as the queries are, then of those laid out as the keys are."""
    return [*map(places.queries.groups, of_queries), *map(places.keys.groups, of_keys)]
