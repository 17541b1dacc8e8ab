"""What the report of a run that was made from others counts. What it holds is tests/cli/test_thinner_commands.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from random_runs import random_run
from veneer import lora
from veneer.cli.runs import run_config
from veneer.errors import ArtifactError
from veneer.predictor import load
from veneer.run_info import read_info
from veneer.thinner import make_ensemble
from veneer.thinner.made import count_together, score_of, source_of, stored_bytes

Base = Callable[..., Path]


@pytest.fixture
def folders(tiny_base: Base, tmp_path: Path) -> list[Path]:
    return [random_run(tmp_path / name, tiny_base(), seed=seed, rank=rank) for name, seed, rank in (("a", 1, 4), ("b", 2, 2))]


def test_one_base_counts_once_in_an_ensemble(folders: list[Path], tmp_path: Path) -> None:
    out = make_ensemble(folders, tmp_path / "out", run_config(folders[0]), "no texts").folder
    first, second = (lora.count_parameters(load(folder).loaded.model) for folder in folders)
    together = count_together([member.loaded.model for member in load(out)._loaded.members])  # type: ignore[union-attr]
    assert together == {
        "lora": first.lora + second.lora,
        "trainable": first.trainable + second.trainable,
        "total": first.total + second.trainable,
    }
    report = json.loads((out / "report.json").read_text())
    assert report["parameters"] == together
    assert report["made_from"]["not_scored"] == "no texts"
    assert report["made_from"]["stored_bytes"] == stored_bytes(out) == sum(map(stored_bytes, folders))


def test_a_source_is_counted_in_its_file(folders: list[Path]) -> None:
    folder = folders[0]
    source = source_of(folder, score_of(read_info(folder), run_config(folder)), lora.read_adapter(folder), 0.3)
    assert source.lora_parameters == lora.count_parameters(load(folder).loaded.model).lora
    assert source.stored_bytes == (folder / "adapter_model.safetensors").stat().st_size
    assert set(source.ranks.values()) == {4}
    assert (source.folder, source.weight, source.score, source.made_from) == (str(folder), 0.3, None, None)


def test_a_damaged_report_of_a_source_is_refused(folders: list[Path]) -> None:
    (folders[0] / "report.json").write_text('{"made_from": {"how": "magic"}}')
    with pytest.raises(ArtifactError, match="the report is damaged"):
        source_of(folders[0], None, lora.read_adapter(folders[0]))
