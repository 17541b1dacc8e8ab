"""Law: many adapters in one layer are the adapters one at a time, and nothing is computed twice.

Tolerances as in `test_fused.py`: in float64 gradcheck's own; in float32 1e-5; in bf16 2 % of the largest value.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from test_fused import Products
from torch import Tensor, nn

import veneer.lora.bank as bank_module
from veneer.errors import LoraError
from veneer.lora import BankGroup, BankLinear, LoraLinear, Routing, SharedInput, start_dora
from veneer.lora.bank import Part, bank_linear_group
from veneer.lora.fused import Factors, lora_linear_group

WIDTH = 6
COUNTS, LENGTHS, FILLER = (2, 0, 1, 2), (3, 1, 2, 2, 1), 3  # four adapters, the second without texts; 9 tokens and filler
SLICES = [slice(0, 4), slice(4, 4), slice(4, 6), slice(6, 9)]
RANKS, SCALES = (2, 2, 1, 3), (0.5, 0.5, 1.5, 2.0)
ROWS = sum(LENGTHS) + FILLER


def make_parts(count: int, *, transposed: bool, bias: bool, dropped: bool) -> list[Part]:
    """Adapters of other ranks and scales over `count` layers, in float64."""
    torch.manual_seed(0)
    outs = (4, 3, 2)[:count]
    bases = [
        (torch.randn((WIDTH, out) if transposed else (out, WIDTH)).double(), torch.randn(out).double() if bias else None)
        for out in outs
    ]
    parts = []
    for rows, rank, scale in zip(SLICES, RANKS, SCALES, strict=True):
        layers = tuple(
            Factors(
                weight,
                vector,
                torch.randn(rank, WIDTH, dtype=torch.float64, requires_grad=True),
                torch.randn(out, rank, dtype=torch.float64, requires_grad=True),
                scale,
                transposed,
            )
            for (weight, vector), out in zip(bases, outs, strict=True)
        )
        mask = (torch.rand(rows.stop - rows.start, WIDTH) > 0.3).double() / 0.7 if dropped else None
        parts.append(Part(rows, layers, mask))
    return parts


def matrices(parts: Sequence[Part]) -> list[Tensor]:
    return [matrix for part in parts for layer in part.layers for matrix in (layer.a, layer.b)]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_are_right_in_float64(count: int, transposed: bool, dropped: bool) -> None:
    parts = make_parts(count, transposed=transposed, bias=True, dropped=dropped)
    used = [part for part in parts if part.rows.start < part.rows.stop]

    def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        left = iter(tensors)
        return bank_linear_group(
            x,
            [
                Part(
                    part.rows,
                    tuple(Factors(one.weight, one.bias, next(left), next(left), one.scale, transposed) for one in part.layers),
                    part.mask,
                )
                if part in used
                else part
                for part in parts
            ],
        )

    x = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *matrices(used)))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dropped", [False, True])
def test_each_adapter_s_rows_are_as_if_it_were_alone(count: int, dropped: bool) -> None:
    """And rows of nobody get the base alone; an adapter without rows no gradient."""
    parts = make_parts(count, transposed=False, bias=True, dropped=dropped)
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    grads = [torch.randn(ROWS, len(layer.weight), dtype=torch.float64) for layer in parts[0].layers]
    outputs = bank_linear_group(x, parts)
    torch.autograd.backward(outputs, grads)
    together = [x.grad, *(matrix.grad for matrix in matrices(parts))]
    x.grad = None
    for matrix in matrices(parts):
        matrix.grad = None
    for part in parts:
        if part.rows.start == part.rows.stop:
            continue
        alone = lora_linear_group(x[part.rows], part.layers, part.mask)
        torch.autograd.backward(alone, [grad[part.rows] for grad in grads])
        for mine, one in zip(outputs, alone, strict=True):
            torch.testing.assert_close(mine[part.rows], one)
    behind = slice(SLICES[-1].stop, None)
    plain = [nn.functional.linear(x[behind], layer.weight, layer.bias) for layer in parts[0].layers]
    torch.autograd.backward(plain, [grad[behind] for grad in grads])
    for mine, one in zip(outputs, plain, strict=True):
        torch.testing.assert_close(mine[behind], one)
    for mine, expected in zip(together, [x.grad, *(matrix.grad for matrix in matrices(parts))], strict=True):
        assert (mine is None) == (expected is None)
        if mine is not None:
            torch.testing.assert_close(mine, expected)
    assert matrices([parts[1]])[0].grad is None


@pytest.fixture(autouse=True, params=["as they are", "widened"])
def _windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every law holds for slices as they are, and for those widened to windows, here at any number of rows."""
    if request.param == "widened":
        monkeypatch.setattr(bank_module, "LEAST_ROWS", 1)
        monkeypatch.setattr(bank_module, "MULTIPLE", 5)


def test_windows_are_of_few_sizes_and_hold_their_slice() -> None:
    for every in (256, 320, 333):
        for start, stop in ((0, 1), (0, 7), (40, 51), (every - 3, every), (every - 40, every - 1), (0, every)):
            window = bank_module._window(slice(start, stop), every)
            assert window.start <= start < stop <= window.stop <= every
            size = window.stop - window.start
            assert size % bank_module.MULTIPLE == 0 or size == every
            assert size - (stop - start) < bank_module.MULTIPLE


