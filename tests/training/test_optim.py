"""The course of the learning rate, and which parameter gets which rate and decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from veneer.bases import find_base
from veneer.model import AdapterPlan, Classifier, adapt, build_classifier
from veneer.training.optim import build_optimizer, learning_rate_factor, set_learning_rate


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
