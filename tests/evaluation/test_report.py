"""The content of report.json."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import torch

from veneer.evaluation.calibration import fit_calibration
from veneer.evaluation.metrics import Interval, score
from veneer.evaluation.report import FORMAT_VERSION, MOST_STEPS, Findings, MadeFrom, RunFacts, Source, TrainingFacts, build_report
from veneer.tasks import TASKS

FACTS = RunFacts(
    task="single_label",
    base="minilm",
    labels=("坏", "好"),
    splits={"train": 80, "dev": 4},
    training=TrainingFacts("macro_f1", best_step=20, steps=30, epochs=3.0, seconds=12.5, texts_per_second=480.0),
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
        "made_from": None,
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


def test_a_run_that_was_made_says_from_what_and_has_no_training() -> None:
    first = Source("runs/a", 0.5, Interval(0.8, 0.7, 0.9), 900, 64, {"layer": 8}, {"how": "shrink"})
    second = Source("runs/b", 0.5, None, 900, 64, {"layer": 2}, None)
    made = MadeFrom("combine", (first, second), "macro_f1", 1800, 128, {"layer": 10}, "b was trained on them", {"bound": 0.7})
    report = json.loads(json.dumps(build_report(replace(FACTS, training=None, made_from=made), {}, NOTHING), allow_nan=False))
    assert report["training"] is None
    runs = report["made_from"].pop("runs")
    assert report["made_from"] == {
        "how": "combine",
        "metric": "macro_f1",
        "stored_bytes": 1800,
        "lora_parameters": 128,
        "ranks": {"layer": 10},
        "not_scored": "b was trained on them",
        "told": {"bound": 0.7},
    }
    assert [(run["folder"], run["score"], run["made_from"]) for run in runs] == [
        ("runs/a", [0.8, 0.7, 0.9], {"how": "shrink"}),
        ("runs/b", None, None),
    ]


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
