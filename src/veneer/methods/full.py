"""`full`: every weight of the base, in float32."""

from __future__ import annotations

from veneer.methods.contract import Method, MethodPlan
from veneer.methods.tensors import TRAINED_FILE, leave, read_tuned, require_float32, save_trained
from veneer.model import Classifier


def _apply(model: Classifier, _plan: MethodPlan) -> None:
    require_float32(model)
    model.requires_grad_(True)


FULL = Method(
    name="full",
    trains="every weight",
    files=(TRAINED_FILE,),
    apply=_apply,
    trains_base=lambda _: True,
    save=save_trained,
    read=read_tuned,
    merge=leave,
)
