"""How an adapted layer begins."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from veneer.lora import LoraLinear


@pytest.mark.parametrize("width", [100, 900])
def test_a_begins_kaiming_uniform_and_b_at_zero(width: int) -> None:
    """Uniform up to 1/√in, as `nn.Linear` begins: Kaiming with a = √5."""
    torch.manual_seed(0)
    plain = nn.Linear(width, 20)
    layer = LoraLinear(plain.weight, plain.bias, rank=16, alpha=4.0)
    bound = width**-0.5
    values = layer.lora_A.detach()
    assert 0.98 * bound < float(values.abs().max()) <= bound
    assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    quarters = torch.histc(values, 4, -bound, bound) / values.numel()
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=0.04, rtol=0)
    assert not layer.lora_B.any()
