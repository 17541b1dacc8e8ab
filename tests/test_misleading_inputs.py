"""Data that misleads, through the commands: each run and each command ends in a defined result or in an error that says why.

No warning of a library, which is an error here; no number in a report that is none; a page that a browser can hold.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from typer.testing import CliRunner, Result

from toy_runs import FILLERS, SIGNALS, Rows, toy_rows, write_csv
from veneer.cli import app

MOST_OF_A_PAGE = 2_000_000  # bytes
SPLITS = ("train", "dev", "test")

Base = Callable[..., Path]


def command(*arguments: object) -> Result:
    """A command that ends as commands do: well, or with an error for people."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="veneer")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Warning" not in result.stderr
    assert re.search(r"(?<![^\s,])-?(nan|inf)(?![^\s,])", result.stdout) is None
    return result


def strict(text: str) -> Any:
    """JSON without NaN and infinities."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def trained(folder: Path, base: Path, splits: Iterable[Rows], *flags: object) -> dict[str, Any]:
    """A run on splits of these rows, in `folder/run`; its report, once that and the page are what they must be."""
    files = [(name, write_csv(folder / f"{name}.csv", rows)) for name, rows in zip(SPLITS, splits, strict=False)]
    data = [part for name, file in files for part in (f"--{name}", file)]
    settings = [
        "--base",
        base,
        "--epochs",
        2,
        "--learning-rate",
        5e-3,
        "--precision",
        "fp32",
        "--set",
        "evaluation.bootstrap=100",
    ]
    with patch("veneer.training.finish.plot_curves"):
        result = command("train", *data, *settings, "--out", folder / "run", *flags)
    assert result.exit_code == 0, result.stderr
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < MOST_OF_A_PAGE
    assert not any(f">{word}<" in page for word in ("nan", "NaN", "inf", "None", "Infinity"))
    report: dict[str, Any] = strict((folder / "run" / "report.json").read_text(encoding="utf-8"))
    return report


def judged(folder: Path, *but: str) -> dict[str, Result]:
    """Every command that judges a finished run, and the survey of its data; each ends well or says what is wrong."""
    run, train, dev = folder / "run", folder / "train.csv", folder / "dev.csv"
    twin = Path(shutil.copytree(run, folder / "twin"))
    base = strict((run / "report.json").read_text(encoding="utf-8"))["configuration"]["base"]
    few = folder / "few.csv"
    few.write_text("".join(dev.read_text(encoding="utf-8").splitlines(keepends=True)[:201]), encoding="utf-8")
    calls: dict[str, Sequence[object]] = {
        "evaluate": ("evaluate", run, "--data", dev, "--json"),
        "evaluate tables": ("evaluate", run, "--data", dev),
        "coverage": ("calibrate", run, "--data", dev, "--coverage", 0.7, "--json"),
        "precision": ("calibrate", run, "--data", dev, "--precision", 0.5, "--json"),
        "calibrate": ("calibrate", run, "--json"),
        "predict": ("predict", run, "--file", few, "--json"),
        "predict raw": ("predict", run, "--text", "a film", "--raw", "--json"),
        "merge": ("merge", run, "--out", folder / "merged"),
        "audit": ("audit", run, "--folds", 2, "--epochs", 1, "--out", folder / "suspects.csv", "--json"),
        "compare": ("compare", run, "--baselines", "--json"),
        "compare runs": ("compare", run, twin, "--json"),
        "report": ("report", run),
        "doctor": ("doctor", "--data", train, "--dev", dev, "--base", base, "--label-separator", "|", "--json"),
    }
    results = {name: command(*call) for name, call in calls.items() if name not in but}
    for name, result in results.items():
        assert result.exit_code == 0 or "error: " in result.stderr or (name == "doctor" and result.exit_code == 1), name
        if "--json" in calls[name] and result.stdout:
            strict(result.stdout)
    return results


def ends(results: dict[str, Result]) -> dict[str, str]:
    """The commands that did not end well, with what they said; an audit may say that models this small doubt no label."""
    unwell = {name: result.stderr for name, result in results.items() if result.exit_code}
    return {name: said for name, said in unwell.items() if name != "audit" or "models know too little" not in said}


def rows_of(count: int, labels: Sequence[str], seed: int, **named: str) -> Rows:
    """Toy rows under other label names."""
    return [row | {"label": named.get(row["label"], row["label"])} for row in toy_rows(count, labels=labels, seed=seed)]


def sparse_rows(count: int, seed: int) -> Rows:
    """One row in a hundred is bad."""
    good = [row for row in toy_rows(2 * count, seed=seed) if row["label"] == "good"]
    bad = [row for row in toy_rows(2 * count, seed=seed) if row["label"] == "bad"]
    return [bad[i] if i % 100 == 50 else good[i] for i in range(count)]


def test_ninety_nine_to_one(tmp_path: Path, tiny_base: Base) -> None:
    report = trained(tmp_path, tiny_base(), [sparse_rows(400, 0), sparse_rows(200, 1), sparse_rows(200, 2)])
    assert {row["label"]: row["support"] for row in report["evaluations"]["test"]["per_class"]} == {"bad": 2, "good": 198}
    assert report["verdict"]["kind"] in ("within_noise", "not_worth_it")
    results = judged(tmp_path)
    assert ends(results) == {}
    found = {finding["rule"] for finding in strict(results["doctor"].stdout)["findings"]}
    assert {"imbalance", "few-in-dev"} <= found


def test_a_label_that_dev_has_not(tmp_path: Path, tiny_base: Base) -> None:
    three = ("good", "bad", "odd")
    splits = [toy_rows(60, labels=three), toy_rows(40, seed=1), toy_rows(30, labels=three, seed=2)]
    report = trained(tmp_path, tiny_base(), splits)
    assert {row["label"]: row["support"] for row in report["evaluations"]["dev"]["per_class"]}["odd"] == 0
    limits = {limit["label"]: limit for limit in report["diagnosis"]["limits"]}
    assert (limits["odd"]["auc"], limits["odd"]["threshold"]) == (None, None)
    assert ends(judged(tmp_path)).keys() <= {"precision"}


@pytest.mark.parametrize("where", ["train", "dev"])
def test_a_single_text_with_a_label(tmp_path: Path, tiny_base: Base, where: str) -> None:
    def rows(count: int, seed: int, lone: bool) -> Rows:
        found = toy_rows(count, seed=seed)
        if lone:
            found[7] = {"text": "why a film", "label": f"{found[7]['label']}|odd"}
        else:
            found[7] = {"text": "a film", "label": "good|bad"}
        return found

    report = trained(tmp_path, tiny_base(), [rows(60, 0, True), rows(40, 1, where == "dev")], "--label-separator", "|")
    assert report["task"] == "multi_label"
    assert {row["label"]: row["support"] for row in report["evaluations"]["dev"]["per_class"]}["odd"] == (where == "dev")
    assert ends(judged(tmp_path)).keys() <= {"precision"}


@pytest.mark.parametrize("multi", [False, True])
def test_texts_that_are_all_the_same(tmp_path: Path, tiny_base: Base, multi: bool) -> None:
    def rows(count: int) -> Rows:
        return [{"text": "the same film", "label": ("good|odd" if multi else "good") if i % 2 else "bad"} for i in range(count)]

    report = trained(tmp_path, tiny_base(), [rows(40), rows(30)], *(["--label-separator", "|"] if multi else []))
    assert "it takes 20 different texts to fit a rule; found 1" in report["calibration"]["rule"]["reason"]
    assert report["diagnosis"]["margins"][0]["overlap"] == 1.0
    results = judged(tmp_path)
    assert results["precision"].exit_code == 2
    assert "took no part in training" in results["precision"].stderr  # dev holds nothing that train has not
    assert ends(results).keys() == {
        "coverage",
        "precision",
        "doctor",
        "audit",
    }  # which finds texts of dev in train, and no two texts to part


def test_a_training_that_learns_nothing(tmp_path: Path, tiny_base: Base) -> None:
    """Its logits are those of chance: no command takes them for more."""
    report = trained(tmp_path, tiny_base(), [toy_rows(40), toy_rows(40, seed=1)], "--learning-rate", 1e-8)
    assert report["calibration"]["rule"]["kept"] == "plain"
    assert report["verdict"]["kind"] == "not_worth_it"
    assert ends(judged(tmp_path)).keys() == {"precision"}


def test_rows_that_are_repeated(tmp_path: Path, tiny_base: Base) -> None:
    few = toy_rows(10)
    report = trained(tmp_path, tiny_base(), [few * 4, few * 3])
    assert report["calibration"]["texts"] == len({row["text"] for row in few})  # not rows
    results = judged(tmp_path)
    assert strict(results["calibrate"].stdout)["texts"] == report["calibration"]["texts"]
    assert ends(results).keys() <= {"coverage", "precision", "doctor", "audit"}
    doctor = results["doctor"]
    assert doctor.exit_code == 1
    assert {"duplicate-rows", "train-dev-duplicates"} <= {finding["rule"] for finding in strict(doctor.stdout)["findings"]}


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (("0", "1"), ["0", "1"]),
        (("1.0", "2.0"), ["1", "2"]),
        (("007", "7"), ["007", "7"]),
        (("-1", "1"), ["-1", "1"]),
        (("1e3", "1000"), ["1000", "1e3"]),
    ],
)
def test_labels_that_look_like_numbers(tmp_path: Path, tiny_base: Base, written: tuple[str, str], names: list[str]) -> None:
    named = dict(zip(("good", "bad"), written, strict=True))
    rows = [rows_of(count, ("good", "bad"), seed, **named) for seed, count in enumerate((40, 30))]
    report = trained(tmp_path, tiny_base(), rows)
    assert sorted(report["labels"]) == sorted(names)
    assert report["task"] == "single_label"
    said = strict(command("predict", tmp_path / "run", "--text", "a good film", "--json").stdout)
    assert set(json.dumps(said).split('"')) & set(names)


def test_one_label_for_all(tmp_path: Path, tiny_base: Base) -> None:
    file = write_csv(tmp_path / "train.csv", rows_of(40, ("good", "bad"), 0, bad="good"))
    result = command("train", "--train", file, "--base", tiny_base(), "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "error: " in result.stderr


def many_rows(count: int, classes: int, seed: int, labels_a_row: int = 1) -> Rows:
    rng = random.Random(seed)
    words = [*FILLERS, *(word for some in SIGNALS.values() for word in some)]
    return [
        {
            "text": " ".join(rng.choices(words, k=rng.randint(2, 8))),
            "label": "|".join({f"class {(7 * i + j * rng.randrange(classes)) % classes:05d}": "" for j in range(labels_a_row)}),
        }
        for i in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "classes", "labels_a_row"), [(12_000, 10_000, 1), (4_000, 2_000, 2)])
def test_very_many_labels(tmp_path: Path, tiny_base: Base, rows: int, classes: int, labels_a_row: int) -> None:
    splits = [many_rows(rows, classes, 0, labels_a_row), many_rows(rows // 10, classes, 1, labels_a_row)]
    flags = ["--epochs", 1, "--batch-size", 64, *(["--label-separator", "|"] if labels_a_row > 1 else [])]
    report = trained(tmp_path, tiny_base(), splits, *flags)
    assert len(report["labels"]) == classes
    assert len((tmp_path / "run" / "report.json").read_bytes()) < 5_000_000
    assert (report["evaluations"]["dev"]["confusion"]["matrix"] is None) == (labels_a_row == 1)
    results = judged(tmp_path, "compare", "audit")  # which would take minutes; see the next test
    assert ends(results).keys() <= {"precision", "doctor"}


@pytest.mark.parametrize("labels_a_row", [1, 2])
def test_forty_labels(tmp_path: Path, tiny_base: Base, labels_a_row: int) -> None:
    """Every command, those included that train again and would take minutes with 10,000 labels."""
    splits = [many_rows(200, 40, 0, labels_a_row), many_rows(80, 40, 1, labels_a_row)]
    flags = ["--epochs", 1, "--batch-size", 64, *(["--label-separator", "|"] if labels_a_row > 1 else [])]
    trained(tmp_path, tiny_base(), splits, *flags)
    assert ends(judged(tmp_path)).keys() <= {"precision", "doctor"}
