"""Where a training step's time goes: torch's profiler, its operators put into a few groups by name and shape."""

from __future__ import annotations

from collections import Counter
from typing import Any

from _measure import Work, markdown

THIN = 64  # a product with an inner or outer width up to this is one of LoRA's, or the head's
ATTENTION = {"aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data"}
GROUPS = {
    "aten::gelu": "GELU",
    "aten::gelu_backward": "GELU",
    "aten::native_layer_norm": "layer norm",
    "aten::native_layer_norm_backward": "layer norm",
    "aten::copy_": "copies and casts",
    "aten::mul": "dropout masks and scaling",
    "aten::mul_": "dropout masks and scaling",
    "aten::addcmul_": "dropout masks and scaling",
    "Optimizer.step#AdamW.step": "optimiser",
    "aten::_fused_adamw_": "optimiser",
    "aten::linalg_vector_norm": "optimiser",
}


def profile(work: Work, count: int, batch_size: int) -> str:
    """A table of the shares of processor time of the steps on `count` texts, after a warm-up of as many."""
    import torch

    work(seed=1, count=count, batch_size=batch_size)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        work(seed=2, count=count, batch_size=batch_size)
    times: Counter[str] = Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        times[_group(event.key, event.input_shapes)] += event.self_cpu_time_total
    total = sum(times.values())
    return markdown(["where the time goes", "share"], [[name, f"{time / total:.1%}"] for name, time in times.most_common()])


def _group(name: str, shapes: Any) -> str:
    if name in ATTENTION:
        return "attention"
    if name in ("aten::mm", "aten::addmm", "aten::addmm_"):
        widths = [size for shape in shapes if len(shape) == 2 for size in shape]
        return "thin products (LoRA, head)" if widths and min(widths) <= THIN else "large products"
    return GROUPS.get(name, "everything else: small operators and their calls")
