"""The end of a run: the kept adapter scored, calibrated, diagnosed, judged, saved, loaded again and compared.

Knows what a run folder shall hold and say; knows nothing of how the adapter was trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from veneer import lora
from veneer.artifact import load_artifact, save_artifact
from veneer.bases import BaseLocation
from veneer.config import METHOD_SETTINGS, RunConfig
from veneer.data import Prompt, encode, text_key
from veneer.durable import write_text
from veneer.errors import InputError, VerificationError
from veneer.evaluation.calibration import Fitted, Rule, fit_calibration
from veneer.evaluation.comparison import Verdict
from veneer.evaluation.diagnosis import Diagnosis, Evidence, diagnose
from veneer.evaluation.diagnosis.suggestions import R_DROP
from veneer.evaluation.metrics import Evaluation, score
from veneer.evaluation.page import render_page
from veneer.evaluation.plots import plot_curves
from veneer.evaluation.report import Findings, RunFacts, TrainingFacts, build_report
from veneer.inference import compute_logits
from veneer.model import Classifier
from veneer.precision import Precision
from veneer.run_files import INFO_FILE, PAGE_FILE, REPORT_FILE
from veneer.run_info import ArtifactInfo, package_versions
from veneer.tasks import PLAIN, Calibration
from veneer.training.baselines import judge_against_text
from veneer.training.checkpoint import Progress
from veneer.training.decisions import decide_judged
from veneer.training.loop import Job
from veneer.training.prepare import Material, Split
from veneer.training.setup import drops
from veneer.training.tracking import Tracker
from veneer.training.weights import load_trained, trained_tensors

PROBES = 16  # at most so many development texts have their logits compared after saving
PROBE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        report: the content of `report.json`.
        evaluations: the best adapter's scores by split: dev, and test where there is one.
        verdict: whether it beats TF-IDF and logistic regression; None where that was not asked for, or cannot be fitted.
        diagnosis: what limits it, and what to change next.
    """

    folder: Path
    report: dict[str, Any]
    evaluations: Mapping[str, Evaluation]
    verdict: Verdict | None
    diagnosis: Diagnosis


@dataclass(frozen=True)
class Setting:
    """What a run works with, once files are read and the model is built."""

    config: RunConfig
    folder: Path
    material: Material
    base: BaseLocation
    base_fingerprint: str
    tokenizer: PreTrainedTokenizerFast
    model: Classifier
    splits: dict[str, Split]
    precision: Precision
    prompt: Prompt | None


def finish(setting: Setting, job: Job, progress: Progress, tracker: Tracker) -> TrainingResult:
    """Score the best adapter, save it and the last one, load the best again and compare, write report and page.

    Raises:
        VerificationError: what was saved does not give the logits it gave in memory.
    """
    folder, model = setting.folder, setting.model
    plot_curves(tracker.history, job.metric, folder / "curves.png")
    last = trained_tensors(model)
    load_trained(model, progress.best_tensors)
    logits = {name: compute_logits(model, split.texts) for name, split in setting.splits.items() if name != "train"}
    found = _fit_calibration(setting, logits["dev"])
    fitted = _tell(found, tracker) if setting.config.evaluation.calibrate else None
    calibration = fitted.calibration if fitted is not None else PLAIN
    evaluations = {name: _score(setting, name, one, calibration) for name, one in logits.items()}
    verdict = _judge(setting, logits, fitted, tracker)
    diagnosis = diagnose(_evidence(setting, logits["dev"], calibration, found.rule, tracker))
    findings = Findings(verdict, fitted, diagnosis)
    report = build_report(_facts(setting, job, progress, tracker), evaluations, findings)
    write_report(folder, report)
    _save(setting, progress, last, evaluations["dev"], fitted)
    probes = _verify(setting)
    tracker.note(f"saved in {folder}: loaded again, logits of {probes} texts are the same")
    return TrainingResult(folder, report, evaluations, verdict, diagnosis)


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """`report.json` of a run folder, and the page that shows it."""
    page = render_page(report)
    write_text(folder / REPORT_FILE, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / PAGE_FILE, page)


