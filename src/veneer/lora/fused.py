"""The adapter's arithmetic as autograd functions: base product, then the low-rank update in place.

`lora_linear` is one layer; `lora_linear_group` is several layers that read the same input (query, key and value), which
then read it once. The backward pass forms neither the frozen weight's gradient nor any other `[out, in]` matrix:
with `g` the output's gradient, `x` the input, `m` its dropout mask and `s` the scale,

    ∂B = s·gᵀ(x∘m Aᵀ)     ∂A = s·(gB)ᵀ(x∘m)     ∂x = gW + s·(gB A)∘m

Knows tensors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from veneer.lora.frozen import FrozenWeight, dense


@dataclass(frozen=True)
class Factors:
    """The tensors of one adapted layer.

    Attributes:
        weight: `[out, in]`, or `[in, out]` where `transposed`; a frozen one is made dense for each product.
        bias: `[out]` or None.
        a: `[r, in]`.
        b: `[out, r]`.
        scale: s of the update.
    """

    weight: Tensor | FrozenWeight
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float
    transposed: bool


def lora_linear_group(x: Tensor, layers: tuple[Factors, ...], mask: Tensor | None) -> tuple[Tensor, ...]:
    """The outputs of adapted `layers` that read the same `x` `[T, in]` and share its dropout `mask` `[T, in]`.

    The layers have one rank, scale and order of weights, and all have a bias or none has.
    """
    first = layers[0]
    shape = _Shape(len(layers), first.a.shape[0], first.scale, first.transposed)
    flat = [part for layer in layers for part in (layer.weight, layer.bias, layer.a, layer.b)]
    outputs: tuple[Tensor, ...] = _FusedGroup.apply(x, mask, shape, *flat)  # type: ignore[no-untyped-call]
    return outputs


@dataclass(frozen=True)
class _Shape:
    """What is the same for all layers of a group: their number, rank, scale and the order of their weights."""

    count: int
    rank: int
    scale: float
    transposed: bool


class _FusedGroup(torch.autograd.Function):
    """One or more adapted layers over one input; see the module's formulas.

    The scale goes onto A, the smallest place for it, and B's gradient is `(lowᵀ g)ᵀ`, the faster order of that product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, shape: _Shape, *flat: Any) -> tuple[Tensor, ...]:
        weights, biases, a, b = (flat[part::4] for part in range(4))
        down = joined(a).mul(shape.scale).to(x.dtype)  # s·A, [Σr, in]
        dropped = x if mask is None else x * mask
        low = dropped @ down.t()  # [T, Σr]
        ups = [one.to(x.dtype) for one in b if one is not None]
        outputs = []
        for weight, bias, up, one_low in zip(weights, biases, ups, columns(low, shape.rank), strict=True):
            plain = dense(weight)
            y = torch.nn.functional.linear(x, plain.t() if shape.transposed else plain, bias)
            outputs.append(y.addmm_(one_low, up.t()))
        trains_base = any(ctx.needs_input_grad[3::4])
        # `dropped` is kept rather than made again: nothing else keeps x, and the mask is a view of the bank
        tensors = [weight if isinstance(weight, Tensor) else None for weight in weights]
        ctx.save_for_backward(x if trains_base else None, dropped, mask, down, low, *tensors, *ups)
        ctx.shape, ctx.weights = shape, [None if isinstance(weight, Tensor) else weight for weight in weights]
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        shape: _Shape = ctx.shape
        x, dropped, mask, down, low, *rest = ctx.saved_tensors
        weights = [tensor if frozen is None else frozen for tensor, frozen in zip(rest, ctx.weights, strict=False)]
        ups = rest[shape.count :]
        wants_x, wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        flat: list[Tensor | None] = [None] * len(wanted)
        grad_lows, grad_x = [], None
        for number, (grad, weight, up, one_low) in enumerate(zip(grads, weights, ups, columns(low, shape.rank), strict=True)):
            grad_lows.append(grad @ up)
            if wants_x:
                plain = dense(weight).t() if shape.transposed else dense(weight)
                grad_x = grad @ plain if grad_x is None else grad_x.addmm_(grad, plain)
            place = 4 * number
            flat[place + 3] = as_trained((one_low.t() @ grad).t())
            if wanted[place]:
                flat[place] = x.t() @ grad if shape.transposed else grad.t() @ x
            if wanted[place + 1]:
                flat[place + 1] = grad.sum(0)
        grad_low = joined(grad_lows, dim=1)  # g·B, [T, Σr]
        grad_down = as_trained(grad_low.t() @ dropped).mul_(shape.scale)
        for number in range(shape.count):
            flat[4 * number + 2] = grad_down[number * shape.rank : (number + 1) * shape.rank]
        if grad_x is not None:
            grad_x = grad_x.addmm_(grad_low, down) if mask is None else grad_x.addcmul_(grad_low @ down, mask)
        return grad_x, None, None, *flat


def joined(tensors: Sequence[Tensor | None], dim: int = 0) -> Tensor:
    """Tensors as one; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)  # type: ignore[arg-type, return-value]


def columns(low: Tensor, rank: int) -> tuple[Tensor, ...]:
    """`[T, Σr]` -> a layer's `[T, r]` each."""
    return (low,) if low.shape[1] == rank else low.split(rank, dim=1)  # type: ignore[no-untyped-call]


def as_trained(grad: Tensor) -> Tensor:
    """A gradient in the layout and precision of the float32 parameters (float64 ones keep theirs)."""
    dtype = grad.dtype if grad.dtype == torch.float64 else torch.float32
    return grad.to(dtype, memory_format=torch.contiguous_format)
