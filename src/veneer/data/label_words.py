"""Label words as tokens: how they follow a template, whether they can be compared, and which words could be instead.

A base compares words fairly where each is one token and no two are the same. Words of unequal numbers of tokens are refused:
the longer one would be judged by its first token alone, or be less likely for its length.

Knows tokenizers, templates and words; knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from veneer.data.prompt import PLACE, Prompt, Tokens, fill_template
from veneer.data.tokens import fast_backend, neither_cut_nor_padded
from veneer.errors import ConfigError

LEAST_ROOM = 4  # tokens of a text that the template must leave
MOST_SUGGESTED = 3
_CHINESE = re.compile(r"[\u3400-\u9fff]")
# Answers that go together, of which those are suggested that are one token each.
_ANSWERS = """是/否 对/错 真/假 好/坏 yes/no true/false positive/negative good/bad 是/否/无 正/负/中 yes/no/maybe
positive/negative/neutral""".split()


def chat_prompt(tokenizer: Any, instruction: str) -> str:
    """The tokenizer's chat template around one message of a user, up to where the assistant's answer begins.

    Raises:
        ConfigError: the tokenizer has no chat template, or cannot fill it.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            "verbaliser.template: the tokenizer of this base has no chat template. Fix: a template of your own with {text}"
        )
    messages = [{"role": "user", "content": instruction}]
    try:  # a template of a reasoning model leaves no room for its thoughts if told so; others do not read it
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    except Exception as error:  # a template is a program, and what it raises is of every kind
        raise ConfigError(f"verbaliser.template: the tokenizer's chat template cannot be used: {error}") from None
    return str(prompt)


def make_prompt(
    tokenizer: Any,
    template: str,
    words: Mapping[str, str],
    *,
    length_normalised: bool,
    pair: bool,
    max_length: int,
    none: str | None = None,
) -> Prompt:
    """The prompt of a template and one word a label, in the labels' order, checked.

    Args:
        length_normalised: whether words may have several tokens.
        pair: whether texts come in pairs.
        max_length: tokens of a whole prompt.
        none: the word that stands for no label, where a text may have any number of them.

    Raises:
        BaseError: the tokenizer is not a fast one.
        ConfigError: the template lacks a place, does not end in words of its own or leaves no room for a text; or the words
            cannot be compared, with the number of tokens of each and words that could be.
    """
    check_places(template, pair)
    backend = fast_backend(tokenizer)
    compared = dict(words) if none is None else {**words, "verbaliser.none": none}
    with neither_cut_nor_padded(backend):
        tokens = [_follows(backend, template, word) for word in compared.values()]
        _check_words(backend, template, compared, tokens, length_normalised, tokenizer.unk_token_id)
        empty = backend.encode("a")
        lead = tuple(empty.ids[: next(i for i, one in enumerate(empty.sequence_ids) if one is not None)])
        own = len(_ids(backend, fill_template(template.rstrip(" "), "", "")[0])) + len(lead)
    found = tuple(one for one in tokens if one is not None)
    prompt = Prompt(template, tuple(words.values()), length_normalised, found, lead, none)
    if own + prompt.reserve + LEAST_ROOM > max_length:
        raise ConfigError(
            f"data.max_length: {max_length} leaves no room for texts: the template alone has {own} tokens"
            f"{f', and the longest word {prompt.reserve} more' if prompt.reserve else ''}. "
            f"Fix: a shorter template, or --max-length {own + prompt.reserve + 128}"
        )
    return prompt


def check_places(template: str, pair: bool) -> None:
    """Raise a ConfigError where a template does not hold `{text}`, with `pair` `{pair}` too, and then words of its own."""
    places = PLACE.findall(template)
    wanted = ["text", "pair"] if pair else ["text"]
    if sorted(places) != sorted(wanted):
        found = ", ".join(f"{{{place}}}" for place in places) or "neither"
        shape = "{text} and {pair} once each, as texts come in pairs" if pair else "{text} once, and no {pair}"
        raise ConfigError(f"verbaliser.template must hold {shape}; it holds {found}: {template!r}")
    if not PLACE.split(template)[-1].rstrip(" "):
        raise ConfigError(
            "verbaliser.template must end with words of its own, which the answer follows, not with a text: "
            f"{template!r}. Fix: such as {template.strip(' ') + ' Answer:'!r}"
        )


