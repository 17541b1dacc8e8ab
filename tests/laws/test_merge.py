"""Law: merged = unmerged, and unmerging restores the frozen weights exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from veneer.errors import LoraError
from veneer.lora import LoraLinear, apply_lora, lora_layers, merge_lora, remove_lora, unmerge_lora

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float64: 1e-12}
EVERY_LAYER = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


class Mixed(nn.Module):
    """A Linear, a Conv1D and a Linear without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(16, 24), Conv1D(20, 24), nn.Linear(20, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


def adapted(dtype: torch.dtype) -> tuple[Mixed, dict[str, Tensor], Tensor]:
    """A model with an update that shows, its frozen weights, and an input."""
    torch.manual_seed(3)
    model = Mixed()
    nn.init.normal_(model.second.weight, std=0.2)
    model.to(dtype)
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    apply_lora(model, ["first", "second", "third"], rank=3, alpha=6.0)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.3)
        if dtype is torch.float64:
            layer.double()
    return model.eval(), frozen, torch.randn(10, 16, dtype=dtype)


def assert_restored(model: nn.Module, frozen: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert all(state[name].dtype == value.dtype and torch.equal(state[name], value) for name, value in frozen.items())


@EVERY_LAYER
def test_merged_is_unmerged(dtype: torch.dtype) -> None:
    model, frozen, x = adapted(dtype)
    before = model(x)
    merge_lora(model)
    assert all(layer.merged for layer in lora_layers(model).values())
    assert not torch.equal(model.first.weight, frozen["first.weight"])
    torch.testing.assert_close(model(x), before, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@EVERY_LAYER
def test_unmerge_restores_exactly(dtype: torch.dtype) -> None:
    model, frozen, x = adapted(dtype)
    before = model(x)
    for _ in range(3):
        merge_lora(model)
        unmerge_lora(model)
    assert_restored(model, frozen)
    assert torch.equal(model(x), before)
    assert not list(model.buffers())


def test_merging_twice_and_unmerging_twice_change_nothing() -> None:
    model, frozen, _ = adapted(torch.float32)
    unmerge_lora(model)
    assert_restored(model, frozen)
    merge_lora(model)
    once = copy.deepcopy(model.state_dict())
    merge_lora(model)
    assert_restored(model, once)
    unmerge_lora(model)
    assert_restored(model, frozen)


def test_modes_merge_nothing() -> None:
    model, frozen, _ = adapted(torch.float32)
    model.train().eval()
    assert not any(layer.merged for layer in lora_layers(model).values())
    assert_restored(model, frozen)
    merge_lora(model)
    model.train()
    assert all(layer.merged for layer in lora_layers(model).values())


def test_a_weight_shared_with_another_module_is_not_merged_there() -> None:
    model, frozen, _ = adapted(torch.float32)
    other = nn.Linear(16, 24)
    other.weight = model.first.weight
    merge_lora(model)
    assert torch.equal(other.weight, frozen["first.weight"])


def test_the_kept_weight_is_no_part_of_the_state_dict() -> None:
    model, _, _ = adapted(torch.float32)
    names = model.state_dict().keys()
    merge_lora(model)
    assert model.state_dict().keys() == names


def test_a_merged_model_can_move_and_still_be_restored() -> None:
    model, frozen, _ = adapted(torch.float32)
    merge_lora(model)
    model.double()
    unmerge_lora(model)
    assert all(torch.equal(model.state_dict()[name].float(), value) for name, value in frozen.items())


@EVERY_LAYER
@pytest.mark.parametrize("merged_before", [False, True])
def test_remove_gives_the_base_back(dtype: torch.dtype, merged_before: bool) -> None:
    model, frozen, x = adapted(dtype)
    if merged_before:
        merge_lora(model)
    assert remove_lora(model) == ["first", "second", "third"]
    assert [type(module) for module in model.children()] == [nn.Linear, Conv1D, nn.Linear]
    assert model.state_dict().keys() == frozen.keys()
    assert_restored(model, frozen)
    plain = Mixed().to(dtype)
    plain.load_state_dict(frozen)
    assert torch.equal(model(x), plain(x))
    assert not model.first.training


@EVERY_LAYER
@pytest.mark.parametrize("merged_before", [False, True])
def test_remove_can_keep_the_update(dtype: torch.dtype, merged_before: bool) -> None:
    model, frozen, x = adapted(dtype)
    before = model(x)
    if merged_before:
        merge_lora(model)
    remove_lora(model, keep_update=True)
    assert model.state_dict().keys() == frozen.keys()
    assert not lora_layers(model)
    torch.testing.assert_close(model(x), before, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("function", [merge_lora, unmerge_lora, remove_lora])
def test_a_model_without_lora_is_refused(function: object) -> None:
    with pytest.raises(LoraError, match="no LoRA layers"):
        function(Mixed())  # type: ignore[operator]


def test_what_was_removed_can_be_adapted_again() -> None:
    model, frozen, _ = adapted(torch.float32)
    remove_lora(model)
    assert apply_lora(model, ["second"], rank=1, alpha=1.0) == ["second"]
    assert isinstance(model.second, LoraLinear)
    assert model.second.transposed
    assert_restored(model, frozen)
