"""All that are compared decide by the same treatment, and never by a rule that was fitted to the text in question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from toy_runs import run, toy_config
from veneer.evaluation.calibration import Fitted, fit_calibration
from veneer.tasks import TASKS, Calibration
from veneer.training import finish
from veneer.training.decisions import decide_judged, fit_on_dev, judged_of

MULTI = TASKS["multi_label"]


def low_logits(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose best thresholds are far below 0.5, and their targets."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, 3, generator=generator) < torch.tensor([0.3, 0.1, 0.05])).float()
    return torch.randn(n, 3, generator=generator) + 2 * targets - 2.5, targets


def test_test_texts_are_decided_by_what_dev_fitted(tmp_path: Path) -> None:
    (dev, targets), (test, _) = low_logits(400, 0), low_logits(200, 1)
    config = toy_config(tmp_path, "nowhere", evaluation__bootstrap=200, seed=7)
    fitted = fit_on_dev(config, MULTI, dev, targets)
    assert fitted is not None
    assert fitted.rule.kept == "fitted"
    assert fitted.to_json() == fit_calibration(dev, targets, MULTI, bootstrap=200, seed=7).to_json()
    found = decide_judged(fitted, MULTI, {"dev": dev, "test": test})
    assert np.array_equal(found, MULTI.decide(test, fitted.calibration).numpy())
    assert not np.array_equal(found, MULTI.decide(test).numpy())


def test_dev_texts_are_decided_without_them(tmp_path: Path) -> None:
    """By five rules, each fitted on four fifths; not by the one that saw them all."""
    dev, targets = low_logits(400, 0)
    fitted = fit_on_dev(toy_config(tmp_path, "nowhere", evaluation__bootstrap=200), MULTI, dev, targets)
    assert fitted is not None
    found = decide_judged(fitted, MULTI, {"dev": dev})
    assert np.array_equal(found, fitted.held_out.numpy())
    assert not np.array_equal(found, MULTI.decide(dev, fitted.calibration).numpy())
    assert not np.array_equal(found, MULTI.decide(dev).numpy())


def test_without_calibration_all_decide_plainly(tmp_path: Path) -> None:
    dev, targets = low_logits(100, 0)
    config = toy_config(tmp_path, "nowhere", evaluation__bootstrap=200, evaluation__calibrate=False)
    assert fit_on_dev(config, MULTI, dev, targets) is None
    assert np.array_equal(decide_judged(None, MULTI, {"dev": dev}), MULTI.decide(dev).numpy())


def test_the_verdict_of_a_run_without_test_texts_is_cross_fitted(
    tmp_path: Path, tiny_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the rule that is stored would decide."""
    other, judged = torch.arange(12) % 2, []

    def fitted(setting: finish.Setting, logits: torch.Tensor) -> Fitted:
        found = fit_calibration(logits, setting.splits["dev"].targets, setting.material.task)
        return replace(found, calibration=Calibration(offsets=(1000.0, 0.0)), held_out=other)

    monkeypatch.setattr(finish, "_fit_calibration", fitted)
    monkeypatch.setattr(finish, "judge_against_text", lambda material, ours, config: judged.append(ours))
    result = run(toy_config(tmp_path, tiny_base(), training__epochs=1))
    assert judged[0].tolist() == other.tolist()
    assert result.evaluations["dev"].per_class[0].predicted == 12


def test_test_says_more_than_dev() -> None:
    assert (judged_of({"train": 1, "dev": 2}), judged_of({"dev": 1, "test": 2})) == ("dev", "test")


def test_a_text_of_dev_counts_once(tmp_path: Path) -> None:
    """By its key: the logits of its copies need not be equal to the last digit."""
    dev, targets = low_logits(100, 0)
    config = toy_config(tmp_path, "nowhere", evaluation__bootstrap=50)
    copies, twice = torch.cat([dev, dev * (1 + 1e-6)]), targets.repeat(2, 1)
    fitted = fit_on_dev(config, MULTI, copies, twice, [i % 100 for i in range(200)])
    assert fitted is not None
    assert fitted.texts == 100
    assert len(decide_judged(fitted, MULTI, {"dev": copies})) == 200
