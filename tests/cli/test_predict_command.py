"""`veneer predict`"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toy_runs import write_csv
from veneer.cli import predict as command
from veneer.predictor import load

TEXTS = ["a great film", 'a comma, a "quote" and\ttab', "头痛 [bold]dull[/]"]


def test_json_is_what_the_predictor_says(veneer: Callable[..., Any], single_run: Path) -> None:
    result = veneer("predict", single_run, "--text", TEXTS[0], "--json")
    (prediction,) = load(single_run).predict([TEXTS[0]])
    expected = {"text": TEXTS[0], "labels": list(prediction.labels), "scores": prediction.scores}
    assert (result.code, json.loads(result.out)) == (0, [expected])


def test_how_many_texts_are_cut_is_said_on_standard_error(single_run: Path) -> None:
    """In a process of its own: pytest's log handlers would take the message."""
    command = [sys.executable, "-c", "from veneer.cli import main; main()", "predict", str(single_run), "--json"]
    done = subprocess.run(command, input="a film\n" + "bad " * 200 + "\n", capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)) == 2
    assert done.stderr == "1 of 2 texts are longer than 128 tokens and cut\n"


def test_standard_input_has_a_text_a_line(veneer: Callable[..., Any], single_run: Path) -> None:
    piped = "\ufeffgood day\r\n\n  \nwhy\u2028not\x0b?".encode()  # only a line feed ends a line
    result = veneer("predict", single_run, "--json", input=piped)
    assert [row["text"] for row in json.loads(result.out)] == ["good day", "why\u2028not\x0b?"]


def test_a_pair_a_line_has_a_tab(veneer: Callable[..., Any], pair_run: Path) -> None:
    (row,) = json.loads(veneer("predict", pair_run, "--json", input="good day\tbad day\n").out)
    assert (row["text"], row["pair"]) == ("good day", "bad day")
    (alone,) = json.loads(veneer("predict", pair_run, "--text", "good day", "--pair", "bad day", "--json").out)
    assert alone == row
    result = veneer("predict", pair_run, "--json", input="good day\tbad day\ngood day\n")
    assert result.code == 2
    assert "line 2" in result.err


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl"])
def test_a_file_is_written_by_its_ending(veneer: Callable[..., Any], multi_run: Path, tmp_path: Path, ending: str) -> None:
    source = tmp_path / "texts.json"
    source.write_text(json.dumps([{"text": text, "label": "never looked at"} for text in TEXTS]), encoding="utf-8")
    target = tmp_path / f"out.{ending}"
    result = veneer("predict", multi_run, "--file", source, "--out", target)
    assert (result.code, result.err) == (0, "")
    written = target.read_text(encoding="utf-8")
    predictions = load(multi_run).predict(TEXTS)
    if ending in ("csv", "tsv"):
        rows = list(csv.DictReader(io.StringIO(written), delimiter="," if ending == "csv" else "\t"))
        assert [row["labels"] for row in rows] == [";".join(one.labels) for one in predictions]
        assert [float(row["score:odd"]) for row in rows] == pytest.approx([one.scores["odd"] for one in predictions], abs=1e-6)
    else:
        assert ending == "jsonl" or len(written.splitlines()) == len(TEXTS) + 2  # a row a line, between brackets
        rows = json.loads(written) if ending == "json" else [json.loads(line) for line in written.splitlines()]
        assert [row["scores"] for row in rows] == [one.scores for one in predictions]
    assert [row["text"] for row in rows] == TEXTS
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, target.name])


