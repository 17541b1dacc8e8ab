"""Which number format the frozen base runs in: chosen by what the processor can do, and by timing one product.

Knows torch and the machine; knows nothing of models.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from veneer.errors import ConfigError

PrecisionName = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[PrecisionName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WORTHWHILE = 1.3  # bf16 must be this much faster than float32 to be chosen on a CPU


@dataclass(frozen=True)
class Precision:
    """A number format and why it was chosen, in one line for the log."""

    name: PrecisionName
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of the base's weights."""
        return DTYPES[self.name]


def pick_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(requested: str, device: torch.device) -> Precision:
    """The precision for `requested` (auto, fp32, bf16 or fp16) on `device`.

    Raises:
        ConfigError: another name, or fp16 on a CPU, whose gradients would be neither fast nor safe.
    """
    if requested == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU. Fix: training.precision: auto, bf16 or fp32")
    if requested in DTYPES:
        return Precision(requested, "as configured")
    if requested != "auto":
        raise ConfigError(f"there is no precision {requested!r}. Fix: one of auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "the GPU computes in bf16")
        return Precision("fp16", "the GPU has no bf16")
    if not _has_bf16_instructions():
        return Precision("fp32", "no bf16 instructions that torch could use")
    gain = bf16_gain()
    if gain < WORTHWHILE:
        return Precision("fp32", f"a bf16 product runs only {gain:.1f}x as fast as a float32 one here")
    return Precision("bf16", f"a bf16 product runs {gain:.1f}x as fast as a float32 one here")


def _has_bf16_instructions() -> bool:
    # Builds of torch without oneDNN lack the operator, which is no public one besides; it is the only one that knows.
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(torch.backends.mkldnn.is_available() and supported())  # type: ignore[no-untyped-call]


@lru_cache(maxsize=1)
def bf16_gain() -> float:
    """How many times as fast a 512×1024×1024 bf16 matrix product runs as a float32 one (the best of interleaved runs)."""
    operands = {dtype: (torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)) for dtype in DTYPES.values()}
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(12):  # interleaved, and the best of many: other programs disturb single runs
        for dtype, seconds in best.items():
            x, weight = operands[dtype]
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            best[dtype] = min(seconds, time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]
