"""One adapted linear layer: `y = W x + b + s·B(A·dropout(x))` (LoRA, arXiv:2106.09685; `s = alpha/sqrt(r)`: arXiv:2312.03732).

Knows torch alone: no configuration, no model families, no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from veneer.errors import LoraError
from veneer.lora.dora import rescale, row_norms
from veneer.lora.dropout import dropout_mask
from veneer.lora.frozen import FrozenWeight, dense
from veneer.lora.fused import Factors, lora_linear_group

Scaling = Literal["standard", "rslora"]


def lora_scale(rank: int, alpha: float, scaling: Scaling = "standard") -> float:
    """s of the update: `alpha/r`, or `alpha/sqrt(r)` for rsLoRA."""
    return alpha / math.sqrt(rank) if scaling == "rslora" else alpha / rank


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained low-rank update.

    The frozen weight keeps its own name (`weight`, `bias`), so that the model's state dict keeps the base's keys; only
    `lora_A` and `lora_B` are new.

    Attributes:
        weight: `[out, in]`, or `[in, out]` where `transposed` (GPT-2's Conv1D); a parameter, or kept in fewer bits.
        bias: `[out]` or None.
        lora_A: `[r, in]` float32, Kaiming-uniform.
        lora_B: `[out, r]` float32, zero, so that the first output equals the base's.
        scale: s of the update.
        lora_magnitude: `[out]` float32 of DoRA (`dora.py`), with the frozen `weight_square` beside it; None without.
        initial_A: `[r, in]` float32 that PiSSA (`starts.py`) subtracts with `initial_B` `[out, r]`; None without.
        merged: True while `weight` holds the update too (see `veneer.lora.merge_lora`).
        plain_type: class of the layer that this one stands for, which `remove_lora` puts back.
    """

    def __init__(
        self,
        weight: nn.Parameter | FrozenWeight,
        bias: nn.Parameter | None,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        scaling: Scaling = "standard",
        transposed: bool = False,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, not {rank}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        self.weight = weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)
        self.transposed = transposed
        self.in_features, self.out_features = weight.shape if transposed else weight.shape[::-1]
        self.rank, self.alpha, self.dropout, self.scaling = rank, float(alpha), dropout, scaling
        self.scale = lora_scale(rank, alpha, scaling)
        self.merged = False
        self.plain_type: type[nn.Module] = nn.Linear
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, device=weight.device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=weight.device, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.lora_magnitude: nn.Parameter | None
        self.register_parameter("lora_magnitude", None)
        self.weight_square: Tensor | None
        self.initial_A: Tensor | None
        self.initial_B: Tensor | None
        for name in ("weight_square", "initial_A", "initial_B"):
            self.register_buffer(name, None, persistent=False)
        self._group: SharedInput | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`.

        Raises:
            LoraError: it is merged, and in training, where it would get no gradient and learn nothing without a word.
        """
        if self.merged:
            if self.training and torch.is_grad_enabled() and self.lora_A.requires_grad:
                raise LoraError(
                    "LoRA cannot learn while it is merged into the weights. Fix: unmerge_lora(model), or model.eval()"
                )
            return self._base(x)
        if self._group is not None:
            return self._group.output(self, x)
        rows = x.reshape(-1, self.in_features)
        (y,) = lora_linear_group(rows, (self.factors(),), self._mask(rows))
        return self.finished(y).view(*x.shape[:-1], self.out_features)

    @property
    def shared_input(self) -> SharedInput | None:
        """The group of layers that read the same input as this one, if it is in one."""
        return self._group

    def factors(self) -> Factors:
        """The layer's tensors, as the arithmetic takes them; `finished` does the rest."""
        bias = self.bias if self.lora_magnitude is None else None
        return Factors(self.weight, bias, *self.whole_factors(), self.scale, self.transposed)

    def whole_factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole update: with the rows that PiSSA subtracts, where it does."""
        if self.initial_A is None or self.initial_B is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.initial_A]), torch.cat([self.lora_B, -self.initial_B], dim=1)

    @property
    def whole_rank(self) -> int:
        """The rank of `whole_factors`."""
        return self.rank if self.initial_A is None else 2 * self.rank

    @property
    def whole_alpha(self) -> float:
        """The alpha that gives this layer's scale at `whole_rank`."""
        if self.initial_A is None:
            return self.alpha
        return self.alpha * (math.sqrt(2) if self.scaling == "rslora" else 2)

    def finished(self, y: Tensor) -> Tensor:
        """`[T, out]` of `factors` -> the layer's outputs: with DoRA's lengths and the bias, where there are lengths."""
        if self.lora_magnitude is None or self.weight_square is None:
            return y
        return rescale(y, self.lora_magnitude, row_norms(self.factors(), self.weight_square), self.bias)

    def _base(self, x: Tensor) -> Tensor:
        weight = dense(self.weight)
        return nn.functional.linear(x, weight.t() if self.transposed else weight, self.bias)

    def _mask(self, rows: Tensor) -> Tensor | None:
        if not self.training or self.dropout == 0.0:
            return None
        return dropout_mask(rows.shape[0], rows.shape[1], self.dropout, device=rows.device, dtype=rows.dtype)

    def delta(self) -> Tensor:
        """The update `s·B·A`, `[out, in]`, in float32."""
        a, b = self.whole_factors()
        return (b @ a) * self.scale

    def whole_weight(self) -> Tensor:
        """The weight with what was learned, `[out, in]`, in float32 or the weight's own precision where that is higher."""
        plain = dense(self.weight)
        whole = (plain.t() if self.transposed else plain) + self.delta()
        if self.lora_magnitude is not None:
            whole = whole * (self.lora_magnitude / whole.norm(dim=1))[:, None]
        return whole

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, scale={self.scale:g}"


class SharedInput:
    """Adapted layers that read the same input, such as query, key and value: the first one called computes all of them."""

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        if len({shared_traits(layer) for layer in layers}) != 1:
            raise ValueError("layers that share an input have one input width, rank, scale, dropout and kind of bias")
        self._layers = list(layers)
        self._outputs = OutputsOfOneInput(self._compute)
        for layer in layers:
            layer._group = self

    def output(self, layer: LoraLinear, x: Tensor) -> Tensor:
        """`layer`'s output for `x`, `[..., in]` -> `[..., out]`."""
        return self._outputs.take(next(i for i, one in enumerate(self._layers) if one is layer), x)

    def _compute(self, rows: Tensor) -> list[Tensor]:
        outputs = lora_linear_group(rows, tuple(one.factors() for one in self._layers), self._layers[0]._mask(rows))
        return [one.finished(y) for one, y in zip(self._layers, outputs, strict=True)]


class OutputsOfOneInput:
    """Lets the first of several layers that is called with an input compute the outputs of all.

    Those of the others wait here until their layer is called with the very same tensor; a layer called with another one (as in
    cross-attention) computes alone. Nothing waits longer than until the next input. Because of the waiting a model that shares
    inputs serves one thread at a time.

    Args:
        compute: `[R, in]` rows -> an output `[R, out]` a layer.
    """

    def __init__(self, compute: Callable[[Tensor], Sequence[Tensor]]) -> None:
        self._compute = compute
        self._input: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def take(self, number: int, x: Tensor) -> Tensor:
        """The output of the layer `number` (from 0) for `x`, `[..., in]` -> `[..., out]`."""
        if x is not self._input or number not in self._waiting:
            outputs = self._compute(x.reshape(-1, x.shape[-1]))
            self._waiting = {i: y.view(*x.shape[:-1], -1) for i, y in enumerate(outputs)}
            self._input = x
        output = self._waiting.pop(number)
        if not self._waiting:
            self._input = None
        return output


def shared_traits(layer: LoraLinear) -> tuple[object, ...]:
    """What must be the same in layers that share an input."""
    shape = layer.in_features, layer.whole_rank, layer.scale, layer.dropout, layer.transposed
    return *shape, layer.bias is None or layer.lora_magnitude is not None
