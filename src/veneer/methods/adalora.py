"""`adalora`: updates `B·diag(E)·A` whose ranks are spent where they matter (arXiv:2303.10512), by peft.

Every layer begins with half as many ranks again as `lora.rank`; between a tenth and two thirds of the steps the least important
are set to zero until `lora.rank` a layer are left on average. A and B are held near orthogonal by a penalty. There is no dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from veneer.adaptation import family_targets, unread_layers
from veneer.errors import LoraError
from veneer.lora.inject import target_layers
from veneer.methods import peft_library
from veneer.methods.contract import Course, Method, MethodPlan, Stored
from veneer.methods.tensors import LANGUAGE_MODEL
from veneer.model import Classifier

_FROM, _UNTIL = 10, 3  # ranks are cut from a tenth of the steps on, and no more in the last third
_PENALTY = 0.5  # weight of the mean distance of A·Aᵀ and Bᵀ·B from the identity, as in the paper


def _apply(model: Classifier, plan: MethodPlan) -> None:
    targets = family_targets(model, plan.lora.target_modules)
    exclude = [*model.trained_heads, *unread_layers(model)]
    names = target_layers(model.network, targets, layers=plan.lora.layers, exclude=exclude)
    _inject(model, names, plan.lora.rank, round(1.5 * plan.lora.rank), plan.lora.alpha)


def _inject(model: Classifier, names: list[str], rank: int, start: int, alpha: float) -> None:
    config = peft_library.import_peft("adalora").AdaLoraConfig(
        target_modules=names,
        target_r=rank,
        init_r=start,
        lora_alpha=alpha,
        lora_dropout=0.0,
        total_step=1,  # the schedule is the allocator's, which training makes
        fan_in_fan_out=peft_library.transposed(model, names),
    )
    peft_library.inject(model, config)
    for layer in _layers(model).values():  # a number that peft keeps as a parameter
        layer.ranknum["default"].requires_grad_(False)


def _layers(model: Classifier) -> dict[str, Any]:
    return {
        name.removesuffix(".lora_E"): model.network.get_submodule(name.removesuffix(".lora_E"))
        for name, _ in model.network.named_modules()
        if name.endswith(".lora_E")
    }


class _Allocation:
    """What training does beside the steps: the penalty, and peft's allocator of ranks."""

    def __init__(self, model: Classifier, plan: MethodPlan, steps: int) -> None:
        from peft.tuners.adalora.layer import RankAllocator

        config = peft_library.import_peft("adalora").AdaLoraConfig(
            target_r=plan.lora.rank,
            init_r=round(1.5 * plan.lora.rank),
            total_step=steps,
            tinit=steps // _FROM,
            tfinal=steps // _UNTIL,
            deltaT=max(1, steps // 100),
        )
        self._network = model.network
        self._allocator: Any = RankAllocator(model.network, config, "default")  # type: ignore[no-untyped-call]
        self._first_cut, self._last_scored = steps // _FROM, steps - steps // _UNTIL

    def penalty(self) -> Tensor:
        distances = []
        for name, parameter in self._network.named_parameters():
            if name.endswith((".lora_A.default", ".lora_B.default")):
                product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
                identity = torch.eye(len(product), device=product.device)
                distances.append(torch.linalg.norm(product - identity))
        return torch.stack(distances).mean() * _PENALTY

    def after_step(self, step: int) -> None:
        if self._allocator.ipt or step < self._last_scored:  # a run of one step has nothing to go by
            self._allocator.update_and_allocate(self._network, step)

    def state(self) -> dict[str, Tensor]:
        kept = {"ipt": self._allocator.ipt, "mean": self._allocator.exp_avg_ipt, "spread": self._allocator.exp_avg_unc}
        return {f"{kind}/{name}": tensor for kind, tensors in kept.items() for name, tensor in tensors.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        device = next(self._network.parameters()).device
        places = {"ipt": self._allocator.ipt, "mean": self._allocator.exp_avg_ipt, "spread": self._allocator.exp_avg_unc}
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            places[kind][name] = tensor.to(device)


def _course(model: Classifier, plan: MethodPlan, steps: int) -> Course:
    return _Allocation(model, plan, steps)


def _save(model: Classifier, folder: Path, base: str) -> None:
    layers = _layers(model)
    first = next(iter(layers.values()))
    start = int(first.lora_E["default"].shape[0])
    fields = {
        "peft_type": "ADALORA",
        "target_modules": list(layers),
        "init_r": start,
        "target_r": max(1, round(start / 1.5)),
        "lora_alpha": float(first.lora_alpha["default"]),
        "total_step": 1,
        "fan_in_fan_out": bool(first.fan_in_fan_out),
    }
    peft_library.save(model, folder, base, fields)


def _read(folder: Path) -> Stored:
    fields, tensors = peft_library.read(folder, "ADALORA")
    names = [name.removesuffix(".lora_E") for name in tensors if name.endswith(".lora_E")]
    ranks = {tensors[f"{name}.lora_E"].shape[0] for name in names}
    alpha = fields.get("lora_alpha")
    if len(ranks) != 1 or isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e30:
        raise LoraError(f"{folder}: the adapter has no single rank, or no lora_alpha above 0")
    start = ranks.pop()

    def fill(model: Classifier) -> None:
        peft_library.require_layers(model, names)
        _inject(model, names, max(1, round(start / 1.5)), start, float(alpha))
        peft_library.fill(model, tensors)

    return Stored(fill, lambda _: False, fields.get("task_type") == LANGUAGE_MODEL)


ADALORA = Method(
    name="adalora",
    trains="low-rank updates whose ranks are spent where they matter",
    files=(peft_library.CONFIG_FILE, peft_library.TENSOR_FILE),
    apply=_apply,
    trains_base=lambda _: False,
    save=_save,
    read=_read,
    merge=peft_library.merge,
    course=_course,
)
