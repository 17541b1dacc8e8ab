"""Labels in every shape: one, lists, separated strings, 0/1 columns, joined columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from veneer.data import Columns, Reading, read_examples


def read_rows(tmp_path: Path, rows: list[dict[str, Any]], columns: Columns, **options: bool) -> Reading:
    """Rows of one text each, read back from JSON lines."""
    lines = [json.dumps({"text": f"text {i}"} | row) for i, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return read_examples(tmp_path / "rows.jsonl", columns, **options)


def labels(reading: Reading) -> list[tuple[str, ...]]:
    return [example.labels for example in reading.examples]


def kinds(reading: Reading) -> list[tuple[str, int | None, str | None, str, int]]:
    return [(p.kind, p.row, p.column, p.value, p.count) for p in reading.problems]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1", "1"),
        (" 1.0\t", "1"),
        ("-1.00", "-1"),
        (1.5, "1.5"),
        ("1.50", "1.50"),
        (True, "True"),
        ("True", "True"),
        ("  a b ", "a b"),
        ("01", "01"),
    ],
)
def test_a_label_has_one_name_however_it_is_written(tmp_path: Path, written: object, name: str) -> None:
    reading = read_rows(tmp_path, [{"label": written}], Columns())
    assert labels(reading) == [(name,)]
    assert not reading.multi_label


def test_missing_and_unusable_labels_are_told(tmp_path: Path) -> None:
    rows = [{"label": "a"}, {"label": None}, {}, {"label": "  "}, {"label": float("nan")}, {"label": {"x": 1}}, {"label": "b"}]
    reading = read_rows(tmp_path, rows, Columns())
    assert kinds(reading) == [("missing-label", 2, "label", "", 4), ("bad-label", 6, "label", "{'x': 1}", 1)]
    assert [example.row for example in reading.examples] == [1, 7]


def test_without_required_labels_cells_may_be_empty_and_columns_absent(tmp_path: Path) -> None:
    reading = read_rows(tmp_path, [{"label": "a"}, {"label": None}], Columns(), require_labels=False)
    assert labels(reading) == [("a",), ()]
    reading = read_rows(tmp_path, [{}, {}], Columns(label=("x", "y")), require_labels=False)
    assert labels(reading) == [(), ()]
    assert reading.problems == ()
    assert reading.multi_label


def test_lists_of_labels(tmp_path: Path) -> None:
    rows = [{"label": ["b", "a", "b"]}, {"label": []}, {"label": "c"}, {"label": [2.0, " d "]}]
    reading = read_rows(tmp_path, rows, Columns())
    assert labels(reading) == [("b", "a"), (), ("c",), ("2", "d")]
    assert reading.multi_label
    assert reading.problems == ()


def test_lists_in_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [[1, 2], [], None]}), tmp_path / "rows.parquet")
    reading = read_examples(tmp_path / "rows.parquet", Columns())
    assert labels(reading) == [("1", "2"), ()]
    assert reading.multi_label
    assert kinds(reading) == [("missing-label", 3, "label", "", 1)]


def test_separated_strings(tmp_path: Path) -> None:
    rows = [{"label": "b; a;b"}, {"label": "a"}, {"label": ";"}, {"label": ""}]
    reading = read_rows(tmp_path, rows, Columns(label_separator=";"))
    assert labels(reading) == [("b", "a"), ("a",)]
    assert reading.multi_label
    assert kinds(reading) == [("missing-label", 3, "label", ";", 2)]


def test_numbers_get_their_names(tmp_path: Path) -> None:
    columns = Columns(label_separator=",", label_names=("joy", "fear", "love"))
    rows = [{"label": "2,0"}, {"label": 1}, {"label": "fear,1"}, {"label": "3"}, {"label": "hate"}]
    reading = read_rows(tmp_path, rows, columns)
    assert labels(reading) == [("love", "joy"), ("fear",), ("fear",)]
    (problem,) = reading.problems
    assert (problem.kind, problem.row, problem.value, problem.count) == ("unknown-label", 4, "3", 2)
    assert "0 to 2, or joy, fear, love" in problem.fix


def test_indicator_columns(tmp_path: Path) -> None:
    rows = [{"joy": 1, "fear": "0"}, {"joy": False, "fear": True}, {"joy": 0.0, "fear": "0"}, {"joy": "1.0", "fear": "true"}]
    reading = read_rows(tmp_path, rows, Columns(label=("joy", "fear")))
    assert labels(reading) == [("joy",), ("fear",), (), ("joy", "fear")]
    assert reading.multi_label
    assert reading.problems == ()


def test_a_stray_cell_in_indicator_columns_is_told(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"joy": 1, "fear": 0} for _ in range(20)]
    rows[3]["fear"] = 2
    rows[5]["joy"] = None
    reading = read_rows(tmp_path, rows, Columns(label=("joy", "fear")))
    assert kinds(reading) == [("bad-indicator", 4, "fear", "2", 1), ("bad-indicator", 6, "joy", "", 1)]
    assert set(labels(reading)) == {("joy",)}
    assert len(reading.examples) == 18


def test_indicator_columns_without_a_header_take_the_label_names(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("some text,1,0\nother text,0,1\n")
    assert labels(read_examples(tmp_path / "rows.csv", Columns(0, None, (1, 2)))) == [("1",), ("2",)]
    named = Columns(0, None, (1, 2), label_names=("joy", "fear"))
    assert labels(read_examples(tmp_path / "rows.csv", named)) == [("joy",), ("fear",)]


def test_primary_and_secondary_columns_are_joined_primary_first(tmp_path: Path) -> None:
    rows = [
        {"primary": "z", "secondary": "a|b"},
        {"primary": "a", "secondary": None},
        {"primary": "b", "secondary": ["z", "b"]},
        {"primary": "", "secondary": ""},
    ]
    reading = read_rows(tmp_path, rows, Columns(label=("primary", "secondary"), label_separator="|"))
    assert labels(reading) == [("z", "a", "b"), ("a",), ("b", "z")]
    assert reading.multi_label
    assert kinds(reading) == [("missing-label", 4, "primary", "", 1)]
