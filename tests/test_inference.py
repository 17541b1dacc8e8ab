"""The one loop without gradients: every text's logits, in the order of the texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from veneer.adaptation import AdapterPlan, adapt
from veneer.bases import find_base
from veneer.data import EncodedTexts
from veneer.inference import compute_logits
from veneer.lora import lora_layers
from veneer.model import Classifier, build_classifier

LENGTHS = [5, 33, 1, 12, 5, 70, 3]


@pytest.fixture(scope="module")
def model(tiny_base: Callable[..., Path]) -> Classifier:
    torch.manual_seed(0)
    made = build_classifier(find_base(str(tiny_base("bert"))), 3)
    adapt(made, AdapterPlan(rank=2, dropout=0.5))
    for layer in lora_layers(made).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    return made


@pytest.mark.parametrize("budget", [1, 40, 4096])
def test_logits_come_in_the_order_of_the_texts(budget: int, model: Classifier, make_texts: Callable[..., EncodedTexts]) -> None:
    texts = make_texts(LENGTHS)
    with torch.no_grad():
        expected = torch.cat([model.eval()(model.batch(texts, [index])) for index in range(len(texts))])
    done: list[int] = []
    logits = compute_logits(model, texts, token_budget=budget, progress=done.append)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert not logits.requires_grad
    assert sum(done) == len(texts)
    assert len(done) == {1: 7, 40: 3, 4096: 1}[budget]


def test_dropout_is_off_and_the_mode_is_given_back(model: Classifier, make_texts: Callable[..., EncodedTexts]) -> None:
    texts = make_texts(LENGTHS)
    for mode in (True, False):
        model.train(mode)
        assert torch.equal(compute_logits(model, texts), compute_logits(model, texts))
        assert model.training is mode


def test_no_texts_are_refused(model: Classifier, make_texts: Callable[..., EncodedTexts]) -> None:
    empty = make_texts([1])
    with pytest.raises(ValueError, match="no texts"):
        compute_logits(model, EncodedTexts(empty.ids[:0], empty.type_ids[:0], empty.offsets[:1], 0))
