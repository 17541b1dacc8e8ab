"""`veneer audit`, and `veneer train --corrections` with what it wrote."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import veneer.training as veneer_training
from toy_runs import toy_rows, write_csv
from veneer.config import RunConfig
from veneer.errors import Interrupted, TrainingError
from veneer.training import folds as folds_module
from veneer.training.folds import FoldedTraining

Command = Callable[..., Any]


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of training: models that know which word goes with which label, and are sure of it."""

    def fold(work: FoldedTraining, trained_on: Any, move: Any) -> torch.Tensor:
        held = [example for example, mine in zip(work.examples, trained_on, strict=True) if not mine]
        good = torch.tensor([4.0 if any(word in one.text.split() for word in GOOD) else -4.0 for one in held])
        return torch.stack([-good, good], 1) / 2

    monkeypatch.setattr(folds_module, "_train_fold", fold)


GOOD = ("good", "great", "love", "better")


@pytest.fixture
def wrong(single_run: Path, tmp_path: Path) -> Path:
    """40 rows, the labels of two of them changed."""
    rows = toy_rows(40)
    for row in (5, 12):
        rows[row - 1]["label"] = "bad" if rows[row - 1]["label"] == "good" else "good"
    return write_csv(tmp_path / "wrong.csv", rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("knowing")
def test_it_writes_the_suspects_and_says_what_to_do(veneer: Command, single_run: Path, wrong: Path, tmp_path: Path) -> None:
    out = tmp_path / "suspects.csv"
    result = veneer("audit", single_run, "--data", wrong, "--out", out)
    assert result.code == 0, result.err
    rows = read(out)
    assert {row["row"] for row in rows} == {"5", "12"}
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert {row["use"] for row in rows} == {""}
    assert "2 of 40 rows (5.0%)" in result.out
    assert f"--train {wrong} --corrections {out}" in result.out.replace("\n", "")
    assert "fold 5 of 5" in result.err
    assert list(tmp_path.glob("*.folds")) == []  # nothing is left of the folds


@pytest.mark.usefixtures("knowing")
def test_json_is_the_only_thing_on_standard_output(veneer: Command, single_run: Path, wrong: Path, tmp_path: Path) -> None:
    result = veneer("audit", single_run, "--data", wrong, "--out", tmp_path / "s.csv", "--folds", 2, "--json")
    tree = json.loads(result.out)
    assert (tree["texts"], tree["folds"], {one["row"] for one in tree["suspects"]}) == (40, 2, {5, 12})
    assert tree["suspects"][0].keys() == {"rank", "row", "text", "pair", "given", "suggested", "score", "probability"}
    assert tree["out_of_fold"]["accuracy"] == 0.95


@pytest.mark.usefixtures("knowing")
def test_accepted_suggestions_go_into_a_training(
    veneer: Command, single_run: Path, wrong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.csv"
    assert veneer("audit", single_run, "--data", wrong, "--out", out, "--accept", 0.5).code == 0
    seen: list[RunConfig] = []

    def train(config: RunConfig, **_: Any) -> None:
        seen.append(config)
        raise TrainingError("enough")

    monkeypatch.setattr(veneer_training, "train", train)
    veneer("train", single_run / "config.yaml", "--train", wrong, "--corrections", out, "--out", tmp_path / "new")
    from veneer.training.prepare import read_material

    material = read_material(seen[0])
    assert material.corrected == 2
    assert [one.labels for one in material.examples["train"]] == [(row["label"],) for row in toy_rows(40)]


@pytest.mark.usefixtures("knowing")
def test_the_runs_own_training_file_is_audited_by_default(veneer: Command, single_run: Path, tmp_path: Path) -> None:
    result = veneer("audit", single_run, "--out", tmp_path / "s.csv")
    assert result.code == 0, result.err
    assert f"0 of {len(read(single_run.parent / 'train.csv'))} rows" in result.out
    assert read(tmp_path / "s.csv") == []


@pytest.mark.usefixtures("knowing")
def test_marks_are_not_overwritten(veneer: Command, single_run: Path, wrong: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    out.write_text("mine", encoding="utf-8")
    refused = veneer("audit", single_run, "--data", wrong, "--out", out)
    assert (refused.code, out.read_text(encoding="utf-8")) == (2, "mine")
    assert "--force" in refused.err
    assert veneer("audit", single_run, "--data", wrong, "--out", out, "--force").code == 0
    assert len(read(out)) == 2


@pytest.mark.parametrize(("out", "said"), [("s.xlsx", "--out s.csv"), ("nowhere/s.csv", "there is no folder")])
def test_a_file_that_cannot_be_written_is_refused_first(
    veneer: Command, single_run: Path, tmp_path: Path, out: str, said: str
) -> None:
    result = veneer("audit", single_run, "--out", tmp_path / out)
    assert result.code == 2
    assert said in result.err


def test_a_stop_says_how_to_go_on(veneer: Command, single_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fold(work: FoldedTraining, trained_on: Any, move: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted("at step 3")
        return torch.zeros(int((~trained_on).sum()), 2)

    monkeypatch.setattr(folds_module, "_train_fold", fold)
    result = veneer("audit", single_run, "--out", tmp_path / "s.csv")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("stopped in fold 2 of 5; 1 finished fold is kept in ")
    assert (tmp_path / "s.csv.folds").exists()
    assert not (tmp_path / "s.csv").exists()


@pytest.fixture
def ignorant(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of training: models that say the same of every text."""
    zeros = lambda work, trained_on, move: torch.zeros(int((~trained_on).sum()), 2)  # noqa: E731
    monkeypatch.setattr(folds_module, "_train_fold", zeros)


@pytest.mark.usefixtures("ignorant")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_models_that_know_nothing_are_an_error_and_no_suspects(
    flags: list[str], veneer: Command, single_run: Path, wrong: Path, tmp_path: Path
) -> None:
    result = veneer("audit", single_run, "--data", wrong, "--out", tmp_path / "s.csv", "--force", *flags)
    assert (result.code, result.out) == (1, "")
    said = "error: the models know too little to doubt a label: their out-of-fold macro recall of 0.5000 is not clearly above"
    assert said in result.err
    assert "Fix: more epochs (--epochs), more rows, or --quick" in result.err
    assert list(tmp_path.glob("s.csv*")) == []  # the folds neither: more epochs would be refused as another audit


def test_the_quick_way_has_the_same_output_and_says_what_it_is_worth(
    veneer: Command, single_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folds_module, "_train_fold", lambda *_: pytest.fail("trained"))
    out, data = tmp_path / "s.csv", write_csv(tmp_path / "more.csv", toy_rows(120, seed=7))
    result = veneer("audit", single_run, "--data", data, "--quick", "--out", out)
    assert result.code == 0, result.err
    assert "of 120 rows" in result.out
    assert "--quick trains nothing: its models are weaker than an adapter" in result.out.replace("\n", " ")
    assert f"--corrections {out}" in result.out.replace("\n", "")
    assert list(tmp_path.glob("*.folds")) == []
    tree = json.loads(veneer("audit", single_run, "--data", data, "--quick", "--out", out, "--force", "--json").out)
    assert (tree["quick"], len(tree["suspects"])) == (True, len(read(out)))
    assert any("--quick" in caution for caution in tree["warnings"])


def test_the_quick_way_has_no_epochs(veneer: Command, single_run: Path, tmp_path: Path) -> None:
    result = veneer("audit", single_run, "--quick", "--epochs", 2, "--out", tmp_path / "s.csv")
    assert result.code == 2
    assert "--quick trains nothing" in result.err


@pytest.mark.usefixtures("knowing")
@pytest.mark.parametrize(("flipped", "warned"), [(8, False), (9, True)])
def test_more_doubts_than_a_fifth_of_the_rows_are_warned_of(
    flipped: int, warned: bool, veneer: Command, single_run: Path, tmp_path: Path
) -> None:
    rows = toy_rows(40)
    for row in rows[:flipped]:
        row["label"] = "bad" if row["label"] == "good" else "good"
    result = veneer("audit", single_run, "--data", write_csv(tmp_path / "w.csv", rows), "--out", tmp_path / "s.csv")
    assert result.code == 0, result.err
    assert f"{flipped} of 40 rows" in result.out
    assert ("are doubted, more than are likely to be wrong" in result.out) == warned


def test_without_cleanlab(veneer: Command, single_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "cleanlab" else find(name, *rest))
    result = veneer("audit", single_run, "--out", tmp_path / "s.csv")
    assert result.code == 2
    assert "pip install 'veneer[audit]'" in result.err


@pytest.mark.usefixtures("knowing")
def test_epochs_and_columns_may_be_others(
    veneer: Command, single_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path / "t.csv", [{"words": row["text"], "mood": row["label"]} for row in toy_rows(20)])
    seen: list[RunConfig] = []
    known = folds_module._train_fold

    def fold(work: FoldedTraining, *rest: Any) -> torch.Tensor:
        seen.append(work.config)
        return known(work, *rest)

    monkeypatch.setattr(folds_module, "_train_fold", fold)
    flags = ["--data", tmp_path / "t.csv", "--text", "words", "--label", "mood", "--epochs", 7, "--folds", 2]
    result = veneer("audit", single_run, *flags, "--out", tmp_path / "s.csv")
    assert result.code == 0, result.err
    assert [config.training.epochs for config in seen] == [7, 7]
    assert seen[0].lora.rank == 4  # the run's own
    assert f"--train {tmp_path / 't.csv'} --text words --label mood --corrections " in result.out.replace("\n", "")


@pytest.mark.usefixtures("knowing")
def test_pairs_have_a_column(veneer: Command, pair_run: Path, tmp_path: Path) -> None:
    rows = read(pair_run.parent / "train.csv")
    rows[3]["label"] = "good" if rows[3]["label"] == "bad" else "bad"
    write_csv(tmp_path / "pairs.csv", rows)
    result = veneer("audit", pair_run, "--data", tmp_path / "pairs.csv", "--out", tmp_path / "s.csv", "--folds", 2)
    assert result.code == 0, result.err
    (one,) = read(tmp_path / "s.csv")
    assert (one["row"], one["text"], one["pair"]) == ("4", rows[3]["one"], rows[3]["two"])
