"""Law: the fused functions are what plain autograd, and PEFT's layer, compute.

Tolerances: in float64 gradcheck's own; in float32 sums of up to 64 products, so 1e-5; in bf16, whose numbers are 2^-8 apart, 2 %
of the largest value, against the same arithmetic in float32.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from veneer.lora.fused import Factors, lora_linear_group
from veneer.lora.layer import LoraLinear, SharedInput
from veneer.packing import Segments
from veneer.packing.attention import _GroupedAttention

ROWS, WIDTH, RANK, SCALE = 4, 5, 2, 1.7


def draw(*shape: int, dtype: torch.dtype = torch.float64, grad: bool = True) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def make_layers(
    count: int, *, transposed: bool = False, bias: bool = True, trained: bool = False, dtype: torch.dtype = torch.float64
) -> tuple[Factors, ...]:
    """Layers of different output widths; LoRA's matrices are float32 where the weights are bf16."""
    layers = []
    for out in (4, 3, 2)[:count]:
        shape = (WIDTH, out) if transposed else (out, WIDTH)
        exact = torch.float32 if dtype == torch.bfloat16 else dtype
        weight = draw(*shape, dtype=dtype, grad=trained)
        vector = draw(out, dtype=dtype, grad=trained) if bias else None
        layers.append(Factors(weight, vector, draw(RANK, WIDTH, dtype=exact), draw(out, RANK, dtype=exact), SCALE, transposed))
    return tuple(layers)


def make_mask(dropped: bool, dtype: torch.dtype = torch.float64) -> Tensor | None:
    return (torch.rand(ROWS, WIDTH) > 0.3).to(dtype) / 0.7 if dropped else None


def tensors_of(layers: tuple[Factors, ...]) -> list[Tensor]:
    return [tensor for one in layers for tensor in (one.weight, one.bias, one.a, one.b) if tensor is not None]


