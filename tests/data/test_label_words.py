"""Label words as tokens: as they follow the template, and refused where they cannot be compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from causal_bases import bilingual_tokenizer
from veneer.data import Prompt, make_prompt
from veneer.data.label_words import chat_prompt
from veneer.errors import ConfigError

Base = Callable[..., Path]
PAIR = "句一：{text}\n句二：{pair}\n答案："
TEXTS = ["", "a great film", "好", "so {pair} it {text} goes", " it ends in a space ", "1" * 40]


def made(
    words: dict[str, str], template: str = PAIR, *, normalised: bool = False, tokenizer: Any = None, max_length: int = 64
) -> Prompt:
    return make_prompt(
        tokenizer or bilingual_tokenizer(),
        template,
        words,
        length_normalised=normalised,
        pair="{pair}" in template,
        max_length=max_length,
    )


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        made(*arguments, **options)
    return str(error.value)


def test_words_of_unequal_token_counts_are_refused_with_their_counts_and_words_of_one_token() -> None:
    said = refusal({"0": "不相似", "1": "相似"})
    assert said == (
        "verbaliser.words: the words have unequal numbers of tokens, which would bias the comparison\n"
        "  0: '不相似' is 2 tokens ('不' + '相似')\n"
        "  1: '相似' is 1 token ('相似')\n"
        "  Fix: words of one token each, such as '是' / '否', or 'A' / 'B', or '0' / '1'; "
        "or --length-normalised for the mean log-probability of their tokens"
    )
    assert [len(tokens) for tokens in made({"0": "否", "1": "是"}).tokens] == [1, 1]


def test_equal_counts_above_one_are_refused_too() -> None:
    assert "several tokens, and a logit is of one\n" in refusal({"0": "不相似", "1": "好相似"})
    assert "several tokens, and a logit is of one, the first of which are the same" in refusal({"0": "不相似", "1": "不好"})


@pytest.mark.parametrize("normalised", [False, True])
def test_two_labels_cannot_have_the_same_word(normalised: bool) -> None:
    said = refusal({"0": "是", "1": "是", "2": "否"}, normalised=normalised)
    assert "two labels have the same token\n" in said
    assert ("--length-normalised" in said) is not normalised
    assert "the same tokens" in refusal({"0": "不相似", "1": "不相似"}, normalised=True)


def test_a_word_without_tokens_or_with_an_unknown_one_is_refused(tiny_base: Base) -> None:
    assert "has no token" in refusal({"0": "", "1": "是"}, normalised=True)
    pieces = AutoTokenizer.from_pretrained(tiny_base("bert"))
    assert "one that the base does not know" in refusal({"0": "good", "1": "ω"}, "{text} it is ", tokenizer=pieces)


def test_several_tokens_are_read_behind_the_fewest_continuations() -> None:
    prompt = made({"0": "不相似", "1": "相似", "2": "不好好", "3": "不"}, normalised=True)
    no, alike, good = (made({"a": word, "b": "是"}).tokens[0][0] for word in ("不", "相似", "好"))
    assert prompt.tokens == ((no, alike), (alike,), (no, good, good), (no,))
    assert prompt.continuations == ((no, good),)  # 不 is on the way there
    assert (prompt.reserve, prompt.readings([7, 8])) == (2, [7, 8, no, good])
    two = made({"0": "不相似", "1": "好相似"}, normalised=True)
    assert two.continuations == ((no,), (good,))
    assert two.readings([7, 8]) == [7, 8, no, 7, 8, good]


@pytest.mark.parametrize("template", ["{text} it was", "{text} it was ", "{text}\n", "{text} => ", "Is “{text}” good?\nAnswer:"])
@pytest.mark.parametrize("word", ["good", "yes", "相似", "不相似"])
@pytest.mark.parametrize("family", ["bilingual", "gpt2", "llama"])
def test_a_word_has_the_tokens_it_has_where_it_follows_the_prompt(template: str, word: str, family: str, tiny_base: Base) -> None:
    """Whatever the text: prompt and word, each tokenized by itself, are the tokens of the whole."""
    tokenizer = bilingual_tokenizer() if family == "bilingual" else AutoTokenizer.from_pretrained(tiny_base(family))
    if template.endswith("was"):
        word = f" {word}"
    prompt = made({"a": word, "b": "x" if "was" not in template else " x"}, template, normalised=True, tokenizer=tokenizer)
    for text in TEXTS:
        whole = tokenizer(template.replace("{text}", text, 1) + word, add_special_tokens=False).input_ids
        mine = tokenizer(prompt.fill(text, None)[0], add_special_tokens=False).input_ids
        assert [*mine, *prompt.tokens[0]] == whole


def test_the_space_at_the_templates_end_belongs_to_the_word() -> None:
    tokenizer = bilingual_tokenizer()
    with_space = made({"a": "yes", "b": "no"}, "{text} really: ")
    assert tokenizer.convert_ids_to_tokens([tokens[0] for tokens in with_space.tokens]) == ["Ġyes", "Ġno"]
    assert with_space.fill("so", None)[0] == "so really:"
    said = refusal({"a": "yes", "b": "no"}, "{text} really:")
    assert "Fix: a template that ends with a space, after which they are one token each; or words of one token" in said
    said = refusal({"a": "相似", "b": "是"}, "{text}真的： ")
    assert "Fix: a template that ends without a space, after which they are one token each; or" in said


def test_a_word_that_melts_into_the_template_is_refused() -> None:
    said = refusal({"a": "od", "b": "ad"}, "{text} is go", normalised=True)
    assert "a word melts into the template's end" in said
    assert "a: 'od' is one token with the template's end" in said
    assert said.endswith("Fix: end the template with a space, a line break or a mark such as a colon")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("a {text} b", "must hold {text} and {pair} once each, as texts come in pairs; it holds {text}: 'a {text} b'"),
        ("{pair}?", "it holds {pair}"),
        ("no place", "it holds neither"),
        ("{text} {pair} {text}:", "it holds {text}, {pair}, {text}"),
        ("{text} and {pair}", "must end with words of its own, which the answer follows"),
        ("{text} and {pair}  ", "Fix: such as '{text} and {pair} Answer:'"),
    ],
)
def test_a_template_without_its_places_is_refused(template: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_prompt(bilingual_tokenizer(), template, {"0": "否"}, length_normalised=False, pair=True, max_length=64)
    assert problem in str(error.value)


def test_a_template_for_pairs_is_refused_for_single_texts() -> None:
    with pytest.raises(ConfigError, match=r"must hold \{text\} once, and no \{pair\}"):
        make_prompt(bilingual_tokenizer(), PAIR, {"0": "否"}, length_normalised=False, pair=False, max_length=64)


def test_a_template_that_leaves_no_room_is_refused() -> None:
    words = {"0": "不相似", "1": "相似"}
    own = len(bilingual_tokenizer()(PAIR.replace("{text}", "").replace("{pair}", "")).input_ids)
    made(words, normalised=True, max_length=own + 1 + 4)
    said = refusal(words, normalised=True, max_length=own + 1 + 3)
    assert f"the template alone has {own} tokens, and the longest word 1 more. Fix: a shorter template" in said


def test_a_chat_template_is_filled_up_to_where_the_answer_begins() -> None:
    tokenizer = bilingual_tokenizer()
    template = chat_prompt(tokenizer, "{text} or {pair}?")
    assert template == "<s><|user|>\n{text} or {pair}?<|end|>\n<|assistant|>\n"
    assert [len(one) for one in made({"0": "否", "1": "是"}, template).tokens] == [1, 1]


def test_a_tokenizer_without_a_chat_template_says_so() -> None:
    with pytest.raises(ConfigError, match=r"no chat template\. Fix: a template of your own"):
        chat_prompt(bilingual_tokenizer(chat=False), "{text}?")
    broken = bilingual_tokenizer()
    broken.chat_template = "{{ raise_exception('no system message') }}"
    with pytest.raises(ConfigError, match="cannot be used: no system message"):
        chat_prompt(broken, "{text}?")


def test_a_tokenizer_that_pads_and_cuts_is_as_before_afterwards() -> None:
    tokenizer = bilingual_tokenizer()
    plain = made({"0": "否", "1": "是"}, tokenizer=tokenizer)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_length=3)
    backend.enable_padding(length=64, pad_id=1, pad_token="pad", direction="left")
    before = backend.truncation, backend.padding
    assert made({"0": "否", "1": "是"}, tokenizer=tokenizer) == plain
    assert (backend.truncation, backend.padding) == before
