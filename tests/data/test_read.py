"""Texts and pairs, the fingerprint, and the real files as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from veneer.data import Columns, count_labels, fingerprint, read_examples
from veneer.data.types import Example
from veneer.errors import ConfigError

Find = Callable[[str], Path]
PAIRS = Columns("sentence1", "sentence2", ("label",))


def test_a_sound_file_has_no_problem_and_texts_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,label,text\n7,1, good  film \n8,0,bad\n")
    reading = read_examples(str(tmp_path / "rows.csv"), Columns())
    assert reading.examples == (Example(" good  film ", None, ("1",), 1), Example("bad", None, ("0",), 2))
    assert reading.problems == ()


def test_empty_texts_and_pairs_are_told_by_column(tmp_path: Path) -> None:
    rows = ["sentence1,sentence2,label", "a,b,1", ",b,0", "a, \t ,0", "  ,b,1", "c,d,0"]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    reading = read_examples(tmp_path / "rows.csv", PAIRS)
    found = [(p.severity, p.kind, p.row, p.column, p.count) for p in reading.problems]
    assert found == [("error", "empty-text", 2, "sentence1", 2), ("error", "empty-text", 3, "sentence2", 1)]
    assert [(example.text, example.pair, example.row) for example in reading.examples] == [("a", "b", 1), ("c", "d", 5)]


@pytest.mark.parametrize(
    ("columns", "flags"),
    [
        (Columns("review", "review", ("label",)), "--text and by --pair"),
        (Columns("review", None, ("review",)), "--text and by --label"),
        (Columns("review", None, (0,)), "--text and by --label"),
        (Columns("review", "label", ("label",)), "--pair and by --label"),
        (Columns("review", None, ("label", 1)), "--label and by --label"),
    ],
)
def test_a_column_has_one_role(columns: Columns, flags: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("review,label\na,b\n")
    with pytest.raises(ConfigError, match=rf"rows\.csv: column '\w+' is named by {flags} too\. Fix: "):
        read_examples(tmp_path / "rows.csv", columns)


def test_a_file_to_predict_may_have_its_texts_where_others_have_labels(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("review,label\na,b\n")
    reading = read_examples(tmp_path / "rows.csv", Columns("label", None, ("label",)), require_labels=False)
    assert [example.text for example in reading.examples] == ["b"]


def test_cells_that_are_no_text_are_told(tmp_path: Path) -> None:
    texts = ["good", ["a"], None, "\ud800", 12, 1.5, {"a": 1}]
    (tmp_path / "rows.json").write_text(json.dumps([{"text": text, "label": 1} for text in texts]))
    reading = read_examples(tmp_path / "rows.json", Columns())
    found = {(p.kind, p.row, p.value, p.count) for p in reading.problems}
    assert found == {("not-text", 2, "['a']", 2), ("empty-text", 3, "", 1), ("bad-unicode", 4, r"\ud800", 1)}
    assert [example.text for example in reading.examples] == ["good", "12", "1.5"]


def test_bytes_in_parquet_are_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [b"good"], "label": ["1"]}), tmp_path / "rows.parquet")
    assert [p.kind for p in read_examples(tmp_path / "rows.parquet", Columns()).problems] == ["not-text"]


def test_the_fingerprint_is_of_texts_pairs_and_labels_alone() -> None:
    base = [Example("ab", None, ("x", "y"), 1), Example("c", None, ("z",), 2)]
    same = [Example("ab", None, ("y", "x"), 5), Example("c", None, ("z",), 9)]
    assert fingerprint(base) == fingerprint(same)
    assert len(fingerprint(base)) == 64
    others = [
        base[::-1],
        base[:1],
        [Example("ab", "x", ("y",), 1), base[1]],
        [Example("ab", None, ("xy",), 1), base[1]],
        [Example("a", None, ("bx", "y"), 1), base[1]],
        [Example("ab", None, ("x",), 1), base[1]],
    ]
    assert len({fingerprint(rows) for rows in [base, *others]}) == len(others) + 1


def test_sst2_reads_as_it_is(shared_data: Find) -> None:
    columns = Columns("sentence", None, ("label",))
    train = read_examples(shared_data("sst2/train.tsv"), columns)
    assert train.problems == ()
    assert not train.multi_label
    assert dict(count_labels(train.examples)) == {"0": 29_780, "1": 37_569}
    assert not any(example.text.endswith("\r") for example in train.examples)
    dev = read_examples(shared_data("sst2/dev.tsv"), columns)
    assert (len(dev.examples), dev.problems) == (872, ())


def test_goemotions_reads_without_a_header(shared_data: Find) -> None:
    names = tuple(shared_data("goemotions/labels.txt").read_text().split())
    columns = Columns(0, None, (1,), label_separator=",", label_names=names)
    for split, rows in (("train", 43_410), ("dev", 5_426), ("test", 5_427)):
        reading = read_examples(shared_data(f"goemotions/{split}.tsv"), columns)
        assert (len(reading.examples), reading.problems, reading.multi_label) == (rows, (), True)
        assert set(count_labels(reading.examples)) == set(names)
        assert not any(example.text.startswith('"') and '""' in example.text for example in reading.examples)


def test_afqmc_reads_as_csv_and_as_json_lines(shared_data: Find) -> None:
    assert len(read_examples(shared_data("afqmc/train.csv"), PAIRS).examples) == 34_334
    dev = read_examples(shared_data("afqmc/dev.csv"), PAIRS)
    lines = read_examples(shared_data("afqmc/dev.json"), PAIRS)
    assert len(dev.examples) == 4_316
    assert dev.problems == lines.problems == ()
    assert dev.fingerprint == lines.fingerprint
    test = read_examples(shared_data("afqmc/test.csv"), PAIRS, require_labels=False)
    assert (len(test.examples), test.problems) == (3_861, ())
    assert all(example.pair and example.labels == () for example in test.examples)


@pytest.mark.parametrize(("split", "rows"), [("train", 6_931), ("dev", 1_955), ("test", 1_994)])
def test_kuake_qic_reads_as_a_json_array(shared_data: Find, split: str, rows: int) -> None:
    path = shared_data(f"kuake_qic/{split}.json")
    reading = read_examples(path, Columns("query", None, ("label",)), require_labels=split != "test")
    assert (len(reading.examples), reading.problems) == (rows, ())
    assert len(count_labels(reading.examples)) == (0 if split == "test" else 11)
