"""Dropout masks: the right share, a mean of 1, decided by torch's generator alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from veneer.lora.dropout import MaskedDropout, dropout_mask, fresh_mask
from veneer.lora.layer import LoraLinear

CPU = torch.device("cpu")


def draw(rows: int, width: int, p: float = 0.1, dtype: torch.dtype = torch.float32) -> Tensor:
    return dropout_mask(rows, width, p, device=CPU, dtype=dtype)


def agreement(first: Tensor, second: Tensor) -> float:
    """Correlation of two masks: near 0 where they are independent."""
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


@pytest.mark.parametrize("p", [0.05, 0.1, 0.25, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_mean_is_one(p: float) -> None:
    torch.manual_seed(0)
    mask = draw(1000, 768, p)
    assert mask.shape == (1000, 768)
    assert abs(float((mask == 0).float().mean()) - p) < 0.003  # six deviations at p = 0.5
    assert float(mask.mean()) == pytest.approx(1.0, abs=6 * (p / (1 - p) / mask.numel()) ** 0.5)
    kept = mask[mask > 0]
    assert float(kept.min()) == float(kept.max()) == pytest.approx(1 / (1 - p), rel=1e-3)


@pytest.mark.parametrize("p", [0.1, 0.25])
def test_over_many_masks_the_mean_is_one_at_every_place(p: float) -> None:
    torch.manual_seed(1)
    mean = torch.stack([draw(4, 64, p) for _ in range(4000)]).mean(0)
    deviation = (p / (1 - p) / 4000) ** 0.5
    assert float((mean - 1).abs().max()) < 5 * deviation
    assert float(mean.std()) == pytest.approx(deviation, rel=0.2)  # no place is dropped more often than another


@pytest.mark.parametrize("rows", [3, 3000, 30_000])  # the last one is larger than the bank
def test_the_generator_alone_decides(rows: int) -> None:
    torch.manual_seed(2)
    state = torch.get_rng_state()
    first, second = draw(rows, 384), draw(rows, 384)
    torch.set_rng_state(state)
    assert torch.equal(draw(rows, 384), first)
    assert torch.equal(draw(rows, 384), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("rows", "width"), [(64, 384), (5460, 768), (10_000, 384), (30_000, 384)])
def test_masks_are_independent_of_each_other(rows: int, width: int) -> None:
    """5,460 rows of 768 nearly fill the bank of 2^22, where few windows would be left to choose from."""
    torch.manual_seed(3)
    masks = [draw(rows, width, 0.25) for _ in range(5)]
    bound = 6 / (rows * width) ** 0.5
    assert max(abs(agreement(a, b)) for i, a in enumerate(masks) for b in masks[:i]) < bound


def test_rows_and_columns_of_a_mask_are_independent() -> None:
    torch.manual_seed(4)
    mask = draw(30_000, 384, 0.25)
    bound = 6 / (15_000 * 384) ** 0.5
    assert abs(agreement(mask[:15_000], mask[15_000:])) < bound
    assert abs(agreement(mask[:, :192], mask[:, 192:])) < bound
    assert abs(agreement(mask[:-1], mask[1:])) < bound


def test_one_row_wider_than_the_bank() -> None:
    torch.manual_seed(5)
    mask = draw(1, (1 << 22) + 7)
    assert abs(float((mask == 0).float().mean()) - 0.1) < 0.002


def test_bf16_masks_are_the_float32_ones_to_its_precision() -> None:
    torch.manual_seed(6)
    state = torch.get_rng_state()
    exact = draw(100, 64)
    torch.set_rng_state(state)
    rounded = draw(100, 64, dtype=torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=2**-8, atol=0)


def test_the_expected_output_is_the_undropped_one() -> None:
    torch.manual_seed(7)
    plain = nn.Linear(32, 8)
    layer = LoraLinear(plain.weight, plain.bias, rank=4, alpha=8.0, dropout=0.25)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 32)
    with torch.no_grad():
        expected = layer.eval()(x)
        layer.train()
        draws = torch.stack([layer(x) for _ in range(4000)])
    assert not torch.equal(draws[0], draws[1])
    deviation = draws.std(0) / 4000**0.5
    assert float(((draws.mean(0) - expected) / deviation).abs().max()) < 5


def test_no_dropout_in_evaluation_nor_where_it_is_zero() -> None:
    weight, x = nn.Linear(8, 8).weight, torch.ones(3, 8)
    dropping = LoraLinear(weight, None, rank=2, alpha=4.0, dropout=0.5)
    assert dropping.train()._mask(x) is not None
    assert dropping.eval()._mask(x) is None
    assert LoraLinear(weight, None, rank=2, alpha=4.0).train()._mask(x) is None


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_hidden_states_lose_a_share_p_and_keep_their_mean(p: float) -> None:
    torch.manual_seed(8)
    layer = MaskedDropout(p).train()
    outputs = layer(torch.ones(3, 500, 384))
    assert outputs.shape == (3, 500, 384)
    assert float((outputs == 0).float().mean()) == pytest.approx(p, abs=0.004)
    kept = outputs[outputs > 0]
    assert float(kept.min()) == float(kept.max()) == pytest.approx(1 / (1 - p), rel=1e-3)
    flat = [layer(torch.ones(500, 384)) for _ in range(6)]
    bound = 6 / (500 * 384) ** 0.5
    assert max(abs(agreement(a, b)) for i, a in enumerate(flat) for b in flat[:i]) < bound


def test_what_is_dropped_gets_no_gradient_and_the_rest_its_share() -> None:
    torch.manual_seed(9)
    x = torch.randn(40, 384, requires_grad=True)
    outputs = MaskedDropout(0.25).train()(x)
    outputs.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), outputs.detach())
    assert torch.equal(x.grad == 0, outputs == 0)


def test_hidden_states_stay_in_evaluation_and_the_generator_alone_decides() -> None:
    x = torch.randn(40, 384)
    assert MaskedDropout(0.5).eval()(x) is x
    assert MaskedDropout(0.0).train()(x) is x
    layer, state = MaskedDropout(0.5).train(), torch.get_rng_state()
    first = layer(x)
    torch.set_rng_state(state)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)


@pytest.mark.parametrize(
    ("p", "dtype"), [(0.1, torch.bfloat16), (0.25, torch.float32), (0.5, torch.float16), (1e-6, torch.float32)]
)
def test_every_number_of_a_fresh_mask_is_drawn_for_itself(p: float, dtype: torch.dtype) -> None:
    """Of a size that four does not divide; neighbours and the quarters of one drawn number are independent."""
    torch.manual_seed(10)
    mask = fresh_mask(400_003, p, dtype)
    assert mask.shape == (400_003,)
    assert mask.dtype == dtype
    assert set(mask.unique().tolist()) <= {0.0, float(torch.tensor(1 / (1 - p), dtype=dtype))}
    dropped = (mask == 0).float()
    deviation = (p * (1 - p) / len(mask)) ** 0.5
    assert float(dropped.mean()) == pytest.approx(p, abs=5 * deviation + 2**-15)
    if p > 1e-3:
        bound = 5 / len(mask) ** 0.5
        assert max(abs(agreement(dropped[:-step], dropped[step:])) for step in (1, 2, 3, 4, 384)) < bound
        assert abs(agreement(dropped, (fresh_mask(400_003, p, dtype) == 0).float())) < bound
