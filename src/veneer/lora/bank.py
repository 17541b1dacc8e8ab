"""Many adapters in one layer: a pass over texts of several adapters computes each frozen product once, over all rows.

Texts lie in the order of their adapters, so that each adapter's rows are one slice `s` of the input; with `W` and `b` frozen

    y = W x + b    over all rows, then    y[s] += s_k·B_k(A_k·(x[s]∘m_k))    in place, a slice an adapter k

and backward, as in `fused.py`, slice by slice on top of one `∂x = gW`. Rows behind the last slice (filler) belong to no adapter
and get the base alone. Neither the frozen weight's gradient nor any other `[out, in]` matrix is formed.

On a CPU each new shape of a low-precision product costs about as much as the product. So in a large pass the thin products of an
adapter run over a window whose size is a multiple of 32: its slice and some rows of its neighbours, whose thin vectors are zero.

Knows tensors and adapted layers; knows nothing of texts beyond how many rows each has, nor of models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from veneer.errors import LoraError
from veneer.lora.frozen import FrozenWeight, dense
from veneer.lora.fused import Factors, as_trained, columns, joined
from veneer.lora.layer import LoraLinear, OutputsOfOneInput, shared_traits

# As for packs (`model.py`): what a window is made a multiple of, and from how many rows of a pass on.
MULTIPLE = 32
LEAST_ROWS = 256


class Routing:
    """Which rows of the pass at hand are whose; one object serves all banks of a network.

    It stays as it is until the next pass, so that activations can be computed again in the backward pass.
    """

    def __init__(self) -> None:
        self._slices: dict[int, tuple[slice, ...]] = {}

    def set(self, counts: Sequence[int], lengths: Sequence[int], rows: int) -> None:
        """Say what comes next: a pack whose texts are ordered by adapter.

        Args:
            counts: texts of each adapter; 0 for one without.
            lengths: `[N]` tokens of each text.
            rows: of the pack, filler included.
        """
        texts = [0, *accumulate(counts)]
        if texts[-1] != len(lengths):
            raise ValueError(f"{len(lengths)} texts, but the adapters have {texts[-1]}")
        tokens = [0, *accumulate(lengths)]
        # one row a text where a last layer computes the pooled tokens alone
        ends = {len(lengths): texts, rows: [tokens[text] for text in texts]}
        self._slices = {count: tuple(slice(*pair) for pair in pairwise(bounds)) for count, bounds in ends.items()}

    def slices(self, rows: int) -> tuple[slice, ...]:
        """The slice of each adapter among so many rows."""
        if rows not in self._slices:
            known = " or ".join(map(str, self._slices)) or "none"
            raise LoraError(f"an adapted layer reads {rows} rows, of which nobody knows whose they are; known: {known}")
        return self._slices[rows]


class BankLinear(nn.Module):
    """One frozen layer with an adapter a slice of rows; the frozen weight is the first adapter's, and the same in all.

    Attributes:
        adapters: the K adapted layers whose matrices are used, and whose dropout; they stay usable by themselves.
    """

    def __init__(self, adapters: Sequence[LoraLinear], routing: Routing) -> None:
        super().__init__()
        first = adapters[0]
        for one in adapters:
            if one.weight is not first.weight or one.bias is not first.bias:
                raise LoraError("adapters of a bank share one frozen weight and bias")
            if one.lora_magnitude is not None or any(one_.requires_grad for one_ in _frozen(one)) or one.merged:
                raise LoraError("a bank holds plain LoRA over a frozen weight: no DoRA, no trained or merged weight")
        self.adapters = nn.ModuleList(adapters)
        self.in_features, self.out_features = first.in_features, first.out_features
        self._group = BankGroup([self], routing)
        self._place = 0

    @property
    def weight(self) -> Tensor | FrozenWeight:
        """The frozen weight."""
        return self.adapters[0].weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.adapters[0].bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`; the rows of `x` are those the routing knows."""
        return self._group.take(self._place, x)


class BankGroup:
    """Banks that read the same input, such as query, key and value: each adapter draws one dropout mask for all of them.

    Raises:
        ValueError: an adapter's layers are not alike enough to be computed together.
    """

    def __init__(self, banks: Sequence[BankLinear], routing: Routing) -> None:
        members: list[list[LoraLinear]] = [list(same) for same in zip(*(bank.adapters for bank in banks), strict=True)]
        if any(len({shared_traits(layer) for layer in layers}) != 1 for layers in members):
            raise ValueError("layers that share an input have one input width, rank, scale, dropout and kind of bias")
        self._members = members
        self._routing = routing
        self._outputs = OutputsOfOneInput(self._compute)
        for place, bank in enumerate(banks):
            bank._group, bank._place = self, place

    def take(self, place: int, x: Tensor) -> Tensor:
        """The output of the bank at `place` in the group, `[..., in]` -> `[..., out]`."""
        return self._outputs.take(place, x)

    def _compute(self, rows: Tensor) -> tuple[Tensor, ...]:
        parts = []
        for layers, where in zip(self._members, self._routing.slices(len(rows)), strict=True):
            mask = layers[0]._mask(rows[where]) if where.start < where.stop else None
            parts.append(Part(where, tuple(layer.factors() for layer in layers), mask))
        return bank_linear_group(rows, parts)


