"""A prompt that a label word answers: the template filled with a text, and what is read behind it.

Knows strings and token ids; does not know how words become tokens (`label_words.py`) or prompts do (`tokens.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLACE = re.compile(r"\{(text|pair)\}")

Tokens = tuple[int, ...]
Span = tuple[int, int]  # first character, and the one behind the last


@dataclass(frozen=True)
class Prompt:
    """A template and the words that may follow it, in the tokens of one tokenizer.

    Attributes:
        template: with `{text}` once, and `{pair}` once where texts come in pairs; spaces at its end belong to the words.
        words: the word of each of the C labels, by id.
        length_normalised: False where a word is one token, read by its logit; True for the mean log-probability of its tokens.
        tokens: of each word as it follows the template, that of `none` last.
        lead: the special tokens that the tokenizer puts in front of a text.
        none: the word that stands for no label, where a text may have any number of them; else None.
    """

    template: str
    words: tuple[str, ...]
    length_normalised: bool
    tokens: tuple[Tokens, ...]
    lead: Tokens
    none: str | None = None

    @cached_property
    def continuations(self) -> tuple[Tokens, ...]:
        """What is read behind the prompt, K of them: each word without its last token, but none that another begins with.

        A causal base computes the probability of a word's every token while it reads one of them; `((),)` for one-token words.
        """
        return maximal(word[:-1] for word in self.tokens)

    @property
    def reserve(self) -> int:
        """Tokens of the longest continuation."""
        return max(len(continuation) for continuation in self.continuations)

    def fill(self, text: str, pair: str | None) -> tuple[str, list[Span]]:
        """The prompt of a text, which ends where the word begins, and where the text and its pair lie in it."""
        return fill_template(self.template.rstrip(" "), text, pair)

    def readings(self, ids: list[int]) -> list[int]:
        """A prompt's ids, once a continuation and each followed by it, end to end."""
        return [token for continuation in self.continuations for token in (*ids, *continuation)]

    def prompt_lengths(self, totals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each text's prompt, from those of all its readings."""
        continued = sum(len(continuation) for continuation in self.continuations)
        return (totals - continued) // len(self.continuations)

    def reading_lengths(self, totals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the longest reading of each text, from those of all its readings."""
        return self.prompt_lengths(totals) + self.reserve

    def to_json(self) -> dict[str, Any]:
        """What `label_words.make_prompt` needs to make it again."""
        tree = {"template": self.template, "words": list(self.words), "length_normalised": self.length_normalised}
        return tree if self.none is None else tree | {"none": self.none}


def fill_template(template: str, text: str, pair: str | None) -> tuple[str, list[Span]]:
    """The template with a text, and perhaps its pair, in their places, and those places: of the text, then of the pair."""
    given = {"text": text, "pair": pair or ""}
    parts: list[str] = []
    spans: dict[str, Span] = {}
    length = 0
    for number, part in enumerate(PLACE.split(template)):
        filled = given[part] if number % 2 else part  # not str.format: a text may hold braces
        if number % 2:
            spans[part] = (length, length + len(filled))
        parts.append(filled)
        length += len(filled)
    return "".join(parts), [spans[name] for name in ("text", "pair") if name in spans]


def maximal(prefixes: Iterable[Tokens]) -> tuple[Tokens, ...]:
    """Those that no other one begins with, each once, in their order."""
    different = list(dict.fromkeys(prefixes))
    return tuple(one for one in different if not any(other != one and other[: len(one)] == one for other in different))
