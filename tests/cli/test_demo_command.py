"""`veneer demo`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veneer.config import RunConfig
from veneer.demo import quickstart
from veneer.training import baselines


@pytest.fixture(autouse=True)
def _short(tiny_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch over a tiny base, in an empty folder."""
    plain = quickstart.demo_config

    def config(out: Path) -> RunConfig:
        made = plain(out)
        made.base, made.training.epochs, made.training.batch_size, made.data.max_length = str(tiny_base()), 1, 64, 32
        made.evaluation.bootstrap = 20
        return made

    monkeypatch.setattr(quickstart, "demo_config", config)
    monkeypatch.setattr(baselines, "CHOICES", baselines.CHOICES[:1])
    monkeypatch.chdir(tmp_path)


def test_one_table_three_messages_and_what_to_do_next(veneer: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    result = veneer("demo")
    assert result.code == 0, result.err
    assert "TF-IDF + logistic regression" in result.out
    rows = [line for line in result.out.splitlines() if line.startswith(("macro F1", "micro F1", "all labels right"))]
    assert len(rows) == 3
    assert all(row.count("–") == 2 for row in rows)  # an interval each
    assert result.out.count("→") == 3
    assert "Run folder: runs/demo-2" in result.out
    assert "veneer predict runs/demo-2 --interactive" in result.out
    assert (tmp_path / "runs" / "demo-2" / "veneer.json").is_file()
    plain = [line for line in result.out.splitlines() if "--data" not in line]
    assert all(len(line) <= 80 for line in plain)


def test_the_folder_can_be_chosen(veneer: Callable[..., Any], tmp_path: Path) -> None:
    result = veneer("demo", "--out", tmp_path / "mine")
    assert result.code == 0, result.err
    assert (tmp_path / "mine" / "veneer.json").is_file()
