"""Rows that are probably mislabelled: out-of-fold scores, then confident learning. `_audit` is the page to read.

Knows how a file's rows are scored by models that did not see them; does not know what becomes of the suspects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from veneer.bases import BaseLocation
from veneer.config import RunConfig
from veneer.data import Example, check_splits, raise_on_errors, read_examples, render_problems
from veneer.data.corrections import Suspect
from veneer.errors import DataError
from veneer.evaluation.comparison import Compared, Difference, compare_decisions
from veneer.evaluation.label_issues import LabelIssues, find_label_issues, require_cleanlab
from veneer.evaluation.metrics import point_metrics
from veneer.evaluation.scaling import Sample, fit_scaling
from veneer.labels import LabelSet
from veneer.tasks import Task
from veneer.training.baselines import majority
from veneer.training.folds import FoldedTraining, out_of_fold_logits
from veneer.training.frozen_folds import out_of_fold_logits_of_frozen
from veneer.training.prepare import columns_of

MOST_CELLS = 50_000_000  # rows x labels
BYTES_A_CELL = 56  # measured: probabilities in both precisions, and what cleanlab makes of them


@dataclass(frozen=True)
class Audit:
    """What an audit of N rows found.

    Attributes:
        source: the file.
        examples: its rows.
        scores: `[N]` out-of-fold probability of each row's given label; with several labels a row, of its most doubted mark.
        suspects: the doubted rows, the most doubtful first.
        metrics: accuracy, macro-F1 and so on of the out-of-fold decisions against the given labels: how far to trust the rest.
        lead: how far those decisions are ahead of the best answer that does not read the text, by `lead_metric`.
    """

    source: str
    examples: tuple[Example, ...]
    scores: NDArray[np.float64]
    suspects: tuple[Suspect, ...]
    metrics: dict[str, float]
    lead: Difference
    lead_metric: str

    @property
    def informed(self) -> bool:
        """Whether the models clearly know something; the doubts of models that do not are worth nothing."""
        return self.lead.low > 0


def audit(
    config: RunConfig, task: Task, labels: LabelSet, base: BaseLocation, *, folds: int, kept: Path, console: Console | None = None
) -> Audit:
    """Score every row of the training file by a model that was not trained on it, and find the labels that do not fit.

    The file's own labels are audited: `data.corrections` plays no part.

    Args:
        config: of the run; `data.train` is audited, in its columns, with the run's own adapter and training settings.
        labels: the C labels of the run.
        base: a clean one for each fold.
        kept: file of the finished folds, for an audit that goes on where it was stopped; the caller removes it.
        console: where progress is shown; standard error by default.

    Raises:
        ConfigError: cleanlab is not installed.
        DataError: the file cannot be used, has too few rows, or with this many labels too many.
        ResumeError: `kept` is of another audit.
        Interrupted: stopped from outside; only the fold in work is lost.
    """
    return _audit(config, task, labels, base, folds, console, lambda work, shown: out_of_fold_logits(work, kept, shown))


def quick_audit(
    config: RunConfig, task: Task, labels: LabelSet, base: BaseLocation, *, folds: int, console: Console | None = None
) -> Audit:
    """`audit` without training: the models are logistic regressions on the vectors of the base as it is.

    They take seconds, are right less often than an adapter, and so doubt more rows.

    Raises:
        ConfigError, DataError: as `audit`; a DataError also where logistic regressions would take too long.
    """
    return _audit(config, task, labels, base, folds, console, out_of_fold_logits_of_frozen)


def _audit(
    config: RunConfig,
    task: Task,
    labels: LabelSet,
    base: BaseLocation,
    folds: int,
    console: Console | None,
    score: Callable[[FoldedTraining, Console], Tensor],
) -> Audit:
    """`score` gives the `[N, C]` out-of-fold logits; all that follows is the same however they came about."""
    require_cleanlab()  # before hours of training
    console = console or Console(stderr=True)
    multi_label = task.name == "multi_label"
    reading = read_examples(config.data.train or "", columns_of(config.data))
    problems = [*reading.problems, *check_splits(reading, None, None, labels, multi_label)]
    raise_on_errors(problems)
    if problems:
        console.print(render_problems(problems), markup=False, highlight=False)
    _check_size(len(reading.examples), len(labels))
    logits = score(FoldedTraining(config, reading.examples, task, labels, base, folds), console)
    targets = task.targets([[labels.id(label) for label in example.labels] for example in reading.examples], len(labels))
    # One temperature a label over all rows: too few parameters to remember any row's own label.
    calibration = fit_scaling(Sample(task, logits, targets), "temperature")
    probabilities = task.probabilities(logits, calibration)
    issues = find_label_issues(targets.numpy(), probabilities.numpy(), multi_label=multi_label)
    suspects = _suspects(reading.examples, issues, labels, multi_label)
    decisions = task.decide(logits).numpy()
    metrics = point_metrics(targets.numpy(), decisions, len(labels), multi_label)
    lead = _lead(targets.numpy(), decisions, len(labels), multi_label, config.seed)
    return Audit(reading.source, reading.examples, issues.scores, suspects, metrics, *lead)


def _lead(
    targets: NDArray[np.generic], decisions: NDArray[np.generic], classes: int, multi_label: bool, seed: int
) -> tuple[Difference, str]:
    """How far decisions are ahead of any that ignore the text, and by which metric.

    The mean recall of the classes is 1/C for every such answer, guesses among them, however rare a class is. With several labels
    a row the best one by macro-F1 gives every label to every row.
    """
    blind = np.ones_like(decisions) if multi_label else np.full_like(decisions, majority(targets))
    compared = Compared(targets, classes, multi_label, "macro_f1" if multi_label else "macro_recall", seed)
    return compare_decisions(compared, decisions, blind), compared.metric


def _check_size(rows: int, labels: int) -> None:
    """Refuse before hours of training what confident learning could not hold afterwards."""
    if rows * labels > MOST_CELLS:
        raise DataError(
            f"{rows:,} rows with {labels:,} labels are too many to audit at once: it would take "
            f"{rows * labels * BYTES_A_CELL / 2**30:,.0f} GiB of memory. "
            f"Fix: audit a part of the file, of at most {MOST_CELLS // labels:,} rows"
        )


def _suspects(examples: tuple[Example, ...], issues: LabelIssues, labels: LabelSet, multi_label: bool) -> tuple[Suspect, ...]:
    found = []
    for row in issues.ranking.tolist():
        example, suggested = examples[row], issues.suggested[row]
        ids = np.flatnonzero(suggested) if multi_label else suggested[None]
        names = _in_order(example.labels, [labels[int(i)] for i in ids])
        score, confidence = float(issues.scores[row]), float(issues.confidence[row])
        found.append(Suspect(example.row, example.text, example.pair, example.labels, names, score, confidence))
    return tuple(found)


def _in_order(given: tuple[str, ...], suggested: list[str]) -> tuple[str, ...]:
    """The suggested labels, those that were given before first and in their order: the first label is the primary one."""
    return (*(label for label in given if label in suggested), *(label for label in suggested if label not in given))
