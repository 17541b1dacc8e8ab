"""Dropout masks for the adapter's input and the base's hidden states, cheap enough for a CPU.

Drawing a Bernoulli number for every activation of every layer costs a CPU as much as the matrix products beside it
(`benchmarks/dropout.py`). So the adapter's masks are windows into one fixed bank of random bits, each at an offset drawn from
torch's generator: every activation is dropped with probability p over the offsets, and the kept ones are scaled so that the
bank's mean is 1 to the dtype's precision. Those of the base's hidden states, which are fewer, are drawn anew (`fresh_mask`). The
state of torch's generator alone decides every mask, so that a resumed run and a recomputed layer draw the same one. On other
devices the framework's own kernel is fast, and is used.
"""

from __future__ import annotations

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
    """Dropout of a base's hidden states `[..., H]` by `fresh_mask`, for an eighth of what torch's own costs a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """The same shape."""
        if not self.training or self.p == 0.0 or input.device.type != "cpu":
            return super().forward(input)
        return input * fresh_mask(input.numel(), self.p, input.dtype).view(input.shape)


def fresh_mask(size: int, p: float, dtype: torch.dtype) -> Tensor:
    """`[size]` zeros (a share p of them, to 15 bits) and `1/(1-p)`, every number drawn for itself, on the CPU.

    Torch draws them one at a time; here one number of a fast generator, which torch's own seeds, is split into four, and all
    the rest is arithmetic on 16-bit integers: what is below the share is negative, and a shift makes that all ones.
    """
    seed = int(torch.randint(2**63 - 1, ()))
    bits = np.random.SFC64(seed).random_raw(-(-size // 4)).view(np.int16)[:size]
    bits &= 0x7FFF
    bits -= min(round((1.0 - p) * 2**15), 2**15 - 1)
    bits >>= 15  # -1 where it is kept, else 0
    kept = torch.from_numpy(bits)
    if dtype.itemsize == 2:
        return kept.bitwise_and_(int(torch.tensor(1.0 / (1.0 - p), dtype=dtype).view(torch.int16))).view(dtype)
    return kept.to(dtype).mul_(-1.0 / (1.0 - p))


@lru_cache(maxsize=4)
def _bank(threshold: int, dtype: torch.dtype) -> Tensor:
    """`[2^22]` zeros and scaled ones; a 16-bit random number below `threshold` drops. Its mean is 1 to the dtype's precision."""
    generator = torch.Generator().manual_seed(0x5EED)
    bits = torch.empty(BANK // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator).view(torch.uint16)
    kept = bits.to(torch.int32) >= threshold
    # Counted by numpy, as whoever asks first may be `estimate.py`, whose dispatch mode answers 0 to every question of a tensor.
    return kept.to(dtype) * (len(kept) / int(np.count_nonzero(kept.numpy())))
