"""A run whose base is no longer where training found it: commands that need it say so, and take where it is now."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toy_runs import run, toy_config

COMMANDS: dict[str, tuple[str, ...]] = {
    "predict": ("predict", "RUN", "--text", "a good day"),
    "evaluate": ("evaluate", "RUN", "--data", "DEV"),
    "calibrate": ("calibrate", "RUN", "--json"),
    "inspect": ("inspect", "RUN"),
    "merge": ("merge", "RUN", "--out", "OUT"),
    "shrink": ("shrink", "RUN", "--out", "OUT", "--keep", "0.5"),
    "compare": ("compare", "RUN", "RUN"),
    "compare --baselines": ("compare", "RUN", "--baselines"),
    "audit": ("audit", "RUN", "--out", "OUT.csv", "--quick"),
}


@pytest.fixture(scope="module")
def moved(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and where its base is now."""
    folder = tmp_path_factory.mktemp("moved")
    before, now = folder / "base", folder / "elsewhere"
    shutil.copytree(tiny_base(), before)
    trained = run(toy_config(folder, before)).folder
    return trained, Path(before.rename(now))


@pytest.mark.parametrize("name", COMMANDS)
def test_it_says_where_the_base_was_and_takes_where_it_is(
    veneer: Callable[..., Any], moved: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    trained, base = moved
    twin = Path(shutil.copytree(trained, tmp_path / "run"))
    places = {"RUN": twin, "DEV": trained.parent / "dev.csv", "OUT": tmp_path / "out", "OUT.csv": tmp_path / "out.csv"}
    command = [places.get(part, part) for part in COMMANDS[name]]
    if name == "compare":
        command[-1] = trained
    refused = veneer(*command)
    assert refused.code == 2
    assert f"was trained over the base '{trained.parent / 'base'}'. Fix: --base with the folder it is in now" in refused.err
    assert not (tmp_path / "out").exists()
    taken = veneer(*command, "--base", base)
    assert taken.code == 0 or "models know too little" in taken.err, taken.err
