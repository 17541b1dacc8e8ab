from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertConfig

from veneer.errors import LoraError
from veneer.lora import apply_lora, embedding_modules, mark_only_lora_as_trainable, top_layers, trained_modules, unfreeze

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}


@pytest.fixture
def bert() -> nn.Module:
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SMALL))
    apply_lora(model, ["query"], rank=2, alpha=4.0, exclude=["bert.encoder.layer.2"])
    return model


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_only_lora_is_trained(bert: nn.Module) -> None:
    mark_only_lora_as_trainable(bert)
    assert trained(bert) == {
        f"bert.encoder.layer.{layer}.attention.self.query.{matrix}" for layer in (0, 1) for matrix in ("lora_A", "lora_B")
    }


def test_biases_of_adapted_layers(bert: nn.Module) -> None:
    mark_only_lora_as_trainable(bert, bias="lora_only")
    assert {name for name in trained(bert) if "lora_" not in name} == {
        f"bert.encoder.layer.{layer}.attention.self.query.bias" for layer in (0, 1)
    }


def test_every_bias(bert: nn.Module) -> None:
    mark_only_lora_as_trainable(bert, bias="all")
    biases = {name for name, _ in bert.named_parameters() if name.endswith(".bias")}
    assert {name for name in trained(bert) if "lora_" not in name} == biases
    assert "bert.embeddings.LayerNorm.bias" in biases


def test_an_unknown_bias_mode_and_a_model_without_lora(bert: nn.Module) -> None:
    with pytest.raises(LoraError, match="'none', 'all', 'lora_only', not 'some'"):
        mark_only_lora_as_trainable(bert, bias="some")  # type: ignore[arg-type]
    with pytest.raises(LoraError, match="no LoRA layers"):
        mark_only_lora_as_trainable(nn.Linear(2, 2))


def test_modules_trained_in_full(bert: nn.Module) -> None:
    mark_only_lora_as_trainable(bert)
    assert trained_modules(bert) == ()
    unfreeze(bert, ["classifier", "bert.pooler.dense", *top_layers(bert, 1), *embedding_modules(bert)])
    assert trained_modules(bert) == (
        "bert.embeddings.word_embeddings",
        "bert.embeddings.position_embeddings",
        "bert.embeddings.token_type_embeddings",
        "bert.encoder.layer.2",
        "bert.pooler",
        "classifier",
    )


def test_a_list_of_layers_is_never_one_trained_module() -> None:
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SMALL))
    apply_lora(model, ["pooler.dense"], rank=2, alpha=4.0)
    mark_only_lora_as_trainable(model)
    unfreeze(model, top_layers(model, 3))
    assert trained_modules(model) == ("bert.encoder.layer.0", "bert.encoder.layer.1", "bert.encoder.layer.2")


def test_trained_biases_are_no_trained_module(bert: nn.Module) -> None:
    mark_only_lora_as_trainable(bert, bias="all")
    assert trained_modules(bert) == ()


@pytest.mark.parametrize(("name", "shown"), [("bert.head", "no such module"), ("bert.encoder.layer.0", "holds LoRA layers")])
def test_modules_that_cannot_be_trained_in_full(bert: nn.Module, name: str, shown: str) -> None:
    with pytest.raises(LoraError, match=shown):
        unfreeze(bert, [name])


@pytest.mark.parametrize("count", [4, -1])
def test_more_top_layers_than_there_are(bert: nn.Module, count: int) -> None:
    with pytest.raises(LoraError, match=f"train_top_layers: {count} is not between 0 and the 3 layers"):
        top_layers(bert, count)


@pytest.mark.parametrize(
    ("family", "layer", "embeddings"),
    [
        ("bert", "encoder.layer.1", 3),
        ("distilbert", "transformer.layer.1", 2),
        ("modernbert", "layers.1", 1),
        ("gpt2", "h.1", 2),
        ("qwen2", "layers.1", 1),
        ("deberta-v2", "encoder.layer.1", 2),
        ("mpnet", "encoder.layer.1", 3),
    ],
)
def test_layers_and_embeddings_are_found_in_each_family(family: str, layer: str, embeddings: int) -> None:
    config = AutoConfig.for_model(family)
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert top_layers(model, 0) == ()
    assert top_layers(model, 1) == (layer,)
    assert len(embedding_modules(model)) == embeddings


def test_models_without_layers_or_embeddings() -> None:
    with pytest.raises(LoraError, match="no list of transformer layers"):
        top_layers(nn.Linear(2, 2), 1)
    with pytest.raises(LoraError, match="no embeddings"):
        embedding_modules(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])}))
