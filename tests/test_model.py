"""The classifier: what of it is trained, in what precision, in which mode; and that it comes back from its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from veneer import lora
from veneer.adaptation import AdapterPlan, adapt, checkpoint_activations, share_inputs, turn_on_dropout
from veneer.bases import find_base
from veneer.data import EncodedTexts
from veneer.errors import BaseError, LoraError
from veneer.heads import HeadPlan
from veneer.inference import compute_logits
from veneer.model import Classifier, build_classifier, skeleton

Base = Callable[..., Path]
MakeTexts = Callable[..., EncodedTexts]

LACKING = {  # family -> the head's modules that a base without its classifier lacks
    "bert": {"classifier"},
    "roberta": {"classifier"},
    "distilbert": {"classifier", "pre_classifier"},
    "modernbert": {"classifier", "head"},
    "electra": {"classifier"},
    "deberta-v2": {"classifier", "pooler"},
    "qwen2": {"score"},
    "gpt2": {"score"},
}


def save_whole(base: Path, folder: Path, labels: int) -> Path:
    """A base whose checkpoint holds a classifier for `labels` classes."""
    torch.manual_seed(9)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels).save_pretrained(folder)
    for file in base.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def adapted(folder: Path, *, labels: int = 3, seed: int = 1, dtype: torch.dtype = torch.float32, **plan: object) -> Classifier:
    torch.manual_seed(seed)
    model = build_classifier(find_base(str(folder)), labels, dtype=dtype)
    adapt(model, AdapterPlan(rank=2, **plan))  # type: ignore[arg-type]
    return model


def trained_modules(model: Classifier) -> set[str]:
    return set(lora.trained_modules(model.network))


@pytest.mark.parametrize("family", LACKING)
def test_what_the_base_lacks_of_the_head_is_trained(family: str, tiny_base: Base) -> None:
    model = adapted(tiny_base(family))
    assert set(model.trained_heads) == trained_modules(model) == LACKING[family]
    assert {name for name in model.trainable() if "lora_" not in name} == model.head_parameters()


@pytest.mark.parametrize("family", LACKING)
def test_the_output_layer_is_trained_even_where_the_base_has_one(
    family: str, tiny_base: Base, tmp_path: Path, make_texts: MakeTexts
) -> None:
    folder = save_whole(tiny_base(family), tmp_path / "base", labels=3)
    model, expected = adapted(folder), "score" if family in ("qwen2", "gpt2") else "classifier"
    assert set(model.trained_heads) == trained_modules(model) == {expected}
    stored = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    head = {name: value for name, value in model.network.state_dict().items() if name.startswith(f"{expected}.")}
    assert head
    assert all(torch.equal(value, stored[name]) for name, value in head.items())  # it starts from what the base has

    # saved and loaded into a fresh model it gives the same logits, though all that is trained has changed
    for parameter in model.trainable().values():
        nn.init.normal_(parameter.data, std=0.1)
    settings = lora.adapter_settings(model.network, bias="none", base=None, task_type="SEQ_CLS")
    assert expected in settings.saved_modules
    (tmp_path / "adapter").mkdir()
    lora.write_adapter(tmp_path / "adapter", lora.lora_state_dict(model.network, "none", settings.saved_modules), settings)
    fresh = build_classifier(find_base(str(folder)), 3)
    texts = make_texts([5, 9, 3])
    before = compute_logits(fresh, texts)
    lora.apply_adapter(fresh.network, lora.read_adapter(tmp_path / "adapter"))
    share_inputs(fresh)
    assert torch.equal(compute_logits(fresh, texts), compute_logits(model, texts))
    assert not torch.allclose(compute_logits(fresh, texts), before, atol=1e-2)


def test_an_output_layer_for_other_classes_starts_anew(tiny_base: Base, tmp_path: Path) -> None:
    folder = save_whole(tiny_base("bert"), tmp_path / "base", labels=5)
    model = adapted(folder)
    assert model.trained_heads == ("classifier",)
    assert model.network.get_parameter("classifier.weight").shape == (3, 32)


def test_a_pooler_that_the_base_has_is_adapted_and_one_it_lacks_is_trained(tiny_base: Base, tmp_path: Path) -> None:
    assert "bert.pooler.dense" in lora.lora_layers(adapted(tiny_base("bert")).network)
    folder = shutil.copytree(tiny_base("bert"), tmp_path / "base")
    tensors = {name: value for name, value in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = adapted(folder)
    assert set(model.trained_heads) == trained_modules(model) == {"bert.pooler", "classifier"}
    assert "bert.pooler.dense" not in lora.lora_layers(model.network)


def test_our_own_head_is_trained(tiny_base: Base) -> None:
    torch.manual_seed(1)
    model = build_classifier(find_base(str(tiny_base("bert"))), 3, pooling="mean")
    adapt(model, AdapterPlan(rank=2))
    assert (model.plan.own, model.trained_heads) == (False, ())
    assert model.head_parameters() == {"head.weight", "head.bias"}
    assert not any("pooler" in name for name, _ in model.named_parameters())


def test_nothing_of_the_base_is_trained_unless_asked_for(tiny_base: Base, make_texts: MakeTexts) -> None:
    model, texts = adapted(tiny_base("bert"), dropout=0.3), make_texts([5, 9])
    frozen = {name: value.clone() for name, value in model.named_parameters() if name not in model.trainable()}
    assert all("lora_" in name or "classifier" in name for name in model.trainable())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        model.train()(model.batch(texts, [0, 1])).square().sum().backward()
        optimizer.step()
    changed = dict(model.named_parameters())
    assert all(torch.equal(changed[name], value) for name, value in frozen.items())


def test_the_first_output_is_that_of_the_base(tiny_base: Base, make_texts: MakeTexts) -> None:
    torch.manual_seed(1)
    model, texts = build_classifier(find_base(str(tiny_base("modernbert"))), 3), make_texts([5, 9, 20])
    before = compute_logits(model, texts)
    adapt(model, AdapterPlan(rank=2))
    torch.testing.assert_close(compute_logits(model, texts), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "qwen2", "gpt2", "deberta-v2"])
def test_a_base_in_bf16_has_a_head_and_an_adapter_in_float32(family: str, tiny_base: Base, make_texts: MakeTexts) -> None:
    model, texts = adapted(tiny_base(family), dtype=torch.bfloat16), make_texts([5, 9, 20])
    assert {parameter.dtype for parameter in model.trainable().values()} == {torch.float32}
    assert next(model.encoder.parameters()).dtype == torch.bfloat16
    logits = model.train()(model.batch(texts, [0, 1, 2]))
    logits.square().sum().backward()
    assert logits.dtype == torch.float32
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.trainable().values())
    whole = adapted(tiny_base(family))
    with torch.no_grad():
        for name, parameter in whole.trainable().items():  # older versions draw a head for bf16 by other numbers
            parameter.copy_(model.trainable()[name])
    exact = compute_logits(whole, texts)
    assert (compute_logits(model, texts) - exact).abs().max() < 0.1 * exact.abs().max()


def test_the_bases_own_dropout_stays_off(tiny_base: Base, make_texts: MakeTexts) -> None:
    model, texts = adapted(tiny_base("bert"), dropout=0.3), make_texts([5, 9])
    assert any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.encoder.modules())
    model.train()
    assert not any(module.training for module in model.encoder.modules() if isinstance(module, nn.Dropout))
    assert all(layer.training for layer in lora.lora_layers(model).values())
    batch = model.batch(texts, [0, 1])
    for layer in lora.lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.1)
    assert not torch.equal(model(batch), model(batch))  # the adapter's own is on
    model.eval()
    assert torch.equal(model(batch), model(batch))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "electra", "albert", "deberta-v2"])
def test_the_dropout_of_the_familys_head_is_on_in_training(
    family: str, tiny_base: Base, tmp_path: Path, make_texts: MakeTexts
) -> None:
    folder = shutil.copytree(tiny_base(family), tmp_path / "base")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # one name a family; where the probability is 0 by default, nothing could be seen of it
    settings |= {"classifier_dropout": 0.5, "classifier_dropout_prob": 0.5, "seq_classif_dropout": 0.5, "cls_dropout": 0.5}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    model, texts = adapted(folder, dropout=0.0), make_texts([5, 9])
    batch = model.batch(texts, [0, 1])
    model.train()
    assert not torch.equal(model(batch), model(batch))
    assert not any(module.training for module in model.encoder.modules() if isinstance(module, nn.Dropout))
    model.eval()
    assert torch.equal(model(batch), model(batch))


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "modernbert", "deberta-v2"])
def test_the_bases_own_dropout_can_be_turned_on_for_training_alone(family: str, tiny_base: Base, make_texts: MakeTexts) -> None:
    model, texts = adapted(tiny_base(family), dropout=0.0), make_texts([3, 9, 5])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the head's, and what the tiny bases come with
    plain = compute_logits(model, texts)
    turn_on_dropout(model)  # at the rates it was made with, now 0
    assert torch.equal(
        model.train()(model.batch(texts, [0, 1, 2])).detach(), model.eval()(model.batch(texts, [0, 1, 2])).detach()
    )
    turn_on_dropout(model, 0.3)
    assert torch.equal(compute_logits(model, texts), plain)
    batch = model.train().batch(texts, [0, 1, 2])
    first, second = (model(batch).detach() for _ in range(2))
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, plain)
    assert torch.equal(compute_logits(model.eval(), texts), plain)


def test_activations_computed_again_have_the_same_dropout_of_the_base(tiny_base: Base, make_texts: MakeTexts) -> None:
    model, texts = adapted(tiny_base("bert"), dropout=0.2), make_texts([3, 9, 5])
    turn_on_dropout(model, 0.3)
    grads = []
    for again in (False, True):
        if again:
            checkpoint_activations(model)
        model.train()
        model.zero_grad()
        torch.manual_seed(5)
        torch.autograd.backward(model(model.batch(texts, [0, 1, 2])).square().sum())
        grads.append({name: one.grad.clone() for name, one in model.trainable().items() if one.grad is not None})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_a_base_without_dropout_layers_says_so(tiny_base: Base) -> None:
    with pytest.raises(LoraError, match=r"training.base_dropout: llama has no dropout layers. Fix: training.base_dropout: auto"):
        turn_on_dropout(adapted(tiny_base("llama")), 0.1)
    turn_on_dropout(adapted(tiny_base("llama")))


@pytest.mark.parametrize("pooling", ["auto", "cls"])
def test_the_pooling_that_auto_came_to_gives_the_same_head(pooling: str, tiny_base: Base, tmp_path: Path) -> None:
    base = find_base(str(shutil.copytree(tiny_base("bert"), tmp_path / "base")))
    (base.path / "1_Pooling").mkdir()
    advice = base.path / "1_Pooling" / "config.json"
    advice.write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    for model in (build_classifier(base, 3, pooling=pooling), skeleton(base, 3, pooling=pooling)):
        assert (model.plan, model.head is None) == (HeadPlan("cls", False), False)
    advice.write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    assert skeleton(base, 3, pooling="cls").plan == HeadPlan("cls", True)


def test_a_pooling_that_veneer_lacks_is_told_under_auto_alone(tiny_base: Base, tmp_path: Path) -> None:
    base = find_base(str(shutil.copytree(tiny_base("bert"), tmp_path / "base")))
    (base.path / "1_Pooling").mkdir()
    (base.path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}', encoding="utf-8")
    assert skeleton(base, 3, pooling="cls").plan == HeadPlan("cls", True)
    with pytest.raises(BaseError, match="Set pooling to cls, mean or last"):
        skeleton(base, 3)


@pytest.mark.parametrize("plan", [{"bias": "all"}, {"train_top_layers": 1}, {"train_embeddings": True}])
def test_training_the_base_needs_float32(plan: dict[str, object], tiny_base: Base) -> None:
    with pytest.raises(LoraError, match=r"training\.precision: fp32"):
        adapted(tiny_base("bert"), dtype=torch.bfloat16, **plan)
    adapted(tiny_base("bert"), **plan)


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "qwen2", "gpt2", "deberta-v2"])
def test_a_skeleton_is_the_model_without_its_weights(family: str, tiny_base: Base) -> None:
    whole, bare = adapted(tiny_base(family)), skeleton(find_base(str(tiny_base(family))), 3)
    adapt(bare, AdapterPlan(rank=2))
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
    shapes = [{name: (value.shape, value.requires_grad) for name, value in one.named_parameters()} for one in (whole, bare)]
    assert shapes[0] == shapes[1]
    assert (bare.plan, bare.padding_reason, bare.trained_heads) == (whole.plan, whole.padding_reason, whole.trained_heads)


@pytest.mark.parametrize(
    ("family", "plan", "expected"),
    [
        ("roberta", {"target_modules": "query_value"}, "query value"),
        ("qwen2", {"layers": [1]}, "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("gpt2", {"target_modules": ["c_attn"]}, "c_attn"),
    ],
)
def test_targets_follow_the_family(family: str, plan: dict[str, object], expected: str, tiny_base: Base) -> None:
    layers = lora.lora_layers(adapted(tiny_base(family), **plan).network)
    assert {name.rpartition(".")[2] for name in layers} == set(expected.split())
