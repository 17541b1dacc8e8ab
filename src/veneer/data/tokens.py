"""Texts to token ids with a fast tokenizer of transformers, cut to a length, without padding.

Knows tokenizers; knows nothing of files, labels or batches.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from veneer.data.problems import shown
from veneer.data.types import EncodedTexts
from veneer.errors import BaseError, ConfigError, DataError

CHUNK = 2000  # texts encoded at a time: their Encoding objects take some kB each
_ONE_AT_A_TIME = threading.Lock()


def encode(tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> EncodedTexts:
    """N texts, each with its pair if there are any, as token ids with the tokenizer's special tokens.

    A text longer than `max_length` tokens is cut as transformers' `longest_first` cuts, on the tokenizer's own side; special
    tokens stay. A text of no token at all (`""` for a tokenizer without special tokens) becomes one end-of-text token. What
    the tokenizer's file says about truncation and padding has no effect, and is as before afterwards.

    Raises:
        BaseError: the tokenizer is not a fast one, or has no token for an empty text.
        ConfigError: `max_length` leaves no room for a text beside the special tokens.
        DataError: a text is not a string that can be encoded.
    """
    if pairs is not None and len(pairs) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(pairs)} pairs")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        kind = type(tokenizer).__name__
        raise BaseError(f"{kind} is not a fast tokenizer. Fix: use a base that has a tokenizer.json, or convert its tokenizer")
    empty = _end_token(tokenizer)
    arrays: list[NDArray[np.int32]] = []
    types: list[NDArray[np.uint8]] = []
    lengths: list[int] = []
    cut = 0
    with _neither_cut_nor_padded(backend):
        for start in range(0, len(texts), CHUNK):
            part = slice(start, start + CHUNK)
            encodings = _encode_chunk(backend, texts[part], None if pairs is None else pairs[part], start)
            rows = [_row(encoding, max_length, tokenizer.truncation_side, empty) for encoding in encodings]
            lengths += [len(row.ids) for row in rows]
            arrays.append(np.fromiter(chain.from_iterable(row.ids for row in rows), np.int32))
            types.append(np.fromiter(chain.from_iterable(row.type_ids for row in rows), np.uint8))
            cut += sum(row.cut for row in rows)
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    ids = np.concatenate([np.empty(0, np.int32), *arrays])
    segments = "token_type_ids" in tokenizer.model_input_names
    type_ids = np.concatenate([np.empty(0, np.uint8), *types]) if segments else np.zeros(len(ids), np.uint8)
    return EncodedTexts(ids, type_ids, offsets, cut)


class _Row(NamedTuple):
    """One text's `[length]` token and segment ids, and whether it was cut."""

    ids: list[int]
    type_ids: list[int]
    cut: bool


@contextmanager
def _neither_cut_nor_padded(backend: Tokenizer) -> Iterator[None]:
    """Switch off what the tokenizer's file says about truncation and padding, and put it back afterwards."""
    with _ONE_AT_A_TIME:  # a tokenizer cannot be changed while another thread encodes with it
        truncation, padding = backend.truncation, backend.padding
        backend.no_truncation()
        backend.no_padding()
        try:
            yield
        finally:
            if truncation is not None:
                backend.enable_truncation(**truncation)
            if padding is not None:
                backend.enable_padding(**padding)


def _encode_chunk(backend: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, start: int) -> list[Encoding]:
    inputs: Sequence[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
    try:
        encodings: list[Encoding] = backend.encode_batch_fast(inputs)
    except (TypeError, UnicodeEncodeError):
        for i, given in enumerate(inputs, start + 1):
            for text in [given] if pairs is None else given:
                _check_text(text, i)
        raise
    return encodings


def _check_text(text: object, number: int) -> None:
    if not isinstance(text, str):
        raise DataError(f"text {number} is a {type(text).__name__}, not a string: {shown(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"text {number} holds half of a character (a lone surrogate): {shown(text)}") from None


def _row(encoding: Encoding, max_length: int, side: str, empty: int | None) -> _Row:
    ids, type_ids = encoding.ids, encoding.type_ids
    if not ids:
        if empty is None:
            raise BaseError("the tokenizer makes no token of an empty text and has no end-of-text token. Fix: give no empty text")
        return _Row([empty], [0], False)
    if len(ids) <= max_length:
        return _Row(ids, type_ids, False)
    keep = _kept(encoding.sequence_ids, max_length, side)
    return _Row([ids[i] for i in keep], [type_ids[i] for i in keep], True)


def _kept(sequences: Sequence[int | None], max_length: int, side: str) -> list[int]:
    """The places that stay when a text or pair is cut to `max_length`; `sequences` tells 0, 1 or None (special) a token.

    As `longest_first` in tokenizers: only the longer text is cut while it stays the longer one, else both to half the room.
    """
    places = [[i for i, sequence in enumerate(sequences) if sequence == which] for which in (0, 1)]
    special = [i for i, sequence in enumerate(sequences) if sequence is None]
    room = max_length - len(special)
    if room < 1:
        raise ConfigError(f"max_length {max_length} leaves no room for text beside {len(special)} special tokens")
    short, long = sorted(places, key=len)
    short_room = min(len(short), room // 2)
    return sorted([*special, *_ends(short, short_room, side), *_ends(long, room - short_room, side)])


def _ends(places: list[int], room: int, side: str) -> list[int]:
    return places[len(places) - room :] if side == "left" else places[:room]


def _end_token(tokenizer: Any) -> int | None:
    """The token that stands for a text without tokens."""
    for name in ("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id"):
        token: int | None = getattr(tokenizer, name)
        if token is not None:
            return token
    return None
