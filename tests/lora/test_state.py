from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig

from veneer.errors import LoraError
from veneer.lora import apply_lora, load_lora_state_dict, lora_state_dict, merge_lora

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}


def adapted(seed: int, rank: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SMALL)).eval()
    apply_lora(model, ["query", "value"], rank=rank, alpha=4.0)
    for parameter in model.parameters():
        parameter.data.normal_()
    return model


@pytest.fixture
def model() -> nn.Module:
    return adapted(seed=0)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("modules", [(), ("classifier", "bert.pooler")])
def test_what_is_taken_out_goes_into_another_model(model: nn.Module, bias: str, modules: tuple[str, ...]) -> None:
    state = lora_state_dict(model, bias, modules)  # type: ignore[arg-type]
    other = adapted(seed=1)
    untouched = {name: tensor.clone() for name, tensor in other.state_dict().items() if name not in state}
    load_lora_state_dict(other, state, bias, modules)  # type: ignore[arg-type]
    after = other.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in (state | untouched).items())


def test_the_names(model: nn.Module) -> None:
    matrices = {
        f"bert.encoder.layer.{layer}.attention.self.{name}.{matrix}"
        for layer in (0, 1)
        for name in ("query", "value")
        for matrix in ("lora_A", "lora_B")
    }
    biases = {f"bert.encoder.layer.{layer}.attention.self.{name}.bias" for layer in (0, 1) for name in ("query", "value")}
    assert lora_state_dict(model).keys() == matrices
    assert lora_state_dict(model, "lora_only").keys() == matrices | biases
    assert {"classifier.weight", "classifier.bias"} == lora_state_dict(model, modules=["classifier"]).keys() - matrices
    everything = lora_state_dict(model, "all").keys() - matrices
    assert everything == {name for name in model.state_dict() if name.endswith(".bias")}


def broken(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    name = "bert.encoder.layer.0.attention.self.query.lora_A"
    if how == "missing":
        return {key: tensor for key, tensor in state.items() if key != name}
    if how == "unexpected":
        return state | {"bert.encoder.layer.9.lora_A": state[name]}
    if how == "shape":
        return state | {name: torch.zeros(3, 16)}
    return state | {name: state[name].double()}


@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ("missing", r"missing: bert.encoder.layer.0.attention.self.query.lora_A"),
        ("unexpected", r"unexpected: bert.encoder.layer.9.lora_A"),
        ("shape", r"query.lora_A is 3×16, the model's 2×16"),
        ("precision", r"lower precision than saved: bert.encoder.layer.0.attention.self.query.lora_A"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(model: nn.Module, how: str, shown: str) -> None:
    state = broken(lora_state_dict(model), how)
    other = adapted(seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(LoraError, match=shown):
        load_lora_state_dict(other, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_another_rank_does_not_fit(model: nn.Module) -> None:
    with pytest.raises(LoraError, match=r"other shape: .* and 3 more"):
        load_lora_state_dict(adapted(seed=1, rank=4), lora_state_dict(model))


def test_half_precision_tensors_load_exactly(model: nn.Module) -> None:
    state = {name: tensor.bfloat16() for name, tensor in lora_state_dict(model).items()}
    load_lora_state_dict(model, state)
    assert all(torch.equal(lora_state_dict(model)[name], tensor.float()) for name, tensor in state.items())


def test_a_merged_model_takes_nothing(model: nn.Module) -> None:
    state = lora_state_dict(adapted(seed=1))
    merge_lora(model)
    with pytest.raises(LoraError, match="while the model is merged"):
        load_lora_state_dict(model, state)


def test_models_and_modules_that_are_not_there(model: nn.Module) -> None:
    with pytest.raises(LoraError, match="no LoRA layers"):
        lora_state_dict(nn.Linear(2, 2))
    with pytest.raises(LoraError, match="no module score"):
        lora_state_dict(model, modules=["score"])
    with pytest.raises(LoraError, match="bias must be one of"):
        lora_state_dict(model, "some")  # type: ignore[arg-type]
