"""Which scripts texts are written in, and how much of each a base's tokenizer really knows.

A letter is known where one token holds it, that token is not the unknown one, and it holds more than this one letter (of Chinese
characters and Korean syllables, which carry what a word piece carries elsewhere, one is enough). A vocabulary that spells a
script letter by letter, or knows a few of its characters by chance, has not learned it, though it may give no unknown token.

Knows Unicode and fast tokenizers; does not know what share is too small.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

CHINESE, KOREAN = "Chinese characters", "Korean"
_NAMES = {"CJK": CHINESE, "HANGUL": KOREAN, "HIRAGANA": "Japanese kana", "KATAKANA": "Japanese kana"}
_ONE_IS_ENOUGH = {CHINESE, KOREAN}


@dataclass
class ScriptUse:
    """How a script is used in a sample of texts, and what became of its letters.

    Attributes:
        texts: indices of the texts written mostly in it.
        letters: its letters.
        known: those of them that the tokenizer knows.
    """

    texts: list[int] = field(default_factory=list)
    letters: int = 0
    known: int = 0


@dataclass
class Coverage:
    """What a tokenizer makes of a sample of texts.

    Attributes:
        tokens: special ones not counted.
        unknown: what the unknown tokens stand for, and how often; `unknown_texts` are indices of the texts with any.
        scripts: by name.
    """

    tokens: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    unknown_texts: list[int] = field(default_factory=list)
    scripts: dict[str, ScriptUse] = field(default_factory=dict)


def coverage(tokenizer: Any, texts: Sequence[str]) -> Coverage:
    """How a fast tokenizer of transformers covers texts."""
    result = Coverage()
    unknown_id = _unknown_id(tokenizer)
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
    for number, (text, ids, spans) in enumerate(zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        result.tokens += len(ids)
        unknown = [span for token, span in zip(ids, spans, strict=True) if token == unknown_id]
        result.unknown.update(text[start:end] for start, end in unknown)
        if unknown:
            result.unknown_texts.append(number)
        scripts = [script_of(character) for character in text]
        known = _known(scripts, [span for token, span in zip(ids, spans, strict=True) if token != unknown_id])
        _count(result.scripts, number, scripts, known)
    return result


def _unknown_id(tokenizer: Any) -> int | None:
    """The token for what cannot be encoded; None where there is none (GPT-2 names its end of text instead)."""
    unknown: int | None = tokenizer.unk_token_id
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return None if unknown in others else unknown


def _known(scripts: Sequence[str | None], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each character is a known letter, from the known tokens' spans."""
    tokens = [0] * len(scripts)
    alone = [False] * len(scripts)
    for start, end in spans:
        letters = [i for i in range(start, end) if scripts[i] is not None]
        for i in letters:
            tokens[i] += 1
            alone[i] = len(letters) == 1 and scripts[i] not in _ONE_IS_ENOUGH and not _is_a_word(scripts, i)
    return [count == 1 and not single for count, single in zip(tokens, alone, strict=True)]


def _is_a_word(scripts: Sequence[str | None], i: int) -> bool:
    """Whether a letter stands by itself, as in `a`."""
    return (i == 0 or scripts[i - 1] is None) and (i + 1 == len(scripts) or scripts[i + 1] is None)


def _count(uses: dict[str, ScriptUse], number: int, scripts: Sequence[str | None], known: Sequence[bool]) -> None:
    letters = Counter(script for script in scripts if script is not None)
    for script, count in letters.items():
        use = uses.setdefault(script, ScriptUse())
        use.letters += count
        use.known += sum(is_known for one, is_known in zip(scripts, known, strict=True) if one == script)
        if count * 2 > letters.total():
            use.texts.append(number)


@lru_cache(maxsize=1 << 16)
def script_of(character: str) -> str | None:
    """The name of a letter's script, None for what is no letter. The standard library has no property for it; a letter's Unicode
    name begins with it."""
    if not character.isalpha():
        return None
    name = unicodedata.name(unicodedata.normalize("NFKC", character)[0], "")
    word = name.split(" ")[0].split("-")[0]
    return _NAMES.get(word, word.capitalize()) if word else None
