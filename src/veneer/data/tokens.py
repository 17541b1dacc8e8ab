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
from veneer.data.prompt import Prompt, Span
from veneer.data.types import EncodedTexts
from veneer.errors import BaseError, ConfigError, DataError

CHUNK = 2000  # texts encoded at a time: their Encoding objects take some kB each
_ONE_AT_A_TIME = threading.Lock()


def encode(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int, prompt: Prompt | None = None
) -> EncodedTexts:
    """N texts, each with its pair if there are any, as token ids with the tokenizer's special tokens.

    A text longer than `max_length` tokens is cut as transformers' `longest_first` cuts, on the tokenizer's own side; special
    tokens stay. A text of no token at all (`""` for a tokenizer without special tokens) becomes one end-of-text token. What
    the tokenizer's file says about truncation and padding has no effect, and is as before afterwards.

    With a `prompt` the texts stand in its template, and only their own tokens are cut: neither the template's nor the place of
    the answer. A text is then all its readings, one after the other (`Prompt.readings`), each of at most `max_length` tokens.

    Raises:
        BaseError: the tokenizer is not a fast one, or has no token for an empty text.
        ConfigError: `max_length` leaves no room for a text beside the special tokens, or the template's.
        DataError: a text is not a string that can be encoded.
    """
    if pairs is not None and len(pairs) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(pairs)} pairs")
    backend = fast_backend(tokenizer)
    empty = _end_token(tokenizer)
    arrays: list[NDArray[np.int32]] = []
    types: list[NDArray[np.uint8]] = []
    lengths: list[int] = []
    cut = 0
    with neither_cut_nor_padded(backend):
        for start in range(0, len(texts), CHUNK):
            part = slice(start, start + CHUNK)
            some, second = texts[part], None if pairs is None else pairs[part]
            if prompt is None:
                encodings = _encode_chunk(backend, some, second, start)
                rows = [_row(encoding, max_length, tokenizer.truncation_side, empty) for encoding in encodings]
            else:
                rows = _prompt_rows(backend, prompt, some, second, start, max_length, tokenizer.truncation_side)
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


def fast_backend(tokenizer: Any) -> Tokenizer:
    """The tokenizer of the tokenizers library behind a fast one of transformers.

    Raises:
        BaseError: it is not a fast one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        kind = type(tokenizer).__name__
        raise BaseError(f"{kind} is not a fast tokenizer. Fix: use a base that has a tokenizer.json, or convert its tokenizer")
    return backend


class _Row(NamedTuple):
    """One text's `[length]` token and segment ids, and whether it was cut."""

    ids: list[int]
    type_ids: list[int]
    cut: bool


@contextmanager
def neither_cut_nor_padded(backend: Tokenizer) -> Iterator[None]:
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


def _prompt_rows(
    backend: Tokenizer,
    prompt: Prompt,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    start: int,
    max_length: int,
    side: str,
) -> list[_Row]:
    """A row a text; special tokens come from the template and from `prompt.lead` alone, so that nothing is behind its end."""
    filled = []
    for i, text in enumerate(texts):
        pair = None if pairs is None else pairs[i]
        for given in (text,) if pair is None else (text, pair):
            _check_text(given, start + i + 1)
        filled.append(prompt.fill(text, pair))
    encodings = backend.encode_batch_fast([string for string, _ in filled], add_special_tokens=False)
    rows = []
    for encoding, (string, spans) in zip(encodings, filled, strict=True):
        ids, lead = encoding.ids, prompt.lead
        lead = () if tuple(ids[: len(lead)]) == lead else lead  # a chat template may hold them already
        ids = [*lead, *ids]
        room = max_length - prompt.reserve
        if cut := len(ids) > room:
            offsets = backend.encode(string, add_special_tokens=False).offsets
            parts = [*(None for _ in lead), *(_part(string, offset, spans) for offset in offsets)]
            ids = [ids[i] for i in _kept(parts, room, side, "tokens of the template")]
        ids = prompt.readings(ids)
        rows.append(_Row(ids, [0] * len(ids), cut))
    return rows


def _part(string: str, offset: Span, spans: Sequence[Span]) -> int | None:
    """Which of the texts a token is of; None for one of the template, or of both.

    A word's token may begin with the template's space before it, which goes with the word.
    """
    first, behind = offset
    for i, (start, end) in enumerate(spans):
        if max(first, start) < behind <= end and not string[first:start].strip(" "):
            return i
    return None


def _check_text(text: object, number: int) -> None:
    if not isinstance(text, str):
        raise DataError(f"text {number} is not a string but {shown(repr(text))}")
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


def _kept(sequences: Sequence[int | None], max_length: int, side: str, others: str = "special tokens") -> list[int]:
    """The places that stay when a text or pair is cut to `max_length`; `sequences` tells 0, 1 or None (`others`) a token.

    As `longest_first` in tokenizers: only the longer text is cut while it stays the longer one, else both to half the room.
    """
    places = [[i for i, sequence in enumerate(sequences) if sequence == which] for which in (0, 1)]
    special = [i for i, sequence in enumerate(sequences) if sequence is None]
    room = max_length - len(special)
    if room < 1:
        raise ConfigError(f"max_length {max_length} leaves no room for text beside {len(special)} {others}")
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
