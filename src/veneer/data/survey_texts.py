"""What is wrong inside single texts: encoding faults, texts without a word, one text over and over.

Knows strings; knows no tokenizer and no labels.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator

from veneer.data.checks import text_key
from veneer.data.problems import shown
from veneer.data.read import Reading
from veneer.data.survey_finding import SERIOUS_SHARE, Finding, Severity, percent, samples
from veneer.data.types import Example

CONSTANT_SHARE = 0.1
FEWEST_ROWS = 20  # below it a text that comes twice says nothing

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
# UTF-8 read as cp1252: a lead byte (Â to ô) and what cp1252 or Latin-1 make of continuation bytes.
_CONTINUATION = (
    "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
    "\u2013\u2014\u2018-\u201a\u201c-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122"
)
_MOJIBAKE = re.compile(f"[\u00c2-\u00f4][{_CONTINUATION}]+")
_GBK_REPLACEMENT = "锟斤拷"  # U+FFFD twice in UTF-8, read as GBK


def text_findings(name: str, reading: Reading) -> Iterator[Finding]:
    """Findings on the N texts (and pairs) of a split called `name`."""
    faults: tuple[tuple[str, Callable[[str], bool], str, str], ...] = (
        (
            "replacement-character",
            lambda text: "\ufffd" in text or _GBK_REPLACEMENT in text,
            "hold � (U+FFFD) or what became of it: characters were lost before this file was written",
            "export the file again from its source as UTF-8",
        ),
        (
            "mojibake",
            lambda text: repaired(text) != text,
            "hold UTF-8 that was read as another encoding",
            "export the file again as UTF-8, or repair it: text.encode('cp1252').decode('utf-8')",
        ),
        (
            "control-character",
            lambda text: _CONTROL.search(text) is not None,
            "hold control characters",
            "remove them, or see whether the file is in another encoding (--encoding)",
        ),
    )
    total = len(reading.examples)
    for rule, is_faulty, what, fix in faults:
        found = _having(reading, is_faulty)
        if found:
            severity = _severity(rule, len(found), total)
            hint = _repair_hint(found) if rule == "mojibake" else ""
            yield _finding(rule, severity, name, reading, found, f"{what}{hint}", fix)
    wordless = _having(reading, is_wordless)
    if wordless:
        what, fix = "have no letter, digit or symbol, only punctuation", "remove them, unless punctuation is what you classify"
        severity = "warning" if len(wordless) >= SERIOUS_SHARE * total else "note"
        yield _finding("no-words", severity, name, reading, wordless, what, fix)
    yield from _constant(name, reading)


def _severity(rule: str, count: int, total: int) -> Severity:
    many = count >= max(2, SERIOUS_SHARE * total)
    if rule == "control-character":
        return "warning" if many else "note"
    return "error" if many else "warning"


def repaired(text: str) -> str:
    """`text` with UTF-8 that was read as cp1252 or Latin-1 (`cafÃ©`) put right (`café`); the same text where there is none.

    One sequence that is also plausible as it stands, such as `Ä“`, is left.
    """
    found = [match for match in _MOJIBAKE.finditer(text) if _decoded(match[0]) is not None]
    sure = any(match[0][0] in "ÂÃ" or match[0][0] >= "à" for match in found) or len(found) > 1
    if not sure:
        return text
    return _MOJIBAKE.sub(lambda match: _decoded(match[0]) or match[0], text)


def _decoded(run: str) -> str | None:
    try:
        return b"".join(_byte(character) for character in run).decode("utf-8")
    except UnicodeError:
        return None


def _byte(character: str) -> bytes:
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")  # five bytes have no character in cp1252


def _repair_hint(found: list[Example]) -> str:
    text = next(part for part in (found[0].text, found[0].pair or "") if repaired(part) != part)
    match = next(match for match in _MOJIBAKE.finditer(text) if _decoded(match[0]) is not None)
    return f" ('{shown(match[0], 20)}' was '{shown(_decoded(match[0]), 20)}')"


def is_wordless(text: str) -> bool:
    """Whether a text holds neither a letter nor a digit nor a pictograph such as an emoji."""
    return not any(character.isalnum() or unicodedata.category(character) == "So" for character in text)


def _having(reading: Reading, is_faulty: Callable[[str], bool]) -> list[Example]:
    return [
        example
        for example in reading.examples
        if is_faulty(example.text) or (example.pair is not None and is_faulty(example.pair))
    ]


def _finding(rule: str, severity: Severity, name: str, reading: Reading, found: list[Example], what: str, fix: str) -> Finding:
    message = f"{len(found):,} of {len(reading.examples):,} {name} texts ({percent(len(found), len(reading.examples))}) {what}"
    return Finding(rule, severity, message, len(found), fix, samples((reading.source, example) for example in found))


def _constant(name: str, reading: Reading) -> Iterator[Finding]:
    """One text that makes up much of a split, or all of it."""
    total = len(reading.examples)
    if total < FEWEST_ROWS:
        return
    (most, count), *_ = Counter(text_key(example) for example in reading.examples).most_common(1)
    if count < CONSTANT_SHARE * total:
        return
    found = [example for example in reading.examples if text_key(example) == most]
    what = "are one and the same text"
    fix = "see whether --text names the right column; remove a text that stands for 'nothing written'"
    yield _finding("constant-text", "error" if count == total else "warning", name, reading, found, what, fix)
