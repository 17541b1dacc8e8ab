"""Frozen layers in four and eight bits: how close they are, what stays as it is, and what is refused."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from rich.console import Console
from torch import nn

from toy_runs import adapter, metrics, run, toy_config
from veneer.adaptation import AdapterPlan, adapt
from veneer.bases import find_base
from veneer.errors import ConfigError, LoraError
from veneer.lora import FrozenLinear, LoraLinear, count_parameters, frozen_elements
from veneer.model import build_classifier
from veneer.quantise import Int8Weight, NF4Weight, load_bitsandbytes
from veneer.run_info import read_info
from veneer.training import train

Base = Callable[..., Path]
SHAPES = [(64, 64), (32, 48), (30, 32), (5, 7), (1, 200)]  # rows that fill blocks of 64, and rows that do not
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("bitsandbytes", reason="NF4 comes with the extra 'qlora'")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nf4_is_the_nearest_of_sixteen_levels_a_block(shape: tuple[int, int], dtype: torch.dtype, library: Any) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    frozen = NF4Weight(weight)
    dense = frozen.dense()
    assert (dense.shape, dense.dtype) == (weight.shape, dtype)
    flat = nn.functional.pad(weight.float().reshape(-1), (0, -weight.numel() % 64)).view(-1, 64)
    largest = flat.abs().amax(1, keepdim=True)
    levels = library.functional.get_4bit_type("nf4", device="cpu")
    nearest = levels[(flat / largest)[..., None].sub(levels).abs().argmin(-1)] * largest
    # the scales are rounded to eight bits, too, and the result to its precision
    error = (dense.float().reshape(-1) - nearest.reshape(-1)[: weight.numel()]).abs()
    assert error.max() <= 0.03 * largest.max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int8_is_off_by_half_a_step_at_most(shape: tuple[int, int], transposed: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).mul_(torch.arange(1, shape[0] + 1)[:, None]).to(dtype)
    dense = Int8Weight(weight, transposed=transposed).dense()
    assert (dense.shape, dense.dtype) == (weight.shape, dtype)
    step = weight.float().abs().amax(0 if transposed else 1, keepdim=True) / 127
    rounding = torch.finfo(dtype).eps  # of the scale, up to 127 times a step, and of the result
    assert ((dense.float() - weight.float()).abs() <= step * (0.501 + 127 * rounding)).all()


def test_a_row_of_zeros_stays_one() -> None:
    weight = torch.zeros(2, 64)
    weight[1] = 1.0
    assert torch.equal(Int8Weight(weight).dense(), weight)


def test_nf4_takes_half_a_byte_a_number(library: Any) -> None:
    frozen = NF4Weight(torch.randn(256, 1024))
    stored = sum(buffer.numel() * buffer.element_size() for buffer in frozen.buffers())
    assert stored < 0.52 * 256 * 1024 + 2048  # the table of 256 scales


@pytest.mark.parametrize("bits", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_heads_norms_embeddings_and_adapters_stay(family: str, bits: Any, tiny_base: Base, library: Any) -> None:
    base = find_base(str(tiny_base(family)))
    plain = build_classifier(base, 3, dtype=torch.bfloat16)
    model = build_classifier(base, 3, dtype=torch.bfloat16, base_precision=bits)
    kept = dict(model.named_parameters())
    gone = {name.removesuffix(".weight") for name, _ in plain.named_parameters() if name not in kept}
    frozen = {name for name, module in model.named_modules() if isinstance(module, FrozenLinear)}
    assert gone == frozen
    assert not any(name.startswith("network.score") or "pooler" in name or "classifier" in name for name in frozen)
    assert all(torch.equal(kept[name], one) for name, one in plain.named_parameters() if name in kept and "encoder" in name)
    total = count_parameters(plain).total
    adapt(model, AdapterPlan(rank=2))
    counts = count_parameters(model)
    assert counts.total - counts.lora == total
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    assert {layer.lora_A.dtype for layer in layers} == {torch.float32}
    assert {parameter.dtype for name, parameter in model.named_parameters() if name in model.head_parameters()} == {torch.float32}


@pytest.mark.parametrize("plan", [{"train_top_layers": 1}, {"bias": "all"}, {"train_embeddings": True}])
def test_weights_in_fewer_bits_are_not_trained(plan: dict[str, Any], tiny_base: Base) -> None:
    model = build_classifier(find_base(str(tiny_base("bert"))), 2, base_precision="int8")
    with pytest.raises(LoraError, match=r"fewer bits cannot be trained\. Fix: base_precision: auto"):
        adapt(model, AdapterPlan(rank=2, **plan))


def test_without_the_library_the_extra_is_named(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"base_precision: nf4 needs bitsandbytes .*pip install 'veneer\[qlora\]'"):
        build_classifier(find_base(str(tiny_base("bert"))), 2, base_precision="nf4")
    assert build_classifier(find_base(str(tiny_base("bert"))), 2, base_precision="int8").config.model_type == "bert"


def test_loading_the_library_says_nothing(library: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert load_bitsandbytes("a test") is library
    assert caplog.text == ""


class TestARunOnAProcessor:
    @pytest.mark.parametrize("family", ["bert", "qwen2", "llama"])
    def test_four_bits_are_learned_over_as_full_ones_are(
        self, family: str, tiny_base: Base, tmp_path: Path, library: Any
    ) -> None:
        changes = {"training__epochs": 12, "lora__rank": 8, "training__batch_size": 12, "training__gradient_checkpointing": True}
        losses = {}
        for bits in ("nf4", "auto"):
            folder = run(toy_config(tmp_path, tiny_base(family), base_precision=bits, out=str(tmp_path / bits), **changes)).folder
            rows = [row for row in metrics(folder) if row["kind"] == "evaluation" and row["split"] == "train"]
            losses[bits] = [row["loss"] for row in rows]
            assert rows[-1]["accuracy"] >= 0.95
            assert read_info(folder).base_precision == bits
        assert losses["nf4"][-1] < losses["nf4"][0] / 3
        assert losses["nf4"][-1] != losses["auto"][-1]
        tensors = adapter(tmp_path / "nf4")
        assert all(bool(tensor.any()) for name, tensor in tensors.items() if "lora_B" in name)

    def test_it_says_how_many_weights_are_in_fewer_bits(self, tiny_base: Base, tmp_path: Path) -> None:
        said = io.StringIO()
        config = toy_config(tmp_path, tiny_base("llama"), base_precision="int8", training__epochs=1)
        with patch("veneer.training.finish.plot_curves"):
            train(config, console=Console(file=said, width=200))
        model = build_classifier(find_base(str(tiny_base("llama"))), 2, base_precision="int8")
        assert f"base precision: {frozen_elements(model):,} weights of the base in int8" in said.getvalue()

    def test_a_run_without_the_library_writes_nothing(
        self, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        for changes in ({"base_precision": "nf4"}, {"training__optimizer": "adamw_8bit"}):
            with pytest.raises(ConfigError, match=r"'veneer\[qlora\]'"):
                run(toy_config(tmp_path, tiny_base("bert"), **changes))
        assert not (tmp_path / "run").exists()
