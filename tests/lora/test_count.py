"""Exact counts from configurations alone, on the meta device."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from veneer.lora import (
    ParameterRow,
    adapted_layers,
    apply_lora,
    count_parameters,
    mark_only_lora_as_trainable,
    parameter_rows,
    unfreeze,
)

BERT = ["query", "key", "value", "dense"]


def bert(vocabulary: int, labels: int) -> nn.Module:
    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig(vocab_size=vocabulary, num_labels=labels))


def adapted(vocabulary: int, labels: int, targets: list[str]) -> nn.Module:
    model = bert(vocabulary, labels)
    apply_lora(model, targets, rank=8, alpha=16.0, exclude=["classifier"])
    mark_only_lora_as_trainable(model)
    unfreeze(model, ["classifier"])
    return model


def test_bert_base_chinese_counts() -> None:
    counts = count_parameters(adapted(21128, 10, BERT))
    assert (counts.peft_trainable, counts.peft_total) == (1_347_082, 103_622_420)
    assert (counts.lora, counts.trainable) == (1_339_392, 1_347_082)
    assert counts.total == 103_622_420 - 7_690  # the head once


def test_bert_base_uncased_counts() -> None:
    counts = count_parameters(adapted(30522, 2, ["query", "value"]))
    assert counts.lora == 294_912
    assert counts.trainable == 294_912 + 1_538


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_counts_the_same() -> None:
    theirs = get_peft_model(bert(21128, 10), LoraConfig(task_type="SEQ_CLS", r=8, target_modules=BERT))
    counts = count_parameters(adapted(21128, 10, BERT))
    assert (counts.peft_trainable, counts.peft_total) == theirs.get_nb_trainable_parameters()


def test_rows() -> None:
    model = adapted(30522, 2, ["query"])
    layers = adapted_layers(model)
    assert len(layers) == 12
    first = layers[0]
    assert (first.name, first.in_features, first.out_features) == ("bert.encoder.layer.0.attention.self.query", 768, 768)
    assert (first.rank, first.parameters) == (8, 12_288)
    rows = parameter_rows(model)
    assert ParameterRow("classifier.bias", (2,), trained=True) in rows
    assert ParameterRow("bert.embeddings.word_embeddings.weight", (30522, 768), trained=False) in rows
    assert sum(torch.Size(row.shape).numel() for row in rows) == count_parameters(model).total
