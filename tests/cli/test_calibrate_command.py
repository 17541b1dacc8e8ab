"""`veneer calibrate`, and the commands that follow what it stored."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toy_runs import toy_rows, write_csv
from veneer.predictor import load
from veneer.run_info import read_info, update_info
from veneer.tasks import Calibration, Promise

Command = Callable[..., Any]
ENOUGH = 90


def put(folder: Path, calibration: Calibration | None) -> Path:
    """Store a calibration in a run folder, or take it out."""
    update_info(folder, replace(read_info(folder), calibration=None if calibration is None else calibration.to_json()))
    return folder


@pytest.fixture
def single(single_run: Path, tmp_path: Path) -> Path:
    """A copy of a run, without a calibration."""
    return put(Path(shutil.copytree(single_run, tmp_path / "single")), None)


@pytest.fixture
def multi(multi_run: Path, tmp_path: Path) -> Path:
    return put(Path(shutil.copytree(multi_run, tmp_path / "multi")), None)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "labelled.csv", toy_rows(ENOUGH, seed=5))


@pytest.fixture
def many_labelled(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "many.csv", toy_rows(ENOUGH, labels=("good", "bad", "odd"), multi=True, seed=5))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_stored_and_nothing_else_is_touched(veneer: Command, single: Path, labelled: Path) -> None:
    before = contents(single)
    result = veneer("calibrate", single, "--data", labelled, "--json")
    assert result.code == 0, result.err
    document, after = json.loads(result.out), contents(single)
    assert {name for name in after if after[name] != before.get(name)} == {"veneer.json", "report.json", "report.html"}
    assert before.keys() == after.keys()
    assert read_info(single).calibration == document["parameters"]
    report = json.loads(after["report.json"])
    assert report["calibration"] == document
    assert report["calibrated_since"]
    assert (report["dev_rescored"], report["evaluations"]) == (False, json.loads(before["report.json"])["evaluations"])
    assert b"by an earlier calibration than the one shown below" in after["report.html"]
    assert b"earlier calibration" not in before["report.html"]
    assert document["texts"] == ENOUGH
    old, new = (json.loads(files["veneer.json"]) for files in (before, after))
    assert {key for key in new if new[key] != old[key]} <= {"calibration"}


def test_without_a_file_the_runs_own_dev_texts_are_taken(veneer: Command, single: Path) -> None:
    document = json.loads(veneer("calibrate", single, "--json").out)
    assert (document["texts"], document["split"], document["method"]) == (12, "dev", "none")
    assert "it takes 20 different texts" in document["rule"]["reason"]


def test_the_training_file_is_refused(veneer: Command, single: Path, single_run: Path, tmp_path: Path) -> None:
    """As it is, in another order, and where most rows are of it: a promise found on it is not kept elsewhere."""
    with (single_run.parent / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    most = rows[:30] + toy_rows(20, seed=9)
    for name, content, said in (
        ("same", rows, "these are the texts"),
        ("turned", rows[::-1], f"trained on {len(rows)} of its {len(rows)} texts"),
        ("most", most, "of its 50 texts"),
    ):
        result = veneer("calibrate", single, "--data", write_csv(tmp_path / f"{name}.csv", content), "--coverage", "0.8")
        assert (result.code, result.out) == (2, "")
        assert said in " ".join(result.err.split())
        assert "took no part in training" in " ".join(result.err.split())
    assert read_info(single).calibration is None


def test_texts_of_the_training_are_left_out(veneer: Command, single: Path, single_run: Path, tmp_path: Path) -> None:
    """Whatever white space is around them and whatever their label; how many is told."""
    with (single_run.parent / "train.csv").open(encoding="utf-8", newline="") as file:
        trained = [{"text": f" {row['text']} ", "label": "good"} for row in csv.DictReader(file)][:5]
    others = [{"text": f"{row['text']} {number}", "label": row["label"]} for number, row in enumerate(toy_rows(40, seed=9))]
    data = write_csv(tmp_path / "mixed.csv", trained + others)
    result = veneer("calibrate", single, "--data", data, "--json")
    assert json.loads(result.out)["texts"] == 40
    assert "5 of 45 texts are left out" in " ".join(result.err.split())


def test_training_texts_that_are_gone_are_told(
    veneer: Command, single: Path, labelled: Path, bare_run: Callable[[Path], Path], single_run: Path
) -> None:
    """The fingerprint of the whole file is known still."""
    bare = bare_run(single)
    columns = ("--text", "text", "--label", "label")
    assert "is not known, as they cannot be read" in " ".join(veneer("calibrate", bare, "--data", labelled, *columns).err.split())
    same = veneer("calibrate", bare, "--data", single_run.parent / "train.csv", *columns)
    assert same.code == 2
    assert "these are the texts" in " ".join(same.err.split())


def test_resamples_are_those_of_the_configuration(veneer: Command, single: Path, labelled: Path) -> None:
    without = json.loads(veneer("calibrate", single, "--data", labelled, "--json").out)["rule"]
    assert without["interval"] is None
    assert "without resamples" in without["reason"]
    config = single / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "bootstrap: 0" in text
    config.write_text(text.replace("bootstrap: 0", "bootstrap: 30"), encoding="utf-8")
    assert json.loads(veneer("calibrate", single, "--data", labelled, "--json").out)["rule"]["interval"] is not None


def test_the_report_scores_the_runs_own_dev_texts_by_the_new_calibration(
    veneer: Command, single: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that gives all texts the second label, in the place of a fitted one."""
    from veneer.evaluation import calibration as calibration_module

    fit = calibration_module.fit_calibration

    def all_second(*given: Any, **named: Any) -> Any:
        return replace(fit(*given, **named), calibration=Calibration(offsets=(0.0, 1000.0)))

    monkeypatch.setattr(calibration_module, "fit_calibration", all_second)
    before = json.loads(contents(single)["report.json"])
    assert veneer("calibrate", single).code == 0
    after = json.loads(contents(single)["report.json"])
    dev = after["evaluations"]["dev"]
    assert [row["predicted"] for row in dev["per_class"]] == [0, 12]
    assert dev != before["evaluations"]["dev"]
    assert dev.keys() == before["evaluations"]["dev"].keys()
    assert after["dev_rescored"]
    assert b"Scores on dev are by the calibration shown below" in contents(single)["report.html"]
    monkeypatch.setattr(calibration_module, "fit_calibration", fit)
    assert veneer("calibrate", single, "--data", labelled).code == 0
    later = json.loads(contents(single)["report.json"])
    assert (later["dev_rescored"], later["evaluations"]) == (False, after["evaluations"])


