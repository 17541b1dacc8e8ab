"""Law: what saves memory changes nothing: gradient checkpointing and micro-batches give the gradient of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from veneer.adaptation import AdapterPlan, adapt, checkpoint_activations
from veneer.bases import find_base
from veneer.data import EncodedTexts
from veneer.errors import BaseError
from veneer.lora import lora_layers
from veneer.model import Classifier, build_classifier
from veneer.packing import split_batch
from veneer.tasks import Objective, SingleLabel

LENGTHS = [17, 1, 5, 40, 40, 3, 33, 24]
FAMILIES = ["bert", "distilbert", "modernbert", "electra", "gpt2", "qwen2", "gemma3_text"]


def make_model(folder: Path, dropout: float) -> Classifier:
    torch.manual_seed(1)
    model = build_classifier(find_base(str(folder)), 3)
    adapt(model, AdapterPlan(rank=2, dropout=dropout))
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    return model.train()


def gradients(model: Classifier, texts: EncodedTexts, parts: list[list[int]]) -> dict[str, Tensor]:
    """The loss and its gradients, of the mean over all texts of `parts`."""
    torch.manual_seed(3)
    targets, total = torch.arange(len(texts)) % 3, torch.zeros(())
    model.zero_grad()
    for part in parts:
        logits = model(model.batch(texts, part))
        loss = SingleLabel().losses(logits, targets[part], Objective(label_smoothing=0.1)).sum() / len(texts)
        torch.autograd.backward(loss)
        total += loss.detach()
    grads = {name: parameter.grad.clone() for name, parameter in model.trainable().items() if parameter.grad is not None}
    return {"loss": total, **grads}


def forward_calls(model: Classifier) -> list[str]:
    """A list that grows by a name whenever an adapted layer is called."""
    calls: list[str] = []
    for name, layer in lora_layers(model).items():
        layer.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_nothing(
    family: str, dropout: float, tiny_base: Callable[..., Path], make_texts: Callable[..., EncodedTexts]
) -> None:
    model, texts = make_model(tiny_base(family), dropout), make_texts(LENGTHS)
    calls, everything = forward_calls(model), [list(range(len(LENGTHS)))]
    plain = gradients(model, texts, everything)
    once = len(calls)
    checkpoint_activations(model)
    saved = gradients(model, texts, everything)
    assert calls[once:].count(calls[0]) == 2 * calls[:once].count(calls[0])  # the first layer did run again
    assert plain.keys() == saved.keys()
    assert all(torch.equal(plain[name], saved[name]) for name in plain)


def test_a_base_that_cannot_do_so_is_refused(tiny_base: Callable[..., Path]) -> None:
    with pytest.raises(BaseError, match="albert cannot do gradient checkpointing"):
        checkpoint_activations(make_model(tiny_base("albert"), 0.0))


@pytest.mark.parametrize("budget", [1, 40, 60, 10_000])
@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_micro_batches_add_up_to_the_batch(
    family: str, budget: int, tiny_base: Callable[..., Path], make_texts: Callable[..., EncodedTexts]
) -> None:
    model, texts = make_model(tiny_base(family), 0.0), make_texts(LENGTHS)
    parts = [part.tolist() for part in split_batch(np.arange(len(LENGTHS)), texts.lengths, budget)]
    assert len(parts) == {1: 8, 40: 5, 60: 4, 10_000: 1}[budget]
    whole, cut = gradients(model, texts, [list(range(len(LENGTHS)))]), gradients(model, texts, parts)
    assert whole.keys() == cut.keys()
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-4, atol=1e-6)
