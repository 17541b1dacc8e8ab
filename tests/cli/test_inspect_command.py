"""`veneer inspect`"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from veneer import lora
from veneer.predictor import load


@pytest.fixture
def bert_chinese(tmp_path: Path) -> Path:
    """BERT-base-chinese's configuration, and nothing else."""
    BertConfig(vocab_size=21128).save_pretrained(tmp_path / "bert-base-chinese")
    return tmp_path / "bert-base-chinese"


@pytest.fixture
def bert_uncased(tmp_path: Path) -> Path:
    """BERT-base-uncased's configuration, and nothing else."""
    BertConfig(vocab_size=30522).save_pretrained(tmp_path / "bert-base-uncased")
    return tmp_path / "bert-base-uncased"


def inspect(veneer: Callable[..., Any], *arguments: object) -> dict[str, Any]:
    result = veneer("inspect", *arguments, "--json")
    assert result.code == 0, result.err
    document: dict[str, Any] = json.loads(result.out)
    return document


def test_bert_base_chinese_is_counted_as_peft_counts(veneer: Callable[..., Any], bert_chinese: Path) -> None:
    document = inspect(veneer, bert_chinese, "--labels", 10)
    layers = document.pop("layers")
    assert document == {
        "lora_parameters": 1_339_392,
        "trainable": 1_347_082,
        "total": 103_614_730,
        "peft_trainable": 1_347_082,
        "peft_total": 103_622_420,
    }
    assert sum(layer["parameters"] for layer in layers) == 1_339_392
    assert layers[0] == {
        "name": "bert.encoder.layer.0.attention.self.query",
        "in_features": 768,
        "out_features": 768,
        "rank": 8,
        "parameters": 12_288,
    }


def test_bert_base_uncased_with_query_and_value(veneer: Callable[..., Any], bert_uncased: Path) -> None:
    by_name = inspect(veneer, bert_uncased, "--rank", 8, "--set", "lora.target_modules=query_value")
    by_list = inspect(veneer, bert_uncased, "--rank", 8, "--set", "lora.target_modules=[query, value]")
    assert by_name == by_list
    assert by_name["lora_parameters"] == 294_912
    assert len(by_name["layers"]) == 24


def test_a_preset_gives_rank_and_targets(veneer: Callable[..., Any], bert_uncased: Path) -> None:
    document = inspect(veneer, bert_uncased, "--preset", "light")
    assert (document["lora_parameters"], document["layers"][0]["rank"]) == (294_912 // 2, 4)


def test_a_run_is_counted_as_it_was_trained(veneer: Callable[..., Any], multi_run: Path) -> None:
    document = inspect(veneer, multi_run)
    counts = lora.count_parameters(load(multi_run, precision="fp32").loaded.model)
    assert (document["lora_parameters"], document["total"]) == (counts.lora, counts.total)
    assert document["trainable"] == counts.lora + 3 * 32 + 3  # and the head for three labels
    assert inspect(veneer, multi_run, "--rank", 2)["lora_parameters"] == counts.lora // 2  # the run has rank 4
    assert inspect(veneer, multi_run, "--labels", 5)["trainable"] == counts.lora + 5 * 32 + 5


def test_every_parameter_is_listed(veneer: Callable[..., Any], multi_run: Path) -> None:
    document = inspect(veneer, multi_run, "--parameters")
    sizes = {row["name"]: (row["trained"], row["shape"]) for row in document["parameters"]}
    assert sizes["head.weight"] == (True, [3, 32])
    assert sizes["encoder.layer.0.output.dense.weight"] == (False, [32, 64])
    assert sizes["encoder.layer.0.output.dense.lora_A"] == (True, [4, 64])

    def count(rows: list[list[int]]) -> int:
        return sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in rows)

    assert count([shape for _, shape in sizes.values()]) == document["total"]
    assert count([shape for trained, shape in sizes.values() if trained]) == document["trainable"]


def test_layers_that_differ_in_their_number_alone_are_one_row(veneer: Callable[..., Any], bert_chinese: Path) -> None:
    shown = veneer("inspect", bert_chinese, "--labels", 10).out
    assert "bert.encoder.layer.{0-11}.attention.self.query" in shown
    assert "1,347,082" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    some = veneer("inspect", bert_chinese, "--set", "lora.layers=[1, 4, 5]").out
    assert "bert.encoder.layer.{1,4,5}.attention.self.query" in some
    assert "bert.encoder.layer.3.output" in veneer("inspect", bert_chinese, "--set", "lora.layers=[3]").out
    assert "bert.pooler.dense.lora_A" in veneer("inspect", bert_chinese, "--parameters").out


def test_targets_that_are_not_there(veneer: Callable[..., Any], bert_chinese: Path) -> None:
    result = veneer("inspect", bert_chinese, "--set", "lora.target_modules=[qery]", "--json")
    assert (result.code, result.out) == (2, "")
    assert "Did you mean 'query'?" in result.err


def test_neither_a_base_nor_a_run(veneer: Callable[..., Any], tmp_path: Path) -> None:
    result = veneer("inspect", tmp_path)
    assert result.code == 2
    assert "config.json" in result.err


def test_a_run_without_its_configuration_is_refused_and_not_counted_as_a_default(
    veneer: Callable[..., Any], bare_run: Callable[[Path], Path], multi_run: Path
) -> None:
    result = veneer("inspect", bare_run(multi_run), "--json")
    assert (result.code, result.out) == (2, "")
    assert "has no config.yaml" in result.err
    assert "Fix: copy that file too" in result.err