def test_the_same_calibration_again_changes_nothing(veneer: Command, single_run: Path, tmp_path: Path, labelled: Path) -> None:
    """Verdict, diagnosis and scores are still by the calibration there is; and what was stale stays so, dev's scores apart."""
    trained = Path(shutil.copytree(single_run, tmp_path / "trained"))
    before = contents(trained)["veneer.json"]
    assert veneer("calibrate", trained).code == 0
    assert contents(trained)["veneer.json"] == before
    assert b"earlier calibration" not in contents(trained)["report.html"]

    def marks() -> tuple[bool, bool]:
        report = json.loads(contents(trained)["report.json"])
        return report["calibrated_since"], report["dev_rescored"]

    found = [marks()]
    other = ["--data", labelled, "--target", "recall=0.2"]
    for given in (other, other, [], [], other):
        assert veneer("calibrate", trained, *given).code == 0
        found.append(marks())
    assert found == [(False, False), (True, False), (True, False), (True, True), (True, True), (True, False)]


def test_dev_texts_that_have_changed_are_refused(
    veneer: Command, single_run: Path, tmp_path: Path, tiny_base: Callable[..., Path]
) -> None:
    from toy_runs import run, toy_config

    folder = run(toy_config(tmp_path, tiny_base(), training__epochs=1)).folder
    fingerprints = {"dev": "0" * 64}
    put(folder, None)
    before = (tmp_path / "train.csv").read_text(encoding="utf-8")
    (tmp_path / "train.csv").write_text(before + "another text,good\n", encoding="utf-8")
    changed = veneer("calibrate", folder)
    assert changed.code == 2
    assert re.search(r"trained with other texts or labels than are now in .*train\.csv \(train\)\.", changed.err)
    assert "--data FILE" in changed.err
    (tmp_path / "train.csv").write_text(before, encoding="utf-8")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    (folder / "report.json").write_text(json.dumps(report | {"data": {"fingerprints": fingerprints}}), encoding="utf-8")
    assert "dev.csv (dev)" in veneer("calibrate", folder).err
    (tmp_path / "dev.csv").unlink()
    gone = veneer("calibrate", folder)
    assert gone.code == 2
    assert "dev.csv" in gone.err
    assert "--data FILE" in gone.err
    assert read_info(folder).calibration is None


