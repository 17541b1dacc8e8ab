"""`adapter`: a bottleneck behind attention and behind feed-forward of every layer (Houlsby et al., arXiv:1902.00751).

    y + W_up·gelu(W_down·y + b_down) + b_up,  y the sublayer's output before it is added to its input; W_up starts at zero

Our own, since PEFT has no such adapter and the `adapters` library wants other versions of transformers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from veneer import lora
from veneer.lora.inject import replace_module
from veneer.methods.contract import Method, MethodPlan, Stored
from veneer.methods.places import layers_at, places_of
from veneer.methods.tensors import TRAINED_FILE, holds_base, load_trained, read_trained, reads_words, save_trained
from veneer.model import Classifier


class Bottleneck(nn.Module):
    """A frozen linear layer and the adapter behind it.

    Attributes:
        inner: the frozen layer, with `out` outputs.
        down: `out -> m`, float32.
        up: `m -> out`, float32, zero at first.
    """

    def __init__(self, inner: nn.Module, width: int, size: int, device: torch.device) -> None:
        super().__init__()
        self.inner = inner
        self.down = nn.Linear(width, size, device=device)
        self.up = nn.Linear(size, width, device=device)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        y: Tensor = self.inner(x)
        return y + _linear(nn.functional.gelu(_linear(y, self.down)), self.up)


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return nn.functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _apply(model: Classifier, plan: MethodPlan) -> None:
    for name, layer in layers_at(model.network, places_of(model, "adapter").outputs).items():
        _wrap(model, name, layer, plan.bottleneck)
    lora.unfreeze(model.network, model.trained_heads)


def _wrap(model: Classifier, name: str, layer: nn.Module, size: int) -> None:
    device = next(iter([*layer.parameters(), *layer.buffers()])).device
    replace_module(model.network, name, Bottleneck(layer, model.config.get_text_config().hidden_size, size, device))


def _read(folder: Path) -> Stored:
    tensors = read_trained(folder)

    def fill(model: Classifier) -> None:
        layers = layers_at(model.network, places_of(model, "adapter").outputs)
        sizes = {name: tensors[key].shape[0] for name in layers if (key := f"{name}.down.weight") in tensors}
        for name, size in sizes.items():
            _wrap(model, name, layers[name], size)
        load_trained(model, tensors)

    return Stored(fill, lambda model: holds_base(model, tensors), reads_words(folder))


ADAPTER = Method(
    name="adapter",
    trains="a bottleneck behind each sublayer",
    files=(TRAINED_FILE,),
    apply=_apply,
    trains_base=lambda _: False,
    save=save_trained,
    read=_read,
    merge=None,
    unmergeable="adds a function that is not linear, which no weight of the base can hold",
)
