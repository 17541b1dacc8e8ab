"""`veneer compare`"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toy_runs import run, toy_config, toy_rows, write_csv
from veneer.cli import compare_baselines, compare_runs, compared_run
from veneer.config import RunConfig
from veneer.evaluation.calibration import fit_calibration
from veneer.evaluation.goals import Goal
from veneer.predictor import load
from veneer.run_info import read_info, update_info
from veneer.tasks import Calibration
from veneer.training.baselines import target_tensor

Base = Callable[..., Path]
Veneer = Callable[..., Any]


@pytest.fixture(scope="module")
def two_runs(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs over the same files, with a test file: another rank and fewer epochs."""
    folder = tmp_path_factory.mktemp("two")
    write_csv(folder / "test.csv", toy_rows(30, seed=5))
    test = {"data__test": str(folder / "test.csv")}
    first = run(toy_config(folder, tiny_base(), out=str(folder / "first"), **test)).folder
    second = run(toy_config(folder, tiny_base(), out=str(folder / "second"), lora__rank=2, training__epochs=1, **test)).folder
    return first, second


def test_of_other_methods_only_what_they_read_is_named() -> None:
    """A rank is nothing to a run whose method has none; and what no method reads is no difference."""
    settings: list[dict[str, Any]] = [
        {"method": "lora", "lora": {"rank": 16}},
        {"method": "full", "tuning": {"bottleneck": 8}},
        {"method": "top_layers", "tuning": {"top_layers": 1}, "training": {"learning_rate": 1e-3}},
    ]
    assert compare_runs._differing([RunConfig.model_validate(one) for one in settings], [None] * 3) == {
        "method": ["lora", "full", "top_layers"],
        "lora.rank": [16, None, None],
        "tuning.top_layers": [None, None, 1],
        "training.learning_rate": ["auto", "auto", 1e-3],
    }


@pytest.fixture
def moved_run(single_run: Path, tmp_path: Path) -> Path:
    """A copy of a run with its own copies of the data, to be changed."""
    for name in ("train.csv", "dev.csv"):
        shutil.copy(single_run.parent / name, tmp_path / name)
    folder = Path(shutil.copytree(single_run, tmp_path / "run"))
    config = folder / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace(str(single_run.parent), str(tmp_path)), encoding="utf-8")
    return folder


