"""Every family's default targets, on transformers' own models (meta device)."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

from veneer.errors import LoraError
from veneer.lora import apply_lora, default_targets, linear_layers, query_value_targets
from veneer.lora.families import FAMILIES
from veneer.lora.inject import layer_index

# Linear layers inside the transformer layers that are neither attention nor feed-forward projections.
LEFT = {"deberta": {"pos_proj", "pos_q_proj"}}


def skeleton(family: str) -> torch.nn.Module:
    config = AutoConfig.for_model(family)
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    with torch.device("meta"):
        return AutoModel.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_all_projections_of_the_transformer_layers(family: str) -> None:
    model = skeleton(family)
    inside = {name for name in linear_layers(model) if layer_index(name) is not None}
    adapted = set(apply_lora(model, default_targets(family), rank=2, alpha=4.0))
    assert inside
    assert {name for name in inside - adapted if name.rpartition(".")[2] not in LEFT.get(family, set())} == set()


@pytest.mark.parametrize("family", [family for family, targets in FAMILIES.items() if targets.query_value])
def test_query_and_value_are_in_every_layer(family: str) -> None:
    names = apply_lora(skeleton(family), query_value_targets(family), rank=2, alpha=4.0)
    targets = query_value_targets(family)
    layers = 1 if family == "albert" else 2  # ALBERT's layers are one
    assert len(names) == len(targets) * layers
    assert set(targets) <= {*default_targets(family)}


def test_a_family_without_attention_layers_says_so() -> None:
    with pytest.raises(LoraError, match=r"attention of 'xlnet' has no linear layers.*layer_1, layer_2"):
        query_value_targets("xlnet")


@pytest.mark.parametrize("function", [default_targets, query_value_targets])
def test_an_unknown_family_says_what_to_do(function: object) -> None:
    with pytest.raises(LoraError, match=r"'robertta' \(nearest known: 'roberta'\).*all-linear"):
        function("robertta")  # type: ignore[operator]
