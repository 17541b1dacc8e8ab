"""Public files as their publishers write them, from the file to predictions, on a tiny base; what it learns is not looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROWS = 200
GOEMOTIONS = ["--text", "0", "--label", "1", "--label-separator", ","]
FILES = {
    "afqmc/train.csv": (["--text", "sentence1", "--pair", "sentence2", "--label", "label"], 2),
    "afqmc/dev.json": (["--text", "sentence1", "--pair", "sentence2", "--label", "label"], 2),
    "goemotions/train.tsv": (GOEMOTIONS, 28),
    "kuake_qic/train.json": (["--text", "query", "--label", "label"], None),
}


def first_rows(source: Path, target: Path) -> Path:
    """The first rows of a file, in the form that they have there."""
    text = source.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        target.write_text(json.dumps(json.loads(text)[:ROWS], ensure_ascii=False), encoding="utf-8")
    else:
        header = source.suffix == ".csv"
        target.write_text("".join(text.splitlines(keepends=True)[: ROWS + header]), encoding="utf-8")
    return target


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_real_file_trains_is_scored_and_predicted(
    name: str, shared_data: Callable[[str], Path], tiny_base: Callable[..., Path], veneer: Callable[..., Any], tmp_path: Path
) -> None:
    flags, classes = FILES[name]
    if flags is GOEMOTIONS:
        flags = [*flags, "--label-names", str(shared_data("goemotions/labels.txt"))]
    data, run = first_rows(shared_data(name), tmp_path / Path(name).name), tmp_path / "run"
    settings = ["--epochs", 1, "--set", "evaluation.bootstrap=20", "--base", tiny_base("bert"), "--out", run]
    trained = veneer("train", "--train", data, *flags, *settings)
    assert trained.code == 0, trained.err
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["splits"]["train"]["texts"] + report["splits"]["dev"]["texts"] == ROWS
    assert classes in (None, len(report["labels"]))
    scored = veneer("evaluate", run, "--data", data, "--json")
    assert (scored.code, json.loads(scored.out)["n"]) == (0, ROWS)
    predicted = veneer("predict", run, "--file", data, "--json")
    rows = json.loads(predicted.out)
    assert len(rows) == ROWS
    assert ("pair" in rows[0]) == ("--pair" in flags)
    assert all(set(row["labels"]) <= set(report["labels"]) == set(row["scores"]) for row in rows)
