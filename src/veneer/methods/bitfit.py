"""`bitfit`: the base's biases alone, those of its norms included (arXiv:2106.10199)."""

from __future__ import annotations

from veneer import lora
from veneer.errors import LoraError
from veneer.lora.freeze import bias_names
from veneer.methods.contract import Method, MethodPlan
from veneer.methods.tensors import TRAINED_FILE, leave, read_tuned, require_float32, save_trained
from veneer.model import Classifier


def _apply(model: Classifier, _plan: MethodPlan) -> None:
    require_float32(model)
    biases = bias_names(model.encoder, "all")
    if not biases:  # LLaMA and its kin, ModernBERT
        family = model.config.get_text_config().model_type
        raise LoraError(f"bitfit trains biases, and '{family}' has none. Fix: another method, such as lora")
    for name, parameter in model.encoder.named_parameters():
        if name in biases:
            parameter.requires_grad_(True)
    lora.unfreeze(model.network, model.trained_heads)


BITFIT = Method(
    name="bitfit",
    trains="the base's biases",
    files=(TRAINED_FILE,),
    apply=_apply,
    trains_base=lambda _: True,
    save=save_trained,
    read=read_tuned,
    merge=leave,
)
