"""What is foretold of a step is what the step takes: parameters to the byte, activations as autograd's own hooks see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from veneer.adaptation import AdapterPlan, adapt, checkpoint_activations
from veneer.bases import find_base
from veneer.data import EncodedTexts
from veneer.estimate import Memory, estimate_step, stored_bytes, texts_a_pass
from veneer.lora.dropout import BANK
from veneer.model import Classifier, build_classifier, skeleton

Base = Callable[..., Path]
Texts = Callable[..., EncodedTexts]

SHAPES = [(1, 9), (4, 16), (8, 60), (16, 128)]
FAMILIES = ["bert", "roberta", "distilbert", "modernbert", "electra", "albert", "qwen2", "llama", "gemma3_text", "gpt2"]
PADDED = ["mpnet", "deberta-v2"]


def loss(model: Classifier, texts: EncodedTexts) -> Callable[[], Tensor]:
    batch = model.batch(texts, range(len(texts.lengths)))
    return lambda: model(batch).sum()


def foretold(base: Path, texts: EncodedTexts, *, checkpointing: bool = False, full: bool = False, **options: object) -> Memory:
    model = skeleton(find_base(str(base)), 3, **options)  # type: ignore[arg-type]
    model.requires_grad_(True) if full else adapt(model, AdapterPlan())
    if checkpointing:
        checkpoint_activations(model)
    model.train()
    return estimate_step(model, loss(model, texts), "cpu")


def saved(base: Path, texts: EncodedTexts, *, full: bool = False, **options: object) -> int:
    """Bytes of the distinct storages that autograd saves, the model's own and the bank of dropout masks apart."""
    model = build_classifier(find_base(str(base)), 3, **options)  # type: ignore[arg-type]
    model.requires_grad_(True) if full else adapt(model, AdapterPlan())
    return saved_by(model, texts)


def saved_by(model: Classifier, texts: EncodedTexts) -> int:
    """As `saved`, of a model that is there."""
    model.train()
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.nbytes() != BANK * tensor.element_size():
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss(model, texts)()
    assert result.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize(("count", "length"), SHAPES)
@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_activations_are_what_autograd_saves(family: str, count: int, length: int, tiny_base: Base, make_texts: Texts) -> None:
    texts = make_texts([length] * count)
    assert foretold(tiny_base(family), texts).activations == pytest.approx(saved(tiny_base(family), texts), rel=0.05)


@pytest.mark.parametrize("family", [*FAMILIES, *PADDED])
def test_in_every_family_that_runs_without_numbers(family: str, tiny_base: Base, make_texts: Texts) -> None:
    texts = make_texts([60, 60, 12, 33])
    assert foretold(tiny_base(family), texts).activations == pytest.approx(saved(tiny_base(family), texts), rel=0.05)


@pytest.mark.parametrize("family", ["bert", "qwen2"])
@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"pooling": "mean"}], ids=["bf16", "mean"])
def test_with_other_settings(family: str, options: dict[str, object], tiny_base: Base, make_texts: Texts) -> None:
    texts = make_texts([40] * 5)
    assert foretold(tiny_base(family), texts, **options).activations == pytest.approx(
        saved(tiny_base(family), texts, **options), rel=0.05
    )


@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_of_full_fine_tuning(family: str, tiny_base: Base, make_texts: Texts) -> None:
    texts = make_texts([40] * 5)
    assert foretold(tiny_base(family), texts, full=True).activations == pytest.approx(
        saved(tiny_base(family), texts, full=True), rel=0.05
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "qwen2", "gpt2"])
def test_parameters_are_counted_to_the_byte(family: str, dtype: torch.dtype, tiny_base: Base, make_texts: Texts) -> None:
    real = build_classifier(find_base(str(tiny_base(family))), 3, dtype=dtype)
    adapt(real, AdapterPlan())
    memory = foretold(tiny_base(family), make_texts([5]), dtype=dtype)
    frozen = sum(one.numel() * one.element_size() for one in real.parameters() if not one.requires_grad)
    trained = sum(one.numel() * one.element_size() for one in real.parameters() if one.requires_grad)
    buffers = sum(one.numel() * one.element_size() for one in real.buffers())
    assert (memory.weights, memory.trained) == stored_bytes(real) == (frozen + buffers, trained)
    assert (memory.gradients, memory.optimizer) == (trained, 2 * trained)


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen2"])
def test_checkpointing_saves_memory_and_costs_work(family: str, tiny_base: Base, make_texts: Texts) -> None:
    texts = make_texts([100] * 8)
    plain, checkpointed = (foretold(tiny_base(family), texts, checkpointing=on) for on in (False, True))
    assert checkpointed.activations < plain.activations / 3
    assert checkpointed.flops > plain.flops


def test_the_most_at_once_is_less_than_all_parts_where_the_gradients_are_large(tiny_base: Base, make_texts: Texts) -> None:
    memory = foretold(tiny_base("bert"), make_texts([4]), full=True)
    assert memory.gradients > memory.activations
    assert memory.total < memory.weights + memory.trained + memory.optimizer + memory.gradients + memory.activations


def test_copies_of_what_is_trained_are_counted_to_the_byte(tiny_base: Base, make_texts: Texts) -> None:
    model, texts = skeleton(find_base(str(tiny_base())), 3), make_texts([5])
    adapt(model, AdapterPlan())
    none, two = (estimate_step(model, loss(model, texts), "cpu", copies=copies) for copies in (0, 2))
    assert (none.copies, two.copies) == (0, 2 * two.trained)
    assert two.total - none.total == 2 * two.trained


class Chain(nn.Module):
    """Two linear layers of 8 to 8 without bias; 4 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(8, 8, bias=False, device="meta") for _ in range(2))

    def forward(self) -> Tensor:
        return self.second(torch.tanh(self.first(torch.empty(4, 8, device="meta")))).sum()


def test_a_small_model_by_hand() -> None:
    """Activations: the input and tanh's output, each 4 × 8 × 4 bytes, and the scalar. Work: two products each way but the first
    layer's input needs no gradient: 5 products of 2·4·8·8."""
    model = Chain()
    memory = estimate_step(model, model, "cpu")
    assert memory.activations == 2 * 128 + 4
    assert memory.flops == 5 * 2 * 4 * 8 * 8
    assert (memory.weights, memory.trained) == (0, 2 * 256)
    # the output's gradient (expanded, 4 bytes), its copy for the product, and what is held of the parameters' gradients
    assert memory.total >= 512 + 1024 + 512


def test_masks_take_no_memory_on_a_cpu_while_they_are_views(tiny_base: Base, make_texts: Texts) -> None:
    model = skeleton(find_base(str(tiny_base("bert"))), 2)
    adapt(model, AdapterPlan(dropout=0.5))
    model.train()
    texts = make_texts([20] * 4)
    cpu, cuda = (estimate_step(model, loss(model, texts), device) for device in ("cpu", "cuda"))  # type: ignore[arg-type]
    widths = 80 * (3 * 32 + 64 + 32) + 4 * (32 + 32 + 64)  # the last layer has a row a text, but for key and value
    assert cuda.activations - cpu.activations == pytest.approx(4 * widths, rel=0.1)


@pytest.mark.parametrize(("batch", "length", "budget", "texts"), [(32, 128, 16384, 32), (32, 128, 1024, 8), (4, 512, 100, 1)])
def test_texts_a_pass(batch: int, length: int, budget: int, texts: int) -> None:
    assert texts_a_pass(batch, length, budget) == texts
