"""Laws of the methods: packed = padded = alone; ours in PEFT where PEFT knows the method; what is read of virtual tokens.

Tolerances: float32 sums over tiny widths, 2e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from veneer.adaptation import AdapterPlan, checkpoint_activations
from veneer.bases import find_base
from veneer.data import EncodedTexts
from veneer.errors import LoraError
from veneer.methods import METHODS, MethodPlan
from veneer.model import Classifier, build_classifier

Base = Callable[..., Path]
Texts = Callable[..., EncodedTexts]
LENGTHS = [5, 1, 17, 9, 5]
PLAN = MethodPlan(AdapterPlan(rank=4, dropout=0.0), top_layers=1, bottleneck=6, virtual_tokens=3)
PLANS = {
    **dict.fromkeys(METHODS, PLAN),
    "dora": MethodPlan(AdapterPlan(rank=4, dropout=0.0, dora=True)),
    "pissa": MethodPlan(AdapterPlan(rank=4, dropout=0.0, init="pissa")),
}

# transformers deprecates a property that peft still reads.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def make(kind: str, base: Path, *, pack: bool = True, pooling: str = "auto") -> Classifier:
    """A classifier by the method (or LoRA's variant) `kind`, what it trains far from its start."""
    torch.manual_seed(3)
    model = build_classifier(find_base(str(base)), 3, pooling=pooling, pack=pack)
    METHODS["lora" if kind in ("dora", "pissa") else kind].apply(model, PLANS[kind])
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            parameter.add_(torch.randn_like(parameter) * (0.02 if kind == "full" and "classifier" not in name else 0.2))
    return model.eval()


@torch.no_grad()
def logits(model: Classifier, texts: EncodedTexts, rows: Any) -> Tensor:
    return model(model.batch(texts, rows))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", PLANS)
def test_packed_is_padded_is_alone(kind: str, pooling: str, tiny_base: Base, make_texts: Texts) -> None:
    texts = make_texts(LENGTHS)
    packed = make(kind, tiny_base(), pooling=pooling)
    assert packed.padding_reason is None
    together = logits(packed, texts, range(5))
    padded = logits(make(kind, tiny_base(), pack=False, pooling=pooling), texts, range(5))
    alone = torch.cat([logits(packed, texts, [i]) for i in range(5)])
    torch.testing.assert_close(together, padded, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(together, alone, rtol=2e-5, atol=2e-5)
    assert together.std(0).min() > 1e-3


@pytest.mark.parametrize("kind", ["prompt", "prefix", "adapter", "ia3"])
@pytest.mark.parametrize("family", ["qwen2", "llama", "distilbert", "roberta", "mpnet", "electra"])
def test_other_families(kind: str, family: str, tiny_base: Base, make_texts: Texts) -> None:
    texts = make_texts(LENGTHS)
    model = make(kind, tiny_base(family))
    together = logits(model, texts, range(5))
    alone = torch.cat([logits(model, texts, [i]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_nothing_but_its_keys_and_values_is_read_of_a_prefix(pooling: str, tiny_base: Base, make_texts: Texts) -> None:
    """Whatever the virtual tokens' own hidden states are, the texts see none of them; a prompt's they see."""
    texts = make_texts(LENGTHS)
    for kind, unchanged in (("prefix", True), ("prompt", False)):
        model = make(kind, tiny_base(), pooling=pooling)
        before = logits(model, texts, range(5))
        embedding: Any = model.encoder.get_input_embeddings()
        forward = embedding.forward

        def shifted(ids: Tensor, forward: Any = forward, embedding: Any = embedding) -> Tensor:
            given: Tensor = forward(ids)
            return given + (ids >= embedding.inner.num_embeddings)[..., None] * 1.5 * torch.arange(given.shape[-1]).sin()

        embedding.forward = shifted
        assert torch.allclose(logits(model, texts, range(5)), before, atol=1e-5) is unchanged


def test_a_prefix_is_attended_to_as_keys_and_values(tiny_base: Base, make_texts: Texts) -> None:
    """One layer's attention by hand: softmax over the prefix and the text, in one sum."""
    texts = make_texts([6])
    model = make("prefix", tiny_base(), pooling="mean")
    attention: Any = model.encoder.encoder.layer[0].attention.self
    seen: dict[str, Tensor] = {}
    handles = [
        attention.register_forward_hook(lambda _, given, out: seen.update(given=given[0][0], out=out[0][0])),
    ]
    logits(model, texts, [0])
    handles[0].remove()
    text = torch.cat([seen["given"][:1], seen["given"][4:]])  # the virtual tokens lie behind the first one

    def heads(rows: Tensor) -> Tensor:
        return rows.view(len(rows), 4, 8).transpose(0, 1)

    q = heads(attention.query(text))
    k = heads(torch.cat([attention.key.prefix, attention.key.inner(text)]))
    v = heads(torch.cat([attention.value.prefix, attention.value.inner(text)]))
    expected = ((q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v).transpose(0, 1).reshape(len(text), -1)
    torch.testing.assert_close(torch.cat([seen["out"][:1], seen["out"][4:]]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["ia3", "adalora"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_ours_in_peft(kind: str, family: str, tiny_base: Base, make_texts: Texts, tmp_path: Path) -> None:
    """PEFT loads the folder over a fresh classifier of transformers and gives our logits."""
    model = make(kind, tiny_base(family))
    METHODS[kind].save(model, tmp_path, "base")
    options = {"num_labels": 3, "pad_token_id": 0}
    fresh = AutoModelForSequenceClassification.from_pretrained(tiny_base(family), **options)
    theirs = PeftModel.from_pretrained(fresh, tmp_path).eval()
    texts = make_texts([7])
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(texts.ids.astype("int64"))[None]).logits
    torch.testing.assert_close(logits(model, texts, [0]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "prefix", "dora", "adapter", "ia3"])
def test_gradients_are_the_same_with_activations_computed_again(kind: str, tiny_base: Base, make_texts: Texts) -> None:
    """The rows of virtual tokens are still known in the backward pass."""
    texts = make_texts(LENGTHS)
    found = []
    for again in (False, True):
        model = make(kind, tiny_base())
        if again:
            checkpoint_activations(model)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
        model(model.batch(texts, range(5))).square().sum().backward()
        found.append({name: parameter.grad for name, parameter in model.trainable().items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-5)


def test_bases_that_a_method_cannot_change(tiny_base: Base) -> None:
    for kind, family, said in (
        ("prefix", "modernbert", "'modernbert' has none"),
        ("prefix", "gpt2", "'gpt2' has none"),
        ("adapter", "xlnet", "does not know the layers of 'xlnet'"),
    ):
        with pytest.raises(LoraError, match=said):
            make(kind, tiny_base(family))
