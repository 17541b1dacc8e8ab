"""DoRA (arXiv:2402.09353): the adapted weight's rows keep their direction and get a trained length, m.

    y = c∘(W x + s·B(A·dropout(x))) + b,    c = m / ‖W + s·B·A‖,    a norm a row (an output)

The gradient takes the norm for a constant (section 4.3 of the paper), as PEFT does. The base product is LoRA's own and shared
with it, dropout or not (PEFT computes a second one from the dropped input in training). The norm is found without forming the
adapted weight:

    ‖W + s·B·A‖² = ‖W‖² + 2s·Σ_r (W Aᵀ)∘B + s²·Σ_r (B (A Aᵀ))∘B

The arithmetic alone; knows nothing of layers, models or files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from veneer.lora.frozen import dense
from veneer.lora.fused import Factors


@torch.no_grad()
def row_norms(factors: Factors, square: Tensor) -> Tensor:
    """`[out]` float32 norms of the rows of `W + s·B·A`.

    Args:
        square: `[out]`, ‖W‖² a row.
    """
    weight = dense(factors.weight)
    plain = weight.t() if factors.transposed else weight
    a, b, s = factors.a, factors.b, factors.scale
    cross = (plain @ a.t().to(plain.dtype)).to(b.dtype)  # [out, r]
    both = 2 * s * cross + s * s * (b @ (a @ a.t()))
    return (square + (both * b).sum(1)).clamp_min(torch.finfo(torch.float32).tiny).sqrt()


def rescale(y: Tensor, magnitude: Tensor, norms: Tensor, bias: Tensor | None) -> Tensor:
    """`[T, out]` outputs without bias -> with each column's length and the bias; in float32, then y's precision."""
    scaled = y * (magnitude / norms)
    return (scaled if bias is None else scaled + bias).to(y.dtype)
