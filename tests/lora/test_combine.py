"""Adapters as one. That the model then gives what their summed updates give is a law (tests/laws/test_thinner.py)."""

from __future__ import annotations

import pytest
import torch

from veneer.errors import LoraError
from veneer.lora import AdapterFile, AdapterSettings, average_tensors, combine_adapters


def adapter(seed: int, rank: int, alpha: float, layers: tuple[str, ...], **whole: torch.Tensor) -> AdapterFile:
    torch.manual_seed(seed)
    tensors = dict(whole)
    for name in layers:
        tensors |= {f"{name}.lora_A": torch.randn(rank, 6), f"{name}.lora_B": torch.randn(4, rank)}
    return AdapterFile(AdapterSettings(rank, alpha, 0.1, "standard", "none", layers, (), False, None, None), tensors)


def test_ranks_lie_side_by_side() -> None:
    one, two = adapter(1, 2, 4.0, ("a", "b")), adapter(2, 3, 3.0, ("b", "c"))
    made = combine_adapters([one, two], [0.5, -0.25])
    settings = made.settings
    assert settings.layers == ("a", "b", "c")
    assert [settings.rank_of(name) for name in settings.layers] == [2, 5, 3]
    for name in settings.layers:
        expected = sum(
            weight * part.settings.alpha / part.settings.rank * part.tensors[f"{name}.lora_B"] @ part.tensors[f"{name}.lora_A"]
            for part, weight in ((one, 0.5), (two, -0.25))
            if name in part.settings.layers
        )
        scale = settings.alpha_of(name) / settings.rank_of(name)
        torch.testing.assert_close(scale * made.tensors[f"{name}.lora_B"] @ made.tensors[f"{name}.lora_A"], expected)


def test_what_is_stored_whole_is_averaged_whatever_the_weights_sum_to() -> None:
    one, two = adapter(1, 2, 4.0, ("a",), head=torch.tensor([1.0])), adapter(2, 2, 4.0, ("a",), head=torch.tensor([4.0]))
    assert combine_adapters([one, two], [1.0, 2.0]).tensors["head"].tolist() == [3.0]


def test_different_things_stored_whole_are_refused() -> None:
    with pytest.raises(LoraError, match=r"number 2 do not store the same beside LoRA: x, y"):
        average_tensors([{"x": torch.ones(2)}, {"x": torch.ones(3), "y": torch.ones(1)}], [1.0, 1.0])
