"""Bad bytes are told with line and byte, and the encoding that would work is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from veneer.data import Columns, read_examples
from veneer.errors import DataError

CHINESE = "text,label\n蚂蚁借呗等额还款可以换成先息后本吗,0\n我的花呗账单是多少，怎么还款,1\n头痛,1\n"
TRADITIONAL = "text,label\n請問這個藥物對於頭痛是否有效呢,0\n我想預約明天下午的門診時間,1\n"
FRENCH = "text,label\nun café très agréable,1\nc'était une soirée ratée,0\n"
RUSSIAN = "text,label\nочень хороший врач и клиника,1\nплохой приём и долгое ожидание,0\n"


@pytest.mark.parametrize(
    ("text", "encoding", "sample"),
    [
        (CHINESE, "gb18030", "蚂蚁借呗"),
        (TRADITIONAL, "big5", "請問這個"),
        (FRENCH, "cp1252", "un café très agréable"),
        (RUSSIAN, "cp1251", "очень хороший врач"),
        (FRENCH, "utf-16", "text,label"),
        (CHINESE, "utf-32", "text,label"),
        (FRENCH, "utf-16-le", "text,label"),
        (FRENCH, "utf-16-be", "text,label"),
    ],
)
def test_the_encoding_that_works_is_offered_and_works(tmp_path: Path, text: str, encoding: str, sample: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(DataError) as error:
        read_examples(path, Columns())
    assert f"--encoding {encoding}" in str(error.value)
    assert sample in str(error.value)
    rows = [line.rpartition(",")[0] for line in text.splitlines()[1:]]
    assert [example.text for example in read_examples(path, Columns(encoding=encoding)).examples] == rows


def test_line_and_byte_of_the_first_bad_byte_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("text,label\ngood,1\nun café,0\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"not utf-8: line 3, byte 24 of the file \(0xe9\)"):
        read_examples(path, Columns())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(DataError, match=r"line 3, byte 27 of the file \(0xe9\)"):
        read_examples(path, Columns())


def test_one_broken_place_in_a_utf8_file_is_to_be_repaired(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(CHINESE.encode() + b"caf\xe9,1\n")
    with pytest.raises(DataError, match=r"line 5, .* the rest of the file is UTF-8, with 1 such place\. Fix: repair line 5"):
        read_examples(path, Columns())


def test_a_file_in_no_known_encoding_gets_no_offer(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,label\n" + bytes(range(128, 256)) * 3 + b",1\n")
    with pytest.raises(DataError, match="Fix: save the file as UTF-8"):
        read_examples(path, Columns())


def test_a_nul_character_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,label\n" + b"a good long line,1\n" * 20 + b"bad\x00,0\n")
    with pytest.raises(DataError, match="line 22 holds a NUL character"):
        read_examples(path, Columns())


@pytest.mark.parametrize("encoding", ["utf-9", "base64"])
def test_an_unknown_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,1\n")
    with pytest.raises(DataError, match=f"'{encoding}'.*Fix: --encoding utf-8"):
        read_examples(tmp_path / "rows.csv", Columns(encoding=encoding))
