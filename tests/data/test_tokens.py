"""Token ids are those of the tokenizer's own call, whatever its file says about truncation and padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from veneer.data import EncodedTexts, encode
from veneer.errors import BaseError, ConfigError, DataError

FAMILIES = ["bert", "distilbert", "roberta", "modernbert", "llama", "qwen2", "gpt2"]
TEXTS = ["a good film", "", "the doctor can see you on monday morning " * 4, "头痛 pain!", "x", "so sorry " * 12]
PAIRS = ["a bad film", "call", "very long " * 30, "", "the clinic will call you back later this week " * 6, "no " * 12]


@pytest.fixture(params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest, tiny_base: Callable[[str], Path]) -> Any:
    """A tokenizer of its own for the test, so that it may be changed."""
    return AutoTokenizer.from_pretrained(tiny_base(request.param))


def load(tiny_base: Callable[[str], Path], family: str) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base(family))


def rows(encoded: EncodedTexts, what: str = "ids") -> list[list[int]]:
    values = getattr(encoded, what)
    return [values[a:b].tolist() for a, b in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [6, 7, 16, 40, 1000])
@pytest.mark.parametrize("paired", [False, True])
def test_ids_are_those_of_the_tokenizers_own_call(tokenizer: Any, paired: bool, max_length: int, side: str) -> None:
    tokenizer.truncation_side = side
    pairs = PAIRS if paired else None
    encoded = encode(tokenizer, TEXTS, pairs, max_length)
    whole = tokenizer(TEXTS, pairs, verbose=False)
    wanted = tokenizer(TEXTS, pairs, truncation="longest_first", max_length=max_length)
    end = [tokenizer.eos_token_id]
    assert rows(encoded) == [ids or end for ids in wanted["input_ids"]]
    segments = wanted.get("token_type_ids") or [[0] * len(ids) for ids in rows(encoded)]
    assert rows(encoded, "type_ids") == segments
    assert encoded.cut == sum(len(ids) > max_length for ids in whole["input_ids"])
    assert (encoded.ids.dtype, encoded.type_ids.dtype, encoded.offsets.dtype) == (np.int32, np.uint8, np.int64)


def test_a_tokenizer_that_cuts_and_pads_by_itself_is_neither_obeyed_nor_changed(tokenizer: Any) -> None:
    plain = encode(tokenizer, TEXTS, None, 20)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_length=5, stride=1, strategy="only_first", direction="left")
    backend.enable_padding(length=64, pad_id=1, pad_token="pad", direction="left")
    before = backend.truncation, backend.padding
    encoded = encode(tokenizer, TEXTS, None, 20)
    assert (backend.truncation, backend.padding) == before
    assert before[0] is not None
    assert before[1] is not None
    assert rows(encoded) == rows(plain)
    assert encoded.cut == plain.cut == 2
    with pytest.raises(DataError):
        encode(tokenizer, [None], None, 20)  # type: ignore[list-item]
    assert (backend.truncation, backend.padding) == before


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_an_empty_text_has_one_token_where_there_are_no_special_ones(tiny_base: Callable[[str], Path], family: str) -> None:
    tokenizer = load(tiny_base, family)
    encoded = encode(tokenizer, ["", "film", ""], None, 10)
    assert encoded.lengths[0] == encoded.lengths[2] == 1
    assert encoded.ids[0] == encoded.ids[-1] == tokenizer.eos_token_id
    tokenizer.eos_token = tokenizer.bos_token = tokenizer.pad_token = tokenizer.unk_token = None
    with pytest.raises(BaseError, match="no end-of-text token"):
        encode(tokenizer, [""], None, 10)


def test_chunks_are_joined_in_order(tiny_base: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load(tiny_base, "bert")
    whole = encode(tokenizer, TEXTS, PAIRS, 20)
    monkeypatch.setattr("veneer.data.tokens.CHUNK", 4)
    parts = encode(tokenizer, TEXTS, PAIRS, 20)
    assert rows(parts) == rows(whole)
    assert rows(parts, "type_ids") == rows(whole, "type_ids")
    assert (parts.cut, len(parts)) == (whole.cut, len(TEXTS))


def test_no_texts_give_no_tokens(tiny_base: Callable[[str], Path]) -> None:
    encoded = encode(load(tiny_base, "bert"), [], None, 20)
    assert (len(encoded), len(encoded.ids), len(encoded.type_ids), encoded.cut) == (0, 0, 0, 0)
    assert encoded.ids.dtype == np.int32


def test_no_room_beside_the_special_tokens_is_refused(tiny_base: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="max_length 4 leaves no room for text beside 4 special tokens"):
        encode(load(tiny_base, "roberta"), ["good"], ["bad film"], 4)


def test_a_text_that_cannot_be_encoded_is_named(tiny_base: Callable[[str], Path]) -> None:
    tokenizer = load(tiny_base, "bert")
    with pytest.raises(DataError, match=r"text 2 is not a string but 7"):
        encode(tokenizer, ["a", 7], None, 20)  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"text 1 holds half of a character .*: x\\ud83d"):
        encode(tokenizer, ["a"], ["x\ud83d"], 20)
    with pytest.raises(ValueError, match="2 texts but 1 pairs"):
        encode(tokenizer, ["a", "b"], ["c"], 20)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        pass

    with pytest.raises(BaseError, match="Slow is not a fast tokenizer"):
        encode(Slow(), ["a"], None, 20)
