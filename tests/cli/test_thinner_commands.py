"""`veneer shrink` and `veneer combine`, and the commands that read what they write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toy_runs import run, toy_config, toy_rows, write_csv

Command = Callable[..., Any]
Base = Callable[..., Path]


@pytest.fixture(scope="session")
def runs(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of different seed and rank with one dev file, and one with labels in other rows and a dev split of its own."""
    folder = tmp_path_factory.mktemp("runs")
    write_csv(folder / "train.csv", toy_rows(60))
    write_csv(folder / "dev.csv", toy_rows(30, seed=1))
    first = run(toy_config(folder, tiny_base(), out=str(folder / "first"))).folder
    second = run(toy_config(folder, tiny_base(), out=str(folder / "second"), seed=7, lora__rank=2)).folder
    split = toy_config(
        folder, tiny_base(), out=str(folder / "split"), data__dev=None, data__train=str(folder / "dev.csv"), training__epochs=1
    )
    return [first, second, run(split).folder]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "labelled.csv", toy_rows(40, seed=5))


def test_shrink_tells_ranks_sizes_and_scores(veneer: Command, runs: list[Path], labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    result = veneer("shrink", runs[0], "--out", out, "--keep", 0.9)
    assert result.code == 0, result.err
    for shown in (
        "bert.encoder.layer.*.attention.self.query",
        "LoRA parameters",
        "bytes",
        "macro_f1 on 30 dev texts",
        "calibration",
    ):
        assert shown in result.out
    assert veneer("evaluate", out, "--data", labelled).code == 0
    assert veneer("calibrate", out).code == 0
    inspected = json.loads(veneer("inspect", out, "--json").out)
    document = json.loads(veneer("shrink", runs[0], "--out", tmp_path / "again", "--keep", 0.9, "--json").out)
    ranks = {name: new for name, (_, new) in document["ranks"].items() if new}
    assert {row["name"]: row["rank"] for row in inspected["layers"]} == ranks
    assert inspected["lora_parameters"] == document["lora_parameters"][1]


@pytest.mark.parametrize("keep", [0, 1.01, -1])
def test_shrink_refuses_shares_that_are_none(veneer: Command, runs: list[Path], tmp_path: Path, keep: float) -> None:
    result = veneer("shrink", runs[0], "--out", tmp_path / "small", "--keep", keep)
    assert (result.code, "--keep is a share" in result.err) == (2, True)


def test_shrink_refuses_dev_texts_that_have_changed(veneer: Command, runs: list[Path], tmp_path: Path, tiny_base: Base) -> None:
    folder = run(toy_config(tmp_path, tiny_base(), training__epochs=1)).folder
    write_csv(tmp_path / "dev.csv", toy_rows(13, seed=2))
    result = veneer("shrink", folder, "--out", tmp_path / "small")
    assert result.code == 2
    assert "was trained on other rows than there are now" in result.err
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("flags", [[], ["--ensemble"]])
def test_combine_scores_on_the_first_runs_dev_texts(
    veneer: Command, runs: list[Path], labelled: Path, tmp_path: Path, flags: list[str]
) -> None:
    out = tmp_path / "both"
    result = veneer("combine", *runs[:2], "--out", out, *flags)
    assert result.code == 0, result.err
    assert "macro_f1 on 30 dev texts of" in result.out
    assert "calibration: fitted anew" in result.out
    scores = json.loads((out / "veneer.json").read_text())["scores"]
    evaluated = json.loads(veneer("evaluate", out, "--data", runs[0].parent / "dev.csv", "--json").out)
    assert evaluated["metrics"] == scores
    assert veneer("calibrate", out).code == 0
    assert veneer("predict", out, "--text", "a great film", "--json").code == 0
    again = veneer("calibrate", out, "--data", labelled, "--coverage", 0.9)
    assert again.code == 0, again.err
    assert json.loads(veneer("evaluate", out, "--data", labelled, "--json").out)["promises"]["coverage"]["target"] == 0.9


def test_dev_texts_that_another_run_was_trained_on_judge_nothing(veneer: Command, runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "both"
    result = veneer("combine", runs[0], runs[2], "--out", out, "--weights", "0.5,0.5")
    assert result.code == 0, result.err
    assert "scores and calibration: none." in result.out
    assert "of the 30 dev texts of" in result.out
    info = json.loads((out / "veneer.json").read_text())
    assert (info["scores"], info["calibration"]) == ({}, None)
    refused = veneer("calibrate", out)
    assert (refused.code, "was trained with other texts or labels" in refused.err) == (2, True)


def test_runs_whose_data_is_gone_are_combined_unscored(veneer: Command, runs: list[Path], tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in runs[:2]]
    for folder in folders:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        (folder / "config.yaml").write_text(text.replace("train.csv", "gone.csv"), encoding="utf-8")
    document = json.loads(veneer("combine", *folders, "--out", tmp_path / "both", "--json").out)
    assert document["score"] is None
    assert "gone.csv" in document["not_scored"]


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["--weights", "0.5;0.5"], "--weights takes numbers with commas"),
        (["--weights", "1"], "a number for each of the 2 runs, and 1 are given: 1"),
        (["--weights", "1,1", "--ensemble"], "an ensemble is a plain mean"),
    ],
)
def test_weights_that_cannot_be_used(veneer: Command, runs: list[Path], tmp_path: Path, flags: list[str], shown: str) -> None:
    result = veneer("combine", *runs[:2], "--out", tmp_path / "both", *flags)
    assert result.code == 2
    assert shown in result.err
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("command", ["merge", "shrink", "inspect"])
def test_commands_for_one_adapter_refuse_an_ensemble(veneer: Command, runs: list[Path], tmp_path: Path, command: str) -> None:
    out = tmp_path / "both"
    assert veneer("combine", *runs[:2], "--ensemble", "--out", out).code == 0
    result = veneer(command, out, *(["--out", tmp_path / "other"] if command != "inspect" else []))
    assert result.code == 2, result.out
    assert "ensemble of 2 runs" in result.err
