"""What is trained of a model: taken out, put back, and averaged over the steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from veneer.training.optim import Trained


def trained_tensors(model: Trained) -> dict[str, Tensor]:
    """A copy of everything that is trained, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.trainable().items()}


def best_copy(model: Trained) -> dict[str, Tensor]:
    """As `trained_tensors`, but in the processor's memory: kept through many steps, it would take a GPU's from them."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.trainable().items()}


def copies_kept(device_type: str, ema_decay: float | None) -> int:
    """How many copies of what is trained lie beside it on its device during the steps: the best so far, and an average."""
    return (device_type == "cpu") + (ema_decay is not None)


def load_trained(model: Trained, tensors: dict[str, Tensor]) -> None:
    """The inverse of `trained_tensors`."""
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            parameter.copy_(tensors[name])


@contextmanager
def averaged(model: Trained, average: dict[str, Tensor]) -> Iterator[None]:
    """The model with the running average of what is trained, for this block; as it is where there is none."""
    if not average:
        yield
        return
    latest = trained_tensors(model)
    load_trained(model, average)
    try:
        yield
    finally:
        load_trained(model, latest)


def move_average(model: Trained, average: dict[str, Tensor], decay: float, step: int) -> None:
    """Move the exponential moving average `average`, changed in place, on by the weights of a step.

    `a <- d·a + (1 - d)·w` with `d = min(decay, (1 + t)/(10 + t))` after t steps, so that the first, poor weights are soon
    forgotten.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if name in average:
                average[name].lerp_(parameter, share)
            else:
                average[name] = parameter.detach().clone()
