"""The optimiser and the course of the learning rate.

The learning rate is a pure function of the step, so that a resumed run needs no scheduler's state.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from veneer.model import Classifier


def build_optimizer(
    model: Classifier, learning_rate: float, head_learning_rate: float | None, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over all trained parameters; biases and norms are not decayed. A group's peak rate is `peak`."""
    head = model.head_parameters()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.trainable().items():
        peak = head_learning_rate or learning_rate if name in head else learning_rate
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((peak, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay} for (peak, decay), parameters in groups.items()],
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to `factor` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def learning_rate_factor(step: int, steps: int, warmup_ratio: float, schedule: str) -> float:
    """The share of the peak at `step` (from 0) of `steps`: a rise, then linear or cosine decay to 0, or constant."""
    warmup = round(steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - progress
