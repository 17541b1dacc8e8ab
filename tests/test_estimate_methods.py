"""What is foretold of a step by every method, over a base in fewer bits and by label words, is what such a step takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from test_estimate import loss, saved_by
from veneer.adaptation import AdapterPlan, adapt
from veneer.bases import find_base
from veneer.data import EncodedTexts, Prompt
from veneer.estimate import Memory, estimate_step, optimizer_bytes, stored_bytes
from veneer.lora import FrozenLinear, FrozenWeight
from veneer.methods import METHODS, MethodPlan
from veneer.model import Classifier, build_classifier, skeleton
from veneer.quantise import Int8Weight, NF4Weight
from veneer.training.optim import build_optimizer, moments
from veneer.word_model import build_word_classifier, word_skeleton

Base = Callable[..., Path]
Texts = Callable[..., EncodedTexts]


def agrees(foretold: Classifier, real: Classifier, texts: EncodedTexts) -> Memory:
    """The estimate, after it has been held against the real model."""
    foretold.train()
    memory = estimate_step(foretold, loss(foretold, texts), "cpu")
    assert (memory.weights, memory.trained) == stored_bytes(real)
    assert memory.activations == pytest.approx(saved_by(real, texts), rel=0.05)
    return memory


@pytest.mark.parametrize("family", ["bert", "qwen2"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])  # which has a test of its own
def test_of_every_method(method: str, family: str, tiny_base: Base, make_texts: Texts) -> None:
    if (method, family) == ("bitfit", "qwen2"):
        pytest.skip("its biases are few, and it has none in norms")
    base, plan = find_base(str(tiny_base(family))), MethodPlan()
    foretold, real = skeleton(base, 3), build_classifier(base, 3)
    for model in (foretold, real):
        METHODS[method].apply(model, plan)
    agrees(foretold, real, make_texts([40, 12, 40, 60, 33]))


@pytest.mark.parametrize("family", ["bert", "qwen2", "gpt2"])
@pytest.mark.parametrize("bits", ["nf4", "int8"])
def test_over_a_base_in_fewer_bits(bits: str, family: str, tiny_base: Base, make_texts: Texts) -> None:
    base, texts = find_base(str(tiny_base(family))), make_texts([40] * 5)
    foretold = skeleton(base, 3, base_precision=bits)  # first, so that what it leaves behind is seen
    real = build_classifier(base, 3, base_precision=bits)
    for model in (foretold, real):
        adapt(model, AdapterPlan())
    agrees(foretold, real, texts)


class Scaled(nn.Module):
    """A trained scale in front of a frozen linear layer of 256 to 256 over `weight`; one row."""

    def __init__(self, weight: FrozenWeight) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(256, device="meta"))
        self.linear = FrozenLinear(weight, None)

    def forward(self) -> Tensor:
        return self.linear(self.scale[None]).sum()


@pytest.mark.parametrize(("kind", "stored"), [(NF4Weight, 0.516), (Int8Weight, 1.0)])
def test_a_weight_is_stored_in_few_bits_and_made_dense_in_the_workspace(kind: type[Any], stored: float) -> None:
    model = Scaled(kind(torch.empty(256, 256, device="meta")))
    memory = estimate_step(model, model, "cpu")
    assert memory.weights == pytest.approx(stored * 256 * 256, rel=0.05)
    assert memory.workspace == pytest.approx(4 * 256 * 256, rel=0.1)


@pytest.mark.parametrize(
    ("family", "bits", "method"),
    [("qwen2", "auto", "lora"), ("qwen2", "nf4", "lora"), ("gpt2", "int8", "lora"), ("llama", "nf4", "prefix")],
)
def test_by_label_words(family: str, bits: str, method: str, tiny_causal: Base, make_texts: Texts) -> None:
    base = find_base(str(tiny_causal(family)))
    foretold = word_skeleton(base, 3, base_precision=bits)
    real = build_word_classifier(base, Prompt("", (), False, ((1,), (2,), (3,)), ()), base_precision=bits)
    for model in (foretold, real):
        METHODS[method].apply(model, MethodPlan())
    agrees(foretold, real, make_texts([40, 12, 33]))


def test_what_adalora_remembers_counts(tiny_base: Base, make_texts: Texts) -> None:
    base, plan, texts = find_base(str(tiny_base())), MethodPlan(), make_texts([20] * 3)
    sizes = []
    for model in (skeleton(base, 3), build_classifier(base, 3)):
        METHODS["adalora"].apply(model, plan)
        model.train()
        make = METHODS["adalora"].course
        assert make is not None
        course = make(model, plan, 1000)
        (loss(model, texts)() + course.penalty()).backward()
        course.after_step(1)
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in course.state().values()))
    assert sizes[0] == sizes[1] > 0


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_moments_are_counted_to_the_byte(name: str, tiny_base: Base, make_texts: Texts) -> None:
    model = build_classifier(find_base(str(tiny_base())), 3)
    adapt(model, AdapterPlan(rank=64))  # large enough for eight bits, in some layers
    optimizer = build_optimizer(model, 1e-3, None, 0.0, name)  # type: ignore[arg-type]
    model.train()
    loss(model, make_texts([20] * 3))().backward()
    optimizer.step()
    kept = 0
    for parameter in model.trainable().values():
        found = moments(optimizer, parameter)
        kept += sum(one.numel() * one.element_size() for key, one in found.items() if key not in ("step", "qmap1", "qmap2"))
    assert optimizer_bytes(model, name) == kept
    large = [one for one in model.trainable().values() if one.numel() >= 4096]
    assert 0 < len(large) < len(model.trainable())
