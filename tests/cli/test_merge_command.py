"""`veneer merge`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toy_runs import run, toy_config


def test_it_says_how_close_it_is_and_how_to_use_it(
    veneer: Callable[..., Any], single_run: Path, multi_run: Path, tmp_path: Path
) -> None:
    result = veneer("merge", single_run, "--out", tmp_path / "single")
    assert result.code == 0, result.err
    assert "AutoModelForSequenceClassification loads it" in result.out
    assert "10 probe texts: largest logit difference" in result.out
    assert "0 decided otherwise" in result.out
    assert result.err == ""
    result = veneer("merge", multi_run, "--out", tmp_path / "multi")
    assert "an encoder and head.safetensors" in result.out
    assert (tmp_path / "multi" / "head.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--budget", 0.1), "--budget does not count: "),
        (("--force",), "--force does not count: "),
        (("--budget", 0.1, "--force"), "--budget and --force do not count: "),
    ],
)
def test_a_flag_that_does_not_count_is_told(
    flags: tuple[object, ...], told: str, veneer: Callable[..., Any], single_run: Path, tmp_path: Path
) -> None:
    result = veneer("merge", single_run, "--out", tmp_path / "single", *flags)
    assert result.code == 0
    assert " ".join(result.err.split()).startswith(told)


def test_an_existing_folder_is_refused(veneer: Callable[..., Any], single_run: Path, tmp_path: Path) -> None:
    result = veneer("merge", single_run, "--out", tmp_path)
    assert result.code == 2
    assert "nothing is overwritten" in result.err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a base in eight bits."""
    return run(toy_config(tmp_path_factory.mktemp("int8"), tiny_base(), base_precision="int8", training__epochs=1)).folder


class TestOverABaseInFewerBits:
    def test_it_is_compared_on_the_dev_texts(self, veneer: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
        result = veneer("merge", folder, "--out", tmp_path / "merged", "--force")
        assert result.code == 0, result.err
        assert "over float32 instead of int8, " in result.out
        assert " of 12 dev texts (" in result.out
        assert "macro_f1 " in result.out

    def test_without_them_on_the_probe_texts(
        self, veneer: Callable[..., Any], folder: Path, bare_run: Callable[[Path], Path], tmp_path: Path
    ) -> None:
        result = veneer("merge", bare_run(folder), "--out", tmp_path / "merged", "--force")
        assert result.code == 0, result.err
        assert "the probe texts are compared, since the run's dev texts cannot be: " in result.err
        assert " of 10 probe texts (" in result.out
        assert "no labels to score them by" in result.out

    def test_the_budget_holds(
        self, veneer: Callable[..., Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("veneer.export.rebased.Change.share", 0.5)
        result = veneer("merge", folder, "--out", tmp_path / "merged")
        assert result.code == 1
        assert "more than --budget 0.02" in result.err
        result = veneer("merge", folder, "--out", tmp_path / "merged", "--budget", 0.5)
        assert (result.code, "does not count" in result.err) == (0, False)

    def test_other_bits_can_be_asked_for(self, veneer: Callable[..., Any], folder: Path) -> None:
        documents = []
        for flags in ([], ["--base-precision", "auto"]):
            result = veneer("predict", folder, "--text", "a great film", "--json", *flags)
            assert result.code == 0, result.err
            documents.append(result.out)
        assert documents[0] != documents[1]
        result = veneer("evaluate", folder, "--data", folder.parent / "dev.csv", "--base-precision", "int4")
        assert result.code == 2
        assert "there is no base precision 'int4'. Fix: one of auto, nf4, int8" in result.err