def rebuilt(layers: tuple[Factors, ...], tensors: tuple[Tensor, ...]) -> tuple[Factors, ...]:
    """The layers with other tensors in the order of `tensors_of`."""
    left = iter(tensors)
    return tuple(
        Factors(next(left), None if one.bias is None else next(left), next(left), next(left), one.scale, one.transposed)
        for one in layers
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_gradients_are_right_in_float64(count: int, transposed: bool, bias: bool, dropped: bool, trained: bool) -> None:
    torch.manual_seed(0)
    layers, mask = make_layers(count, transposed=transposed, bias=bias, trained=trained), make_mask(dropped)

    def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return lora_linear_group(x, rebuilt(layers, tensors), mask)

    assert torch.autograd.gradcheck(run, (draw(ROWS, WIDTH), *tensors_of(layers)))


def compute(function: Any, x: Tensor, layers: tuple[Factors, ...], mask: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of a fixed weighting of them for `x` and all that is trained."""
    x = x.detach().requires_grad_()
    copies = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors_of(layers))
    outputs = function(x, rebuilt(layers, copies), mask)
    generator = torch.Generator().manual_seed(3)
    loss = sum((output.float() * torch.randn(output.shape, generator=generator)).sum() for output in outputs)
    wanted = [x, *(tensor for tensor in copies if tensor.requires_grad)]
    return list(outputs), list(torch.autograd.grad(loss, wanted))


def plain_group(x: Tensor, layers: tuple[Factors, ...], mask: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(plain_lora_linear(x, layer, mask) for layer in layers)


def plain_lora_linear(x: Tensor, layer: Factors, mask: Tensor | None) -> Tensor:
    """`W x + b + s·B(A·(x∘mask))` by plain autograd."""
    weight = layer.weight.t() if layer.transposed else layer.weight
    base = nn.functional.linear(x, weight, layer.bias)
    dropped = x if mask is None else x * mask
    return base + (dropped @ layer.a.to(x.dtype).t()) @ layer.b.to(x.dtype).t() * layer.scale


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_a_group_is_plain_autograd_in_float32(count: int, transposed: bool, dropped: bool) -> None:
    torch.manual_seed(1)
    layers = make_layers(count, transposed=transposed, trained=True, dtype=torch.float32)
    x, mask = draw(ROWS, WIDTH, dtype=torch.float32), make_mask(dropped, torch.float32)
    for fused, plain in zip(compute(lora_linear_group, x, layers, mask), compute(plain_group, x, layers, mask), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dropped", [False, True])
def test_a_group_in_bf16_is_the_float32_arithmetic(count: int, dropped: bool) -> None:
    torch.manual_seed(2)
    layers = make_layers(count, dtype=torch.bfloat16)
    x, mask = draw(ROWS, WIDTH, dtype=torch.bfloat16), make_mask(dropped, torch.bfloat16)
    exact = rebuilt(layers, tuple(tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in tensors_of(layers)))
    outputs, grads = compute(lora_linear_group, x, layers, mask)
    outputs32, grads32 = compute(plain_group, x.float(), exact, None if mask is None else mask.float())
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    assert [grad.dtype for grad in grads] == [torch.bfloat16] + [torch.float32] * 2 * count
    for fused, plain in zip([*outputs, *grads], [*outputs32, *grads32], strict=True):
        assert (fused.float() - plain).abs().max() <= 0.02 * plain.abs().max()


def test_nothing_of_the_size_of_a_weight_is_made_for_a_frozen_one() -> None:
    x, (layer,) = draw(ROWS, WIDTH), make_layers(1)
    (y,) = lora_linear_group(x, (layer,), None)
    y.sum().backward()
    assert layer.weight.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is None
    assert layer.a.grad is not None


class Products(TorchDispatchMode):
    """Counts the shapes of the results of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "mm" in func.__name__:
            self.shapes[tuple(result.shape)] += 1
        return result


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("wants_x", [False, True])
def test_the_backward_pass_makes_the_products_of_its_formulas_and_no_other(transposed: bool, wants_x: bool) -> None:
    """In particular none of the size of a frozen weight, nor the input's gradient for a first layer, which nobody reads."""
    rows, layers = 11, make_layers(3, transposed=transposed)  # of outputs 4, 3 and 2
    outputs = lora_linear_group(draw(rows, WIDTH, grad=wants_x), layers, (torch.rand(rows, WIDTH) > 0.3).double())
    with Products() as products:
        torch.autograd.backward(outputs, [torch.randn_like(output) for output in outputs])
    expected = Counter({(rows, RANK): 3, (RANK, 4): 1, (RANK, 3): 1, (RANK, 2): 1, (3 * RANK, WIDTH): 1})  # gB, ∂B each, ∂A
    if wants_x:
        expected[rows, WIDTH] = 4  # gW of each, and s·(gB A)
    assert products.shapes == expected


class Multiply(nn.Module):
    """Stands for PEFT's dropout: the mask is given instead of drawn."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x.dtype)


def in_peft(layer: LoraLinear, mask: Tensor | None) -> PeftLinear:
    plain: nn.Module
    if layer.transposed:
        plain = Conv1D(layer.out_features, layer.in_features)
    else:
        plain = nn.Linear(layer.in_features, layer.out_features)
    plain.weight, plain.bias = layer.weight, layer.bias
    config = LoraConfig(r=layer.rank, lora_alpha=layer.alpha, fan_in_fan_out=layer.transposed)  # type: ignore[arg-type]
    theirs = PeftLinear(plain, "default", config, r=layer.rank, lora_alpha=layer.alpha)
    theirs.lora_A["default"].weight.data = layer.lora_A.detach().clone()
    theirs.lora_B["default"].weight.data = layer.lora_B.detach().clone()
    if mask is not None:
        theirs.lora_dropout["default"] = Multiply(mask)
    return theirs


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_that_of_peft(transposed: bool, dropout: float, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    weight = nn.Parameter(torch.randn((24, 40) if transposed else (40, 24)).to(dtype), requires_grad=False)
    bias = nn.Parameter(torch.randn(40).to(dtype), requires_grad=False)
    layer = LoraLinear(weight, bias, rank=4, alpha=6.0, dropout=dropout, transposed=transposed)
    nn.init.normal_(layer.lora_B)
    layer.train()
    x, grad = torch.randn(3, 11, 24, dtype=dtype), torch.randn(3, 11, 40, dtype=dtype)
    state = torch.get_rng_state()
    mask = layer._mask(x.view(33, 24))
    assert (mask is None) == (dropout == 0.0)
    theirs = in_peft(layer, None if mask is None else mask.view(3, 11, 24))
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.set_rng_state(state)  # so that the layer draws that mask again
    y, expected = layer(mine), theirs(other)
    torch.autograd.backward(y, grad)
    torch.autograd.backward(expected, grad)
    pairs = [
        (y, expected),
        (mine.grad, other.grad),
        (layer.lora_A.grad, theirs.lora_A["default"].weight.grad),
        (layer.lora_B.grad, theirs.lora_B["default"].weight.grad),
    ]
    assert [ours.dtype for ours, _ in pairs] == [dtype, dtype, torch.float32, torch.float32]
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for ours, peft in pairs:
        assert peft is not None
        assert (ours.float() - peft.float()).abs().max() <= tolerance * peft.float().abs().max()


# Layers that share their input


def make_shared(dropout: float = 0.0) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Three layers that share their input, and the same three apart."""
    torch.manual_seed(5)
    shared = nn.ModuleList()
    for out in (8, 8, 4):
        plain = nn.Linear(WIDTH, out).requires_grad_(False)
        shared.append(LoraLinear(plain.weight, plain.bias, rank=2, alpha=4.0, dropout=dropout))
        nn.init.normal_(shared[-1].lora_B)
    apart = copy.deepcopy(shared)
    SharedInput(list(shared))  # type: ignore[arg-type]
    return shared, apart


def trained_gradients(layers: nn.ModuleList) -> list[Tensor]:
    grads = [parameter.grad for parameter in layers.parameters() if parameter.requires_grad]
    assert all(grad is not None for grad in grads)
    return grads  # type: ignore[return-value]


def run_on(layers: nn.ModuleList, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of each layer for its input; gradients of the layers and of the distinct inputs."""
    leaves = {id(x): x.detach().clone().requires_grad_() for x in inputs}
    outputs = [layer(leaves[id(x)]) for layer, x in zip(layers, inputs, strict=True)]
    layers.zero_grad()
    torch.autograd.backward(sum((output * (number + 1)).square().sum() for number, output in enumerate(outputs)))
    return outputs, [*trained_gradients(layers), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)]


def assert_same_on(shared: nn.ModuleList, apart: nn.ModuleList, inputs: list[Tensor]) -> None:
    for ours, expected in zip(run_on(shared, inputs), run_on(apart, inputs), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def is_empty(shared: nn.ModuleList) -> bool:
    outputs = shared[0]._group._outputs
    return outputs._input is None and not outputs._waiting


def test_layers_that_share_an_input_are_the_layers_apart() -> None:
    shared, apart = make_shared()
    x = torch.randn(2, 5, WIDTH)
    assert_same_on(shared, apart, [x, x, x])
    assert is_empty(shared)
    merged = copy.deepcopy(shared)  # another model's layers share among themselves
    assert_same_on(merged, apart, [x, x, x])
    assert merged[0]._group is merged[2]._group is not shared[0]._group


def test_they_share_one_dropout_mask() -> None:
    shared, _ = make_shared(dropout=0.5)
    for layer in shared:
        layer.train()
        layer.weight.data.zero_()
        layer.bias.data.zero_()
        layer.lora_A.data.copy_(shared[0].lora_A)
        layer.lora_B.data.fill_(1.0)
    x = torch.randn(9, WIDTH)
    outputs = [layer(x)[:, 0] for layer in shared]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], shared[0](x)[:, 0])


def test_layers_called_with_different_tensors_compute_each_its_own() -> None:
    shared, apart = make_shared()
    x, other = torch.randn(2, 5, WIDTH), torch.randn(2, 5, WIDTH)
    assert_same_on(shared, apart, [x, other, other])
    assert_same_on(shared, apart, [x, other, x])
    assert_same_on(shared, apart, [x, x, x])


def test_one_layer_alone_and_in_another_order() -> None:
    shared, apart = make_shared()
    x = torch.randn(4, WIDTH)
    torch.testing.assert_close(shared[1](x), apart[1](x))
    torch.testing.assert_close(shared[1](x), apart[1](x))
    for number in (2, 0, 1):
        torch.testing.assert_close(shared[number](x), apart[number](x))


def test_outputs_are_of_the_present_weights() -> None:
    shared, apart = make_shared()
    x = torch.randn(4, WIDTH)
    with torch.no_grad():
        before = [layer(x) for layer in shared]
        for layer in (*shared, *apart):
            layer.lora_B.mul_(2.0)
        for layer, expected, old in zip(shared, apart, before, strict=True):
            torch.testing.assert_close(layer(x), expected(x))
            assert not torch.allclose(layer(x), old)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_shared_inputs_under_gradient_checkpointing(dropout: float) -> None:
    shared, _ = make_shared(dropout)
    shared.train()
    x = torch.randn(5, WIDTH)

    def block(x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in shared], -1).tanh()

    gradients = []
    for recompute in (False, True):
        torch.manual_seed(11)
        leaf = x.clone().requires_grad_()
        shared.zero_grad()
        output = checkpoint(block, leaf, use_reentrant=False) if recompute else block(leaf)
        torch.autograd.backward(output.square().sum())
        gradients.append([output.detach(), leaf.grad, *trained_gradients(shared)])
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))
    assert is_empty(shared)


def test_layers_of_different_shape_cannot_share() -> None:
    shared, _ = make_shared()
    wider = nn.Linear(WIDTH + 1, 3)
    with pytest.raises(ValueError, match="one input width"):
        SharedInput([shared[0], LoraLinear(wider.weight, wider.bias, rank=2, alpha=4.0)])


# Attention

PACK = [3, 3, 1, 18, 16, 5]  # runs of one length, two lengths in one group, a full group, and a window's edge inside one


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float, causal: bool, window: int | None
) -> Tensor:
    outputs = []
    for queries, keys, values in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * scale
        places = torch.arange(len(queries))
        distance = places[:, None] - places[None, :]
        seen = torch.ones_like(distance, dtype=torch.bool)
        if causal:
            seen &= distance >= 0
        if window is not None:
            seen &= distance.abs() < window
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 4])
def test_attention_is_plain_softmax_attention(causal: bool, window: int | None) -> None:
    torch.manual_seed(6)
    leaves = [draw(sum(PACK), 2, 4) for _ in range(3)]
    grad = torch.randn(sum(PACK), 2, 4, dtype=torch.float64)
    ours = _GroupedAttention.apply(*leaves, Segments.of(PACK), 0.3, causal, window)
    plain = plain_attention(*leaves, PACK, 0.3, causal, window)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    for first, second in zip(torch.autograd.grad(ours, leaves, grad), torch.autograd.grad(plain, leaves, grad), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("window", [None, 2])
def test_attention_passes_gradcheck(window: int | None) -> None:
    torch.manual_seed(7)
    segments = Segments.of([2, 2, 5, 1])
    leaves = tuple(draw(10, 1, 2) for _ in range(3))
    assert torch.autograd.gradcheck(lambda q, k, v: _GroupedAttention.apply(q, k, v, segments, 0.7, False, window), leaves)


def test_attention_in_bf16_is_near_the_exact_one() -> None:
    torch.manual_seed(8)
    exact = [draw(sum(PACK), 2, 8, dtype=torch.bfloat16) for _ in range(3)]
    ours = _GroupedAttention.apply(*exact, Segments.of(PACK), 0.35, False, None)
    plain = plain_attention(*(leaf.double() for leaf in exact), PACK, 0.35, False, None)
    assert ours.dtype == torch.bfloat16
    assert (ours - plain).abs().max() <= 0.02 * plain.abs().max()
    grad = torch.randn(plain.shape, dtype=torch.bfloat16)
    wanted = torch.autograd.grad(plain, exact, grad.double())
    for first, second in zip(torch.autograd.grad(ours, exact, grad), wanted, strict=True):
        assert (first.float() - second.float()).abs().max() <= 0.02 * second.float().abs().max()
