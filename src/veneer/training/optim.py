"""The optimiser, what it remembers, and the course of the learning rate.

The learning rate is a pure function of the step, so that a resumed run needs no scheduler's state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from veneer.errors import ConfigError
from veneer.quantise import load_bitsandbytes


class Trained(Protocol):
    """What is trained: a `Classifier`, or several in one pass."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    def train(self, mode: bool = True) -> Any:
        """Turn dropout on or off."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, in a fixed order."""

    def head_parameters(self) -> set[str]:
        """Names of the heads' parameters among them."""


OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]


def check_optimizer(name: OptimizerName, device: torch.device) -> None:
    """Raise a ConfigError where `build_optimizer` would, before a model is made or a folder is written.

    Raises:
        ConfigError: the optimiser needs a GPU, or bitsandbytes, and there is none.
    """
    if name == "paged_adamw_8bit" and device.type != "cuda":
        raise ConfigError(f"training.optimizer: {name} pages between GPU and processor, and there is no GPU. Fix: adamw_8bit")
    if name != "adamw":
        load_bitsandbytes(f"training.optimizer: {name}")


def build_optimizer(
    model: Trained,
    learning_rate: float,
    head_learning_rate: float | None,
    weight_decay: float,
    name: OptimizerName = "adamw",
    lora_plus_ratio: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) over all trained parameters; biases and norms are not decayed. A group's peak rate is `peak`.

    With `lora_plus_ratio` the peak of LoRA's B is that multiple of A's (LoRA+, arXiv:2402.12354). In eight bits
    (arXiv:2110.02861) the moments of a parameter of fewer than 4,096 numbers stay float32.

    Raises:
        ConfigError: bitsandbytes is wanted and not there.
    """
    head = model.head_parameters()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter_name, parameter in model.trainable().items():
        peak = head_learning_rate or learning_rate if parameter_name in head else learning_rate
        peak *= lora_plus_ratio if parameter_name.endswith(".lora_B") else 1.0
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((peak, decay), []).append(parameter)
    settings = [
        {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay} for (peak, decay), parameters in groups.items()
    ]
    if name == "adamw":
        return torch.optim.AdamW(settings, fused=True)
    library = load_bitsandbytes(f"training.optimizer: {name}").optim
    optimizer: torch.optim.Optimizer = (library.AdamW8bit if name == "adamw_8bit" else library.PagedAdamW8bit)(settings)
    return optimizer


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What the optimiser remembers of a parameter; empty before its first step."""
    return {key: torch.as_tensor(value) for key, value in optimizer.state.get(parameter, {}).items()}


def restore_moments(optimizer: torch.optim.Optimizer, saved: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
    """The inverse of `moments`, for every parameter in `saved`."""
    if isinstance(optimizer, torch.optim.AdamW):
        for parameter, tensors in saved.items():
            # the step counter stays where the optimiser keeps it: beside the parameter, as fused AdamW wants it
            optimizer.state[parameter] = {key: tensor.to(parameter.device) for key, tensor in tensors.items()}
        return
    library: Any = optimizer
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if parameter in saved:
                library.init_state(group, parameter, number, place)  # it alone knows which buffers are paged
                state = optimizer.state[parameter]
                for key, tensor in saved[parameter].items():
                    state[key] = state[key].copy_(tensor) if isinstance(state[key], Tensor) else tensor.item()


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