def test_a_carriage_return_in_a_text_does_not_end_its_row(veneer: Callable[..., Any], multi_run: Path, tmp_path: Path) -> None:
    texts = ["a good\rday", "plain"]
    (tmp_path / "texts.json").write_text(json.dumps([{"text": text} for text in texts]), encoding="utf-8")
    target = tmp_path / "out.csv"
    assert veneer("predict", multi_run, "--file", tmp_path / "texts.json", "--out", target).code == 0
    with target.open(encoding="utf-8", newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == texts


def test_columns_are_those_of_the_run_or_named(veneer: Callable[..., Any], pair_run: Path, tmp_path: Path) -> None:
    dev = pair_run.parent / "dev.csv"
    rows = json.loads(veneer("predict", pair_run, "--file", dev, "--json").out)
    assert len(rows) == 10
    assert rows[0]["pair"] == rows[0]["text"][::-1]
    turned = veneer("predict", pair_run, "--file", dev, "--text-column", "two", "--pair-column", "one", "--json")
    assert json.loads(turned.out)[0]["text"] == rows[0]["pair"]
    result = veneer("predict", pair_run, "--file", dev, "--text-column", "none", "--json")
    assert result.code == 2
    assert "--text-column" in result.err


def test_a_run_without_its_configuration_asks_for_the_column(
    veneer: Callable[..., Any], bare_run: Callable[[Path], Path], single_run: Path
) -> None:
    bare, dev = bare_run(single_run), single_run.parent / "dev.csv"
    refused = veneer("predict", bare, "--file", dev, "--json")
    assert refused.code == 2
    assert "has no config.yaml" in refused.err
    assert "or give --text-column COLUMN" in refused.err
    named = veneer("predict", bare, "--file", dev, "--text-column", "text", "--json")
    assert named.out == veneer("predict", single_run, "--file", dev, "--json").out
    assert veneer("predict", bare, "--text", "good", "--json").code == 0


def test_columns_by_number_tell_a_header_as_training_does(
    veneer: Callable[..., Any], tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    from toy_runs import run, toy_config

    folder = run(toy_config(tmp_path, tiny_base(), data__text=0, data__label=1, training__epochs=1)).folder
    with_header = json.loads(veneer("predict", folder, "--file", tmp_path / "dev.csv", "--json").out)
    assert len(with_header) == 12
    assert with_header[0]["text"] != "text"
    lines = (tmp_path / "dev.csv").read_text(encoding="utf-8").splitlines()[1:]
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    assert json.loads(veneer("predict", folder, "--file", tmp_path / "rows.csv", "--json").out) == with_header


def test_what_cannot_be_classified_is_told_and_nothing_is_written(
    veneer: Callable[..., Any], single_run: Path, tmp_path: Path
) -> None:
    source = write_csv(tmp_path / "texts.csv", [{"text": "good", "x": ""}, {"text": "  ", "x": ""}])
    result = veneer("predict", single_run, "--file", source, "--out", tmp_path / "out.csv")
    assert result.code == 2
    assert "row 2" in result.err
    assert not (tmp_path / "out.csv").exists()


def test_nothing_is_overwritten_without_being_asked(veneer: Callable[..., Any], single_run: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "texts.csv", [{"text": "good"}])
    before = source.read_bytes()
    (tmp_path / "same.csv").symlink_to(source)
    (tmp_path / "out.csv").write_text("mine")
    assert "never overwritten" in veneer("predict", single_run, "--file", source, "--out", source, "--force").err
    assert "never overwritten" in veneer("predict", single_run, "--file", source, "--out", tmp_path / "same.csv", "--force").err
    refused = veneer("predict", single_run, "--file", source, "--out", tmp_path / "out.csv")
    assert (refused.code, (tmp_path / "out.csv").read_text()) == (2, "mine")
    assert veneer("predict", single_run, "--file", source, "--out", tmp_path / "out.csv", "--force").code == 0
    assert (tmp_path / "out.csv").read_text().startswith("text,labels,score:")
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "a", "--file", "b.csv"], "--text and --file cannot go together"),
        (["--text", "a", "--interactive"], "--text and --interactive cannot go together"),
        (["--file", "b.csv"], "--out FILE, or --json"),
        (["--out", "b.csv"], "--out belongs to --file"),
        (["--pair", "a"], "--pair is the second text"),
        (["--text", " "], "--text is empty"),
        (["--text", "a\udc80"], "--text is not valid Unicode"),
        (["--interactive", "--json"], "cannot go together"),
        (["--file", "b.csv", "--out", "b.xlsx"], ".csv, .tsv, .json, .jsonl"),
        (["--file", "b.csv", "--out", "no/such/b.csv"], "there is no folder no/such"),
        (["--file", "b.csv", "--out", "folder.csv"], "folder.csv is a folder"),
    ],
)
def test_wrong_combinations(
    veneer: Callable[..., Any],
    single_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    result = veneer("predict", single_run, *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_folder_that_cannot_be_written_to_is_told_before_any_work(
    veneer: Callable[..., Any], single_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path) != tmp_path)  # the tests may run as root, who may write
    result = veneer("predict", single_run, "--file", tmp_path / "missing.csv", "--out", tmp_path / "b.csv")
    assert result.code == 2
    assert f"the folder {tmp_path} cannot be written to. Fix: another --out" in result.err.replace("\n", "")


def test_a_second_text_must_fit_the_model(veneer: Callable[..., Any], single_run: Path, pair_run: Path) -> None:
    assert veneer("predict", single_run, "--text", "a", "--pair", "b").code == 2
    assert veneer("predict", pair_run, "--text", "a").code == 2
    dev = single_run.parent / "dev.csv"
    assert "trained on single texts" in veneer("predict", single_run, "--file", dev, "--pair-column", "text", "--json").err


def test_a_terminal_with_nothing_piped_is_wrong_usage(
    veneer: Callable[..., Any], single_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    class System:
        stdin = Terminal("")

    monkeypatch.setattr(command, "sys", System)
    result = veneer("predict", single_run)
    assert result.code == 2
    assert "--interactive" in result.err


def test_standard_input_without_a_text_or_in_another_encoding(veneer: Callable[..., Any], single_run: Path) -> None:
    assert "holds no text" in veneer("predict", single_run, input="\n \n").err
    result = veneer("predict", single_run, input="头痛怎么办".encode("gb18030"))
    assert result.code == 2
    assert "not UTF-8" in result.err


def test_a_dialogue_ends_with_an_empty_line_or_the_end(veneer: Callable[..., Any], single_run: Path, pair_run: Path) -> None:
    result = veneer("predict", single_run, "--interactive", input="great\nbad\n\nnever asked\n")
    assert result.code == 0
    assert result.out.count("✓") == 2
    assert veneer("predict", single_run, "--interactive", input="great\n").out.count("✓") == 1
    paired = veneer("predict", pair_run, "--interactive", input="great\nbad\ngood\n\n")
    assert (paired.code, paired.out.count("✓")) == (0, 1)


def test_texts_and_labels_are_no_markup(veneer: Callable[..., Any], single_run: Path) -> None:
    result = veneer("predict", single_run, input="[bold]good[/]\n[/nothing]\n")
    assert "[bold]good[/]" in result.out
    assert "[/nothing]" in result.out


def test_no_label_is_said_so(veneer: Callable[..., Any], multi_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from veneer.predictor import Prediction, Predictor

    def nothing(self: Predictor, texts: list[str], *_: object, **__: object) -> list[Prediction]:
        return [Prediction((), {"bad": 0.1, "good": 0.2, "odd": 0.3})] * len(texts)

    monkeypatch.setattr(Predictor, "predict", nothing)
    assert "no label is likely enough" in veneer("predict", multi_run, "--text", "a").out
    assert veneer("predict", multi_run, input="a\nb\n").out.count("none") == 2


def test_a_column_that_is_not_there(veneer: Callable[..., Any], single_run: Path, tmp_path: Path) -> None:
    """No fix speaks of labels, which predict takes no column of."""
    (tmp_path / "texts.csv").write_text("review\na good day\n", encoding="utf-8")
    result = veneer("predict", single_run, "--file", tmp_path / "texts.csv", "--json")
    assert result.code == 2
    assert "--text-column" in result.err
    assert "--label" not in result.err


def test_a_file_without_a_header_loses_no_row(veneer: Callable[..., Any], single_run: Path, tmp_path: Path) -> None:
    """Though the run names its label column: nothing in such a file bears that name."""
    (tmp_path / "rows.csv").write_text("a good day\na bad day\nwhy not\n", encoding="utf-8")
    (tmp_path / "more.csv").write_text("a good day,x\na bad day,y\n", encoding="utf-8")
    for name, count in (("rows.csv", 3), ("more.csv", 2)):
        result = veneer("predict", single_run, "--file", tmp_path / name, "--text-column", "0", "--json")
        assert [row["text"] for row in json.loads(result.out)] == ["a good day", "a bad day", "why not"][:count]
        assert result.err == ""
    (tmp_path / "named.csv").write_text("review,label\na good day,good\n", encoding="utf-8")
    result = veneer("predict", single_run, "--file", tmp_path / "named.csv", "--text-column", "0", "--json")
    assert [row["text"] for row in json.loads(result.out)] == ["a good day"]
    assert result.err == ""


def test_a_first_row_that_looks_like_a_header_is_told(veneer: Callable[..., Any], single_run: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("Review\na good day\n", encoding="utf-8")
    result = veneer("predict", single_run, "--file", tmp_path / "rows.csv", "--text-column", "0", "--json")
    assert len(json.loads(result.out)) == 2
    assert "row 1, 'Review', is classified as a text. If it names the column: --text-column Review" in result.err
