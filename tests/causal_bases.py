"""Tokenizers, bases and toy pairs for the tests of label words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from toy_runs import FILLERS, Rows

CHAT = (
    "{{ '<s>' }}{% for message in messages %}<|user|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# To a byte-pair tokenizer that learned these, 相似 is one token and 不相似 two; each of the others is one.
SEEN = " ".join([*FILLERS, *FILLERS, "the clinic will call you back later this week a bad good film"])
MARKS = ("bad", "film", "good")
LEARNED = ["相似", "是", "否", "不", "好", "Yes", "No", " yes", " no", " good", " bad", "<|user|>", "<|assistant|>"]


def bilingual_tokenizer(*, lead: bool = True, chat: bool = True, tail: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that puts `<s>` in front of a text, and `</s>` behind it with `tail`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([*LEARNED * 50, SEEN], trainer)
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


# Two layers, width 32, four heads, initial weights large enough for attention to be far from uniform.
_LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 160,
    "initializer_range": 0.2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": _LLAMA,
    "llama": _LLAMA,
    "gemma3_text": _LLAMA | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 160, "initializer_range": 0.2},
}


def bilingual_base(folder: Path, family: str = "qwen2") -> Path:
    """A tiny whole random language model with that tokenizer; the same files on every call."""
    tokenizer = bilingual_tokenizer()
    ids = {"pad_token_id": None, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **SHAPES[family], **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def toy_pairs(count: int, *, seed: int = 0, labels: tuple[str, str] = ("different", "same"), share: float = 0.5) -> Rows:
    """Rows of `text`, `pair` and `label`: whether both speak well, or both badly; `share` of them do."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        same = number % 20 < 20 * share
        first = rng.choice(["good", "bad"])
        second = first if same else {"good": "bad", "bad": "good"}[first]
        text, pair = _said(rng, first), _said(rng, second)
        rows.append({"text": text, "pair": pair, "label": labels[same]})
    return rows


def toy_marks(count: int, *, seed: int = 0) -> Rows:
    """Rows of `text` and of `bad`, `film` and `good`, each 1 where the text holds that word, 0 elsewhere; some hold none."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        given = [word for word in MARKS if rng.random() < 0.4]
        words = [*given, *rng.choices([one for one in FILLERS if one not in MARKS], k=rng.randint(1, 3))]
        rng.shuffle(words)
        rows.append({"text": " ".join(words), **{mark: str(int(mark in given)) for mark in MARKS}})
    return rows


def _said(rng: random.Random, opinion: str) -> str:
    words = [*rng.choices(FILLERS, k=rng.randint(0, 3)), opinion]
    rng.shuffle(words)
    return " ".join(words)
