"""Texts that occur more than once: exactly or nearly, in one split or in two, with the same labels or others.

Near duplicates are texts whose sets of three characters in a row overlap by 0.8 (Jaccard); letters, digits and pictographs alone
count, case and width folded. Characters, not words, so that it holds for Chinese as well. Candidates come from MinHash LSH
(Broder 1997; datasketch) and are then compared exactly, so that none is found falsely; a few are missed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

from veneer.data.checks import Key, text_key
from veneer.data.read import Reading
from veneer.data.survey_finding import SERIOUS_SHARE, Finding, Sample, Severity, Splits, percent, samples, twins
from veneer.data.types import Example

SIMILAR = 0.8
PERMUTATIONS = 64
RECALL = (0.1, 0.9)  # what false and what missed candidates cost: 88 % of pairs at 0.8 are found, 97 % at 0.85
MOST_CHARACTERS = 20_000_000  # compared for near duplicates, a minute or so; of larger data a sample of the rows is
SERIOUS_LEAK = 0.1  # share of dev or test that is in train too, from which on their scores mean little
SEED = 0

_NO_WORD = re.compile("[^\\w\u2600-\u27bf\U0001f000-\U0001faff]+|_+")  # pictographs such as emoji count as words do
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth's multiplicative hash)
_OF_PAIR = np.uint64(1 << 63)

Codes = NDArray[np.uint64]
Pairs = Sequence[tuple[Example, Example]]  # rows of an earlier split, each with the row of a later one that has its text


def duplicate_findings(splits: Splits) -> Iterator[Finding]:
    """Findings on equal and nearly equal texts within and across splits."""
    for name, reading in splits.items():
        yield from _within(name, reading)
    names = list(splits)
    for i, name in enumerate(names):
        for earlier in names[:i]:
            yield from _across(earlier, name, splits)
    yield from _near(splits)


def _within(name: str, reading: Reading) -> Iterator[Finding]:
    groups: defaultdict[Key, list[Example]] = defaultdict(list)
    for example in reading.examples:
        groups[text_key(example)].append(example)
    repeated = [group for group in groups.values() if len(group) > 1]
    conflicting = [group for group in repeated if len({frozenset(example.labels) for example in group}) > 1]
    total = len(reading.examples)
    if repeated:
        surplus = sum(len(group) - 1 for group in repeated)
        message = f"{surplus:,} of {total:,} {name} rows ({percent(surplus, total)}) repeat the text of an earlier row"
        fix = "keep one of each, unless their number is meant as a weight"
        examples = samples((reading.source, group[1]) for group in repeated)
        yield Finding("duplicate-rows", _severity(surplus, total), message, surplus, fix, examples)
    if conflicting:
        rows = sum(map(len, conflicting))
        message = f"{rows:,} of {total:,} {name} rows ({percent(rows, total)}) have a text that other rows label differently"
        fix = "decide which labels are right; what is left as it is cannot be learned"
        examples = twins((reading.source, _differing(group), reading.source, group[0]) for group in conflicting)
        yield Finding("conflicting-labels", _severity(rows, total), message, rows, fix, examples)


def _severity(count: int, total: int) -> Severity:
    return "warning" if count >= SERIOUS_SHARE * total else "note"


def _differing(group: list[Example]) -> Example:
    """The first row of a text whose labels differ from those of its first row."""
    return next(example for example in group if set(example.labels) != set(group[0].labels))


def _across(earlier: str, name: str, splits: Splits) -> Iterator[Finding]:
    first: dict[Key, Example] = {}
    said: defaultdict[Key, set[frozenset[str]]] = defaultdict(set)
    for example in splits[earlier].examples:
        first.setdefault(text_key(example), example)
        said[text_key(example)].add(frozenset(example.labels))
    found = [example for example in splits[name].examples if text_key(example) in first]
    agreeing = [(first[text_key(one)], one) for one in found if frozenset(one.labels) in said[text_key(one)]]
    other = [(first[text_key(one)], one) for one in found if frozenset(one.labels) not in said[text_key(one)]]
    if agreeing:
        yield _leak(f"{earlier}-{name}-duplicates", (earlier, name), splits, agreeing, "in common with")
    if other:
        yield _conflict(f"{earlier}-{name}-conflicts", (earlier, name), splits, other, "in common with")


def _leak(rule: str, names: tuple[str, str], splits: Splits, found: Pairs, what: str) -> Finding:
    """Rows of a later split with the text and the labels of an earlier one's."""
    (earlier, name), count, total = names, len(found), len(splits[names[1]].examples)
    message = f"{count:,} of {total:,} {name} rows ({percent(count, total)}) have a text {what} {earlier}"
    fix = f"remove them from one side; they make the {name} score too good"
    severity = _severity(count, total)
    if earlier == "train" and count >= max(2, SERIOUS_LEAK * total):
        severity = "error"
    return Finding(rule, severity, message, count, fix, _sides(names, splits, found))