@pytest.mark.parametrize("wants_x", [False, True])
def test_the_base_s_products_are_made_once_and_none_of_the_size_of_a_weight(wants_x: bool) -> None:
    parts = make_parts(1, transposed=False, bias=False, dropped=True)
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=wants_x)
    with Products() as forward:
        (y,) = bank_linear_group(x, parts)
    windows = [(bank_module._window(part.rows, ROWS), part) for part in parts if part.rows.start < part.rows.stop]
    used = [(window.stop - window.start, len(part.layers[0].a)) for window, part in windows]
    lows = Counter((rows, rank) for rows, rank in used)
    assert forward.shapes == Counter({(ROWS, 4): 1}) + lows + Counter((rows, 4) for rows, _ in used)
    with Products() as backward:
        y.backward(torch.randn_like(y))
    expected = lows + Counter((rank, 4) for _, rank in used) + Counter((rank, WIDTH) for _, rank in used)
    if wants_x:
        expected += Counter({(ROWS, WIDTH): 1}) + Counter((rows, WIDTH) for rows, _ in used)
    assert backward.shapes == expected


def make_layers(outs: Sequence[int], dropout: float, dtype: torch.dtype) -> list[list[LoraLinear]]:
    """Of each of four adapters its layers, over the same frozen weights."""
    torch.manual_seed(1)
    plain = [nn.Linear(WIDTH, out).to(dtype).requires_grad_(False) for out in outs]
    adapters = []
    for rank in RANKS:
        layers = [
            LoraLinear(base.weight, base.bias, rank=rank, alpha=2.0 * rank, dropout=dropout).train()  # type: ignore[arg-type]
            for base in plain
        ]
        for layer in layers:
            nn.init.normal_(layer.lora_B)
        adapters.append(layers)
    return adapters


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bank_of_layers_is_the_layers_one_at_a_time(grouped: bool, dropout: float, dtype: torch.dtype) -> None:
    """Dropout included: in the order of the adapters the same masks are drawn."""
    adapters = make_layers((4, 3, 5) if grouped else (4,), dropout, dtype)
    alone = copy.deepcopy(adapters)
    routing = Routing()
    routing.set(COUNTS, LENGTHS, ROWS)
    banks = [BankLinear(list(same), routing) for same in zip(*adapters, strict=True)]
    if grouped:
        BankGroup(banks, routing)
        for layers in alone:
            SharedInput(layers)
    x = torch.randn(ROWS, WIDTH).to(dtype)
    grads = [torch.randn(ROWS, bank.out_features).to(dtype) for bank in banks]
    mine = x[None].clone().requires_grad_()
    torch.manual_seed(2)
    outputs = [bank(mine) for bank in banks]
    torch.autograd.backward(outputs, [grad[None] for grad in grads])
    theirs = x.clone().requires_grad_()
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.manual_seed(2)
    for rows, layers in zip(SLICES, alone, strict=True):
        if rows.start == rows.stop:
            continue
        part = theirs[rows]
        one = [layer(part) for layer in layers]
        torch.autograd.backward(one, [grad[rows] for grad in grads], retain_graph=True)
        for output, expected in zip(outputs, one, strict=True):
            assert output.dtype == dtype
            assert (output[0, rows] - expected).abs().max() <= tolerance * expected.abs().max()
    tokens = sum(LENGTHS)
    pairs = [(mine.grad[0, :tokens], theirs.grad[:tokens])]  # type: ignore[index]
    for ours, layers in zip(adapters, alone, strict=True):
        for layer, expected in zip(ours, layers, strict=True):
            pairs += [(layer.lora_A.grad, expected.lora_A.grad), (layer.lora_B.grad, expected.lora_B.grad)]
    assert sum(ours is None for ours, _ in pairs) == 2 * len(banks)  # the adapter without texts
    for ours, expected in pairs:
        assert (ours is None) == (expected is None)
        if ours is not None:
            assert (ours.float() - expected.float()).abs().max() <= tolerance * expected.float().abs().max()


def test_one_row_a_text_is_routed_by_texts() -> None:
    routing = Routing()
    routing.set(COUNTS, LENGTHS, ROWS)
    assert routing.slices(ROWS) == tuple(SLICES)
    assert routing.slices(len(LENGTHS)) == (slice(0, 2), slice(2, 2), slice(2, 3), slice(3, 5))


def test_rows_of_nobody_knows_whom_are_refused() -> None:
    routing = Routing()
    bank = BankLinear([layers[0] for layers in make_layers((4,), 0.0, torch.float32)], routing)
    with pytest.raises(LoraError, match="reads 12 rows, of which nobody knows whose they are; known: none"):
        bank(torch.randn(ROWS, WIDTH))
    routing.set(COUNTS, LENGTHS, ROWS)
    with pytest.raises(LoraError, match=r"reads 7 rows, .* known: 5 or 12"):
        bank(torch.randn(7, WIDTH))
    with pytest.raises(ValueError, match="5 texts, but the adapters have 4"):
        routing.set((2, 2), LENGTHS, ROWS)


def test_a_bank_holds_plain_adapters_of_one_frozen_weight() -> None:
    for spoil in ("weight", "dora", "trained", "merged"):
        adapters = make_layers((4,), 0.0, torch.float32)
        layers = [own[0] for own in adapters]
        if spoil == "weight":
            layers[1] = copy.deepcopy(layers[1])
        elif spoil == "dora":
            start_dora(nn.ModuleList(layers[1:2]))
        elif spoil == "trained":
            layers[0].weight.requires_grad_(True)
        else:
            layers[1].merged = True
        with pytest.raises(LoraError):
            BankLinear(layers, Routing())
    with pytest.raises(ValueError, match="that share an input"):
        BankGroup([BankLinear(list(same), Routing()) for same in zip(*_unlike(), strict=True)], Routing())


def _unlike() -> list[list[LoraLinear]]:
    """Adapters whose second layer has another rank than their first."""
    adapters = make_layers((4, 3), 0.0, torch.float32)
    for layers in adapters:
        layers[1] = LoraLinear(adapters[0][1].weight, adapters[0][1].bias, rank=4, alpha=1.0)  # type: ignore[arg-type]
    return adapters
