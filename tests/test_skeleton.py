"""A classifier from the configuration alone counts as the loaded one does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from veneer import lora
from veneer.adaptation import AdapterPlan, adapt
from veneer.bases import find_base
from veneer.errors import BaseError
from veneer.model import Classifier, build_classifier, skeleton

Base = Callable[..., Path]


def rows(model: Classifier) -> list[lora.ParameterRow]:
    adapt(model, AdapterPlan())
    return lora.parameter_rows(model)


@pytest.mark.parametrize("pooling", ["auto", "mean"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "electra", "qwen2", "llama", "gpt2"])
def test_the_same_parameters_as_with_weights(tiny_base: Base, family: str, pooling: str) -> None:
    base = find_base(str(tiny_base(family)))
    model, loaded = skeleton(base, 3, pooling=pooling), build_classifier(base, 3, pooling=pooling)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert (model.trained_heads, model.padding_reason, model.plan) == (loaded.trained_heads, loaded.padding_reason, loaded.plan)
    assert rows(model) == rows(loaded)


def test_a_pooler_that_the_checkpoint_lacks_is_trained(tiny_base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base(), folder)
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert skeleton(find_base(str(folder)), 2).trained_heads == ("bert.pooler", "classifier")


def test_a_layer_of_the_head_that_the_checkpoint_has_is_adapted(tiny_base: Base, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(tiny_base("distilbert"), num_labels=3).save_pretrained(tmp_path)
    base = find_base(str(tmp_path))
    assert skeleton(base, 3).trained_heads == build_classifier(base, 3).trained_heads == ("classifier",)


@pytest.mark.parametrize(
    ("family", "untrained"), [("bert", ("classifier",)), ("distilbert", ("pre_classifier", "classifier")), ("gpt2", ("score",))]
)
def test_without_weights_all_but_the_classifier_is_supplied(
    tiny_base: Base, tmp_path: Path, family: str, untrained: tuple[str, ...]
) -> None:
    shutil.copy(tiny_base(family) / "config.json", tmp_path)
    assert skeleton(find_base(str(tmp_path), weights=False), 2).trained_heads == untrained


def test_nothing_random_is_drawn(tiny_base: Base) -> None:
    before = torch.get_rng_state()
    skeleton(find_base(str(tiny_base())), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_damaged_weights_are_told(tiny_base: Base, tmp_path: Path) -> None:
    shutil.copy(tiny_base() / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(BaseError, match="cannot be used"):
        skeleton(find_base(str(tmp_path)), 2)
