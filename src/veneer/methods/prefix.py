"""`prefix`: keys and values of a few virtual tokens in every layer (Li and Liang, arXiv:2101.00190).

The virtual tokens are rows of the pack; what the key and value layers give at their rows is replaced by what is trained. So
attention needs no past keys and values, and texts are packed. (PEFT gives them as past keys and values, which encoders do not
take.) The price is that the rest of each layer computes those rows, too, which nothing reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from veneer import lora, packing
from veneer.errors import LoraError
from veneer.lora.inject import replace_module
from veneer.methods.contract import Method, MethodPlan, Stored
from veneer.methods.places import layers_at, places_of
from veneer.methods.tensors import TRAINED_FILE, holds_base, load_trained, read_trained, reads_words, save_trained
from veneer.methods.virtual import put_rows, put_virtual, random_words
from veneer.model import Classifier, VirtualTokens


class Prefixed(nn.Module):
    """A frozen key or value layer whose outputs at virtual tokens are `prefix`, `[P, out]` float32, trained."""

    def __init__(self, inner: nn.Module, prefix: Tensor, virtual: VirtualTokens) -> None:
        super().__init__()
        self.inner = inner
        self.prefix = nn.Parameter(prefix)
        self.virtual = virtual

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        return put_rows(self.inner(x), self.prefix, self.virtual)


def _apply(model: Classifier, plan: MethodPlan) -> None:
    layers = _layers(model)
    starts = _outputs(model, layers, plan.virtual_tokens)
    put_virtual(model, plan.virtual_tokens, None)
    for name, layer in layers.items():
        replace_module(model.network, name, Prefixed(layer, starts[name], model.virtual))
    lora.unfreeze(model.network, model.trained_heads)


def _layers(model: Classifier) -> dict[str, Any]:
    places = places_of(model, "prefix")
    if not places.apart:
        family = model.config.get_text_config().model_type
        raise LoraError(f"prefix wants layers that make keys and values alone, and '{family}' has none. Fix: method: prompt")
    return layers_at(model.network, places.keys_values)


@torch.no_grad()
def _outputs(model: Classifier, layers: dict[str, Any], count: int) -> dict[str, Tensor]:
    """Layer -> `[count, out]`, what it gives for a text of random words: the start that the paper found best."""
    words = random_words(model, count)
    if words.is_meta:  # counted, not computed
        return {name: torch.empty(count, layer.out_features, device="meta") for name, layer in layers.items()}
    found: dict[str, Tensor] = {}

    def remember(name: str) -> None:
        def hook(_module: nn.Module, _given: object, output: Tensor) -> None:
            found[name] = output.detach().float().reshape(count, -1).clone()

        hooks.append(layers[name].register_forward_hook(hook))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for name in layers:
        remember(name)
    ids, types = words.cpu().numpy().astype(np.int32), np.zeros(count, dtype=np.uint8)
    batch = packing.pack([ids], [types]) if model.padding_reason is None else packing.pad([ids], [types], 0)
    model.pooled(batch.to(model.device))
    for handle in hooks:
        handle.remove()
    return found


def _read(folder: Path) -> Stored:
    tensors = read_trained(folder)

    def fill(model: Classifier) -> None:
        layers = _layers(model)
        starts = {name: tensors[key] for name in layers if (key := f"{name}.prefix") in tensors}
        counts = {tensor.shape[0] if tensor.ndim == 2 else 0 for tensor in starts.values()}
        if len(starts) != len(layers) or len(counts) != 1:
            raise LoraError("what was trained does not fit the model: its layers have not all a prefix of one length")
        put_virtual(model, counts.pop(), None)
        for name, layer in layers.items():
            replace_module(model.network, name, Prefixed(layer, starts[name].to(model.device).clone(), model.virtual))
        load_trained(model, tensors)

    return Stored(fill, lambda model: holds_base(model, tensors), reads_words(folder))


PREFIX = Method(
    name="prefix",
    trains="keys and values of virtual tokens",
    files=(TRAINED_FILE,),
    apply=_apply,
    trains_base=lambda _: False,
    save=save_trained,
    read=_read,
    merge=None,
    unmergeable="adds tokens to every text, which no weight of the base can hold",
    tokens=lambda plan: plan.virtual_tokens,
)
