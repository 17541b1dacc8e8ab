"""Texts in their prompt: only their own tokens are cut, and nothing stands behind the place of the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from causal_bases import bilingual_tokenizer
from veneer.data import EncodedTexts, Prompt, encode, make_prompt
from veneer.data.label_words import chat_prompt
from veneer.errors import DataError

TEMPLATE = "One: {text}\nTwo: {pair}\nAlike? "
LONG = "the clinic will call you back later this week " * 9
WORDS = {"0": "no", "1": "yes"}


def prompt_for(tokenizer: Any, template: str = TEMPLATE, words: dict[str, str] | None = None, **options: Any) -> Prompt:
    options = {"length_normalised": False, "pair": "{pair}" in template, "max_length": 40} | options
    return make_prompt(tokenizer, template, words or WORDS, **options)


def rows(encoded: EncodedTexts) -> list[list[int]]:
    return [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)]


def test_a_short_text_has_the_tokens_of_the_whole_prompt() -> None:
    tokenizer = bilingual_tokenizer()
    encoded = encode(tokenizer, ["so {pair} good", ""], ["bad", "我们"], 40, prompt_for(tokenizer))
    wanted = [tokenizer(f"One: {one}\nTwo: {two}\nAlike?").input_ids for one, two in (("so {pair} good", "bad"), ("", "我们"))]
    assert rows(encoded) == wanted
    assert encoded.cut == 0
    assert encoded.type_ids.tolist() == [0] * len(encoded.ids)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [26, 31, 40])
@pytest.mark.parametrize(("text", "pair"), [(LONG, "a bad film"), ("a bad film", LONG), (LONG, LONG[20:])])
def test_only_the_longest_text_is_cut(text: str, pair: str, max_length: int, side: str) -> None:
    tokenizer = bilingual_tokenizer()
    tokenizer.truncation_side = side
    prompt = prompt_for(tokenizer, max_length=26)
    encoded = encode(tokenizer, [text], [pair], max_length, prompt)
    (ids,) = rows(encoded)
    assert (len(ids), encoded.cut) == (max_length, 1)
    shown = tokenizer.decode(ids)
    head, _, rest = shown.removeprefix("<s>One:").partition("\nTwo:")
    second, _, tail = rest.partition("\nAlike?")
    assert (shown.startswith("<s>One:"), tail) == (True, "")
    for given, kept in ((text, head.removeprefix(" ")), (pair, second.removeprefix(" "))):
        if given == "a bad film" and max_length > 26:
            assert kept == given
        else:
            assert given.endswith(kept) if side == "left" else given.startswith(kept)
            assert 0 < len(kept) <= len(given)
    empty = [len(tokenizer(part, add_special_tokens=False).input_ids) for part in (head, second)]
    if text == LONG and pair != "a bad film":
        assert abs(empty[0] - empty[1]) <= 1  # both are cut to half the room


def test_nothing_stands_behind_the_templates_end() -> None:
    """Trap: a tokenizer that ends each text with a special token would put it where the answer is read."""
    tokenizer = bilingual_tokenizer(tail=True)
    assert tokenizer("good").input_ids[-1] == tokenizer.eos_token_id
    (ids,) = rows(encode(tokenizer, ["good"], ["bad"], 40, prompt_for(tokenizer)))
    assert tokenizer.decode(ids) == "<s>One: good\nTwo: bad\nAlike?"


@pytest.mark.parametrize(("lead", "chat"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_special_token_in_front_is_there_once(lead: bool, chat: bool) -> None:
    tokenizer = bilingual_tokenizer(lead=lead)
    template = chat_prompt(tokenizer, "{text}?") if chat else "{text}?\n"
    prompt = prompt_for(tokenizer, template, {"0": "否", "1": "是"})
    (ids,) = rows(encode(tokenizer, ["good"], None, 40, prompt))
    assert ids.count(tokenizer.bos_token_id) == int(lead or chat)
    assert (ids[0] == tokenizer.bos_token_id) == (lead or chat)


@pytest.mark.parametrize("long", [False, True])
def test_words_of_several_tokens_are_read_behind_the_same_prompt(long: bool) -> None:
    tokenizer = bilingual_tokenizer()
    words = {"0": "不相似", "1": "好相似", "2": "是"}
    prompt = prompt_for(tokenizer, TEMPLATE.rstrip(" "), words, length_normalised=True)
    encoded = encode(tokenizer, [LONG if long else "good"], ["bad"], 40, prompt)
    (ids,) = rows(encoded)
    first, second = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    assert first[:-1] == second[:-1]
    assert [(first[-1],), (second[-1],)] == list(prompt.continuations)
    assert prompt.reading_lengths(encoded.lengths).tolist() == [len(first)]
    assert (len(first) == 40, encoded.cut) == (long, int(long))
    assert tokenizer.decode(first[:-1]).endswith("Alike?")


def test_an_unusable_text_is_named() -> None:
    tokenizer = bilingual_tokenizer()
    with pytest.raises(DataError, match=r"text 2 is not a string but 1\.0"):
        encode(tokenizer, ["a", 1.0], ["b", "c"], 40, prompt_for(tokenizer))  # type: ignore[list-item]
    with pytest.raises(DataError, match="text 1 holds half of a character"):
        encode(tokenizer, ["a"], ["\ud800"], 40, prompt_for(tokenizer))


def test_no_texts_are_no_tokens() -> None:
    tokenizer = bilingual_tokenizer()
    assert encode(tokenizer, [], [], 40, prompt_for(tokenizer)).offsets.tolist() == [0]
    assert np.array_equal(encode(tokenizer, [], [], 40, prompt_for(tokenizer)).ids, np.empty(0, np.int32))
