"""Frozen weights that are kept in fewer bits, and linear layers over them.

A frozen weight is made dense for the time of one product, forward and again backward, and never kept so: the memory of a
dense base is what it is there to save. Knows torch alone; who makes such weights, and of how many bits, it does not know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FrozenWeight(nn.Module):
    """A weight in fewer bits: a module, so that the buffers that hold it move with its layer.

    Attributes:
        shape: of the dense weight.
        dtype: of the dense weight.
    """

    shape: torch.Size
    dtype: torch.dtype

    def dense(self) -> Tensor:
        """The weight as a new tensor, in the precision that the layer computes in."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.buffers()).device

    def is_same(self, other: FrozenWeight) -> bool:
        """Whether `other` is the same weight, kept in the same way: the dense ones are equal, bit for bit."""
        mine, theirs = dict(self.named_buffers()), dict(other.named_buffers())
        return (
            (type(self), self.shape, self.dtype, mine.keys()) == (type(other), other.shape, other.dtype, theirs.keys())
            and self.device == other.device
            and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
        )


def dense(weight: Tensor | FrozenWeight) -> Tensor:
    """The weight as a tensor, whichever way it is kept."""
    return weight if isinstance(weight, Tensor) else weight.dense()


class FrozenLinear(nn.Module):
    """A linear layer over a frozen weight.

    Attributes:
        weight: of the shape `[out, in]`, or `[in, out]` where `transposed` (GPT-2's Conv1D).
        bias: `[out]` or None.
        plain_type: class of the layer that this one stands for.
    """

    def __init__(
        self,
        weight: FrozenWeight,
        bias: nn.Parameter | None,
        *,
        transposed: bool = False,
        plain_type: type[nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)
        self.transposed, self.plain_type = transposed, plain_type
        self.in_features, self.out_features = weight.shape if transposed else weight.shape[::-1]

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        y: Tensor = _FrozenProduct.apply(x.reshape(-1, self.in_features), self.weight, self.bias, self.transposed)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class _FrozenProduct(torch.autograd.Function):
    """`W x + b` of `[T, in]`; the backward pass makes the weight dense again rather than keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FrozenWeight, bias: Tensor | None, transposed: bool) -> Tensor:
        ctx.weight, ctx.transposed = weight, transposed
        plain = weight.dense()
        return nn.functional.linear(x, plain.t() if transposed else plain, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = None
        if ctx.needs_input_grad[0]:
            plain = ctx.weight.dense()
            grad_x = grad @ (plain.t() if ctx.transposed else plain)
        return grad_x, None, grad.sum(0) if ctx.needs_input_grad[2] else None, None


def frozen_elements(model: nn.Module) -> int:
    """How many numbers the frozen weights of a model stand for; none of them is among its parameters."""
    return sum(module.shape.numel() for module in model.modules() if isinstance(module, FrozenWeight))
