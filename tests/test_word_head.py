"""Label words read from a language model: the logits transformers gives, without the vocabulary's other rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from veneer import word_head
from veneer.adaptation import AdapterPlan, adapt
from veneer.bases import find_base
from veneer.data import EncodedTexts, Prompt
from veneer.errors import BaseError, LoraError
from veneer.lora import lora_layers
from veneer.model import Classifier
from veneer.packing import Segments
from veneer.word_head import WordHead
from veneer.word_model import build_word_classifier, word_skeleton

Base = Callable[..., Path]
FAMILIES = ["qwen2", "qwen3", "llama", "mistral", "gemma3_text", "gpt2"]
ONE = ((50,), (7,), (400,))
SEVERAL = ((50, 60), (60,), (50, 61, 9), (8, 8, 8))


def prompt_of(tokens: Any) -> Prompt:
    return Prompt("{text}:", tuple(map(str, tokens)), max(map(len, tokens)) > 1, tokens, ())


def encoded(prompt: Prompt, prompts: list[list[int]]) -> EncodedTexts:
    rows = [prompt.readings(ids) for ids in prompts]
    ids = np.array(list(itertools.chain(*rows)), np.int32)
    return EncodedTexts(ids, np.zeros(len(ids), np.uint8), np.cumsum([0, *map(len, rows)]), 0)


def brute(model: Any, prompts: list[list[int]], tokens: Any) -> Tensor:
    """A word at a time through transformers, all of the vocabulary."""
    rows = []
    for ids in prompts:
        scores = []
        for word in tokens:
            with torch.no_grad():
                logits = model(torch.tensor([[*ids, *word]])).logits[0, len(ids) - 1 : -1]
            logits = logits.log_softmax(-1) if max(map(len, tokens)) > 1 else logits
            scores.append(torch.stack([step[token] for step, token in zip(logits, word, strict=True)]).mean())
        rows.append(torch.stack(scores))
    return torch.stack(rows)


PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21], [9, 9, 9, 9]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [ONE, SEVERAL])
def test_logits_are_those_of_transformers(family: str, tokens: Any, tiny_causal: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_head, "BLOCK", 100)  # several blocks of the tiny vocabulary
    prompt = prompt_of(tokens)
    model = build_word_classifier(find_base(str(tiny_causal(family))), prompt)
    with torch.no_grad():
        ours = model(model.batch(encoded(prompt, PROMPTS), [0, 1, 2, 3]))
    theirs = AutoModelForCausalLM.from_pretrained(tiny_causal(family)).eval()
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, brute(theirs, PROMPTS, tokens), rtol=1e-5, atol=1e-5)


def test_a_base_that_bounds_its_logits_is_read_as_it_does(tiny_causal: Base, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_causal("gemma3_text"))
    model.config.final_logit_softcapping = 0.5
    model.save_pretrained(tmp_path / "base")
    for tokens in (ONE, SEVERAL):
        prompt = prompt_of(tokens)
        classifier = build_word_classifier(find_base(str(tmp_path / "base")), prompt)
        with torch.no_grad():
            ours = classifier(classifier.batch(encoded(prompt, PROMPTS), [0, 1, 2, 3]))
        torch.testing.assert_close(ours, brute(model.eval(), PROMPTS, tokens), rtol=1e-5, atol=1e-5)


def test_one_token_words_never_meet_the_rest_of_the_vocabulary(tiny_causal: Base) -> None:
    """The other rows of the output matrix may hold anything, and nothing as wide as the vocabulary is made."""
    prompt = prompt_of(ONE)
    model = build_word_classifier(find_base(str(tiny_causal("llama"))), prompt)
    batch = model.batch(encoded(prompt, PROMPTS), [0, 1, 2, 3])
    before = model(batch)
    matrix = model.network.get_output_embeddings().weight
    wide = []
    others = [row for row in range(len(matrix)) if (row,) not in ONE]
    with torch.no_grad():
        matrix[others] = float("nan")

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and made.shape[-1:] == (len(matrix),):
                wide.append(func)
            return made

    with Watch():
        assert torch.equal(model(batch), before)
    assert wide == []


def test_logits_are_float32_over_a_bf16_base(tiny_causal: Base) -> None:
    """bf16 holds a number near 8 to a 32nd; the product of the rows is not rounded to that."""
    prompt = prompt_of(ONE)
    low = build_word_classifier(find_base(str(tiny_causal("llama"))), prompt, dtype=torch.bfloat16)
    batch = low.batch(encoded(prompt, PROMPTS), [0, 1, 2, 3])
    hidden = low._hidden(batch)
    assert hidden.dtype == torch.bfloat16
    last = hidden[batch.segments.cu_seqlens[1:].long() - 1].float()
    rows = low.network.get_output_embeddings().weight[[50, 7, 400]].float()
    assert low.network.get_output_embeddings().weight.dtype == torch.bfloat16
    torch.testing.assert_close(low(batch), last @ rows.T, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_several_tokens_is_that_of_plain_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_head, "BLOCK", 7)
    torch.manual_seed(0)
    matrix = torch.randn(500, 8)
    prompt = prompt_of(SEVERAL)
    head = WordHead(prompt.tokens, prompt.continuations, lambda: matrix, normalised=True)
    lengths = [3 + len(one) for one in prompt.continuations]
    shared, own = torch.randn(3, 8), [torch.randn(len(one), 8) for one in prompt.continuations]  # a causal base's prompt is one
    hidden = torch.cat([part for one in own for part in (shared, one)]).requires_grad_()
    logits = head(hidden, Segments.of(lengths))
    (ours,) = torch.autograd.grad(logits @ torch.tensor([1.0, -2.0, 3.0, 0.5]), hidden)
    steps = (hidden @ matrix.T).log_softmax(-1)
    starts = dict(zip(prompt.continuations, np.cumsum([0, *lengths]), strict=False))
    scores = []
    for word in prompt.tokens:
        first = [next(start for one, start in starts.items() if one[:i] == word[:i]) + 2 for i in range(len(word))]
        scores.append(torch.stack([steps[first[i] + i, token] for i, token in enumerate(word)]).mean())
    torch.testing.assert_close(logits[0], torch.stack(scores))
    (plain,) = torch.autograd.grad(torch.stack(scores) @ torch.tensor([1.0, -2.0, 3.0, 0.5]), hidden)
    torch.testing.assert_close(ours, plain)


def test_nothing_but_lora_is_trained(tiny_causal: Base) -> None:
    for family in ("llama", "gpt2"):
        model = build_word_classifier(find_base(str(tiny_causal(family))), prompt_of(ONE))
        adapt(model, AdapterPlan(rank=2))
        assert model.head_parameters() == set()
        assert {name.rpartition(".")[2] for name in model.trainable()} == {"lora_A", "lora_B"}


def test_the_output_matrix_is_not_adapted(tiny_causal: Base) -> None:
    """An update of it would not reach the gathered rows."""
    for targets in ("all-linear", ["q_proj", "lm_head"], ".*"):
        model = build_word_classifier(find_base(str(tiny_causal("llama"))), prompt_of(ONE))
        adapt(model, AdapterPlan(rank=2, target_modules=targets))
        assert not any("lm_head" in name for name in lora_layers(model))


def test_tied_embeddings_cannot_be_trained(tiny_causal: Base) -> None:
    model = build_word_classifier(find_base(str(tiny_causal("gpt2"))), prompt_of(ONE))
    with pytest.raises(LoraError, match="are its output matrix, too"):
        adapt(model, AdapterPlan(train_embeddings=True))
    adapt(build_word_classifier(find_base(str(tiny_causal("llama"))), prompt_of(ONE)), AdapterPlan(train_embeddings=True))


@pytest.mark.parametrize("family", ["bert", "modernbert", "xlnet"])
def test_a_base_that_is_not_causal_is_refused(family: str, tiny_base: Base) -> None:
    for build in (lambda base: build_word_classifier(base, prompt_of(ONE)), lambda base: word_skeleton(base, 2)):
        with pytest.raises(BaseError, match=rf"{family} does not answer a prompt with a label word.*no verbaliser.template"):
            build(find_base(str(tiny_base(family))))


def test_a_checkpoint_without_its_output_matrix_is_refused(tiny_base: Base) -> None:
    with pytest.raises(BaseError, match=r"lack lm_head\.weight, which label words are read by"):
        build_word_classifier(find_base(str(tiny_base("qwen2"))), prompt_of(ONE))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_skeleton_has_the_models_names_and_shapes(family: str, tiny_causal: Base) -> None:
    base = find_base(str(tiny_causal(family)))
    models: list[Classifier] = [build_word_classifier(base, prompt_of(ONE)), word_skeleton(base, 3)]
    shapes = []
    for model in models:
        adapt(model, AdapterPlan(rank=2))
        named: dict[str, nn.Parameter] = dict(model.named_parameters())
        shapes.append({name: (tuple(one.shape), one.requires_grad) for name, one in named.items()})
    assert shapes[0] == shapes[1]