def _fit_calibration(setting: Setting, logits: Tensor) -> Fitted:
    """What can be fitted on dev: kept where the configuration wants it, and read by the diagnosis in any case."""
    config, dev, task = setting.config, setting.splits["dev"], setting.material.task
    texts = list(map(text_key, dev.examples))
    return fit_calibration(logits, dev.targets, task, texts=texts, bootstrap=config.evaluation.bootstrap, seed=config.seed)


def _tell(fitted: Fitted, tracker: Tracker) -> Fitted:
    """Say in one line what calibration came to."""
    if not fitted.parts:
        tracker.say(f"not calibrated: {fitted.rule.reason}")
        return fitted
    before, after = fitted.before.scores()["ece"], fitted.after.scores()["ece"]
    tracker.say(
        f"calibrated on {fitted.texts:,} dev texts: calibration error {before:.3f} -> {after:.3f} on held-out parts; "
        f"the {fitted.rule.kept} decision rule is kept: {fitted.rule.reason}"
    )
    return fitted


def _decide(setting: Setting, logits: Tensor, calibration: Calibration) -> np.ndarray[Any, Any]:
    return setting.material.task.decide(logits, calibration).numpy()


def _score(setting: Setting, name: str, logits: Tensor, calibration: Calibration) -> Evaluation:
    multi_label = setting.material.task.name == "multi_label"
    targets = setting.splits[name].targets
    return score(
        (targets.bool() if multi_label else targets).numpy(),
        _decide(setting, logits, calibration),
        setting.material.labels.names,
        multi_label=multi_label,
        bootstrap=setting.config.evaluation.bootstrap,
        seed=setting.config.seed,
    )


def _judge(setting: Setting, logits: Mapping[str, Tensor], fitted: Fitted | None, tracker: Tracker) -> Verdict | None:
    if not setting.config.evaluation.baseline:
        return None
    tracker.note("fitting TF-IDF and logistic regression to compare with")
    return judge_against_text(setting.material, decide_judged(fitted, setting.material.task, logits), setting.config)


def _evidence(setting: Setting, logits: Tensor, calibration: Calibration, rule: Rule, tracker: Tracker) -> Evidence:
    """What the diagnosis reads: dev, and what training was made of."""
    material, dev, train = setting.material, setting.splits["dev"], setting.splits["train"]
    single = train.targets.ndim == 1
    counts = torch.bincount(train.targets, minlength=len(material.labels)) if single else train.targets.sum(0)
    second = [example.pair for example in train.examples if example.pair is not None]
    lengths = dev.texts.lengths if setting.prompt is None else setting.prompt.reading_lengths(dev.texts.lengths)
    return Evidence(
        task=material.task.name,
        labels=material.labels.names,
        logits=logits.numpy(),
        probabilities=material.task.probabilities(logits, calibration).numpy(),
        targets=dev.targets.numpy(),
        decisions=_decide(setting, logits, calibration),
        texts=[example.text for example in dev.examples],
        pairs=[example.pair or "" for example in dev.examples] if material.pair else None,
        rows=[example.row for example in dev.examples],
        lengths=lengths,
        cut=(lengths >= setting.config.data.max_length) & (dev.texts.cut > 0),  # one that just fits may be among them
        train_texts=[*(example.text for example in train.examples), *second],
        train_counts=counts.numpy(),
        history=tracker.history,
        rule=rule,
        ruled=setting.config.evaluation.calibrate,
        columns={
            str(name): [example.slices[i] for example in dev.examples] for i, name in enumerate(setting.config.data.slice_columns)
        },
        settings=METHOD_SETTINGS[setting.config.method] | _could_answer_twice(setting),
    )


