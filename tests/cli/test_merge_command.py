"""`veneer merge`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_it_says_how_close_it_is_and_how_to_use_it(
    veneer: Callable[..., Any], single_run: Path, multi_run: Path, tmp_path: Path
) -> None:
    result = veneer("merge", single_run, "--out", tmp_path / "single")
    assert result.code == 0, result.err
    assert "AutoModelForSequenceClassification loads it" in result.out
    assert "10 probe texts: largest logit difference" in result.out
    assert "0 decided otherwise" in result.out
    result = veneer("merge", multi_run, "--out", tmp_path / "multi")
    assert "an encoder and head.safetensors" in result.out
    assert (tmp_path / "multi" / "head.safetensors").is_file()


def test_an_existing_folder_is_refused(veneer: Callable[..., Any], single_run: Path, tmp_path: Path) -> None:
    result = veneer("merge", single_run, "--out", tmp_path)
    assert result.code == 2
    assert "nothing is overwritten" in result.err
    assert not list(tmp_path.iterdir())
