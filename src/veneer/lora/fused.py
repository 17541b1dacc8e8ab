"""The adapter's arithmetic as autograd functions: base product, then the low-rank update in place.

`lora_linear` is one layer; `lora_linear_group` is several layers that read the same input (query, key and value), which
then read it once. The backward pass forms neither the frozen weight's gradient nor any other `[out, in]` matrix:
with `g` the output's gradient, `x` the input, `m` its dropout mask and `s` the scale,

    ∂B = s·gᵀ(x∘m Aᵀ)     ∂A = s·(gB)ᵀ(x∘m)     ∂x = gW + s·(gB A)∘m

Knows tensors alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Factors:
    """The tensors of one adapted layer.

    Attributes:
        weight: `[out, in]`, or `[in, out]` where `transposed`.
        bias: `[out]` or None.
        a: `[r, in]`.
        b: `[out, r]`.
        scale: s of the update.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float
    transposed: bool


def plain_lora_linear(x: Tensor, layer: Factors, mask: Tensor | None) -> Tensor:
    """`W x + b + s·B(A·(x∘mask))` by plain autograd: what the fused functions must equal. `x` is `[T, in]`."""
    weight = layer.weight.t() if layer.transposed else layer.weight
    base = torch.nn.functional.linear(x, weight, layer.bias)
    dropped = x if mask is None else x * mask
    return base + (dropped @ layer.a.to(x.dtype).t()) @ layer.b.to(x.dtype).t() * layer.scale


def lora_linear_group(x: Tensor, layers: tuple[Factors, ...], mask: Tensor | None) -> tuple[Tensor, ...]:
    """The outputs of adapted `layers` that read the same `x` `[T, in]` and share its dropout `mask` `[T, in]`."""
    flat: list[Tensor | None] = []
    for layer in layers:
        flat += [layer.weight, layer.bias, layer.a, layer.b]
    constants = tuple((layer.scale, layer.transposed, layer.a.shape[0]) for layer in layers)
    outputs: tuple[Tensor, ...] = _FusedGroup.apply(x, mask, constants, *flat)
    return outputs


class _FusedGroup(torch.autograd.Function):
    """One or more adapted layers over one input; see the module's formulas."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor | None, constants: tuple[tuple[float, bool, int], ...], *flat: Tensor | None
    ) -> tuple[Tensor, ...]:
        dropped = x if mask is None else x * mask
        downs = [a for a in flat[2::4] if a is not None]
        down = (downs[0] if len(downs) == 1 else torch.cat(downs)).to(x.dtype)  # [Σr, in]
        low = dropped @ down.t()  # [T, Σr]
        outputs, column = [], 0
        for number, (scale, transposed, rank) in enumerate(constants):
            weight, bias, _, b = flat[4 * number : 4 * number + 4]
            assert weight is not None and b is not None
            y = torch.nn.functional.linear(x, weight.t() if transposed else weight, bias)
            y.addmm_(low[:, column : column + rank], b.to(y.dtype).t(), alpha=scale)
            outputs.append(y)
            column += rank
        ctx.save_for_backward(x, mask, down, low, *flat[0::4], *flat[3::4])
        ctx.constants = constants
        return tuple(outputs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.constants)
        x, mask, down, low, *rest = ctx.saved_tensors
        weights, ups = rest[:count], rest[count:]
        wants_x, wants_layers = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        grad_low = torch.empty_like(low)  # s·gB, [T, Σr]
        grad_flat: list[Tensor | None] = [None] * (4 * count)
        grad_x: Tensor | None = None
        column = 0
        for number, ((scale, transposed, rank), grad, weight, up) in enumerate(zip(ctx.constants, grads, weights, ups, strict=True)):
            part = slice(column, column + rank)
            column += rank
            torch.mul(grad @ up.to(grad.dtype), scale, out=grad_low[:, part])
            wants_weight, wants_bias, _, wants_b = wants_layers[4 * number : 4 * number + 4]
            if wants_weight:
                grad_flat[4 * number] = x.t() @ grad if transposed else grad.t() @ x
            if wants_bias:
                grad_flat[4 * number + 1] = grad.sum(0)
            if wants_b:
                grad_flat[4 * number + 3] = (grad.t() @ low[:, part]).to(up.dtype).mul_(scale)
            if wants_x:
                plain = weight.t() if transposed else weight
                grad_x = grad @ plain if grad_x is None else grad_x.addmm_(grad, plain)
        dropped = x if mask is None else x * mask
        grad_down = (grad_low.t() @ dropped).to(ups[0].dtype)
        column = 0
        for number, (_, _, rank) in enumerate(ctx.constants):
            grad_flat[4 * number + 2] = grad_down[column : column + rank] if wants_layers[4 * number + 2] else None
            column += rank
        if grad_x is not None:
            grad_x = grad_x.addmm_(grad_low, down) if mask is None else grad_x.addcmul_(grad_low @ down, mask)
        return grad_x, None, None, *grad_flat
