"""Each file format gives the same examples, and each way in which a file can be broken is told with its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from veneer.data import Columns, Problem, Reading, read_examples
from veneer.errors import DataError

ROWS = [
    ("a quiet triumph", "1"),
    ('he said "no", twice', "0"),
    ("two\nlines", "1"),
    ("清华大学 é", "0"),
]
COLUMNS = Columns("sentence", None, ("label",))


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence", "label"), *ROWS])


def write_json(path: Path) -> None:
    path.write_text(json.dumps([{"sentence": text, "label": int(label)} for text, label in ROWS]), encoding="utf-8")


def write_lines(path: Path) -> None:
    lines = [json.dumps({"label": float(label), "sentence": text}, ensure_ascii=False) for text, label in ROWS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "label": [1, 0, 1, 0], "sentence": [text for text, _ in ROWS]}), path)


def only(reading: Reading, kind: str) -> Problem:
    """The one problem there is, which must be of this kind."""
    assert [problem.kind for problem in reading.problems] == [kind]
    return reading.problems[0]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.csv", write_csv),
        ("rows.CSV", write_csv),
        ("array.json", write_json),
        ("lines.json", write_lines),
        ("lines.jsonl", write_lines),
        ("lines.ndjson", write_lines),
        ("rows.parquet", write_parquet),
    ],
)
def test_formats_give_the_same_examples_and_fingerprint(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    reading = read_examples(tmp_path / name, COLUMNS)
    assert [(example.text, example.labels, example.row) for example in reading.examples] == [
        (text, (label,), row) for row, (text, label) in enumerate(ROWS, 1)
    ]
    assert reading.problems == ()
    assert not reading.multi_label
    write_csv(tmp_path / "reference.csv")
    assert reading.fingerprint == read_examples(tmp_path / "reference.csv", COLUMNS).fingerprint


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_line_ends_blank_lines_and_byte_order_mark_do_not_matter(tmp_path: Path, name: str, end: str) -> None:
    mark = "," if name.endswith("csv") else "\t"
    lines = [f"label{mark}sentence", f"1{mark}good", "", f"0{mark}bad", ""]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode())
    reading = read_examples(tmp_path / name, COLUMNS)
    assert [(example.text, example.labels, example.row) for example in reading.examples] == [
        ("good", ("1",), 1),
        ("bad", ("0",), 2),
    ]
    assert reading.problems == ()


def test_tsv_takes_bare_quotes_as_they_are(tmp_path: Path) -> None:
    texts = ['"open', 'a 12" pipe', '"whole"', "it's", '"" twice']
    (tmp_path / "glue.tsv").write_text("label\tsentence\n" + "".join(f"1\t{text}\n" for text in texts))
    reading = read_examples(tmp_path / "glue.tsv", COLUMNS)
    assert [example.text for example in reading.examples] == texts


def test_tsv_of_a_quoting_writer_is_unquoted(tmp_path: Path) -> None:
    (tmp_path / "pandas.tsv").write_text('label\tsentence\n1\t"he said ""no"" "\n0\tplain\n')
    reading = read_examples(tmp_path / "pandas.tsv", COLUMNS)
    assert [example.text for example in reading.examples] == ['he said "no" ', "plain"]


def test_without_a_header_columns_go_by_number(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("good\tpos\tx1\nbad\tneg\tx2\nfine\tpos\tx3\nsad\tneg\tx4\n")
    for columns in (Columns(0, None, (1,)), Columns("0", None, ("1",))):
        reading = read_examples(tmp_path / "rows.tsv", columns)
        assert [example.text for example in reading.examples] == ["good", "bad", "fine", "sad"]
        assert reading.examples[0].row == 1


@pytest.mark.parametrize("header", ["sentence,label", "0,1"])
def test_a_header_is_known_as_one_when_columns_go_by_number(tmp_path: Path, header: str) -> None:
    (tmp_path / "rows.csv").write_text(f"{header}\ngood,pos\nbad,neg\n")
    reading = read_examples(tmp_path / "rows.csv", Columns(0, None, (1,)))
    assert [example.text for example in reading.examples] == ["good", "bad"]


def test_columns_of_any_format_go_by_number_too(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet")
    reading = read_examples(tmp_path / "rows.parquet", Columns(2, None, (1,)))
    assert reading.examples[0].text == ROWS[0][0]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_wrong_column_count_is_told_with_row_and_line(tmp_path: Path, name: str) -> None:
    mark = "," if name.endswith("csv") else "\t"
    rows = ["sentence,label", "good,1", "", "a,b,0", "bad,0", "short"]
    (tmp_path / name).write_text("\n".join(rows).replace(",", mark))
    reading = read_examples(tmp_path / name, COLUMNS)
    problem = only(reading, "column-count")
    assert (problem.severity, problem.row, problem.line, problem.count, problem.rows) == ("error", 2, 4, 2, (2, 4))
    assert problem.value == "3 cells: a | b | 0"
    assert "2 cells" in problem.message
    assert [example.row for example in reading.examples] == [1, 3]


@pytest.mark.parametrize("header", ["sentence\tlabel", '"sentence"\t"label"'])
@pytest.mark.parametrize("quote", ["", '"'])
def test_tsv_with_a_column_quoted_in_every_row_is_unquoted(tmp_path: Path, header: str, quote: str) -> None:
    rows = "".join(f'"{text}"\t{quote}1{quote}\n' for text in ("a good day", "why"))
    (tmp_path / "rows.tsv").write_text(f"{header}\n{rows}")
    reading = read_examples(tmp_path / "rows.tsv", COLUMNS)
    assert [(example.text, example.labels) for example in reading.examples] == [("a good day", ("1",)), ("why", ("1",))]


def test_the_line_of_a_row_counts_the_lines_inside_quoted_cells(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('sentence,label\n"three\nlong\nlines",1\n,0\n')
    problem = only(read_examples(tmp_path / "rows.csv", COLUMNS), "empty-text")
    assert (problem.row, problem.line) == (2, 5)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", 'sentence,label\ngood,1\n"never closed,0\nbad,0\n', ["begins on line 3", "not closed", "Fix"]),
        ("rows.csv", 'sentence,label\ngood,1\n"a" b,0\n', ["begins on line 3", "not valid CSV", "Fix"]),
        ("rows.csv", "", ["empty", "Fix"]),
        ("rows.csv", "\n \n", ["empty", "Fix"]),
        ("rows.json", '[{"sentence": "a", "label": 1},\n {"sentence": "b" "label": 0}]', ["line 2", "column 19", "Fix"]),
        ("rows.json", "[" * 100_000, ["JSON", "Fix"]),
        ("rows.json", '{\n "sentence": [\n "a"\n ]\n}', ["no line is a JSON object", "Fix"]),
        ("rows.parquet", "not parquet", ["not a Parquet file"]),
        ("rows.txt", "sentence\n", ["'.txt'", ".csv, .tsv, .json, .jsonl, .ndjson, .parquet"]),
    ],
)
def test_a_file_that_cannot_be_parsed_is_refused(tmp_path: Path, name: str, content: str, said: list[str]) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        read_examples(tmp_path / name, COLUMNS)
    for part in (str(tmp_path / name), *said):
        assert part in str(error.value)


def test_a_quote_closed_thousands_of_lines_later_is_an_unclosed_quote(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('sentence,label\n"open,1\n' + "good,1\n" * 30_000 + '"x,0\n')
    with pytest.raises(DataError, match=r"begins on line 2 is not valid CSV: a double quote is opened and not closed"):
        read_examples(tmp_path / "rows.csv", COLUMNS)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv")
    with pytest.raises(DataError, match=r"no such file\. Fix: data files in .* are reviews\.csv"):
        read_examples(tmp_path / "review.csv", COLUMNS)
    with pytest.raises(DataError, match="no folder"):
        read_examples(tmp_path / "none" / "review.csv", COLUMNS)
    (tmp_path / "folder.csv").mkdir()
    for folder in (tmp_path, tmp_path / "folder.csv"):
        with pytest.raises(DataError, match="is a folder"):
            read_examples(folder, COLUMNS)


@pytest.mark.parametrize(
    ("name", "content"), [("rows.csv", "sentence,label\n"), ("rows.tsv", "sentence\tlabel"), ("rows.json", "[]")]
)
def test_a_file_without_rows_is_a_problem(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    reading = read_examples(tmp_path / name, COLUMNS)
    assert only(reading, "no-rows").severity == "error"
    assert reading.examples == ()


def test_broken_json_lines_are_told_and_the_others_read(tmp_path: Path) -> None:
    lines = ['{"sentence": "a", "label": 1}', "", '{"sentence": "b"', "[1]", '{"sentence": "c", "label": 0}', "{]"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    reading = read_examples(tmp_path / "rows.jsonl", COLUMNS)
    found = {problem.kind: (problem.row, problem.line, problem.count) for problem in reading.problems}
    assert found == {"bad-json": (2, 3, 2), "not-an-object": (3, 4, 1)}
    assert [example.row for example in reading.examples] == [1, 4]


def test_an_array_of_other_things_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('["a", "b"]')
    problem = only(read_examples(tmp_path / "rows.json", COLUMNS), "not-an-object")
    assert (problem.count, problem.value) == (2, "a")


def test_a_missing_column_lists_those_there_are_and_the_nearest(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv")
    with pytest.raises(DataError) as error:
        read_examples(tmp_path / "rows.csv", Columns("sentense", None, ("Label", "topic")))
    said = str(error.value)
    assert "no column 'sentense' for the text" in said
    assert "no column 'Label' for the label; no column 'topic' for the label" in said
    assert "0 'sentence', 1 'label'" in said
    assert "--text sentence" in said
    assert "--text 0 --label 1" in said
    with pytest.raises(DataError, match="no column '7' for the pair"):
        read_examples(tmp_path / "rows.csv", Columns("sentence", 7, ("label",)))


def test_a_csv_of_semicolons_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("sentence;label\ngood;1\n")
    with pytest.raises(DataError, match="separated by semicolons, not commas") as refused:
        read_examples(tmp_path / "rows.csv", COLUMNS)
    assert str(refused.value).count("Fix: ") == 1  # and none that names a column with a semicolon in it
    assert "--label" not in str(refused.value)


def test_a_fix_can_be_copied_and_speaks_of_headers_only_where_there_are_some(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("the text,what; kind\ngood,1\n")
    with pytest.raises(DataError, match=r"Fix: --text 'the text' --label 'what; kind'; in a file without a header"):
        read_examples(tmp_path / "rows.csv", Columns("the-text", None, ("what kind",)))
    (tmp_path / "rows.json").write_text('[{"sentence": "good", "label": 1}]')
    with pytest.raises(DataError, match=r"Fix: --text sentence$"):
        read_examples(tmp_path / "rows.json", Columns("sentense", None, ("label",)))


def test_a_name_that_two_columns_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("sentence,label,label\ngood,1,2\n")
    with pytest.raises(DataError, match="columns 1 and 2 are both named 'label'"):
        read_examples(tmp_path / "rows.csv", COLUMNS)
    assert read_examples(tmp_path / "rows.csv", Columns("sentence", None, (2,))).examples[0].labels == ("2",)


def test_a_csv_cell_may_be_as_long_as_the_file(tmp_path: Path) -> None:
    """Longer than the limit of the csv module, which another test may have raised already."""
    long = "a " * max(70_000, csv.field_size_limit())
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence", "label"), (long + ", b", "1"), ("short", "0")])
    reading = read_examples(tmp_path / "rows.csv", COLUMNS)
    assert [example.text for example in reading.examples] == [long + ", b", "short"]
    (tmp_path / "open.csv").write_text(f'sentence,label\n"{long},1\n', encoding="utf-8")
    with pytest.raises(DataError, match="a double quote is opened and not closed"):
        read_examples(tmp_path / "open.csv", COLUMNS)


@pytest.mark.parametrize(("first", "header"), [("so happy today,joy", False), ("text,joy,anger", True)])
def test_names_of_labels_that_need_not_be_there_tell_a_header_together(tmp_path: Path, first: str, header: bool) -> None:
    (tmp_path / "rows.csv").write_text(f"{first}\n" + ",".join(["a day", "1", "0"][: first.count(",") + 1]) + "\n")
    reading = read_examples(tmp_path / "rows.csv", Columns("0", None, ("joy", "anger")), require_labels=False)
    assert len(reading.examples) == 2 - header
    assert reading.unnamed is not header
