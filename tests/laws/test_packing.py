"""Law: a text gives the same logits and the same gradients packed, padded, and alone.

The padded model runs transformers' own attention and plain positions, so that it shares neither code nor assumptions with the
packed one; `transformers_logits` runs its sequence classifier's own forward, pooling and head included.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from veneer.adaptation import AdapterPlan, adapt
from veneer.bases import find_base
from veneer.data import EncodedTexts
from veneer.lora import lora_layers
from veneer.model import Classifier, build_classifier
from veneer.packing import PackedBatch, PaddedBatch, Segments
from veneer.packing.attention import packed_attention

PACKS = """bert roberta distilbert modernbert electra albert ernie xlm-roberta camembert gpt2 qwen2 qwen3 llama mistral
gemma3_text""".split()
PAIRS = ["bert", "electra", "albert", "ernie", "xlnet"]  # families that tell the texts of a pair apart by type ids
PADS = ["mpnet", "deberta-v2", "xlnet"]
# One token, multiples of 16 and neighbours of them, and far beyond every window (8 tokens); 17 in two runs of neighbours.
LENGTHS = [17, 1, 5, 16, 40, 3, 17, 17, 100, 33, 1, 24]

Base = Callable[..., Path]
MakeTexts = Callable[..., EncodedTexts]


@pytest.fixture(scope="module")
def build(tiny_base: Base) -> Callable[..., Classifier]:
    """`build("bert", pack=False)` is an adapted classifier whose update is not zero; the same one for packed and padded."""
    made: dict[tuple[str, bool, str], Classifier] = {}

    def model(family: str, *, pack: bool = True, pooling: str = "auto") -> Classifier:
        key = (family, pack, pooling)
        if key not in made:
            torch.manual_seed(1)
            made[key] = build_classifier(find_base(str(tiny_base(family))), 3, pooling=pooling, pack=pack)
            adapt(made[key], AdapterPlan(rank=2, dropout=0.0))
            for layer in lora_layers(made[key]).values():
                torch.nn.init.normal_(layer.lora_B, std=0.1)
        return made[key]

    return model


def logits_of(model: Classifier, texts: EncodedTexts, indices: list[int]) -> Tensor:
    with torch.no_grad():
        return model(model.batch(texts, indices))


def alone(model: Classifier, texts: EncodedTexts) -> Tensor:
    return torch.cat([logits_of(model, texts, [index]) for index in range(len(texts))])


def gradients(model: Classifier, texts: EncodedTexts, groups: list[list[int]]) -> dict[str, Tensor]:
    """Gradients of a fixed weighting of all logits, added up over `groups` of texts."""
    weights = torch.randn(len(texts), 3, generator=torch.Generator().manual_seed(5))
    model.zero_grad()
    for group in groups:
        torch.autograd.backward((model(model.batch(texts, group)) * weights[group]).sum())
    return {name: parameter.grad.clone() for name, parameter in model.trainable().items() if parameter.grad is not None}


def assert_same_gradients(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys() != set()
    for name, gradient in first.items():
        scale = float(second[name].abs().max())
        torch.testing.assert_close(
            gradient, second[name], rtol=1e-4, atol=1e-5 * max(1.0, scale), msg=lambda text, n=name: n + text
        )


@pytest.mark.parametrize("family", PACKS)
def test_logits_are_those_of_padded_and_of_alone(family: str, build: Any, make_texts: MakeTexts) -> None:
    packed, padded, texts = build(family), build(family, pack=False), make_texts(LENGTHS, pairs=family in PAIRS)
    everything = list(range(len(texts)))
    assert packed.padding_reason is None
    assert isinstance(packed.batch(texts, everything), PackedBatch)
    assert isinstance(padded.batch(texts, everything), PaddedBatch)
    together = logits_of(packed, texts, everything)
    assert together.std(0).min() > 0.01  # the texts differ, so that a mix-up would show
    for other in (logits_of(padded, texts, everything), alone(packed, texts), alone(padded, texts)):
        torch.testing.assert_close(together, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", PACKS)
def test_hidden_states_are_those_of_padded(family: str, build: Any, make_texts: MakeTexts) -> None:
    texts, everything = make_texts(LENGTHS, seed=1, pairs=family in PAIRS), list(range(len(LENGTHS)))
    with torch.no_grad():
        models = build(family, pooling="mean"), build(family, pooling="mean", pack=False)
        packed, padded = (model._hidden(model.batch(texts, everything)) for model in models)
    assert packed.shape == (sum(LENGTHS), 32)
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", PACKS)
def test_gradients_are_those_of_padded_and_of_alone(family: str, build: Any, make_texts: MakeTexts) -> None:
    packed, padded, texts = build(family), build(family, pack=False), make_texts(LENGTHS, pairs=family in PAIRS)
    everything, singles = list(range(len(texts))), [[index] for index in range(len(texts))]
    together = gradients(packed, texts, [everything])
    assert sum(bool(gradient.any()) for gradient in together.values()) >= len(together) - 2
    assert_same_gradients(together, gradients(packed, texts, singles))
    assert_same_gradients(together, gradients(padded, texts, [everything]))


@pytest.mark.parametrize("family", PACKS)
def test_texts_do_not_see_each_other(family: str, build: Any, make_texts: MakeTexts) -> None:
    model, texts = build(family), make_texts(LENGTHS, pairs=family in PAIRS)
    changed = make_texts(LENGTHS, pairs=family in PAIRS)
    place = LENGTHS.index(40)
    span = slice(texts.offsets[place], texts.offsets[place + 1])
    changed.ids[span] = changed.ids[span][::-1] + 1
    first, second = (logits_of(model, one, list(range(len(LENGTHS)))) for one in (texts, changed))
    others = [index for index in range(len(LENGTHS)) if index != place]
    torch.testing.assert_close(first[others], second[others], rtol=0, atol=1e-6)
    assert (first[place] - second[place]).abs().max() > 1e-3


@pytest.mark.parametrize("family", PACKS)
@pytest.mark.parametrize("pooling", ["family", "mean"])
def test_filler_behind_the_texts_changes_nothing(
    family: str, pooling: str, build: Any, make_texts: MakeTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, texts = build(family, pooling="auto" if pooling == "family" else pooling), make_texts(LENGTHS, pairs=family in PAIRS)
    everything = [list(range(len(texts)))]
    assert len(model.batch(texts, everything[0]).ids) == sum(LENGTHS)
    without = gradients(model, texts, everything), logits_of(model, texts, everything[0])
    monkeypatch.setattr(Classifier, "_prepares_products", True)
    assert len(model.batch(texts, everything[0]).ids) == sum(LENGTHS) + -sum(LENGTHS) % 32 != sum(LENGTHS)
    assert_same_gradients(gradients(model, texts, everything), without[0])
    torch.testing.assert_close(logits_of(model, texts, everything[0]), without[1], rtol=1e-5, atol=1e-5)


def test_filler_is_for_low_precision_on_a_processor_alone(tiny_base: Base) -> None:
    kinds = {
        dtype: build_classifier(find_base(str(tiny_base("bert"))), 2, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    }
    assert [model._prepares_products for model in kinds.values()] == [False, True]


NARROWED = "bert roberta distilbert electra ernie xlm-roberta camembert".split()


@pytest.mark.parametrize("family", NARROWED)
@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_the_last_layer_computes_the_pooled_tokens_alone(family: str, pooling: str, build: Any, make_texts: MakeTexts) -> None:
    packed, padded, texts = build(family, pooling=pooling), build(family, pooling=pooling, pack=False), make_texts(LENGTHS)
    everything, rows = list(range(len(texts))), {}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: rows.__setitem__(name, output.numel() // output.shape[-1]))
        for name, layer in lora_layers(packed).items()
    ]
    together = gradients(packed, texts, [everything])
    for hook in hooks:
        hook.remove()
    assert padded.narrowed_query is None
    last, query = packed.narrowed_query.split(".attention")[0], packed.narrowed_query
    inside = {name.removeprefix("network.") for name in rows if f"{last}." in name}
    narrow = {name.removeprefix("network.") for name, count in rows.items() if f"{last}." in name and count == len(LENGTHS)}
    keys = {name for name in inside if name.endswith((".key", ".value", ".k_lin", ".v_lin"))}
    assert (len(keys), narrow) == (2, inside - keys)
    assert query in narrow
    assert_same_gradients(together, gradients(padded, texts, [everything]))
    assert_same_gradients(together, gradients(packed, texts, [[index] for index in everything]))


def test_with_mean_pooling_the_last_layer_computes_all_tokens(build: Any) -> None:
    assert build("bert", pooling="mean").narrowed_query is None


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen2"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_every_pooling_packs(family: str, pooling: str, build: Any, make_texts: MakeTexts) -> None:
    packed, texts = build(family, pooling=pooling), make_texts(LENGTHS, pairs=family in PAIRS)
    together = logits_of(packed, texts, list(range(len(texts))))
    padded = build(family, pooling=pooling, pack=False)
    torch.testing.assert_close(together, logits_of(padded, texts, list(range(len(texts)))), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, alone(padded, texts), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", PADS)
def test_families_that_cannot_pack_are_padded(family: str, build: Any, make_texts: MakeTexts) -> None:
    model, texts = build(family), make_texts(LENGTHS, pairs=family in PAIRS)
    everything = list(range(len(texts)))
    assert model.padding_reason is not None
    assert model.padding_reason.startswith(f"{family} cannot pack")
    assert isinstance(model.batch(texts, everything), PaddedBatch)
    together = logits_of(model, texts, everything)
    assert together.std(0).min() > 0.01
    torch.testing.assert_close(together, alone(model, texts), rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(model, texts, [everything]), gradients(model, texts, [[index] for index in everything]))


def transformers_logits(model: Classifier, texts: EncodedTexts) -> Tensor:
    """The logits of a padded batch by the own forward of transformers' sequence classifier."""
    pad = 3
    model.config.pad_token_id = pad  # what a causal family's forward looks for behind the text
    batch = model.batch(texts, list(range(len(texts))))
    assert isinstance(batch, PaddedBatch)
    arguments = {"input_ids": batch.ids.masked_fill(batch.mask == 0, pad), "attention_mask": batch.mask}
    if model.config.model_type in PAIRS:
        arguments["token_type_ids"] = batch.type_ids
    with torch.no_grad():
        return model.network(**arguments).logits


