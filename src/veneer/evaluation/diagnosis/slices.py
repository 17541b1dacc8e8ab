"""Groups of texts that may fare worse than the rest: by length, label, column, truncation, unseen words.

The score of a group is the share of its texts decided right as a whole. Knows nothing of advice.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.diagnosis.evidence import Bools, Evidence, Floats, Labelwise
from veneer.evaluation.diagnosis.limits import Z95

MOST_VALUES = 40  # of labels, and of a column
MANY_UNSEEN = 0.25  # share of a text's words that training never showed
# A character each where words are written without spaces between them: kana, Han.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")

By = Literal["length", "label", "column", "truncated", "vocabulary"]
CUT = "cut"
UNSEEN = ("up to a quarter of the words unseen in training", "more than a quarter of the words unseen in training")


@dataclass(frozen=True)
class Slice:
    """A group of texts, `right` of which were decided right."""

    by: By
    value: str
    texts: int
    right: int

    @property
    def score(self) -> float:
        """The share decided right."""
        return self.right / self.texts

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `interval` is Wilson's at 95 %."""
        head = {"by": self.by, "value": self.value, "texts": self.texts}
        return head | {"score": self.score, "interval": list(wilson(self.right, self.texts, Z95))}


def slices(evidence: Evidence, labels: Labelwise) -> tuple[Slice, ...]:
    """All groups with texts; none by length, truncation, vocabulary or column where all texts are in one group."""
    right = evidence.right
    found = [Slice("label", evidence.labels[i], *_count(right, truth)) for i, truth in _most_frequent(labels) if truth.any()]
    for by, groups in _groupings(evidence):
        counted = [Slice(by, value, *_count(right, members)) for value, members in groups if members.any()]
        found += counted if len(counted) > 1 else []
    return tuple(found)


def wilson(right: int, texts: int, z: float) -> tuple[float, float]:
    """Wilson's (1927) score interval of a share of at least one text; `z` is the normal quantile."""
    share, spread = right / texts, z * z / texts
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / texts + spread / texts / 4)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def shortfall(one: Slice, n: int, right: int, z: float) -> tuple[float, float]:
    """How much lower the share of a slice is than that of the other texts, and the least it is within the interval.

    The interval is Newcombe's (1998, method 10), from the two Wilson intervals.

    Args:
        n: all texts; `right` of them were decided right. Some are outside the slice.
        z: the normal quantile of the interval.
    """
    others = Slice(one.by, "the others", n - one.texts, right - one.right)
    difference = others.score - one.score
    down = others.score - wilson(others.right, others.texts, z)[0]
    up = wilson(one.right, one.texts, z)[1] - one.score
    return difference, difference - math.hypot(down, up)


def unseen_shares(texts: Sequence[str], pairs: Sequence[str] | None, train_texts: Sequence[str]) -> Floats:
    """`[N]`: the share of each text's words, its pair's too, that no training text holds; 0 for a text without words.

    A word is a run of letters and digits in lower case, or a single Han or kana character.
    """
    seen: set[str] = set()
    for text in train_texts:
        seen.update(_words(text))
    shares = np.zeros(len(texts))
    for i, text in enumerate(texts):
        words = _words(text) if pairs is None else [*_words(text), *_words(pairs[i])]
        shares[i] = sum(word not in seen for word in words) / max(1, len(words))
    return shares


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _count(right: Bools, members: Bools) -> tuple[int, int]:
    return int(members.sum()), int((right & members).sum())


def _most_frequent(labels: Labelwise) -> Iterator[tuple[int, Bools]]:
    for k in np.argsort(-labels.support, kind="stable")[:MOST_VALUES]:
        yield int(labels.ids[k]), labels.truth[:, k]


def _groupings(evidence: Evidence) -> Iterator[tuple[By, list[tuple[str, Bools]]]]:
    yield "length", _by_length(evidence.lengths)
    cut = evidence.cut.astype(bool)
    yield "truncated", [(CUT, cut), ("whole", ~cut)]
    unseen = unseen_shares(evidence.texts, evidence.pairs, evidence.train_texts)
    many = unseen > MANY_UNSEEN
    yield "vocabulary", [("every word seen in training", unseen == 0), (UNSEEN[0], (unseen > 0) & ~many), (UNSEEN[1], many)]
    for name, values in evidence.columns.items():
        kept = [value for value, _ in Counter(values).most_common(MOST_VALUES)]
        column = np.array(values, dtype=object)
        yield "column", [(f"{name}: {value}", column == value) for value in kept]


def _by_length(lengths: NDArray[Any]) -> list[tuple[str, Bools]]:
    """Quartiles; fewer groups where many texts are equally long."""
    uppers = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1.0], method="higher")).astype(int).tolist()
    groups = []
    for low, high in pairwise([int(lengths.min()) - 1, *uppers]):
        name = f"{low + 1} tokens" if high == low + 1 else f"{low + 1}–{high} tokens"
        groups.append((name, (lengths > low) & (lengths <= high)))
    return groups