def _ids(backend: Tokenizer, text: str) -> Tokens:
    return tuple(backend.encode(text, add_special_tokens=False).ids)


def _follows(backend: Tokenizer, template: str, word: str) -> Tokens | None:
    """The tokens of a word as it follows the template; None where the two melt into one token."""
    body = template.rstrip(" ")  # alone they would be a token of their own, where the word begins with them
    prompt = fill_template(body, "a", "a")[0]
    before, whole = _ids(backend, prompt), _ids(backend, prompt + template[len(body) :] + word)
    return whole[len(before) :] if whole[: len(before)] == before else None


def _check_words(
    backend: Tokenizer,
    template: str,
    words: Mapping[str, str],
    tokens: Sequence[Tokens | None],
    length_normalised: bool,
    unknown: int | None,
) -> None:
    pieces = {label: _pieces(backend, one) for label, one in zip(words, tokens, strict=True)}
    counted = "".join(f"\n  {label}: {words[label]!r} is {_number(pieces[label])}" for label in words)
    if any(one is None for one in tokens):
        raise _refusal("a word melts into the template's end, so that it has no first token of its own", counted, _END)
    found = [one for one in tokens if one is not None]
    if problem := _problem(found, length_normalised, unknown):
        raise _refusal(problem, counted, _advice(backend, template, words, length_normalised))


def _problem(tokens: Sequence[Tokens], length_normalised: bool, unknown: int | None) -> str | None:
    """Why the words cannot be compared, or None."""
    counts = {len(one) for one in tokens}
    if 0 in counts or (unknown is not None and any(unknown in one for one in tokens)):
        return "a word has no token, or one that the base does not know"
    if not length_normalised and len(counts) > 1:
        return "the words have unequal numbers of tokens, which would bias the comparison"
    if not length_normalised and counts != {1}:
        same = ", the first of which are the same" if len({one[0] for one in tokens}) < len(tokens) else ""
        return f"the words have several tokens, and a logit is of one{same}"
    if len(set(tokens)) < len(tokens):
        return "two labels have the same token" if counts == {1} else "two labels have the same tokens"
    return None


_END = "end the template with a space, a line break or a mark such as a colon"


def _refusal(problem: str, counted: str, fix: str) -> ConfigError:
    return ConfigError(f"verbaliser.words: {problem}{counted}\n  Fix: {fix}")


def _pieces(backend: Tokenizer, tokens: Tokens | None) -> list[str] | None:
    return None if tokens is None else [backend.decode([token], skip_special_tokens=False) for token in tokens]


def _number(pieces: list[str] | None) -> str:
    if pieces is None:
        return "one token with the template's end"
    if len(pieces) == 1:
        return f"1 token ({pieces[0]!r})"
    return f"{len(pieces)} tokens ({' + '.join(map(repr, pieces))})"


def _advice(backend: Tokenizer, template: str, words: Mapping[str, str], length_normalised: bool) -> str:
    """What would be one token each: the same words with or without a space before them, or other words."""
    advice = []
    spaced = template.endswith(" ")
    other = template.rstrip(" ") if spaced else template + " "
    if _fit(backend, other, list(words.values())):
        advice.append(f"a template that ends {'without a' if spaced else 'with a'} space, after which they are one token each")
    chinese = bool(_CHINESE.search(template + "".join(words.values())))
    known = [tuple(answer.split("/")) for answer in _ANSWERS]
    known.sort(key=lambda answer: bool(_CHINESE.search("".join(answer))) != chinese)
    known += [tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(words)]), tuple(str(i) for i in range(len(words)))]
    fitting = [one for one in known if len(one) == len(words) and _fit(backend, template, one)][:MOST_SUGGESTED]
    such = ", such as " + ", or ".join(" / ".join(map(repr, one)) for one in fitting) if fitting else ""
    advice.append(f"words of one token each{such}")
    if not length_normalised:
        advice.append("--length-normalised for the mean log-probability of their tokens")
    return "; or ".join(advice)


def _fit(backend: Tokenizer, template: str, words: Sequence[str]) -> bool:
    """Whether the words follow the template as one token each, all of them different."""
    tokens = [_follows(backend, template, word) for word in words]
    return all(one is not None and len(one) == 1 for one in tokens) and len(set(tokens)) == len(tokens)