def test_a_damaged_report_is_told_and_the_run_is_left_as_it_was(veneer: Command, single: Path, labelled: Path) -> None:
    report = json.loads((single / "report.json").read_text(encoding="utf-8"))
    (single / "report.json").write_text(json.dumps(report | {"labels": 3}), encoding="utf-8")
    before = contents(single)
    result = veneer("calibrate", single, "--data", labelled)
    assert result.code == 2
    assert "the report is damaged: labels" in result.err
    assert contents(single) == before


def test_clear_brings_the_plain_rule_back_and_scores_dev_by_it(
    veneer: Command, single: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from veneer.evaluation import calibration as calibration_module

    fit = calibration_module.fit_calibration

    def all_second(*given: Any, **named: Any) -> Any:
        return replace(fit(*given, **named), calibration=Calibration(offsets=(0.0, 1000.0)))

    before = contents(single)
    monkeypatch.setattr(calibration_module, "fit_calibration", all_second)
    assert veneer("calibrate", single).code == 0
    report, info = json.loads(contents(single)["report.json"]), read_info(single)
    assert info.scores == report["evaluations"]["dev"]["metrics"]
    assert report["evaluations"] != json.loads(before["report.json"])["evaluations"]
    result = veneer("calibrate", single, "--clear")
    assert (result.code, result.out.strip()) == (0, f"{single} decides by the plain rule again")
    assert contents(single)["veneer.json"] == before["veneer.json"]
    cleared = json.loads(contents(single)["report.json"])
    assert (cleared["calibration"], cleared["dev_rescored"]) == (None, True)
    assert cleared["evaluations"] == json.loads(before["report.json"])["evaluations"]
    assert b"Scores on dev are by the plain rule" in contents(single)["report.html"]


def test_clear_works_without_the_texts_and_says_what_stays(veneer: Command, single: Path, labelled: Path) -> None:
    assert veneer("calibrate", single, "--data", labelled).code == 0
    before = json.loads(contents(single)["report.json"])
    (single / "config.yaml").unlink()
    result = veneer("calibrate", single, "--clear")
    assert result.code == 0
    assert "the scores in its report stay as they were" in result.out
    assert "config.yaml" in result.out
    after = json.loads(contents(single)["report.json"])
    assert (read_info(single).calibration, after["dev_rescored"], after["evaluations"]) == (None, False, before["evaluations"])


def test_a_run_without_a_report_can_be_calibrated(veneer: Command, single: Path, labelled: Path) -> None:
    (single / "report.json").unlink()
    assert veneer("calibrate", single, "--data", labelled).code == 0
    assert not (single / "report.json").exists()
    assert read_info(single).calibration is not None


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_it_says_what_changed_and_what_it_means(
    veneer: Command, request: pytest.FixtureRequest, labelled: Path, many_labelled: Path, kind: str
) -> None:
    folder, data = request.getfixturevalue(kind), labelled if kind == "single" else many_labelled
    result = veneer("calibrate", folder, "--data", data, "--coverage", "0.8")
    assert result.code == 0, result.err
    for said in (
        "calibration error (ECE)",
        "Brier score",
        "loss (NLL)",
        "rule is kept",
        "sets of labels",
        "same source",
        "veneer evaluate",
    ):
        assert said in " ".join(result.out.split())
    assert ("mean of each label's own" in result.out) == (kind == "multi")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "best"], "unknown target 'best'"),
        (["--target", "cost=none.csv"], "cannot read the costs in none.csv"),
        (["--coverage", "1.5"], "--coverage is a share"),
        (["--precision", "0"], "--precision is a share"),
        (["--coverage", "0.99"], "0.99 needs at least 99 labelled texts"),
        (["--precision", "0.999"], "0.999 cannot be promised"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_stored(
    veneer: Command, single: Path, labelled: Path, arguments: list[str], message: str
) -> None:
    result = veneer("calibrate", single, "--data", labelled, *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert read_info(single).calibration is None


def test_other_columns_can_be_named(veneer: Command, single: Path, labelled: Path, tmp_path: Path) -> None:
    with labelled.open(encoding="utf-8", newline="") as file:
        rows = [{"words": row["text"], "kind": row["label"]} for row in csv.DictReader(file)]
    other = write_csv(tmp_path / "other.csv", rows)
    named = json.loads(veneer("calibrate", single, "--data", other, "--text", "words", "--label", "kind", "--json").out)
    assert named["parameters"] == json.loads(veneer("calibrate", single, "--data", labelled, "--json").out)["parameters"]


def test_predictions_follow_an_offset_and_a_temperature(veneer: Command, single: Path, labelled: Path) -> None:
    texts = "good film\nbad day\n"
    plain = veneer("predict", single, "--json", input=texts).out
    logits = load(single).logits(texts.split("\n")[:2])
    put(single, Calibration(slopes=(0.5,), offsets=(1000.0, 0.0)))
    rows = json.loads(veneer("predict", single, "--json", input=texts).out)
    assert [row["labels"] for row in rows] == [["bad"], ["bad"]]
    expected = (logits * 0.5).softmax(-1)
    assert [row["scores"]["good"] for row in rows] == pytest.approx(expected[:, 1].tolist(), abs=1e-5)
    assert veneer("predict", single, "--json", "--raw", input=texts).out == plain
    calibrated = json.loads(veneer("evaluate", single, "--data", labelled, "--json").out)
    raw = json.loads(veneer("evaluate", single, "--data", labelled, "--json", "--raw").out)
    assert calibrated["metrics"]["macro_recall"] == 0.5
    assert raw["metrics"]["macro_f1"] != calibrated["metrics"]["macro_f1"]


def test_predictions_follow_thresholds(veneer: Command, multi: Path) -> None:
    put(multi, Calibration(thresholds=(0.0, 2.0, 0.0)))
    (row,) = json.loads(veneer("predict", multi, "--text", "good", "--json").out)
    assert sorted(row["labels"]) == ["bad", "odd"]


def test_sets_and_abstentions_are_shown_and_written(veneer: Command, single: Path, tmp_path: Path) -> None:
    promised = put(single, Calibration(coverage=Promise(0.9, 0.0, 50), precision=Promise(0.9, 1.1, 50)))
    (row,) = json.loads(veneer("predict", promised, "--text", "good", "--json").out)
    assert (sorted(row["candidates"]), row["abstained"]) == (["bad", "good"], True)
    assert max(row["candidates"], key=lambda name: row["scores"][name]) == row["candidates"][0]
    alone = veneer("predict", promised, "--text", "good").out
    assert "abstain" in alone
    assert f"candidates: {row['candidates'][0]}, {row['candidates'][1]}" in alone
    together = veneer("predict", promised, input="good\nbad\n").out
    assert together.count("abstain (") == 2
    assert "candidates" in together
    write_csv(tmp_path / "texts.csv", [{"text": "good"}])
    assert veneer("predict", promised, "--file", tmp_path / "texts.csv", "--out", tmp_path / "out.csv").code == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        (written,) = csv.DictReader(file)
    assert (written["candidates"], written["abstained"]) == (";".join(row["candidates"]), "yes")
    raw = veneer("predict", promised, "--text", "good", "--raw", "--json").out
    assert json.loads(raw)[0].keys() == {"text", "labels", "scores"}
    sure = put(single, Calibration(precision=Promise(0.9, 0.0, 50)))
    assert json.loads(veneer("predict", sure, "--text", "good", "--json").out)[0]["abstained"] is False


def test_evaluate_checks_the_promises(veneer: Command, single: Path, labelled: Path) -> None:
    put(single, Calibration(coverage=Promise(0.9, 0.0, 50), precision=Promise(0.9, 1.1, 50)))
    promises = json.loads(veneer("evaluate", single, "--data", labelled, "--json").out)["promises"]
    assert (promises["coverage"]["held"], promises["coverage"]["mean_size"]) == (1.0, 2.0)
    assert promises["precision"]["answered"] == 0
    shown = veneer("evaluate", single, "--data", labelled).out
    assert "coverage 0.9: 100.0% of the candidate sets" in shown
    assert "precision 0.9: 0.0% of the texts are answered" in shown
    assert json.loads(veneer("evaluate", single, "--data", labelled, "--json", "--raw").out)["promises"] == {}


def test_no_texts_with_promises(single: Path) -> None:
    predictor = load(put(single, Calibration(coverage=Promise(0.9, 0.0, 50), precision=Promise(0.9, 1.1, 50))))
    assert predictor.predict([]) == []
    assert torch.equal(predictor.logits([]), torch.empty(0, 2))
