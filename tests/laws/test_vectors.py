"""A head that is trained on vectors computed once = one that is trained over the base in every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toy_runs import metrics, run, toy_config
from veneer.training import loop

Base = Callable[..., Path]


def head_run(folder: Path, base: Path, **changes: Any) -> Any:
    folder.mkdir()
    config = toy_config(folder, base, method="head", training__learning_rate=0.05, training__evaluate_every=5, **changes)
    return run(config)


@pytest.mark.parametrize("changes", [{"pooling": "mean"}, {"pooling": "cls"}, {"training__base_dropout": "auto"}])
def test_it_is_the_training_over_the_base(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """By the family's own head (whose dropout draws from the same generator) and by ours."""
    base = tiny_base()
    passes = []
    forward = loop.Classifier.forward
    monkeypatch.setattr(loop.Classifier, "forward", lambda self, batch: passes.append(self.training) or forward(self, batch))
    once = head_run(tmp_path / "once", base, **changes)
    assert not any(passes)  # no step ran the base
    monkeypatch.setattr(loop, "vectors_stay", lambda _: False)
    always = head_run(tmp_path / "always", base, **changes)
    assert any(passes)
    losses = [[row["loss"] for row in metrics(result.folder)] for result in (once, always)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name in ("trained.safetensors", "head.safetensors"):
        if (once.folder / name).exists():
            mine, theirs = load_file(once.folder / name), load_file(always.folder / name)
            for key, tensor in mine.items():
                torch.testing.assert_close(tensor, theirs[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"training__base_dropout": 0.1}, {"method": "bitfit"}, {"method": "lora"}, {"method": "full"}]
)
def test_where_vectors_change_the_base_runs_in_every_step(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("vectors were computed for a training that changes them")

    monkeypatch.setattr(loop, "with_vectors", refuse)
    run(toy_config(tmp_path, tiny_base(), **{"method": "head", **changes}))


def test_their_time_is_time_of_training(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, slept = loop.with_vectors, 0.6  # seconds, several times what all steps take
    monkeypatch.setattr(loop, "with_vectors", lambda *given: time.sleep(slept) or compute(*given))
    training = head_run(tmp_path / "run", tiny_base()).report["training"]
    assert training["seconds"] > 2 * slept  # for train, and for dev
    assert training["texts_per_second"] < 84 / (2 * slept)  # two epochs of 42
