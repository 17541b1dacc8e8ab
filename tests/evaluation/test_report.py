"""The content of report.json."""

from __future__ import annotations

import json

from veneer.evaluation.metrics import score
from veneer.evaluation.report import FORMAT_VERSION, RunFacts, build_report

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
)


def test_the_report_is_json_and_holds_every_fact():
    dev = score([0, 1, 1, 0], [0, 1, 0, 0], FACTS.labels, multi_label=False, bootstrap=10)
    report = build_report(FACTS, {"dev": dev})
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
    }
