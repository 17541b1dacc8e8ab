"""Finished toy runs for the commands, and the command line itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from toy_runs import run, toy_config, toy_rows, write_csv
from veneer.cli import app

Base = Callable[..., Path]


@dataclass(frozen=True)
class Outcome:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def veneer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`veneer("predict", folder, "--json", input="a text")` runs a command in this process, on 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def command(*arguments: object, input: str | bytes | None = None) -> Outcome:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=input, prog_name="veneer")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return command


@pytest.fixture(scope="session")
def single_run(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one label a text, beside its `train.csv` and `dev.csv`."""
    folder = tmp_path_factory.mktemp("single")
    return run(toy_config(folder, tiny_base())).folder


@pytest.fixture(scope="session")
def multi_run(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with any number of labels a text, separated by `|`; mean pooling, so that the head is veneer's own."""
    folder = tmp_path_factory.mktemp("multi")
    write_csv(folder / "train.csv", toy_rows(40, labels=("good", "bad", "odd"), multi=True))
    write_csv(folder / "dev.csv", toy_rows(15, labels=("good", "bad", "odd"), multi=True, seed=1))
    return run(toy_config(folder, tiny_base(), pooling="mean", data__label_separator="|")).folder


@pytest.fixture(scope="session")
def pair_run(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over pairs of texts, whose columns are `one` and `two`."""
    folder = tmp_path_factory.mktemp("pair")
    for name, seed, count in (("train", 0, 24), ("dev", 1, 10)):
        rows = [{"one": row["text"], "two": row["text"][::-1], "label": row["label"]} for row in toy_rows(count, seed=seed)]
        write_csv(folder / f"{name}.csv", rows)
    return run(toy_config(folder, tiny_base(), data__text="one", data__pair="two")).folder


@pytest.fixture
def bare_run(tmp_path: Path) -> Callable[[Path], Path]:
    """`bare_run(folder)` is a copy of a run folder without its `config.yaml`."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("config.yaml", "last")))

    return copy
