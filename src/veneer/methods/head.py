"""`head`: the head alone, over the base as it is."""

from __future__ import annotations

from veneer import lora
from veneer.methods.contract import Method, MethodPlan
from veneer.methods.tensors import TRAINED_FILE, leave, read_tuned, save_trained
from veneer.model import Classifier


def _apply(model: Classifier, _plan: MethodPlan) -> None:
    lora.unfreeze(model.network, model.trained_heads)  # a linear layer of ours is trained as it comes


HEAD = Method(
    name="head",
    trains="the head alone",
    files=(TRAINED_FILE,),
    apply=_apply,
    trains_base=lambda _: False,
    save=save_trained,
    read=read_tuned,
    merge=leave,
)
