"""Bytes of a file to text, and, when that fails, which encoding would have worked.

Knows encodings; knows nothing of rows or columns.
"""

from __future__ import annotations

import codecs
import re

from veneer.data.problems import shown
from veneer.errors import DataError

_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_WIDE_BOMS = (  # UTF-32 first: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 1 << 18


def decode(data: bytes, encoding: str, source: str) -> str:
    """The text of `data`, without a byte order mark.

    Raises:
        DataError: `encoding` is unknown, or `data` is not in it; the message names the line, the byte (from 0) and, where one
            is found, the encoding that works, with a sample of what it gives.
    """
    try:
        codec = codecs.lookup(encoding).name
    except LookupError:
        raise DataError(f"{source}: unknown encoding '{encoding}'. Fix: --encoding utf-8, gb18030, cp1252, …") from None
    try:
        text = data.decode("utf-8-sig" if codec == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        raise DataError(_bad_bytes(data, error, encoding, source)) from None
    except LookupError:  # base64 and the like: codecs, but not of text
        raise DataError(f"{source}: '{encoding}' is not an encoding of text. Fix: --encoding utf-8") from None
    text = text.removeprefix("\ufeff")
    if "\x00" in text:
        raise DataError(_nul(data, text, source))
    return text


def _bad_bytes(data: bytes, error: UnicodeDecodeError, encoding: str, source: str) -> str:
    # utf-8-sig counts from behind the mark
    start = error.start + (3 if error.encoding == "utf-8" and data.startswith(codecs.BOM_UTF8) else 0)
    line = data.count(b"\n", 0, start) + 1
    where = f"{source}: not {encoding}: line {line}, byte {start} of the file (0x{data[start]:02x}) cannot be decoded"
    if codecs.lookup(encoding).name == "utf-8" and (broken := _broken_utf8(data)):
        return f"{where}; the rest of the file is UTF-8, with {broken} such {_place(broken)}. Fix: repair line {line}"
    better = _detect(data)
    if better is None:
        return f"{where}. Fix: save the file as UTF-8, or name its encoding with --encoding"
    sample = _sample(data, start, better)
    return f"{where}. As {better} it reads: {sample}\n  Fix: if that is right, --encoding {better}"


def _nul(data: bytes, text: str, source: str) -> str:
    at = text.index("\x00")
    where = f"{source}: line {text.count(chr(10), 0, at) + 1} holds a NUL character, which text files do not"
    wide = _wide(data)
    if wide is None:
        return f"{where}. Fix: remove it, or give a text file if this is none"
    return f"{where}. As {wide} it reads: {_sample(data, 0, wide)}\n  Fix: if that is right, --encoding {wide}"


def _place(n: int) -> str:
    return "place" if n == 1 else "places"


def _broken_utf8(data: bytes) -> int:
    """How many places are broken in a file that is UTF-8 otherwise; 0 when it is not UTF-8 at all."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    sound = len(_NOT_ASCII.findall(text)) - broken
    return broken if sound >= 10 * broken else 0


def _detect(data: bytes) -> str | None:
    """The encoding that `data`, which is not UTF-8, is in; None when none is likely."""
    wide = _wide(data)
    if wide is not None:
        return wide
    for encoding, likely in (("gb18030", _is_chinese), ("big5", _is_big5), ("cp1252", _is_western), ("cp1251", _is_cyrillic)):
        if _decodes(data, encoding) and likely(_HIGH_BYTES.findall(data[:_SAMPLE_BYTES])):
            return encoding
    return None


def _wide(data: bytes) -> str | None:
    for mark, encoding in _WIDE_BOMS:
        if data.startswith(mark) and _decodes(data, encoding):
            return encoding
    head = data[:_SAMPLE_BYTES]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) * 10 < len(head):
        return None
    encoding = "utf-16-le" if odd > even else "utf-16-be"
    return encoding if _decodes(data, encoding) else None


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _is_chinese(runs: list[bytes]) -> bool:
    # GB2312's punctuation and its 3,755 commonest characters have lead bytes A1-A3 and B0-D7 and a high second byte, so
    # that they lie in even runs; western words with accents give single high bytes
    common = sum(_pairs_within(run, ((0xA1, 0xA3), (0xB0, 0xD7))) for run in runs)
    return common * 2 >= 0.7 * sum(map(len, runs)) and _mean_run(runs) >= 3


def _is_big5(runs: list[bytes]) -> bool:
    # half of Big5's second bytes are ASCII: judge lead bytes of common characters (A4-C6) and punctuation (A1-A3) alone
    return sum(0xA1 <= run[0] <= 0xC6 for run in runs) >= 0.8 * len(runs) and _mean_run(runs) >= 1.3


def _is_western(runs: list[bytes]) -> bool:
    return _mean_run(runs) < 2


def _is_cyrillic(runs: list[bytes]) -> bool:
    return sum(byte >= 0xC0 for run in runs for byte in run) >= 0.9 * sum(map(len, runs))


def _pairs_within(run: bytes, leads: tuple[tuple[int, int], ...]) -> int:
    return sum(any(low <= lead <= high for low, high in leads) for lead in run[: len(run) // 2 * 2 : 2])


def _mean_run(runs: list[bytes]) -> float:
    return sum(map(len, runs)) / max(len(runs), 1)


def _sample(data: bytes, at: int, encoding: str) -> str:
    if encoding.startswith(("utf-16", "utf-32")):
        return shown(data[:200].decode(encoding, "ignore").removeprefix("\ufeff").strip(), 70)
    begin = data.rfind(b"\n", 0, at) + 1
    begin = begin if at - begin < 60 else at
    end = data.find(b"\n", at)
    return shown(data[begin : end if end >= 0 else len(data)][:200].decode(encoding, "ignore").strip(), 70)
