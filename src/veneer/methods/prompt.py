"""`prompt`: the embeddings of a few virtual tokens in every text (Lester et al., arXiv:2104.08691).

Our own rather than PEFT's: PEFT wraps a whole classifier, pools the first virtual token, and only pads. Here the virtual tokens
are rows of the pack, and each text is pooled as without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from veneer import lora
from veneer.errors import LoraError
from veneer.methods.contract import Method, MethodPlan, Stored
from veneer.methods.tensors import TRAINED_FILE, holds_base, load_trained, read_trained, reads_words, save_trained
from veneer.methods.virtual import put_virtual, random_words
from veneer.model import Classifier


def _apply(model: Classifier, plan: MethodPlan) -> None:
    embedding: Any = model.encoder.get_input_embeddings()
    start = embedding(random_words(model, plan.virtual_tokens)).detach().float()  # real words, as the paper advises
    put_virtual(model, plan.virtual_tokens, nn.Parameter(start))
    lora.unfreeze(model.network, model.trained_heads)


def _read(folder: Path) -> Stored:
    tensors = read_trained(folder)
    prompts = [tensor for name, tensor in tensors.items() if name.endswith(".prompt") or name == "prompt"]

    def fill(model: Classifier) -> None:
        if len(prompts) != 1 or prompts[0].ndim != 2:
            raise LoraError("what was trained does not fit the model: there is no prompt of virtual tokens")
        put_virtual(model, len(prompts[0]), nn.Parameter(prompts[0].to(model.device).clone()))
        load_trained(model, tensors)

    return Stored(fill, lambda model: holds_base(model, tensors), reads_words(folder))


PROMPT = Method(
    name="prompt",
    trains="embeddings of virtual tokens",
    files=(TRAINED_FILE,),
    apply=_apply,
    trains_base=lambda _: False,
    save=save_trained,
    read=_read,
    merge=None,
    unmergeable="adds tokens to every text, which no weight of the base can hold",
    tokens=lambda plan: plan.virtual_tokens,
)
