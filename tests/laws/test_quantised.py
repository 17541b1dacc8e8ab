"""Law: over a base in fewer bits all laws hold as over the dense weights that those bits stand for.

The reference is the same model with each frozen weight replaced by its dense form: what is left is how it is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

from toy_runs import run, toy_config
from veneer.adaptation import AdapterPlan, adapt, checkpoint_activations
from veneer.bases import find_base
from veneer.data import EncodedTexts
from veneer.lora import FrozenLinear, LoraLinear, frozen_elements, lora_layers, merge_lora, remove_lora, unmerge_lora
from veneer.lora.frozen import FrozenWeight
from veneer.model import Classifier, build_classifier
from veneer.predictor import load
from veneer.quantise import NF4Weight

BITS = ["nf4", "int8"]
FAMILIES = ["bert", "distilbert", "modernbert", "albert", "deberta-v2", "gpt2", "qwen2", "llama", "gemma3_text"]
LENGTHS = [17, 1, 5, 16, 40, 3, 17, 33]

Base = Callable[..., Path]
MakeTexts = Callable[..., EncodedTexts]


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("bitsandbytes", reason="NF4 comes with the extra 'qlora'")


@pytest.fixture
def build(tiny_base: Base) -> Callable[..., Classifier]:
    """`build("bert", "nf4")` is an adapted classifier whose update is not zero: the same one on every call."""

    def model(family: str, bits: Any, *, pack: bool = True, targets: str = "auto", **plan: Any) -> Classifier:
        torch.manual_seed(1)
        made = build_classifier(find_base(str(tiny_base(family))), 3, base_precision=bits, pack=pack)
        adapt(made, AdapterPlan(rank=2, target_modules=targets, **{"dropout": 0.0} | plan))
        for layer in lora_layers(made).values():
            nn.init.normal_(layer.lora_B, std=0.1)
        return made

    return model


def made_plain(model: Classifier) -> Classifier:
    """A copy of the model in which every quantised layer is a plain one, with LoRA where it had LoRA, of plain autograd."""
    model = copy.deepcopy(model)
    for name, module in list(model.network.named_modules()):
        if isinstance(module, LoraLinear):
            model.network.set_submodule(name, PlainLora(module))
        elif isinstance(module, FrozenLinear):
            model.network.set_submodule(name, PlainLinear(module))
    return model


class PlainLinear(nn.Module):
    """`W x + b` by plain autograd."""

    def __init__(self, layer: FrozenLinear | LoraLinear) -> None:
        super().__init__()
        weight = layer.weight.dense() if isinstance(layer.weight, FrozenWeight) else layer.weight.detach()
        self.register_buffer("plain", weight.t() if layer.transposed else weight)
        self.register_buffer("offset", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.plain, self.offset)


class PlainLora(PlainLinear):
    """`W x + b + s·B(A x)` by plain autograd."""

    def __init__(self, layer: LoraLinear) -> None:
        super().__init__(layer)
        self.lora_A, self.lora_B, self.scale = layer.lora_A, layer.lora_B, layer.scale

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.lora_A.t() @ self.lora_B.t() * self.scale


def logits_and_gradients(model: Classifier, texts: EncodedTexts, groups: list[list[int]]) -> tuple[Tensor, dict[str, Tensor]]:
    weights = torch.randn(len(texts), 3, generator=torch.Generator().manual_seed(5))
    model.zero_grad()
    rows = []
    for group in groups:
        logits = model(model.batch(texts, group))
        torch.autograd.backward((logits * weights[group]).sum())
        rows.append(logits.detach())
    grads = {name: one.grad.clone() for name, one in model.trainable().items() if one.grad is not None}
    return torch.cat(rows), grads


def assert_same(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
    assert ours[1].keys() == theirs[1].keys() != set()
    for name, gradient in theirs[1].items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-3, atol=2e-5 * scale, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["auto", "query_value"])
def test_it_is_plain_autograd_over_the_dense_weights(
    family: str, bits: str, targets: str, build: Any, make_texts: MakeTexts
) -> None:
    model, texts = build(family, bits, targets=targets), make_texts(LENGTHS)
    everything = [list(range(len(LENGTHS)))]
    assert_same(logits_and_gradients(model, texts, everything), logits_and_gradients(made_plain(model), texts, everything))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", ["bert", "modernbert", "gpt2", "qwen2", "llama"])
def test_packed_is_padded_is_alone(family: str, bits: str, build: Any, make_texts: MakeTexts) -> None:
    texts, everything = make_texts(LENGTHS), list(range(len(LENGTHS)))
    packed, padded = build(family, bits), build(family, bits, pack=False)
    together = logits_and_gradients(packed, texts, [everything])
    assert together[0].std(0).min() > 0.01  # the texts differ, so that a mix-up would show
    assert_same(together, logits_and_gradients(padded, texts, [everything]))
    assert_same(together, logits_and_gradients(packed, texts, [[index] for index in everything]))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", ["bert", "qwen2", "gpt2"])
def test_gradient_checkpointing_changes_nothing(family: str, bits: str, build: Any, make_texts: MakeTexts) -> None:
    texts, everything = make_texts(LENGTHS), [list(range(len(LENGTHS)))]
    kept, again = (build(family, bits, dropout=0.3).train() for _ in range(2))
    checkpoint_activations(again)
    torch.manual_seed(3)
    expected = logits_and_gradients(kept, texts, everything)
    torch.manual_seed(3)
    found = logits_and_gradients(again, texts, everything)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())
    assert all(bool(gradient.any()) for name, gradient in found[1].items() if name.endswith("lora_B"))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_merged_is_unmerged_and_unmerging_is_exact(family: str, bits: str, build: Any, make_texts: MakeTexts) -> None:
    model, texts = build(family, bits), make_texts(LENGTHS)
    batch = model.batch(texts, list(range(len(LENGTHS))))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    elements = frozen_elements(model)
    with torch.no_grad():
        before = model(batch)
        merge_lora(model.network)
        torch.testing.assert_close(model(batch), before, rtol=1e-4, atol=1e-4)
        unmerge_lora(model.network)
        assert torch.equal(model(batch), before)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert frozen_elements(model) == elements
    adapted = {name for name, layer in lora_layers(model.network).items() if isinstance(layer.weight, FrozenWeight)}
    remove_lora(model.network)
    assert adapted == {name for name, layer in model.network.named_modules() if isinstance(layer, FrozenLinear)}
    assert frozen_elements(model) == elements


def test_nothing_dense_is_kept_between_forward_and_backward(build: Any, make_texts: MakeTexts) -> None:
    model, texts = build("llama", "nf4"), make_texts(LENGTHS)
    shapes = {layer.weight.shape for layer in model.modules() if isinstance(layer, LoraLinear | FrozenLinear)}
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor):
        model.train()(model.batch(texts, [0, 1]))
    assert kept
    assert not shapes & set(kept)
    assert not any(shape[::-1] in kept for shape in shapes)
    assert {type(layer.weight) for layer in lora_layers(model).values()} == {NF4Weight}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize(("family", "head"), [("qwen2", ["score"]), ("bert", ["classifier", "bert.pooler"])])
def test_a_run_over_nf4_is_peft_over_the_layers_of_bitsandbytes(
    family: str, head: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Any
) -> None:
    """Widths divide by 64, as those layers want it. On a processor with bf16 instructions they compute in bf16 outside of
    training, so they are asked in training, without dropout."""
    widths = {"hidden_size": 64, "intermediate_size": 128}
    here = tiny_base.__globals__  # of tests/conftest.py, whose name another conftest may have
    shapes = here["SHAPES"]
    monkeypatch.setitem(shapes, family, shapes[family] | widths)
    base = here["save_tiny_base"](family, tmp_path / "base")
    folder = run(toy_config(tmp_path, base, base_precision="nf4")).folder
    texts = ["a great film", "why oh why", "bad bad story we had"]
    ours, full = (load(folder, precision="fp32", base_precision=bits).logits(texts) for bits in ("nf4", "auto"))
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=head,
    )
    plain = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=2, quantization_config=bits, dtype=torch.float32, device_map={"": "cpu"}
    )
    model = peft.PeftModel.from_pretrained(plain, folder).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        theirs = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours - full).abs().max() > 0.1