@pytest.mark.parametrize("family", [*PACKS, "mpnet", "deberta-v2"])
def test_logits_are_those_of_transformers(family: str, tiny_base: Base, make_texts: MakeTexts) -> None:
    models = []
    for pack in (True, False):
        torch.manual_seed(2)
        models.append(build_classifier(find_base(str(tiny_base(family))), 4, pack=pack))
    texts = make_texts(LENGTHS, pairs=family in PAIRS)
    ours = logits_of(models[0], texts, list(range(len(texts))))
    torch.testing.assert_close(ours, transformers_logits(models[1], texts), rtol=1e-5, atol=1e-5)


def test_modernbert_classifies_the_mean_where_its_configuration_says_so(
    tiny_base: Base, tmp_path: Path, make_texts: MakeTexts
) -> None:
    folder = shutil.copytree(tiny_base("modernbert"), tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"classifier_pooling": "mean"}))
    models = []
    for pack in (True, False):
        torch.manual_seed(2)
        models.append(build_classifier(find_base(str(folder)), 4, pack=pack))
    assert (models[0].plan.pooling, models[0].plan.own) == ("mean", True)
    texts = make_texts(LENGTHS)
    ours = logits_of(models[0], texts, list(range(len(texts))))
    torch.testing.assert_close(ours, transformers_logits(models[1], texts), rtol=1e-5, atol=1e-5)


def test_packed_attention_without_lengths_is_refused(build: Any) -> None:
    """Trap: such a name gets no mask, so that a padded batch would attend to its padding."""
    with pytest.raises(ValueError, match="segments"):
        build("bert").encoder(input_ids=torch.full((2, 4), 7), attention_mask=torch.ones(2, 4))


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"softcap": 30.0}, {"rows": 2}])
def test_packed_attention_refuses_what_it_does_not_do(options: dict[str, Any]) -> None:
    tensors = [torch.ones(options.pop("rows", 1), 2, 4, 8) for _ in range(3)]
    with pytest.raises(ValueError, match="one row, and neither dropout"):
        packed_attention(SimpleNamespace(), *tensors, None, segments=Segments.of([4]), **options)
