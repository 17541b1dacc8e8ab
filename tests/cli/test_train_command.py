"""`veneer train`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import veneer.training as veneer_training
from toy_runs import toy_rows, write_csv
from veneer.config import RunConfig
from veneer.config_file import config_text, load_config
from veneer.errors import Interrupted, TrainingError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, bool]]:
    """The calls of training, which ends at once."""
    calls: list[tuple[RunConfig, bool]] = []

    def train(config: RunConfig, *, resume: bool = False) -> None:
        calls.append((config, resume))
        raise TrainingError("enough")

    monkeypatch.setattr(veneer_training, "train", train)
    return calls


def test_a_run_from_one_command(veneer: Callable[..., Any], tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    write_csv(tmp_path / "my data.csv", toy_rows(40))
    out = tmp_path / "run"
    flags = ["--base", tiny_base(), "--epochs", 1, "--out", out, "--set", "evaluation.bootstrap=20"]
    result = veneer("train", "--train", tmp_path / "my data.csv", *flags)
    assert result.code == 0, result.err
    assert (out / "veneer.json").is_file()
    assert "dev: Scores on 4 texts" in result.out
    assert "macro F1" in result.out
    assert f"veneer predict {out} --text 'your text'" in result.out.replace("\n", "")


def test_flags_become_the_configuration(veneer: Callable[..., Any], asked: list[tuple[RunConfig, bool]]) -> None:
    flags = "--train a.csv --text 0 --label x --label y --rank 4 --alpha 3 --dropout 0 --learning-rate 1e-3 --max-length 64"
    more = "--batch-size 8 --epochs 2 --metric accuracy --seed 7 --preset strong --set training.schedule=cosine"
    result = veneer("train", *f"{flags} {more}".split())
    assert (result.code, result.err) == (1, "error: enough\n")
    ((config, resume),) = asked
    expected = load_config(
        None,
        {
            "data.train": "a.csv",
            "data.text": "0",
            "data.label": ["x", "y"],
            "data.max_length": 64,
            "lora.preset": "strong",
            "lora.rank": 4,
            "lora.alpha": 3,
            "lora.dropout": 0,
            "training.learning_rate": 1e-3,
            "training.batch_size": 8,
            "training.epochs": 2,
            "training.schedule": "cosine",
            "evaluation.metric": "accuracy",
            "seed": 7,
        },
    )
    assert (config, resume) == (expected, False)


def test_flags_go_before_the_file(veneer: Callable[..., Any], asked: list[tuple[RunConfig, bool]], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"seed": 1, "training": {"epochs": 9}, "data": {"train": "b.csv"}}))
    veneer("train", file, "--epochs", 2)
    ((config, _),) = asked
    assert (config.seed, config.training.epochs, config.data.train) == (1, 2, "b.csv")


def test_resume_takes_the_folders_own_configuration(
    veneer: Callable[..., Any], asked: list[tuple[RunConfig, bool]], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(config_text(load_config(None, {"data.train": "c.csv", "lora.rank": 3, "out": "old"})))
    veneer("train", "--out", tmp_path, "--resume")
    ((config, resume),) = asked
    assert (config.data.train, config.lora.rank, config.out, resume) == ("c.csv", 3, str(tmp_path), True)


@pytest.mark.parametrize("arguments", [["--resume"], ["--resume", "--out", "nowhere"]])
def test_resume_needs_a_run(veneer: Callable[..., Any], asked: list[tuple[RunConfig, bool]], arguments: list[str]) -> None:
    result = veneer("train", *arguments)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert not asked


def test_an_interrupted_run_says_how_to_go_on(veneer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: RunConfig, *, resume: bool = False) -> None:
        raise Interrupted("stopped at step 3. To go on: veneer train --out runs/a --resume")

    monkeypatch.setattr(veneer_training, "train", train)
    result = veneer("train", "--train", "a.csv")
    assert (result.code, result.err) == (1, "stopped at step 3. To go on: veneer train --out runs/a --resume\n")


def test_an_unknown_key_suggests_the_nearest(veneer: Callable[..., Any]) -> None:
    result = veneer("train", "--train", "a.csv", "--set", "training.epocs=3")
    assert result.code == 2
    assert "Did you mean 'training.epochs'?" in result.err
