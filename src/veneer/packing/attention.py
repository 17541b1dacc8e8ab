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
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from veneer.packing.batch import Segments

PACKED_ATTENTION = "veneer_packed"
_ROW = 16  # float32 numbers in a 512-bit register
_LEAST_MASK = 256  # tokens
# Finite: a row of padding may see nothing but padding through a window, and its NaN would spread in the backward pass.
_HIDDEN = torch.finfo(torch.float32).min


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


_Runs = list[tuple[int, int, int]]  # (first row, texts, rows a text), neighbours of equal length


def _groups(segments: Segments, queries: int) -> list[tuple[_Runs, _Runs]]:
    """Runs of equal length, gathered by padded length: each group is one set of matrix products.

    Returns:
        The runs of the queries and those of the keys; they differ where there is one query a text.
    """
    groups: dict[int, tuple[_Runs, _Runs]] = {}
    first_text = 0
    for run in segments.runs:
        of_queries, of_keys = groups.setdefault(_padded(run[2]), ([], []))
        of_queries.append((first_text, run[1], 1) if queries == len(segments.lengths) else run)
        of_keys.append(run)
        first_text += run[1]
    return list(groups.values())


def _padded(length: int) -> int:
    return -(-length // _ROW) * _ROW if length > 1 else 1


def _gather(source: Tensor, runs: _Runs) -> Tensor:
    """`[T, h, d]` -> `[n·h, L, d]` with L the padded length; what lies behind a text is zero, so that products stay finite."""
    (_, _, longest), count = runs[0], sum(run[1] for run in runs)
    padded = _padded(longest)
    _, heads, width = source.shape
    target = source.new_empty(count, heads, padded, width)
    row = 0
    for start, texts, length in runs:
        rows = source[start : start + texts * length].view(texts, length, heads, width)
        target[row : row + texts, :, :length].copy_(rows.transpose(1, 2))
        if length < padded:
            target[row : row + texts, :, length:].zero_()
        row += texts
    return target.view(count * heads, padded, width)


def _scatter(source: Tensor, runs: _Runs, target: Tensor) -> None:
    """The inverse of `_gather`: `[n·h, L, d]` into the rows of `target` `[T, h, d]`."""
    _, heads, width = target.shape
    rows = source.view(-1, heads, source.shape[1], width)
    row = 0
    for start, texts, length in runs:
        place = target[start : start + texts * length].view(texts, length, heads, width)
        place.copy_(rows[row : row + texts, :, :length].transpose(1, 2))
        row += texts


def _blank(like: Tensor, shape: torch.Size, segments: Segments) -> Tensor:
    """A `[T, h, d]` tensor to scatter into; the rows of filler, into which nothing is, are zero."""
    target = like.new_empty(shape)
    target[sum(segments.lengths) :].zero_()
    return target


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
    return torch.zeros(size, size, device=device).masked_fill_(hidden, _HIDDEN)


def _mask_scores(scores: Tensor, runs: _Runs, causal: bool, window: int | None) -> None:
    """Hide, in `[n·h, L, L]` scores, what a token must not see; in place."""
    length = scores.shape[-1]
    mask = _window_mask(length, causal, window, scores.device)
    if mask is not None:
        scores.add_(mask)
    heads = scores.shape[0] // sum(run[1] for run in runs)
    row = 0
    for _, texts, real in runs:
        if real < length:
            scores[row * heads : (row + texts) * heads, :, real:] = _HIDDEN
        row += texts


def _precise(dtype: torch.dtype) -> torch.dtype:
    """What the softmax runs in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


class _GroupedAttention(torch.autograd.Function):
    """Attention of `[T, h, d]` or `[N, h, d]` queries over `[T, h, d]` keys and values, group by group, with its own backward."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, causal: bool, window: int | None
    ) -> Tensor:
        out = _blank(q, q.shape, segments)
        groups = _groups(segments, len(q))
        saved: list[Tensor] = []
        for of_queries, runs in groups:
            queries, keys, values = _gather(q, of_queries), _gather(k, runs), _gather(v, runs)
            scores = torch.bmm(queries, keys.transpose(1, 2)).to(_precise(q.dtype)).mul_(scale)
            _mask_scores(scores, runs, causal, window)
            weights = torch.softmax(scores, dim=-1).to(q.dtype)
            _scatter(torch.bmm(weights, values), of_queries, out)
            saved += [queries, keys, values, weights]
        ctx.save_for_backward(*saved)
        ctx.groups, ctx.scale, ctx.keys, ctx.segments = groups, scale, k.shape, segments  # type: ignore[attr-defined]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = [_blank(grad, shape, ctx.segments) for shape in (grad.shape, ctx.keys, ctx.keys)]
        saved = ctx.saved_tensors  # once: under gradient checkpointing a second look raises
        for number, (of_queries, runs) in enumerate(ctx.groups):
            queries, keys, values, weights = saved[4 * number : 4 * number + 4]
            grad_out = _gather(grad, of_queries)
            _scatter(torch.bmm(weights.transpose(1, 2), grad_out), runs, grads[2])
            grad_weights = torch.bmm(grad_out, values.transpose(1, 2))
            # softmax's own backward: S·(dS − Σ S·dS), in float32
            precise = _precise(grad.dtype)
            grad_scores = torch._softmax_backward_data(grad_weights.to(precise), weights.to(precise), -1, precise)
            grad_scores = grad_scores.mul_(ctx.scale).to(grad.dtype)
            _scatter(torch.bmm(grad_scores, keys), of_queries, grads[0])
            _scatter(torch.bmm(grad_scores.transpose(1, 2), queries), runs, grads[1])
        return grads[0], grads[1], grads[2], None, None, None, None
