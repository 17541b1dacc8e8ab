"""`veneer shrink` and `veneer combine`, and the commands that read what they write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toy_runs import run, toy_config, toy_rows, write_csv
from veneer.errors import InputError

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


@pytest.fixture(scope="session")
def tested(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of different seed and rank with one dev and one test file."""
    folder = tmp_path_factory.mktemp("tested")
    for name, count, seed in (("train", 60, 0), ("dev", 30, 1), ("test", 20, 2)):
        write_csv(folder / f"{name}.csv", toy_rows(count, seed=seed))
    config = toy_config(folder, tiny_base(), out=str(folder / "first"), data__test=str(folder / "test.csv"))
    second = toy_config(
        folder, tiny_base(), out=str(folder / "second"), data__test=str(folder / "test.csv"), seed=7, lora__rank=2
    )
    return [run(config).folder, run(second).folder]


@pytest.fixture(params=["shrink", "combine", "ensemble"])
def made(request: pytest.FixtureRequest, veneer: Command, tested: list[Path], tmp_path: Path) -> Path:
    """A folder that is called as it was made."""
    out = tmp_path / str(request.param)
    command = {
        "shrink": ["shrink", tested[0], "--keep", 0.9],
        "combine": ["combine", *tested],
        "ensemble": ["combine", *tested, "--ensemble"],
    }[request.param]
    result = veneer(*command, "--out", out)
    assert result.code == 0, result.err
    return out


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
    for command in (["calibrate", out], ["shrink", out, "--out", tmp_path / "small"], ["compare", runs[0], out]):
        refused = veneer(*command)
        assert refused.code == 2
        said = " ".join(refused.err.split())
        assert f"{out} was made by veneer combine from {runs[0]} and {runs[2]}, and has no dev texts of its own: " in said
        assert "Fix: veneer evaluate or veneer calibrate with --data FILE" in said
        assert "rows" not in said
    again = veneer("combine", out, runs[1], "--out", tmp_path / "again")
    assert "has no dev texts of its own" in " ".join(again.out.split())


def test_runs_whose_data_is_gone_are_combined_unscored(veneer: Command, runs: list[Path], tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in runs[:2]]
    for folder in folders:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        (folder / "config.yaml").write_text(text.replace("train.csv", "gone.csv"), encoding="utf-8")
    document = json.loads(veneer("combine", *folders, "--out", tmp_path / "both", "--json").out)
    assert document["score"] is None
    assert "gone.csv" in document["not_scored"]


