"""The course of the learning rate, and which parameter gets which rate and decay."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from veneer.adaptation import AdapterPlan, adapt
from veneer.bases import find_base
from veneer.errors import ConfigError
from veneer.model import Classifier, build_classifier
from veneer.training.optim import (
    build_optimizer,
    check_optimizer,
    learning_rate_factor,
    moments,
    restore_moments,
    set_learning_rate,
)


@pytest.fixture
def model(tiny_base: Callable[..., Path]) -> Classifier:
    """A tiny BERT with LoRA, whose biases are trained too."""
    model = build_classifier(find_base(str(tiny_base("bert"))), 2)
    adapt(model, AdapterPlan(rank=2, bias="lora_only"))
    return model


def factors(schedule: str, *, steps: int = 10, warmup_ratio: float = 0.2) -> list[float]:
    return [learning_rate_factor(step, steps, warmup_ratio, schedule) for step in range(steps)]


def test_a_linear_schedule() -> None:
    """Two of ten steps of warm-up: a third and two thirds of the peak, then the peak and down by eighths."""
    assert factors("linear") == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_a_cosine_schedule() -> None:
    fall = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert factors("cosine") == pytest.approx([1 / 3, 2 / 3, *fall])


def test_a_constant_schedule() -> None:
    assert factors("constant") == pytest.approx([1 / 3, 2 / 3] + [1.0] * 8)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup_ratio"), [(1, 0.0), (1, 0.99), (2, 0.5), (7, 0.0), (100, 0.06)])
def test_every_step_learns_and_none_above_the_peak(schedule: str, steps: int, warmup_ratio: float) -> None:
    values = factors(schedule, steps=steps, warmup_ratio=warmup_ratio)
    assert all(0 < value <= 1 for value in values)
    peak = values.index(max(values))
    assert values[:peak] == sorted(values[:peak])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert warmup_ratio > 0 or values[0] == 1


def test_the_head_has_its_own_rate(model: Classifier) -> None:
    optimizer = build_optimizer(model, 1e-3, 5e-2, 0.1)
    set_learning_rate(optimizer, 0.5)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    head = {"network.classifier.weight", "network.classifier.bias", "network.bert.pooler.dense.bias"}
    assert head < model.trainable().keys()
    for name, parameter in model.trainable().items():
        assert rates[id(parameter)] == pytest.approx(2.5e-2 if name in head else 5e-4), name


def test_without_a_rate_of_its_own_the_head_has_the_adapters(model: Classifier) -> None:
    optimizer = build_optimizer(model, 1e-3, None, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(model.trainable())


def test_matrices_decay_and_biases_do_not(model: Classifier) -> None:
    optimizer = build_optimizer(model, 1e-3, 5e-2, 0.1)
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    names = model.trainable()
    assert any(name.endswith("bias") for name in names)
    for name, parameter in names.items():
        assert decays[id(parameter)] == (0.0 if name.endswith("bias") else 0.1), name


class TestMomentsInEightBits:
    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("bitsandbytes", reason="the optimisers in eight bits come with the extra 'qlora'")

    def test_they_are_restored_to_the_bit(self, tiny_base: Callable[..., Path]) -> None:
        """A parameter of 4,096 numbers has moments in eight bits, a smaller one in float32."""
        first, second = (self.model(tiny_base) for _ in range(2))
        ours, theirs = (build_optimizer(model, 1e-2, None, 0.1, "adamw_8bit") for model in (first, second))
        self.step(first, ours, seed=1)
        kinds = {moments(ours, parameter)["state1"].dtype for parameter in first.trainable().values()}
        assert kinds == {torch.uint8, torch.float32}
        for name, parameter in second.trainable().items():
            parameter.data.copy_(first.trainable()[name])
        names = dict(second.trainable())
        restore_moments(
            theirs, {names[name]: copy.deepcopy(moments(ours, parameter)) for name, parameter in first.trainable().items()}
        )
        for seed in (2, 3):
            self.step(first, ours, seed)
            self.step(second, theirs, seed)
        for name, parameter in first.trainable().items():
            assert torch.equal(parameter, names[name]), name

    def test_it_learns_as_in_float32(self, tiny_base: Callable[..., Path]) -> None:
        plain, eight = self.model(tiny_base), self.model(tiny_base)
        before = {name: parameter.clone() for name, parameter in plain.trainable().items()}
        for model, name in ((plain, "adamw"), (eight, "adamw_8bit")):
            optimizer = build_optimizer(model, 1e-2, None, 0.1, name)  # type: ignore[arg-type]
            for seed in range(5):
                self.step(model, optimizer, seed)
        for name, parameter in plain.trainable().items():
            moved = (parameter - before[name]).norm()
            assert (eight.trainable()[name] - parameter).norm() < 0.1 * moved, name

    def test_paging_needs_a_gpu(self) -> None:
        with pytest.raises(ConfigError, match=r"paged_adamw_8bit pages .* no GPU\. Fix: adamw_8bit"):
            check_optimizer("paged_adamw_8bit", torch.device("cpu"))

    def model(self, tiny_base: Callable[..., Path]) -> Classifier:
        torch.manual_seed(0)
        model = build_classifier(find_base(str(tiny_base("bert"))), 2)
        adapt(model, AdapterPlan(rank=128))
        return model

    def step(self, model: Classifier, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.trainable().values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"training\.optimizer: adamw_8bit needs bitsandbytes .*'veneer\[qlora\]'"):
        check_optimizer("adamw_8bit", torch.device("cpu"))
