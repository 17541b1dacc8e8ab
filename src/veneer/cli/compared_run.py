"""A run folder with the data it was trained on, read again and found to be the same, and what it decides there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from veneer.cli.output import messages, print_lines, progress_bar
from veneer.cli.runs import changed_files, require_own_texts, run_config
from veneer.config import RunConfig
from veneer.data import text_key
from veneer.errors import DataError
from veneer.evaluation.calibration import fit_calibration
from veneer.evaluation.goals import Goal
from veneer.evaluation.page.made import MadeFrom, read_made
from veneer.predictor import load
from veneer.report_file import read_report
from veneer.run_info import ArtifactInfo, read_info
from veneer.tasks import PLAIN, Calibration
from veneer.training.baselines import target_tensor
from veneer.training.prepare import Material, read_material


@dataclass(frozen=True)
class ComparedRun:
    """A finished run and its data.

    Attributes:
        seconds: of its training steps; None where the folder has no report, or was made from others.
        parameters: how many were trained; None without a report.
        made: how it was made from others; None of a trained run.
    """

    folder: Path
    info: ArtifactInfo
    config: RunConfig
    material: Material
    seconds: float | None
    parameters: int | None
    made: MadeFrom | None

    def logits(self, splits: Iterable[str], base: str | None) -> dict[str, Tensor]:
        """`[N, C]` by split.

        Raises:
            ArtifactError: the folder is damaged, or the base is another.
            BaseError: the base cannot be found.
        """
        with messages().status(f"loading {self.folder}"):
            predictor = load(self.folder, base=base)
        found = {}
        for split in splits:
            examples = self.material.examples[split]
            pairs = [example.pair or "" for example in examples] if self.info.pair else None
            with progress_bar(f"{self.folder} on {split}", len(examples)) as progress:
                found[split] = predictor.logits([example.text for example in examples], pairs, progress=progress)
        return found

    def decide(self, split: str, base: str | None) -> NDArray[Any]:
        """`[N]` ids or `[N, C]` bool on the texts of a split, by the run's calibration.

        On dev, which a decision rule of the run may be fitted on, each text is decided by one fitted without it for the same
        goal. A rule that was fitted on a file of its own (`calibrate --data`) is applied as it is; so is one for costs, which
        are not stored, and standard error says so.

        Raises:
            ArtifactError: the folder is damaged, or the base is another.
            BaseError: the base cannot be found.
        """
        logits, task = self.logits([split], base)[split], self.material.task
        calibration = PLAIN
        if self.info.calibration is not None:
            calibration = Calibration.from_json(self.info.calibration, task.name, len(self.info.labels))
        decisions = task.decide(logits, calibration)
        if split == "dev" and (calibration.offsets or calibration.thresholds):
            decisions = self._held_out(logits, decisions)
        decided: NDArray[Any] = decisions.numpy()
        return decided

    def _held_out(self, logits: Tensor, stored: Tensor) -> Tensor:
        """Decisions on dev by rules fitted without the text, for what the stored one was fitted for; else those by it."""
        found = read_report(self.folder).get("calibration") or {}
        known = found if found.get("parameters") == self.info.calibration else {}  # of the rule that is stored, or unknown
        if known.get("split", "dev") not in ("dev", "half of dev"):
            return stored
        target = known.get("target", "f1")
        if target == "cost":
            why = "its decision rule was fitted on dev for costs, which are not stored, so it looks better there than it is"
            print_lines(messages(), f"{self.folder}: {why}")
            return stored
        task, labels, config = self.material.task, self.material.labels, self.config
        goal = Goal.parse(target, labels, task.name)
        examples = self.material.examples["dev"]
        targets, texts = target_tensor(examples, labels, task), list(map(text_key, examples))
        bootstrap, seed = config.evaluation.bootstrap, config.seed
        return fit_calibration(logits, targets, task, texts=texts, goal=goal, bootstrap=bootstrap, seed=seed).held_out


def open_run(folder: Path) -> ComparedRun:
    """The run, its configuration and its data.

    Raises:
        ArtifactError: no whole run folder, or one without its configuration.
        DataError: its files are gone, or are not what it was trained with.
    """
    info = read_info(folder)
    config = run_config(folder)
    if config.data.label_names is not None:
        config.data.label_names = list(info.labels)  # the file they came from may be gone
    require_own_texts(folder)
    report = read_report(folder)
    with messages().status(f"reading the data of {folder}"):
        material = read_material(config)
    _check_data(folder, info, config, material)
    return ComparedRun(
        folder,
        info,
        config,
        material,
        (report.get("training") or {}).get("seconds"),
        (report.get("parameters") or {}).get("trainable"),
        read_made(report),
    )


def _check_data(folder: Path, info: ArtifactInfo, config: RunConfig, material: Material) -> None:
    if changed := changed_files(folder, config, info.data_fingerprint, material.fingerprints):
        raise DataError(
            f"{folder} was trained on other rows than there are now in {', '.join(changed)}: texts or labels differ. "
            "Fix: put back the files it was trained with, or train again"
        )
    if material.labels.names != info.labels or material.task.name != info.task:
        raise DataError(f"{folder}: its files now give other labels than it has. Fix: put back what it was trained with")
