"""The report of a run as one JSON document: what was trained on what, or made from what, how it scored, and with which versions.

Knows the document's keys and its format version; does not know how to measure any of it, and writes no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # `veneer report` reads the format version, and needs nothing measured
    from veneer.evaluation.calibration import Fitted
    from veneer.evaluation.comparison import Verdict
    from veneer.evaluation.diagnosis import Diagnosis
    from veneer.evaluation.metrics import Evaluation, Interval

FORMAT_VERSION = 2
MOST_STEPS = 300  # rows of steps that are kept of the history, evenly spread


@dataclass(frozen=True)
class TrainingFacts:
    """How a run was trained.

    Attributes:
        metric: the score on dev that chose the best step.
        best_step: the step whose adapter was kept; `steps` is how many there were.
        seconds: of the training steps alone; evaluations, checkpoints and loading are not counted.
        texts_per_second: training texts a second of training steps.
    """

    metric: str
    best_step: int
    steps: int
    epochs: float
    seconds: float
    texts_per_second: float


@dataclass(frozen=True)
class Source:
    """A run that another one was made from.

    Attributes:
        weight: of its updates in a sum; None where nothing is summed.
        score: on its own dev texts by its own decisions, with the 95 % interval where that is known; None where it has none.
        stored_bytes: of its tensors.
        ranks: layer -> rank; empty where no ranks were looked at. `lora_parameters` are in LoRA's matrices.
        made_from: what its own report says of it, if it was made from other runs.
    """

    folder: str
    weight: float | None
    score: Interval | None
    stored_bytes: int
    lora_parameters: int
    ranks: Mapping[str, int]
    made_from: Mapping[str, Any] | None


@dataclass(frozen=True)
class MadeFrom:
    """How a run was made from others, without training.

    Attributes:
        metric: the score that runs are compared by.
        stored_bytes: of its own tensors.
        ranks: layer -> rank, 0 for one that is no longer adapted; empty for an ensemble. `lora_parameters` as in `Source`.
        not_scored: why no dev texts are its own; empty where it has been scored.
        told: further facts by name, such as the score that had to be kept.
    """

    how: Literal["shrink", "combine", "ensemble"]
    runs: Sequence[Source]
    metric: str
    stored_bytes: int
    lora_parameters: int
    ranks: Mapping[str, int]
    not_scored: str = ""
    told: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts:
    """What a finished run knows about itself.

    Attributes:
        labels: the C names in the order of their ids.
        splits: texts of each split, such as `{"train": 7000, "dev": 800}`.
        training: None of a run that was made from others.
        parameters: counts by name, such as `trainable` and `total`.
        versions: of Python and the packages that decide the numbers.
        configuration: as `config.yaml` holds it.
        fingerprints: hash of each file's texts and labels.
        warnings: what is odd in the data, each as a plain object.
        history: the rows of `metrics.jsonl`.
        made_from: None of a run that was trained.
    """

    task: Literal["single_label", "multi_label"]
    base: str
    labels: tuple[str, ...]
    splits: Mapping[str, int]
    training: TrainingFacts | None
    parameters: Mapping[str, int]
    versions: Mapping[str, str]
    configuration: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    warnings: Sequence[Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]]
    made_from: MadeFrom | None = None


@dataclass(frozen=True)
class Findings:
    """What was made of the scores; None where that was not asked for."""

    verdict: Verdict | None
    calibration: Fitted | None
    diagnosis: Diagnosis | None


def build_report(facts: RunFacts, evaluations: Mapping[str, Evaluation], findings: Findings) -> dict[str, Any]:
    """The content of `report.json`: plain JSON values.

    `calibrated_since` turns true when another calibration is stored: verdict, diagnosis and scores are then by an earlier
    one, but for the scores on dev where `dev_rescored` is true.

    Args:
        facts: the run.
        evaluations: the kept adapter's scores by split (`dev`, and `test` where there is one).
        findings: verdict, calibration and diagnosis.
    """
    return {
        "format_version": FORMAT_VERSION,
        "task": facts.task,
        "base": facts.base,
        "labels": list(facts.labels),
        "splits": {name: {"texts": texts} for name, texts in facts.splits.items()},
        "training": None if facts.training is None else asdict(facts.training),
        "made_from": None if facts.made_from is None else _made(facts.made_from),
        "parameters": dict(facts.parameters),
        "evaluations": {split: evaluation.to_json() for split, evaluation in evaluations.items()},
        "versions": dict(facts.versions),
        "configuration": dict(facts.configuration),
        "data": {"fingerprints": dict(facts.fingerprints)},
        "warnings": [dict(warning) for warning in facts.warnings],
        "history": _thinned(facts.history),
        "calibrated_since": False,
        "dev_rescored": False,
        **{
            name: None if one is None else one.to_json()
            for name, one in {
                "verdict": findings.verdict,
                "calibration": findings.calibration,
                "diagnosis": findings.diagnosis,
            }.items()
        },
    }


def _made(made: MadeFrom) -> dict[str, Any]:
    tree = asdict(made)
    for run in tree["runs"]:
        score = run["score"]
        run["score"] = None if score is None else [score["value"], score["low"], score["high"]]
    return tree


def _thinned(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every evaluation, and at most `MOST_STEPS` of the steps with the last among them; what is not finite is null."""
    steps = [row for row in history if row["kind"] == "step"]
    every = max(1, -(-len(steps) // MOST_STEPS))
    kept = {id(row) for row in steps[::-1][::every]}
    return [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in history
        if row["kind"] != "step" or id(row) in kept
    ]
