"""Law: LoRA and its variants train as PEFT's do: from one start, by one optimiser, the losses are the same step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from veneer.lora import apply_lora, lora_layers, mark_only_lora_as_trainable, start_dora, start_pissa

TARGETS = ["first", "second"]
X, Y = torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3
RATE = 2e-2  # large, so that four steps tell


class Net(nn.Module):
    """Two linear layers of 24 to 16 to 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def losses(model: nn.Module) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    found = []
    for step in range(4):
        loss = nn.functional.cross_entropy(model(X[step % len(X)]), Y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize(
    ("start", "scaling", "fields"),
    [
        (None, "standard", {}),
        (None, "rslora", {"use_rslora": True}),
        (start_pissa, "standard", {"init_lora_weights": "pissa"}),
        (start_pissa, "rslora", {"init_lora_weights": "pissa", "use_rslora": True}),
        (start_dora, "standard", {"use_dora": True}),
    ],
    ids=["lora", "rslora", "pissa", "pissa and rslora", "dora"],
)
def test_the_losses_are_pefts(start: Callable[[nn.Module], None] | None, scaling: str, fields: dict[str, object]) -> None:
    torch.manual_seed(0)
    ours = Net()
    theirs = inject_adapter_in_model(
        LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=TARGETS, **fields),  # type: ignore[arg-type]
        copy.deepcopy(ours),
    )
    apply_lora(ours, TARGETS, rank=2, alpha=4.0, scaling=scaling)  # type: ignore[arg-type]
    mark_only_lora_as_trainable(ours)
    if start is not None:
        start(ours)
    with torch.no_grad():
        for name, layer in lora_layers(ours).items():
            other = theirs.get_submodule(name)
            for mine, its in ((layer.lora_A, other.lora_A), (layer.lora_B, other.lora_B)):
                if start is start_pissa:  # a singular vector's sign is anyone's
                    torch.testing.assert_close(its["default"].weight.abs(), mine.abs(), rtol=1e-4, atol=1e-5)
                its["default"].weight.copy_(mine)
    before, after = losses(theirs), losses(ours)
    assert before == pytest.approx(after, rel=1e-4)
    assert abs(before[3] - before[0]) > 1e-3
