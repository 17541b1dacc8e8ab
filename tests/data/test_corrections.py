"""Suspects as CSV, marked by a person, applied to the rows they are about."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from veneer.data import Columns, Example, Reading, fingerprint, read_examples
from veneer.data.corrections import Suspect, correct, separator_of, suspects_table
from veneer.errors import DataError

Marked = Callable[..., Path]


def reading(*examples: Example, multi_label: bool = False) -> Reading:
    return Reading("train.csv", examples, (), multi_label, fingerprint(examples))


FILE = reading(
    Example("a fine film", None, ("good",), 1), Example("dull", None, ("good",), 2), Example("=1+1\r\nodd", None, ("bad",), 4)
)


def suspect(row: int, *suggested: str, probability: float = 0.9, file: Reading = FILE) -> Suspect:
    (example,) = (one for one in file.examples if one.row == row)
    return Suspect(row, example.text, example.pair, example.labels, suggested, 0.1, probability)


@pytest.fixture
def marked(tmp_path: Path) -> Marked:
    """`marked([suspects], {1: {"use": "y"}})` is their file with cells of the row of that rank changed."""

    def write(suspects: Sequence[Suspect], changes: dict[int, dict[str, str]], labels: Sequence[str] = ("bad", "good")) -> Path:
        path = tmp_path / "suspects.csv"
        path.write_text(suspects_table(suspects, labels), encoding="utf-8", newline="")
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        for rank, cells in changes.items():
            rows[rank - 1] |= cells
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


def test_only_marked_rows_are_corrected(marked: Marked) -> None:
    path = marked([suspect(2, "bad"), suspect(1, "bad"), suspect(4, "good")], {1: {"use": "y"}, 2: {"use": "n"}})
    corrected, count = correct(FILE, path, None, False)
    assert [example.labels for example in corrected.examples] == [("good",), ("bad",), ("bad",)]
    assert count == 1
    assert corrected.fingerprint not in ("", FILE.fingerprint)
    assert corrected.fingerprint == fingerprint(corrected.examples)


@pytest.mark.parametrize("mark", ["y", "Y", "yes", " x ", "1", "TRUE", "1.0"])
def test_marks(marked: Marked, mark: str) -> None:
    assert correct(FILE, marked([suspect(2, "bad")], {1: {"use": mark}}), None, False)[1] == 1


def test_another_label_may_be_written_instead(marked: Marked) -> None:
    path = marked([suspect(2, "bad")], {1: {"use": "y", "suggested": " odd "}})
    corrected, _ = correct(FILE, path, ("good", "bad", "odd"), False)
    assert corrected.examples[1].labels == ("odd",)


def test_texts_are_written_as_they_are(tmp_path: Path) -> None:
    """A formula, a line break, quotes: the file read as data gives the very texts back."""
    texts = ["=1+1", "+1", "-2", "@x", 'say "no", twice', "two\nlines", "old\rlines", " spaces ", "头痛", "\ttab"]
    file = reading(*(Example(text, "=pair", ("good",), row) for row, text in enumerate(texts, 1)))
    path = tmp_path / "suspects.csv"
    table = suspects_table([suspect(row, "bad", file=file) for row in range(1, len(texts) + 1)], ["good", "bad"], accept=0.0)
    path.write_text(table, encoding="utf-8", newline="")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    back = read_examples(path, Columns("text", "pair", ("suggested",)))
    assert [example.text for example in back.examples] == texts
    assert correct(file, path, ("good", "bad"), False)[1] == len(texts)


def test_what_a_spreadsheet_does_to_white_space_and_numbers_is_forgiven(marked: Marked) -> None:
    path = marked([suspect(4, "good")], {1: {"use": "y", "text": "=1+1\nodd ", "row": "4.0"}})
    assert correct(FILE, path, None, False)[1] == 1


def test_suggestions_are_accepted_from_a_probability_on(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    suspects = [suspect(2, "bad", probability=0.8), suspect(1, "bad", probability=0.7)]
    path.write_text(suspects_table(suspects, ["good", "bad"], accept=0.8), encoding="utf-8")
    corrected, count = correct(FILE, path, None, False)
    assert (count, corrected.examples[0].labels, corrected.examples[1].labels) == (1, ("good",), ("bad",))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"text": "lively"}, ["row 2 of train.csv has another text", "[other-text]", "value: lively", "audit it again"]),
        ({"row": "3"}, ["train.csv has no row 3", "[no-such-row]"]),
        ({"row": "two"}, ["no row number", "value: two"]),
        ({"suggested": "goood"}, ["[unknown-label]", "value: goood", "perhaps 'good'"]),
        ({"suggested": " "}, ["[no-label]"]),
        ({"use": "maybe"}, ["[bad-mark]", "column 'use'", "value: maybe"]),
    ],
)
def test_what_cannot_be_applied_is_told_with_its_place(marked: Marked, cells: dict[str, str], said: list[str]) -> None:
    path = marked([suspect(1, "bad"), suspect(2, "bad")], {2: {"use": "y"} | cells})
    with pytest.raises(DataError) as refused:
        correct(FILE, path, None, False)
    for words in ["suspects.csv, row 2 (line 3)", "Fix: ", *said]:
        assert words in str(refused.value)


def test_all_problems_are_told_at_once(marked: Marked) -> None:
    path = marked([suspect(1, "bad"), suspect(2, "bad")], {1: {"use": "y", "text": "x"}, 2: {"use": "y", "suggested": "z"}})
    with pytest.raises(DataError, match=r"(?s)2 errors.*other-text.*unknown-label"):
        correct(FILE, path, None, False)


def test_a_row_that_is_corrected_in_two_ways(marked: Marked) -> None:
    path = marked([suspect(2, "bad"), suspect(2, "bad")], {1: {"use": "y"}, 2: {"use": "y"}})
    assert correct(FILE, path, None, False)[1] == 1
    path = marked([suspect(2, "bad"), suspect(2, "good")], {1: {"use": "y"}, 2: {"use": "y"}})
    with pytest.raises(DataError, match="corrected-twice"):
        correct(FILE, path, None, False)


def test_a_file_with_nothing_marked_is_a_mistake(marked: Marked) -> None:
    with pytest.raises(DataError, match="no row has a y in the column 'use'"):
        correct(FILE, marked([suspect(2, "bad")], {}), None, False)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("row;text;suggested;use\n2;dull;bad;y\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'row' .*semicolons.*veneer audit wrote"):
        correct(FILE, path, None, False)


def test_the_second_text_of_a_pair_counts(marked: Marked) -> None:
    file = reading(Example("one", "two", ("good",), 1))
    path = marked([suspect(1, "bad", file=file)], {1: {"use": "y"}})
    assert correct(file, path, ("good", "bad"), False)[1] == 1
    changed = replace(file, examples=(replace(file.examples[0], pair="three"),))
    with pytest.raises(DataError, match="another pair"):
        correct(changed, path, ("good", "bad"), False)


def test_several_labels_in_one_cell(marked: Marked) -> None:
    labels = ("a;b", "c", "d")
    assert separator_of(labels) == "|"
    file = reading(Example("one", None, ("a;b", "c"), 1), Example("two", None, ("d",), 2), multi_label=True)
    suspects = [suspect(1, "d", "a;b", file=file), suspect(2, file=file)]
    path = marked(suspects, {1: {"use": "y"}, 2: {"use": "y"}}, labels)
    corrected, _ = correct(file, path, labels, True)
    assert [example.labels for example in corrected.examples] == [("d", "a;b"), ()]  # no label at all is one, too
