"""The built-in messages: complete, disjoint, consistently labelled, and written one by one rather than from templates."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer

SPLITS = ("train", "dev", "test")
INTENTS = {
    "billing_insurance",
    "book_appointment",
    "change_appointment",
    "complaint_feedback",
    "prescription",
    "records_documents",
    "symptom_advice",
    "test_results",
}
# Between the closest pair of rows (0.15 of word 3-grams, 0.23 of character 4-grams) and one template's rows (0.38, 0.57).
MOST_SHARED_WORDS = 0.22
MOST_SHARED_CHARACTERS = 0.35
MOST_ROWS_WITH_ONE_OPENING = 3
ONE_TEMPLATE = [
    "I'd like to book a flu shot for Monday morning, please.",
    "I'd like to book a checkup for Monday morning, please.",
    "I'd like to book a hearing test for Monday morning, please.",
    "I'd like to book a consultation for Monday morning, please.",
]

Row = dict[str, str]


def read(split: str) -> list[Row]:
    text = files("veneer").joinpath("demo", "clinic", f"{split}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Row]]:
    return {split: read(split) for split in SPLITS}


@pytest.fixture(scope="module")
def rows(splits: dict[str, list[Row]]) -> list[Row]:
    return [row for split in SPLITS for row in splits[split]]


def secondary(row: Row) -> list[str]:
    return row["secondary"].split(";") if row["secondary"] else []


def plain(text: str) -> str:
    """Lower case, words and numbers alone, one space apart."""
    return " ".join(re.findall(r"[^\W_]+", text.lower().replace("'", "")))


def jaccard(texts: Sequence[str], analyzer: str, n: int) -> NDArray[np.float64]:
    """`[N,N]` share of n-grams two texts have in common, 0 on the diagonal; texts without an n-gram share nothing."""
    counter = CountVectorizer(
        analyzer=analyzer,
        ngram_range=(n, n),
        binary=True,
        tokenizer=str.split if analyzer == "word" else None,
        token_pattern=None,
        preprocessor=plain,
    )
    grams = counter.fit_transform(texts).astype(np.int32)
    common = (grams @ grams.T).toarray().astype(np.float64)
    sizes = np.diag(common)
    shares: NDArray[np.float64] = common / np.maximum(sizes[:, None] + sizes[None, :] - common, 1)
    np.fill_diagonal(shares, 0)
    return shares


def opening_counts(texts: Sequence[str]) -> Counter[str]:
    return Counter(" ".join(plain(text).split()[:5]) for text in texts)


def closest(shares: NDArray[np.float64], texts: Sequence[str]) -> str:
    i, j = np.unravel_index(int(shares.argmax()), shares.shape)
    return f"{shares.max():.2f}: {texts[int(i)]!r} | {texts[int(j)]!r}"


def test_it_has_about_800_rows_in_the_stated_proportions(splits: dict[str, list[Row]]) -> None:
    total = sum(len(part) for part in splits.values())
    assert 780 <= total <= 820
    assert [len(splits[split]) / total for split in SPLITS] == pytest.approx([0.70, 0.15, 0.15], abs=0.01)


def test_every_row_is_filled_in_and_its_labels_are_known(rows: list[Row]) -> None:
    for row in rows:
        labels = [row["primary"], *secondary(row)]
        assert set(labels) <= INTENTS, row
        assert len(set(labels)) == len(labels), row
        assert 4 <= len(row["text"].split()) <= 45, row
        assert row["text"] == row["text"].strip(), row


def test_the_splits_share_no_text(rows: list[Row]) -> None:
    twice = [text for text, count in Counter(plain(row["text"]) for row in rows).items() if count > 1]
    assert twice == []


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_every_intent_as_primary_and_as_secondary(splits: dict[str, list[Row]], split: str) -> None:
    assert {row["primary"] for row in splits[split]} == INTENTS
    assert {label for row in splits[split] for label in secondary(row)} == INTENTS


def test_the_intents_are_balanced_and_often_come_together(rows: list[Row]) -> None:
    primaries = Counter(row["primary"] for row in rows)
    assert min(primaries.values()) >= 70
    share = sum(bool(secondary(row)) for row in rows) / len(rows)
    assert 0.40 <= share <= 0.50
    assert sum(len(secondary(row)) > 1 for row in rows) >= 10


@pytest.mark.parametrize(("analyzer", "n", "most"), [("word", 3, MOST_SHARED_WORDS), ("char", 4, MOST_SHARED_CHARACTERS)])
class TestNearDuplicates:
    def test_no_two_rows_are_near(self, rows: list[Row], analyzer: str, n: int, most: float) -> None:
        texts = [row["text"] for row in rows]
        shares = jaccard(texts, analyzer, n)
        assert shares.max() < most, closest(shares, texts)

    def test_a_planted_template_is_seen(self, rows: list[Row], analyzer: str, n: int, most: float) -> None:
        texts = [row["text"] for row in rows] + ONE_TEMPLATE
        planted = jaccard(texts, analyzer, n)[-len(ONE_TEMPLATE) :, -len(ONE_TEMPLATE) :]
        assert planted[~np.eye(len(ONE_TEMPLATE), dtype=bool)].min() > most


def test_no_opening_is_shared_by_many_rows(rows: list[Row]) -> None:
    texts = [row["text"] for row in rows]
    assert {opening: n for opening, n in opening_counts(texts).items() if n > MOST_ROWS_WITH_ONE_OPENING} == {}
    assert opening_counts(texts + ONE_TEMPLATE)["id like to book a"] > MOST_ROWS_WITH_ONE_OPENING


def test_the_readme_counts_are_those_of_the_files(splits: dict[str, list[Row]]) -> None:
    readme = files("veneer").joinpath("demo", "clinic", "README.md").read_text(encoding="utf-8")
    for intent in sorted(INTENTS):
        primary = [sum(row["primary"] == intent for row in splits[split]) for split in SPLITS]
        also = sum(intent in secondary(row) for split in SPLITS for row in splits[split])
        assert f"| `{intent}` | {' | '.join(map(str, primary))} | {sum(primary)} | {also} |" in readme
    sizes = [len(splits[split]) for split in SPLITS]
    assert f"| rows | {' | '.join(map(str, sizes))} | {sum(sizes)} |" in readme
