"""Dropout masks for the adapter's input and the base's hidden states, cheap enough for a CPU.

Drawing a Bernoulli number for every activation of every layer costs a CPU as much as the matrix products beside it
(`benchmarks/dropout.py`). So masks are windows into one fixed bank of random bits, each at an offset drawn from torch's
generator: every activation is dropped with probability p over the offsets, the kept ones are scaled so that the bank's
mean is 1 to the dtype's precision, and the generator's state alone decides the mask, so that a resumed run and a recomputed
layer draw the same one. On other devices the framework's own kernel is fast, and is used.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

BANK = 1 << 22  # numbers in it; windows repeat only where two offsets are equal
_ALIGN = 32  # bf16 numbers in a cache line


def dropout_mask(rows: int, width: int, p: float, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A `[rows, width]` mask of zeros (a share p of them) and `1/(1-p)`, decided by torch's default generator."""
    if device.type != "cpu":
        return torch.empty(rows, width, device=device, dtype=dtype).bernoulli_(1.0 - p).div_(1.0 - p)
    size = rows * width
    bank = _bank(round(p * 65536), dtype)
    if 2 * size > len(bank):  # one window would leave few offsets to choose from: tile it from several
        half = rows // 2
        if half == 0:
            return torch.empty(rows, width, dtype=dtype).bernoulli_(1.0 - p).div_(1.0 - p)
        parts = [dropout_mask(part, width, p, device=device, dtype=dtype) for part in (half, rows - half)]
        return torch.cat(parts)
    offset = int(torch.randint((len(bank) - size) // _ALIGN, ())) * _ALIGN
    return bank[offset : offset + size].view(rows, width)


class MaskedDropout(nn.Dropout):
    """Dropout of a base's hidden states `[..., H]` by the masks of this module, for a fraction of what torch's own cost a CPU.

    A mask is the product of two, each of which drops a share 1 - sqrt(1-p): of so many pairs of windows (about 10^10) none comes
    twice in a training, while a single window does.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The same shape."""
        if not self.training or self.p == 0.0 or input.device.type != "cpu":
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        for _ in range(2):
            share = 1.0 - math.sqrt(1.0 - self.p)
            rows = rows * dropout_mask(rows.shape[0], rows.shape[1], share, device=rows.device, dtype=rows.dtype)
        return rows.view(input.shape)


@lru_cache(maxsize=4)
def _bank(threshold: int, dtype: torch.dtype) -> Tensor:
    """`[2^22]` zeros and scaled ones; a 16-bit random number below `threshold` drops. Its mean is 1 to the dtype's precision."""
    generator = torch.Generator().manual_seed(0x5EED)
    bits = torch.empty(BANK // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator).view(torch.uint16)
    kept = bits.to(torch.int32) >= threshold
    # Counted by numpy, as whoever asks first may be `estimate.py`, whose dispatch mode answers 0 to every question of a tensor.
    return kept.to(dtype) * (len(kept) / int(np.count_nonzero(kept.numpy())))
