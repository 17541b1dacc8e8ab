"""The content of report.json."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import torch

from veneer.evaluation.calibration import fit_calibration
from veneer.evaluation.metrics import score
from veneer.evaluation.report import FORMAT_VERSION, MOST_STEPS, Findings, RunFacts, build_report
from veneer.tasks import TASKS

FACTS = RunFacts(
    task="single_label",
    base="minilm",
    labels=("坏", "好"),
    splits={"train": 80, "dev": 4},
    metric="macro_f1",
    best_step=20,
    steps=30,
    epochs=3.0,
    seconds=12.5,
    texts_per_second=480.0,
    parameters={"trainable": 10, "total": 100},
    versions={"torch": "2.13.0"},
    configuration={"seed": 42, "training": {"epochs": 3}},
    fingerprints={"train": "sha256:0"},
    warnings=[{"kind": "label-seen-once", "source": "train.csv", "message": "labels that only one training row has: 1"}],
    history=[{"kind": "step", "step": 1, "loss": 0.5}, {"kind": "evaluation", "step": 1, "split": "dev", "loss": 0.4}],
)
NOTHING = Findings(None, None, None)


def test_the_report_is_json_and_holds_every_fact():
    dev = score([0, 1, 1, 0], [0, 1, 0, 0], FACTS.labels, multi_label=False, bootstrap=10)
    report = build_report(FACTS, {"dev": dev}, NOTHING)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report == {
        "format_version": FORMAT_VERSION,
        "task": "single_label",
        "base": "minilm",
        "labels": ["坏", "好"],
        "splits": {"train": {"texts": 80}, "dev": {"texts": 4}},
        "training": {
            "metric": "macro_f1",
            "best_step": 20,
            "steps": 30,
            "epochs": 3.0,
            "seconds": 12.5,
            "texts_per_second": 480.0,
        },
        "parameters": {"trainable": 10, "total": 100},
        "evaluations": {"dev": dev.to_json()},
        "versions": {"torch": "2.13.0"},
        "configuration": {"seed": 42, "training": {"epochs": 3}},
        "data": {"fingerprints": {"train": "sha256:0"}},
        "warnings": list(FACTS.warnings),
        "history": list(FACTS.history),
        "calibrated_since": False,
        "dev_rescored": False,
        "verdict": None,
        "calibration": None,
        "diagnosis": None,
    }


def test_what_was_found_is_there_as_json() -> None:
    logits = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    fitted = fit_calibration(logits, logits.argmax(-1), TASKS["single_label"], bootstrap=20)
    report = build_report(FACTS, {}, Findings(None, fitted, None))
    assert report["calibration"] == fitted.to_json()


def test_a_long_history_is_thinned_evenly_and_keeps_every_evaluation_and_the_last_step() -> None:
    steps = [{"kind": "step", "step": number, "loss": 1.0} for number in range(1, 1002)]
    evaluations = [{"kind": "evaluation", "step": number, "split": "dev", "loss": math.nan} for number in (500, 1001)]
    facts = RunFacts(**{**vars(FACTS), "history": [*steps, *evaluations]})
    history: list[dict[str, Any]] = build_report(facts, {}, NOTHING)["history"]
    kept = [row["step"] for row in history if row["kind"] == "step"]
    assert len(kept) <= MOST_STEPS
    assert kept[-1] == 1001
    assert len({second - first for first, second in itertools.pairwise(kept)}) == 1
    assert [row["loss"] for row in history if row["kind"] == "evaluation"] == [None, None]