class TestAMadeFolder:
    """What shrink and combine write is a run like any other, its report included."""

    def test_it_notices_that_dev_or_test_texts_have_changed(
        self, veneer: Command, tested: list[Path], made: Path, tmp_path: Path
    ) -> None:
        data = tested[0].parent
        for split in ("dev", "test"):
            before = (data / f"{split}.csv").read_bytes()
            write_csv(data / f"{split}.csv", toy_rows(22, seed=9))
            for command in (["calibrate", made], ["compare", made, "--baselines"], ["shrink", made, "--out", tmp_path / "small"]):
                result = veneer(*command)
                if command[0] == "shrink" and made.name == "ensemble" and result.code == 2:
                    continue  # it has no adapter to shrink
                assert (result.code, f"{split}.csv ({split})" in " ".join(result.err.split())) == (2, True), command
            (data / f"{split}.csv").write_bytes(before)
        assert veneer("calibrate", made).code == 0

    def test_its_report_says_what_it_is_and_what_it_was_made_from(self, veneer: Command, tested: list[Path], made: Path) -> None:
        report, first = (json.loads((folder / "report.json").read_text()) for folder in (made, tested[0]))
        info = json.loads((made / "veneer.json").read_text())
        assert report["training"] is None
        assert report["history"] == []
        assert report["data"] == first["data"]
        assert set(report["splits"]) == {"dev", "test"} | ({"train"} if made.name == "shrink" else set())
        assert report["labels"] == info["labels"]
        assert report["evaluations"]["dev"]["metrics"] == info["scores"]
        assert report["evaluations"]["test"]["n"] == 20
        assert report["calibration"]["parameters"] == info["calibration"]
        sources = report["made_from"]["runs"]
        assert [run["folder"] for run in sources] == [str(folder) for folder in tested[: len(sources)]]
        assert [run["weight"] for run in sources] == [0.5 if made.name == "combine" else None] * len(sources)
        scores = [json.loads((folder / "veneer.json").read_text())["scores"] for folder in tested]
        assert [run["score"][0] for run in sources] == [one["macro_f1"] for one in scores[: len(sources)]]
        assert all(run["stored_bytes"] > 0 and run["lora_parameters"] > 0 for run in sources)
        assert report["made_from"]["lora_parameters"] == report["parameters"]["lora"] > 0
        if made.name != "ensemble":
            inspected = json.loads(veneer("inspect", made, "--json").out)
            assert {name: rank for name, rank in report["made_from"]["ranks"].items() if rank} == {
                row["name"]: row["rank"] for row in inspected["layers"]
            }
            assert {name: inspected[name] for name in ("trainable", "total")} == {
                name: report["parameters"][name] for name in ("trainable", "total")
            }

    def test_its_page_is_there_and_is_made_again(self, veneer: Command, made: Path) -> None:
        page = (made / "report.html").read_text(encoding="utf-8")
        assert "Made from" in page
        assert "Learning curves" not in page
        assert veneer("report", made).code == 0
        assert (made / "report.html").read_text(encoding="utf-8") == page

    def test_compare_tells_how_it_differs_from_what_it_was_made_from(
        self, veneer: Command, tested: list[Path], made: Path
    ) -> None:
        document = json.loads(veneer("compare", tested[0], made, "--json").out)
        report = json.loads((made / "report.json").read_text())
        assert document["split"] == "test"
        assert document["runs"][1]["trained_parameters"] == report["parameters"]["trainable"]
        assert document["runs"][1]["seconds"] is None
        by = {"shrink": "veneer shrink", "combine": "veneer combine", "ensemble": "veneer combine --ensemble"}[made.name]
        assert document["configuration"]["made by"][0] is None
        assert document["configuration"]["made by"][1].startswith(f"{by}, from {tested[0]}")
        ranks = set(report["made_from"]["ranks"].values())
        shown = {"shrink": f"{min(ranks, default=0)} to {max(ranks, default=0)}", "combine": "6", "ensemble": None}[made.name]
        assert document["configuration"]["lora.rank"] == [4, shown]

    def test_audit_names_the_trained_runs_where_there_are_several(
        self, veneer: Command, tested: list[Path], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reached: list[Any] = []

        def find_suspects(config: Any, *_: Any, **__: Any) -> None:
            reached.append(config)
            raise InputError("far enough")

        monkeypatch.setattr("veneer.training.audit.audit", find_suspects)
        result = veneer("audit", made, "--out", tmp_path / "suspects.csv")
        assert result.code == 2
        if made.name == "shrink":
            assert (result.err.count("far enough"), reached[0].lora.rank) == (1, 4)
            return
        named = tested if made.name == "combine" else [made / "members" / "1", made / "members" / "2"]
        assert f"Fix: veneer audit of one of them: {named[0]}, {named[1]}" in " ".join(result.err.split())
        assert reached == []

    def test_runs_of_an_ensemble_keep_their_reports(self, tested: list[Path], made: Path) -> None:
        if made.name == "ensemble":
            for name in ("report.json", "report.html"):
                assert (made / "members" / "2" / name).read_bytes() == (tested[1] / name).read_bytes()

    def test_shrinking_again_fits_the_calibration_again(self, veneer: Command, made: Path, tmp_path: Path) -> None:
        if made.name != "ensemble":
            document = json.loads(veneer("shrink", made, "--out", tmp_path / "small", "--keep", 0.8, "--json").out)
            assert document["calibration"].startswith(("fitted again on dev", "kept: fitted again"))
            report = json.loads((tmp_path / "small" / "report.json").read_text())
            assert report["calibration"]["target"] == "f1"
            assert report["made_from"]["runs"][0]["made_from"]["how"] == made.name


def test_test_texts_that_another_run_was_trained_on_are_not_scored(
    veneer: Command, tested: list[Path], tiny_base: Base, tmp_path: Path
) -> None:
    dev = toy_rows(30, seed=1)
    write_csv(tmp_path / "dev.csv", dev)
    texts = {row["text"] for row in dev}
    write_csv(tmp_path / "train.csv", toy_rows(60) + [row for row in toy_rows(20, seed=2) if row["text"] not in texts])
    other = run(toy_config(tmp_path, tiny_base(), training__epochs=1)).folder
    out = tmp_path / "both"
    assert veneer("combine", tested[0], other, "--out", out).code == 0
    assert json.loads((out / "report.json").read_text())["evaluations"].keys() == {"dev"}


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


@pytest.mark.parametrize("flags", [[], ["--ensemble"]])
def test_folders_that_cannot_be_put_together(veneer: Command, runs: list[Path], tmp_path: Path, flags: list[str]) -> None:
    for folders, shown in (
        ([tmp_path / "nope", runs[0]], f"{tmp_path / 'nope'} does not exist. Fix:"),
        ([runs[0], tmp_path / "nope"], f"{tmp_path / 'nope'} does not exist. Fix:"),
        ([runs[0], runs[1], runs[1].parent / "first" / ".." / "second"], "a run folder is given twice. Fix:"),
    ):
        result = veneer("combine", *folders, "--out", tmp_path / "both", *flags)
        assert (result.code, shown in " ".join(result.err.split())) == (2, True), result.err
    assert not (tmp_path / "both").exists()


def test_one_run_is_no_ensemble(veneer: Command, runs: list[Path], tmp_path: Path) -> None:
    result = veneer("combine", runs[0], "--out", tmp_path / "both", "--ensemble")
    assert (result.code, "an ensemble is of two runs or more" in result.err) == (2, True)
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("command", ["merge", "shrink", "inspect"])
def test_commands_for_one_adapter_refuse_an_ensemble(veneer: Command, runs: list[Path], tmp_path: Path, command: str) -> None:
    out = tmp_path / "both"
    assert veneer("combine", *runs[:2], "--ensemble", "--out", out).code == 0
    result = veneer(command, out, *(["--out", tmp_path / "other"] if command != "inspect" else []))
    assert result.code == 2, result.out
    assert "ensemble of 2 runs" in result.err
