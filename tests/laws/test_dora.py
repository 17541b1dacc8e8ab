"""Law: DoRA here is plain autograd's and PEFT's, packed with other layers or alone, merged or not; PiSSA starts from the base.

Tolerances: float32 sums of up to 64 products, so 1e-5; merging forms the norm in another order, so 1e-4 of the largest value.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from veneer.errors import LoraError
from veneer.lora import apply_lora, merge_lora, start_dora, start_pissa, unmerge_lora
from veneer.lora.layer import LoraLinear, SharedInput

IN, OUT, RANK, ALPHA = 12, 9, 3, 5.0


class Layers(nn.Module):
    """Linear layers that read one input."""

    def __init__(self, count: int = 1, *, transposed: bool = False, bias: bool = True) -> None:
        super().__init__()
        for number in range(count):
            self.add_module(f"l{number}", Conv1D(OUT, IN) if transposed else nn.Linear(IN, OUT, bias=bias))


def dora_layers(count: int = 1, *, transposed: bool = False, bias: bool = True, dropout: float = 0.0) -> list[LoraLinear]:
    """Layers far from their start."""
    model = Layers(count, transposed=transposed, bias=bias)
    names = [f"l{number}" for number in range(count)]
    apply_lora(model, names, rank=RANK, alpha=ALPHA, dropout=dropout)
    start_dora(model)
    layers: list[LoraLinear] = [model.get_submodule(name) for name in names]  # type: ignore[misc]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_()
            start_dora(model)
            layer.lora_B.normal_()
            layer.lora_magnitude.mul_(torch.rand(OUT) + 0.5)  # type: ignore[union-attr]
    for layer in layers:
        layer.weight.requires_grad_(False)
    return layers


def plain(layer: LoraLinear, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The formula by plain autograd, the norm detached."""
    weight = layer.weight.t() if layer.transposed else layer.weight
    adapted = (weight + layer.scale * layer.lora_B @ layer.lora_A).norm(dim=1).detach()
    dropped = x if mask is None else x * mask
    y = x @ weight.t() + (dropped @ layer.lora_A.t() @ layer.lora_B.t()) * layer.scale
    y = y * (layer.lora_magnitude / adapted)
    return y if layer.bias is None else y + layer.bias


def gradients(y: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(5)
    return list(torch.autograd.grad((y * torch.randn_like(y)).sum(), tensors))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
def test_it_is_what_plain_autograd_computes(transposed: bool, bias: bool) -> None:
    torch.manual_seed(0)
    if transposed and not bias:
        pytest.skip("Conv1D has a bias")
    (layer,) = dora_layers(transposed=transposed, bias=bias)
    x = torch.randn(7, IN, requires_grad=True)
    trained: list[Tensor] = [x, layer.lora_A, layer.lora_B, layer.lora_magnitude]  # type: ignore[list-item]
    torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(layer(x), trained), gradients(plain(layer, x), trained), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_it_is_what_plain_autograd_computes_with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    (layer,) = dora_layers(dropout=0.3)
    mask = (torch.rand(7, IN) > 0.3).float() / 0.7
    monkeypatch.setattr("veneer.lora.layer.dropout_mask", lambda *_, **__: mask)
    x = torch.randn(7, IN, requires_grad=True)
    layer.train()
    torch.testing.assert_close(layer(x), plain(layer, x, mask), rtol=1e-5, atol=1e-5)
    trained: list[Tensor] = [x, layer.lora_A, layer.lora_B, layer.lora_magnitude]  # type: ignore[list-item]
    for ours, theirs in zip(gradients(layer(x), trained), gradients(plain(layer, x, mask), trained), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_it_is_what_pefts_layer_computes() -> None:
    torch.manual_seed(0)
    (layer,) = dora_layers()
    base = nn.Linear(IN, OUT)
    base.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=True, lora_dropout=0.0)  # type: ignore[arg-type]
    theirs = PeftLinear(base, "default", config, r=RANK, lora_alpha=ALPHA)  # type: ignore[arg-type]
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(layer.lora_A)
        theirs.lora_B["default"].weight.copy_(layer.lora_B)
        theirs.lora_magnitude_vector["default"].weight.copy_(layer.lora_magnitude)
    x = torch.randn(7, IN, requires_grad=True)
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-5, atol=1e-5)
    ours = gradients(layer(x), [x, layer.lora_A, layer.lora_B, layer.lora_magnitude])  # type: ignore[list-item]
    names = [theirs.lora_A["default"], theirs.lora_B["default"], theirs.lora_magnitude_vector["default"]]
    for one, other in zip(ours, gradients(theirs(x), [x, *(module.weight for module in names)]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_layers_that_share_an_input_give_what_they_give_alone() -> None:
    torch.manual_seed(0)
    layers = dora_layers(3)
    x = torch.randn(2, 7, IN, requires_grad=True)
    alone = [layer(x) for layer in layers]
    SharedInput(layers)
    for layer, expected in zip(layers, alone, strict=True):
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_merged_is_unmerged(transposed: bool) -> None:
    torch.manual_seed(0)
    (layer,) = dora_layers(transposed=transposed)
    model = nn.ModuleDict({"one": layer})
    x, weight = torch.randn(7, IN), layer.weight.clone()
    before = layer(x)
    merge_lora(model)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-4)
    with pytest.raises(LoraError, match="cannot learn while it is merged"):
        layer(x)  # in training, with gradients: it would learn nothing
    unmerge_lora(model)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("start", [start_dora, start_pissa])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_first_output_is_the_bases(start: Callable[[nn.Module], None], transposed: bool) -> None:
    torch.manual_seed(0)
    model = Layers(2, transposed=transposed)
    x = torch.randn(7, IN)
    expected = model.l1(x)
    apply_lora(model, ["l0", "l1"], rank=RANK, alpha=ALPHA)
    start(model)
    torch.testing.assert_close(model.l1(x), expected, rtol=1e-5, atol=1e-5)


def test_pissa_starts_from_the_largest_singular_values() -> None:
    """What is subtracted is the nearest matrix of the rank, and the gradient of B is of a layer without it."""
    torch.manual_seed(0)
    model = Layers()
    apply_lora(model, ["l0"], rank=RANK, alpha=ALPHA)
    start_pissa(model)
    layer: LoraLinear = model.l0  # type: ignore[assignment]
    values = torch.linalg.svdvals(layer.weight)
    start = layer.scale * layer.initial_B @ layer.initial_A  # type: ignore[operator]
    torch.testing.assert_close(torch.linalg.svdvals(start)[:RANK], values[:RANK])
    torch.testing.assert_close((layer.weight - start).norm(), values[RANK:].norm())
    x = torch.randn(7, IN)
    rest = layer.weight.detach() - start.detach()
    paper = x @ rest.t() + (x @ layer.lora_A.t() @ layer.lora_B.t()) * layer.scale + layer.bias
    torch.testing.assert_close(layer(x), paper, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        gradients(layer(x), [layer.lora_A, layer.lora_B]), gradients(paper, [layer.lora_A, layer.lora_B]), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_pissa_wants_no_more_ranks_than_there_are() -> None:
    model = Layers()
    apply_lora(model, ["l0"], rank=OUT + 1, alpha=ALPHA)
    with pytest.raises(LoraError, match="singular values"):
        start_pissa(model)