@dataclass(frozen=True)
class Part:
    """One adapter's part of a pass through a group of layers.

    Attributes:
        rows: its slice of the input's rows; empty for an adapter without texts, which then gets no gradient.
        layers: its factors of each layer; weight and bias are the same in all parts.
        mask: dropout of its rows, `[rows, in]`, or None.
    """

    rows: slice
    layers: tuple[Factors, ...]
    mask: Tensor | None


def bank_linear_group(x: Tensor, parts: Sequence[Part]) -> tuple[Tensor, ...]:
    """The outputs `[R, out]` of layers that read the same `x` `[R, in]`, each adapter's rows with its own update.

    The layers of a part have one rank and scale.
    """
    used = [part for part in parts if part.rows.start < part.rows.stop]
    trained = [matrix for part in used for layer in part.layers for matrix in (layer.a, layer.b)]
    outputs: tuple[Tensor, ...] = _FusedBank.apply(x, used, parts[0].layers, *trained)  # type: ignore[no-untyped-call]
    return outputs


class _FusedBank(torch.autograd.Function):
    """See the module's formulas; the order of the products is that of `fused.py`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Sequence[Part], bases: tuple[Factors, ...], *trained: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for base in bases:
            plain = dense(base.weight)
            outputs.append(torch.nn.functional.linear(x, plain.t() if base.transposed else plain, base.bias))
        saved: list[Tensor] = []
        ctx.parts = []
        for part in parts:
            rank, window = part.layers[0].a.shape[0], _window(part.rows, len(x))
            own = slice(part.rows.start - window.start, part.rows.stop - window.start)
            down = joined([layer.a for layer in part.layers]).mul(part.layers[0].scale).to(x.dtype)  # s·A, [Σr, in]
            dropped = x[window] if part.mask is None else torch.zeros_like(x[window])
            if part.mask is not None:
                torch.mul(x[part.rows], part.mask, out=dropped[own])
            low = _cleared(dropped @ down.t(), own)  # [window, Σr]
            ups = [layer.b.to(x.dtype) for layer in part.layers]
            for y, one_low, up in zip(outputs, columns(low, rank), ups, strict=True):
                y[window].addmm_(one_low, up.t())
            saved += [dropped, down, low, *ups]
            ctx.parts.append((part.rows, window, own, rank, part.layers[0].scale, part.mask))
        ctx.save_for_backward(*saved)
        ctx.bases = [(base.weight, base.transposed) for base in bases]
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = None
        if ctx.needs_input_grad[0]:
            for grad, (weight, transposed) in zip(grads, ctx.bases, strict=True):
                plain = dense(weight).t() if transposed else dense(weight)
                grad_x = grad @ plain if grad_x is None else grad_x.addmm_(grad, plain)
        saved, count, trained = iter(ctx.saved_tensors), len(ctx.bases), []
        for rows, window, own, rank, scale, mask in ctx.parts:
            dropped, down, low = next(saved), next(saved), next(saved)
            ups = [next(saved) for _ in range(count)]
            seen = [grad[window] for grad in grads]
            grad_low = _cleared(joined([grad @ up for grad, up in zip(seen, ups, strict=True)], dim=1), own)  # g·B, [window, Σr]
            grad_a = as_trained(grad_low.t() @ dropped).mul_(scale)
            grad_b = [as_trained((one_low.t() @ grad).t()) for one_low, grad in zip(columns(low, rank), seen, strict=True)]
            trained += [matrix for pair in zip(torch.split(grad_a, rank), grad_b, strict=True) for matrix in pair]
            if grad_x is not None and mask is None:
                grad_x[window].addmm_(grad_low, down)
            elif grad_x is not None:
                grad_x[rows].addcmul_((grad_low @ down)[own], mask)
        return grad_x, None, None, *trained


def _window(rows: slice, every: int) -> slice:
    """The slice and the fewest rows beside it that make it a multiple of `MULTIPLE`, in a pass of so many rows."""
    if every < LEAST_ROWS:
        return rows
    size = min(every, -(-(rows.stop - rows.start) // MULTIPLE) * MULTIPLE)
    start = min(rows.start, every - size)
    return slice(start, start + size)


def _cleared(low: Tensor, own: slice) -> Tensor:
    """`[window, Σr]` with zeros in the rows of others, in place."""
    low[: own.start] = 0
    low[own.stop :] = 0
    return low


def _frozen(layer: LoraLinear) -> list[Tensor]:
    """The tensors of a layer that a bank gives no gradient."""
    return [one for one in (layer.weight, layer.bias) if isinstance(one, Tensor)]