def _could_answer_twice(setting: Setting) -> set[str]:
    """The key of R-Drop, where it is not on and would do something."""
    return {R_DROP} if setting.config.training.r_drop is None and drops(setting.model) else set()


def _facts(setting: Setting, job: Job, progress: Progress, tracker: Tracker) -> RunFacts:
    counts = lora.count_parameters(setting.model)
    return RunFacts(
        task=setting.material.task.name,
        base=setting.base.model_id,
        labels=setting.material.labels.names,
        splits={name: len(split) for name, split in setting.splits.items()},
        training=TrainingFacts(
            metric=job.metric,
            best_step=progress.best_step,
            steps=progress.step,
            epochs=progress.texts / len(job.train),
            seconds=round(progress.seconds, 3),
            texts_per_second=round(progress.texts / progress.seconds, 1),
        ),
        parameters={"lora": counts.lora, "trainable": counts.trainable, "total": counts.total},
        versions=package_versions(),
        configuration=setting.config.model_dump(mode="json"),
        fingerprints=setting.material.fingerprints,
        warnings=[problem.to_json() for problem in setting.material.warnings],
        history=tracker.history,
    )


def _save(setting: Setting, progress: Progress, last: dict[str, Tensor], dev: Evaluation, fitted: Fitted | None) -> None:
    """The last step's adapter under `last/`, its scores its own; the best at the top."""
    folder, model = setting.folder, setting.model
    calibration = None if fitted is None else fitted.calibration.to_json()
    load_trained(model, last)
    same = progress.best_step == progress.step
    last_dev = dev if same else _score(setting, "dev", compute_logits(model, setting.splits["dev"].texts), PLAIN)
    (folder / "last").mkdir(exist_ok=True)
    save_artifact(folder / "last", model, setting.tokenizer, _info(setting, last_dev, calibration if same else None))
    load_trained(model, progress.best_tensors)
    save_artifact(folder, model, setting.tokenizer, _info(setting, dev, calibration))


def _info(setting: Setting, dev: Evaluation, calibration: dict[str, Any] | None) -> ArtifactInfo:
    return ArtifactInfo(
        task=setting.material.task.name,
        labels=setting.material.labels.names,
        pooling=setting.model.plan.pooling,
        own_head=setting.model.plan.own,
        base=setting.config.base,
        base_id=setting.base.model_id,
        base_fingerprint=setting.base_fingerprint,
        data_fingerprint=setting.material.fingerprints["train"],
        max_length=setting.config.data.max_length,
        pair=setting.material.pair,
        precision=setting.precision.name,
        method=setting.config.method,
        base_precision=setting.config.base_precision,
        scores={name: interval.value for name, interval in dev.metrics.items()},
        versions=package_versions(),
        calibration=calibration,
        verbaliser=None if setting.prompt is None else setting.prompt.to_json(),
    )


def _verify(setting: Setting) -> int:
    """Load the folder as anybody would and compare the logits of probe texts with those in memory; how many were compared."""
    examples = setting.splits["dev"].examples[:PROBES]
    pairs = [example.pair or "" for example in examples] if setting.material.pair else None
    texts = [example.text for example in examples]
    encoded = encode(setting.tokenizer, texts, pairs, setting.config.data.max_length, setting.prompt)
    memory = compute_logits(setting.model, encoded)
    problem = ""
    try:
        loaded = load_artifact(setting.folder, base=str(setting.base.path), precision=setting.precision.name)
        disk = compute_logits(loaded.model, loaded.encode(texts, pairs))
        difference = float((memory - disk).abs().max())
        if not difference <= PROBE_TOLERANCE:  # nor is it where it is not a number
            problem = f"gives other logits than the one in memory (by {difference:.2g})"
    except InputError as error:
        problem = f"cannot be loaded again ({error})"
    if problem:
        (setting.folder / INFO_FILE).unlink()
        raise VerificationError(f"the adapter saved in {setting.folder} {problem}. The checkpoint is kept; please report this")
    return len(examples)