def _conflict(rule: str, names: tuple[str, str], splits: Splits, found: Pairs, what: str) -> Finding:
    """Rows of a later split with the text of an earlier one's, and other labels."""
    (earlier, name), count, total = names, len(found), len(splits[names[1]].examples)
    message = f"{count:,} of {total:,} {name} rows ({percent(count, total)}) have a text {what} {earlier}, but other labels"
    fix = (
        f"decide which labels are right, then keep the rows on one side; a model that learned {earlier} is counted wrong on them"
    )
    return Finding(rule, _severity(count, total), message, count, fix, _sides(names, splits, found))


def _sides(names: tuple[str, str], splits: Splits, found: Pairs) -> tuple[Sample, ...]:
    earlier, later = (splits[name].source for name in names)
    return twins((later, one, earlier, first) for first, one in found)


@dataclass(frozen=True)
class _Row:
    """One distinct text that is compared: its split, its first row, and its set of three characters in a row."""

    split: str
    example: Example
    codes: Codes


def codes(text: str) -> Codes:
    """`[K]` sorted, distinct 63-bit numbers, one for each three characters in a row of what counts in `text`."""
    plain = _NO_WORD.sub("", unicodedata.normalize("NFKC", text).casefold())
    points = np.frombuffer(f"  {plain} ".encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    return np.unique((points[:-2] << np.uint64(42)) | (points[1:-1] << np.uint64(21)) | points[2:])


def _codes_of(example: Example) -> Codes:
    first = codes(example.text)
    return first if example.pair is None else np.concatenate([first, codes(example.pair) | _OF_PAIR])


def similarity(first: Codes, second: Codes) -> float:
    """|A ∩ B| / |A ∪ B| of two sets of codes."""
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / (len(first) + len(second) - both)


def _near(splits: Splits) -> Iterator[Finding]:
    rows, share = _distinct(splits)
    found = near_duplicates(rows)
    where = "" if share == 1 else f", in a sample of {share:.0%} of the rows"
    by_splits: defaultdict[tuple[str, str], list[tuple[_Row, _Row]]] = defaultdict(list)
    for earlier, later in found:
        by_splits[earlier.split, later.split].append((earlier, later))
    for (first, name), pairs in by_splits.items():
        both = [(earlier.example, later.example) for earlier, later in pairs]
        if first == name:
            yield _near_within(name, splits, both, where)
            continue
        rule, what = f"{first}-{name}-near", f"nearly the same as one{where} of"
        agreeing = [pair for pair in both if set(pair[0].labels) == set(pair[1].labels)]
        other = [pair for pair in both if set(pair[0].labels) != set(pair[1].labels)]
        if agreeing:
            yield _leak(f"{rule}-duplicates", (first, name), splits, agreeing, what)
        if other:
            yield _conflict(f"{rule}-conflicts", (first, name), splits, other, what)


def _near_within(name: str, splits: Splits, found: Pairs, where: str) -> Finding:
    count, total = len(found), len(splits[name].examples)
    other = sum(set(earlier.labels) != set(later.labels) for earlier, later in found)
    message = f"{count:,} of {total:,} {name} rows ({percent(count, total)}) are nearly the same as an earlier one{where}"
    message += f"; {other:,} of them with other labels"
    fix = "look whether they tell the model anything new, and whether labels that differ are meant to"
    return Finding("near-duplicates", "note", message, count, fix, _sides((name, name), splits, found))


def _distinct(splits: Splits) -> tuple[list[_Row], float]:
    """The distinct texts to compare, in the order of the splits, and the share of rows they were drawn from."""
    characters = sum(len(example.text) + len(example.pair or "") for reading in splits.values() for example in reading.examples)
    share = min(1.0, MOST_CHARACTERS / max(characters, 1))
    rng = np.random.default_rng(SEED)
    rows, seen = [], set()
    for name, reading in splits.items():
        chosen = rng.random(len(reading.examples)) < share
        for example, take in zip(reading.examples, chosen.tolist(), strict=True):
            if take and (key := text_key(example)) not in seen:
                seen.add(key)
                rows.append(_Row(name, example, _codes_of(example)))
    return rows, share


def near_duplicates(rows: Sequence[_Row]) -> list[tuple[_Row, _Row]]:
    """(earlier, later) of rows that are nearly the same, each later one once.

    A row is compared with the first of each group of near duplicates alone, so that ten thousand copies take no longer than
    ten thousand different texts.
    """
    index = MinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS, weights=RECALL)
    empty = MinHash(num_perm=PERMUTATIONS, hashfunc=int)  # the codes are numbers already
    found = []
    for place, row in enumerate(rows):
        signature = empty.copy()
        signature.update_batch(((row.codes * _MIX) >> np.uint64(32)).tolist())
        candidates = sorted(index.query(signature))
        near = next((other for other in candidates if similarity(rows[other].codes, row.codes) >= SIMILAR), None)
        if near is None:
            index.insert(place, signature)
        else:
            found.append((rows[near], row))
    return found