def document(veneer: Veneer, *arguments: object) -> dict[str, Any]:
    result = veneer("compare", *arguments, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_against_baselines(veneer: Veneer, two_runs: tuple[Path, Path]) -> None:
    """Scores of the adapter are those of the report, on test; full fine-tuning has a verdict of its own."""
    found = document(veneer, two_runs[0], "--baselines", "--full")
    report = json.loads((two_runs[0] / "report.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in found["contenders"]}
    assert list(rows) == [
        "most frequent answer",
        "TF-IDF + logistic regression",
        "frozen embeddings + logistic regression",
        "head alone",
        "this run",
        "full fine-tuning",
    ]
    assert (found["split"], found["texts"], found["metric"]) == ("test", 30, "macro_f1")
    ours = rows.pop("this run")
    assert ours["score"] == pytest.approx(report["evaluations"]["test"]["metrics"]["macro_f1"])
    assert ours["trained_parameters"] == report["parameters"]["trainable"]
    assert ours["adapter_lead"] is None
    for row in rows.values():
        assert row["adapter_lead"]["value"] == pytest.approx(ours["score"] - row["score"])
        assert row["interval"][0] <= row["score"] <= row["interval"][1]
    cheaper = {name: row["score"] for name, row in rows.items() if name != "full fine-tuning"}
    assert found["verdict"]["against"] == max(cheaper, key=lambda name: cheaper[name])
    assert found["against_full_fine_tuning"]["against"] == "full fine-tuning"


def test_the_table_of_baselines(veneer: Veneer, multi_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a test file dev is judged, and the verdict says what that means; what is too much work is left out."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(compare_baselines, "text_contender", lambda ground: None)
    result = veneer("compare", multi_run, "--baselines")
    assert result.code == 0, result.err
    said = " ".join(result.out.split())
    assert "a test file would say more" in said
    assert "on 15 dev texts" in said
    assert "left out, as fitting them would take too long: TF-IDF + logistic regression" in said
    assert "this run: macro_f1" in result.err
    assert all(len(line) <= 100 for line in result.out.splitlines() if str(multi_run) not in line)


@pytest.mark.parametrize("columns", [80, 100])
def test_the_names_of_baselines_have_room(veneer: Veneer, pair_run: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = veneer("compare", pair_run, "--baselines")
    lines = [line.rstrip() for line in result.out.splitlines()]
    scores = lines[next(i for i, line in enumerate(lines) if "this run's lead" in line) :]
    assert any(line.startswith("most frequent answer ") for line in scores)
    assert max(map(len, scores)) <= columns
    (head,) = [line.split() for line in lines if line.split()[-2:] == ["seconds", "trained"]]
    assert len(head) == (2 if columns == 80 else 8)
    ours = [line for line in lines if line.startswith("this run ")]
    assert len(ours) == (2 if columns == 80 else 1)  # of a narrow terminal once in each table


def test_pairs_have_baselines_too(veneer: Veneer, pair_run: Path) -> None:
    found = document(veneer, pair_run, "--baselines")
    assert len(found["contenders"]) == 5
    assert found["against_full_fine_tuning"] is None


def test_runs_side_by_side(veneer: Veneer, two_runs: tuple[Path, Path]) -> None:
    first, second = two_runs
    found = document(veneer, first, second)
    assert found["configuration"] == {"lora.rank": [4, 2], "training.epochs": [2, 1]}
    assert (found["split"], found["texts"]) == ("test", 30)
    (pair,) = found["pairs"]
    scores = [item["score"] for item in found["runs"]]
    assert pair["second_lead"]["value"] == pytest.approx(scores[1] - scores[0])
    rows = toy_rows(30, seed=5)
    texts = [row["text"] for row in rows]
    right = [
        [prediction.labels[0] == row["label"] for prediction, row in zip(load(folder).predict(texts), rows, strict=True)]
        for folder in two_runs
    ]
    count = {(a, b): sum((a, b) == two for two in zip(*right, strict=True)) for a in (True, False) for b in (True, False)}
    assert pair["right"] == {
        "both": count[True, True],
        "first": count[True, False],
        "second": count[False, True],
        "neither": count[False, False],
    }
    assert any(pair["examples"].values())
    for side, mine in (("first", 0), ("second", 1)):
        assert len(pair["examples"][side]) == min(5, pair["right"][side])
        for example in pair["examples"][side]:
            assert rows[example["row"] - 1]["label"] == example["labels"][0]
            assert right[mine][example["row"] - 1]
            assert example[side] == example["labels"]


def test_the_tables_of_runs(veneer: Veneer, two_runs: tuple[Path, Path]) -> None:
    result = veneer("compare", *two_runs)
    assert result.code == 0, result.err
    said = " ".join(result.out.split())
    assert "second" in said.split(".")[0]
    assert "training.epochs 2 1" in said
    assert "first against second: both right" in said
    assert "true: " in said


def test_a_run_and_its_copy_are_not_told_apart(veneer: Veneer, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Of two folders of one name those above them are shown, too."""
    copy = Path(shutil.copytree(two_runs[0], tmp_path / "first"))
    result = veneer("compare", two_runs[0], copy)
    assert result.code == 0, result.err
    said = result.out.replace("\n", "")
    names = ["/".join(folder.parts[-2:]) for folder in (copy, two_runs[0])]
    assert f"{names[0]} and {names[1]} are not told apart".replace(" ", "") in said.replace(" ", "")
    assert "no difference" in said


def test_on_dev_a_rule_that_may_be_fitted_to_it_is_not_taken(veneer: Veneer, single_run: Path, tmp_path: Path) -> None:
    """Each text is decided by a rule fitted without it: of 12 texts none is, and the plain one decides."""
    copy = Path(shutil.copytree(single_run, tmp_path / "other"))
    always = Calibration(offsets=(1000.0, 0.0)).to_json()
    update_info(copy, replace(read_info(copy), calibration=always))
    found = document(veneer, single_run, copy)
    assert found["split"] == "dev"
    assert found["runs"][0]["score"] == found["runs"][1]["score"]
    assert found["pairs"][0]["right"]["first"] == found["pairs"][0]["right"]["second"] == 0


@pytest.fixture
def judged_on_dev(tiny_base: Base, tmp_path: Path) -> Path:
    """A run with 60 dev texts and no test file, whose plain rule is often wrong."""
    dev = write_csv(tmp_path / "dev60.csv", toy_rows(60, seed=9))
    return run(
        toy_config(
            tmp_path, tiny_base(), data__dev=str(dev), training__epochs=1, training__learning_rate=1e-5, evaluation__bootstrap=100
        )
    ).folder


def decided_on_dev(folder: Path, calibration: list[Any], veneer: Veneer) -> Any:
    assert veneer("calibrate", folder, *calibration).code == 0
    return compared_run.open_run(folder).decide("dev", None)


@pytest.mark.parametrize("target", ["precision=0.5", "recall=0.9", "recall=0.2", "accuracy"])
def test_on_dev_a_rule_is_fitted_again_for_what_it_was_fitted_for(veneer: Veneer, judged_on_dev: Path, target: str) -> None:
    found = decided_on_dev(judged_on_dev, ["--target", target], veneer)
    run = compared_run.open_run(judged_on_dev)
    task, labels = run.material.task, run.material.labels
    logits = run.logits(["dev"], None)["dev"]
    targets = target_tensor(run.material.examples["dev"], labels, task)
    bootstrap = run.config.evaluation.bootstrap
    fitted = fit_calibration(
        logits, targets, task, goal=Goal.parse(target, labels, task.name), bootstrap=bootstrap, seed=run.config.seed
    )
    assert found.tolist() == fitted.held_out.tolist()
    if target == "recall=0.2":  # few are given the second label, which no rule for F1 would do
        assert found.tolist() != fit_calibration(logits, targets, task, bootstrap=bootstrap).held_out.tolist()


@pytest.mark.parametrize("costs", [False, True])
def test_on_dev_a_rule_that_cannot_be_fitted_again_is_taken_as_it_is(
    veneer: Veneer, judged_on_dev: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], costs: bool
) -> None:
    (tmp_path / "costs.csv").write_text("label,bad,good\nbad,0,99\ngood,1,0\n", encoding="utf-8")
    other = write_csv(tmp_path / "other.csv", toy_rows(90, seed=11))
    calibration = ["--target", f"cost={tmp_path / 'costs.csv'}"] if costs else ["--target", "recall=0.95", "--data", other]
    found = decided_on_dev(judged_on_dev, calibration, veneer)
    run = compared_run.open_run(judged_on_dev)
    stored = Calibration.from_json(run.info.calibration or {}, "single_label", 2)
    assert stored.offsets
    assert found.tolist() == run.material.task.decide(run.logits(["dev"], None)["dev"], stored).tolist()
    assert ("fitted on dev for costs" in capsys.readouterr().err.replace("\n", " ")) == costs


def test_runs_over_other_texts_are_refused(veneer: Veneer, single_run: Path, moved_run: Path, tiny_base: Base) -> None:
    """Of runs that do not say what their dev texts were; of one that does, its own changed file is the error."""
    report = moved_run / "report.json"
    for change, what in (({"text": "another film"}, "text 12 is the first that differs"), (None, "11 texts against 12")):
        rows = toy_rows(12, seed=1)
        rows[-1:] = [rows[-1] | change] if change else []
        write_csv(moved_run.parent / "dev.csv", rows)
        if report.exists():
            result = veneer("compare", moved_run, single_run)
            assert result.code == 2
            assert "was trained on other rows than there are now in" in result.err
            report.unlink()
        result = veneer("compare", moved_run, single_run)
        assert result.code == 2
        assert "dev texts are not the same" in result.err
        assert what in result.err


def test_runs_with_other_labels_are_refused(veneer: Veneer, single_run: Path, multi_run: Path, tiny_base: Base) -> None:
    result = veneer("compare", single_run, multi_run)
    assert result.code == 2
    assert "one is single_label, the other multi_label" in result.err


def test_changed_and_missing_files_are_refused(veneer: Veneer, moved_run: Path) -> None:
    train = moved_run.parent / "train.csv"
    content = train.read_text(encoding="utf-8")
    train.write_text(content.replace("film", "movie"), encoding="utf-8")
    result = veneer("compare", moved_run, "--baselines")
    assert result.code == 2
    assert "was trained on other rows" in result.err
    assert "train.csv (train)" in result.err
    train.unlink()
    result = veneer("compare", moved_run, "--baselines")
    assert result.code == 2
    assert "train.csv" in result.err


def test_flags_that_do_not_go_together(
    veneer: Veneer, single_run: Path, multi_run: Path, bare_run: Callable[[Path], Path]
) -> None:
    for arguments, fix in (
        ((single_run,), "another DIR, or --baselines"),
        ((single_run, multi_run, "--baselines"), "give one DIR"),
        ((single_run, multi_run, "--full"), "--baselines --full"),
        ((single_run, single_run), "give each once"),
        ((bare_run(single_run), single_run), "config.yaml"),
    ):
        result = veneer("compare", *arguments)
        assert result.code == 2
        assert fix in result.err


def test_equal_configurations_are_said_to_be(veneer: Veneer, single_run: Path, tmp_path: Path) -> None:
    """In a line, without an empty table; and a run is called alike wherever it is named."""
    twin = Path(shutil.copytree(single_run, tmp_path / "twin"))
    result = veneer("compare", single_run, twin)
    assert result.code == 0, result.err
    assert "Configurations: no difference\n" in result.out
    assert str(tmp_path) not in result.out


def test_the_metric_of_runs_that_were_picked_by_others_is_said(veneer: Veneer, single_run: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(single_run, tmp_path / "twin"))
    config = twin / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("metric: macro_f1", "metric: accuracy"), encoding="utf-8")
    assert "All are scored by macro F1; each was picked" in veneer("compare", single_run, twin).out
    assert "All are scored by accuracy; each was picked" in veneer("compare", twin, single_run).out
    assert "All are scored by" not in veneer("compare", single_run, shutil.copytree(single_run, tmp_path / "same")).out
