"""The report of a run that was made from others: the one of training, without what only training knows.

Knows what a run folder says of itself; how the page shows it is `veneer.evaluation.page`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from veneer import lora
from veneer.config import RunConfig
from veneer.evaluation.calibration import Fitted
from veneer.evaluation.comparison import compared_metric
from veneer.evaluation.metrics import Evaluation, Interval
from veneer.evaluation.page.made import read_made
from veneer.evaluation.report import Findings, MadeFrom, RunFacts, Source, build_report
from veneer.model import Classifier
from veneer.report_file import read_report
from veneer.run_files import MEMBERS
from veneer.run_info import ArtifactInfo, package_versions
from veneer.thinner.dev import Dev
from veneer.training.prepare import Material


def source_of(folder: Path, score: Interval | None, adapter: lora.AdapterFile, weight: float | None = None) -> Source:
    """What a report says of a run whose updates are cut or summed.

    Args:
        score: on its own dev texts.

    Raises:
        ArtifactError: its report is damaged.
    """
    ranks = {name: adapter.settings.rank_of(name) for name in adapter.settings.layers}
    count = sum(tensor.numel() for name, tensor in adapter.tensors.items() if name.endswith((".lora_A", ".lora_B")))
    return Source(str(folder), weight, score, stored_bytes(folder), count, ranks, _making(folder))


def member_of(folder: Path, score: Interval | None, model: Classifier) -> Source:
    """What a report says of a run in an ensemble.

    Raises:
        ArtifactError: as `source_of`.
    """
    return Source(str(folder), None, score, stored_bytes(folder), lora.count_parameters(model).lora, {}, _making(folder))


def _making(folder: Path) -> Mapping[str, Any] | None:
    report = read_report(folder)
    return report["made_from"] if read_made(report) is not None else None


def score_of(info: ArtifactInfo, config: RunConfig) -> Interval | None:
    """The score that `veneer.json` tells of a run, of the kind that runs of this configuration are compared by."""
    found = info.scores.get(compared_metric(config.evaluation.metric))
    return Interval(float(found)) if isinstance(found, int | float) else None


def stored_bytes(folder: Path) -> int:
    """Bytes of the tensors of a run folder; of an ensemble, those of its runs."""
    return sum(path.stat().st_size for path in [*folder.glob("*.safetensors"), *folder.glob(f"{MEMBERS}/*/*.safetensors")])


def count_together(models: Sequence[Classifier]) -> dict[str, int]:
    """Parameters by name, as a training's report counts them, of models that may share some."""
    parts = [lora.count_parameters(model) for model in models]
    every = {id(parameter): parameter.numel() for model in models for parameter in model.parameters()}
    return {
        "lora": sum(part.lora for part in parts),
        "trainable": sum(part.trainable for part in parts),
        "total": sum(every.values()) + lora.frozen_elements(models[0]),
    }


def made_report(
    info: ArtifactInfo,
    config: RunConfig,
    dev: Dev | None,
    parameters: Mapping[str, int],
    evaluations: Mapping[str, Evaluation],
    fitted: Fitted | None,
    made: MadeFrom,
) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
        info: what the new folder says of itself.
        config: what the first run was trained with.
        dev: None where no texts are the new run's own, so that its data is not told.
    """
    material = None if dev is None else dev.material
    facts = RunFacts(
        task=info.task,  # type: ignore[arg-type]
        base=info.base_id,
        labels=info.labels,
        splits={} if material is None else _splits(material, made),
        training=None,
        parameters=parameters,
        versions=package_versions(),
        configuration=config.model_dump(mode="json"),
        fingerprints={} if material is None else material.fingerprints,
        warnings=[] if material is None else [problem.to_json() for problem in material.warnings],
        history=(),
        made_from=made,
    )
    return build_report(facts, evaluations, Findings(None, fitted, None))


def _splits(material: Material, made: MadeFrom) -> dict[str, int]:
    """Texts by split; of training texts those of a single run alone, since several may have been trained on others each."""
    told = {name: len(examples) for name, examples in material.examples.items()}
    return told if made.how == "shrink" else {name: count for name, count in told.items() if name != "train"}
