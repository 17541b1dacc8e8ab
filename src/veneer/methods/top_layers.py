"""`top_layers`: the last transformer layers of the base, in full; the layers below need no backward pass."""

from __future__ import annotations

from veneer import lora
from veneer.methods.contract import Method, MethodPlan
from veneer.methods.tensors import TRAINED_FILE, leave, read_tuned, require_float32, save_trained
from veneer.model import Classifier


def _apply(model: Classifier, plan: MethodPlan) -> None:
    require_float32(model)
    lora.unfreeze(model.network, [*model.trained_heads, *lora.top_layers(model.network, plan.top_layers)])


TOP_LAYERS = Method(
    name="top_layers",
    trains="the last layers in full",
    files=(TRAINED_FILE,),
    apply=_apply,
    trains_base=lambda _: True,
    save=save_trained,
    read=read_tuned,
    merge=leave,
)
