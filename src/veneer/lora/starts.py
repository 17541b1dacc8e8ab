"""Other starts for LoRA layers: DoRA's lengths (`dora.py`), and PiSSA (arXiv:2404.02948), whose update starts from the largest
singular values of the weight, `s·B0·A0`, instead of zero.

PiSSA's paper takes them out of the frozen weight, which then is another base. Here the base stays as it is and the start is
subtracted beside the update, by frozen rows:

    y = W x + b + s·(B·A - B0·A0) x  =  W x + b + s·[B, -B0]·[A; A0] x

So the first output is the base's; a weight in few bits loses nothing; dropout falls on the change alone; and what is stored is
a plain LoRA of rank 2r over the untouched base, the conversion PEFT offers too, here exact. The price is thin products of
twice the rank.

Knows adapted layers; knows nothing of files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from veneer.errors import LoraError
from veneer.lora.frozen import dense
from veneer.lora.inject import lora_layers
from veneer.lora.layer import LoraLinear


def start_dora(model: nn.Module) -> None:
    """Give every LoRA layer of `model` a length for each row, at first its weight's own, so that nothing changes.

    Raises:
        LoraError: the model has no LoRA layers.
    """
    for layer in _layers(model).values():
        square = dense(layer.weight).detach().float().square().sum(0 if layer.transposed else 1)
        layer.weight_square = square
        layer.lora_magnitude = nn.Parameter(square.sqrt())


@torch.no_grad()
def start_pissa(model: nn.Module) -> None:
    """Start every LoRA layer of `model` from its weight's first r singular values.

    Raises:
        LoraError: the model has no LoRA layers, or a weight has fewer singular values than the rank.
    """
    for name, layer in _layers(model).items():
        if layer.rank > (most := min(layer.in_features, layer.out_features)):
            raise LoraError(f"lora.init: pissa with rank {layer.rank}: {name} has {most} singular values. Fix: a lower lora.rank")
        a, b = _start(layer)
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)
        layer.initial_A, layer.initial_B = a, b


def _start(layer: LoraLinear) -> tuple[Tensor, Tensor]:
    """A0 `[r, in]` and B0 `[out, r]` with `s·B0·A0` the nearest matrix of rank r to the weight."""
    weight = dense(layer.weight).float()
    if weight.is_meta:  # counted, not computed
        return layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
    left, values, right = torch.linalg.svd(weight.t() if layer.transposed else weight, full_matrices=False)
    root = (values[: layer.rank] / layer.scale).sqrt()
    return root[:, None] * right[: layer.rank], left[:, : layer.rank] * root


def _layers(model: nn.Module) -> dict[str, LoraLinear]:
    layers = lora_layers(model)
    if not layers:
        raise LoraError("the model has no LoRA layers. Fix: apply_lora(model, …) first")
    return layers
