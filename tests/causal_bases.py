"""Tokenizers, bases and toy pairs for the tests of label words."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from conftest import WORDS, save_tiny_base
from toy_runs import FILLERS, Rows

CHAT = (
    "{{ '<s>' }}{% for message in messages %}<|user|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# To a byte-pair tokenizer that learned these, 相似 is one token and 不相似 two; each of the others is one.
LEARNED = ["相似", "是", "否", "不", "好", "Yes", "No", " yes", " no", " good", " bad", "<|user|>", "<|assistant|>"]


def bilingual_tokenizer(*, lead: bool = True, chat: bool = True, tail: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that puts `<s>` in front of a text, and `</s>` behind it with `tail`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([*LEARNED * 50, " ".join(WORDS)], trainer)
    ids = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
    single = f"{'<s> ' * lead}$A{' </s>' * tail}"
    core.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=160,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHAT if chat else None,
    )


def bilingual_base(folder: Path, family: str = "qwen2") -> Path:
    """A tiny whole language model with that tokenizer."""
    return save_tiny_base(family, folder, AutoModelForCausalLM, bilingual_tokenizer())


def toy_pairs(count: int, *, seed: int = 0, labels: tuple[str, str] = ("different", "same"), share: float = 0.5) -> Rows:
    """Rows of `text`, `pair` and `label`: whether both speak well, or both badly; `share` of them do."""
    rng = random.Random(seed)
    opinions = {"good": ["good", "great"], "bad": ["bad", "poor"]}
    rows = []
    for number in range(count):
        same = number % 20 < 20 * share
        first = rng.choice(["good", "bad"])
        second = first if same else next(other for other in opinions if other != first)
        text, pair = (_said(rng, opinions[kind]) for kind in (first, second))
        rows.append({"text": text, "pair": pair, "label": labels[same]})
    return rows


def _said(rng: random.Random, opinions: list[str]) -> str:
    words = [*rng.choices(FILLERS, k=rng.randint(0, 2)), rng.choice(opinions)]
    rng.shuffle(words)
    return " ".join(words)
