"""What the page shows of `report.json`, checked and made presentable: the one place that knows the document's keys.

Every part may be null or missing. Knows nothing of HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, model_validator

from veneer.evaluation.page.made import MadeFrom
from veneer.evaluation.page.parts import PART, Many, Name, Named, Number, Pair, Text, read_part


class _Part(BaseModel):
    model_config = PART


class Texts(_Part):
    """How many texts a split has."""

    texts: int


class Training(_Part):
    """How long it was trained; seconds of the training steps alone."""

    metric: Name
    best_step: int | None = None
    steps: int | None = None
    epochs: Number | None = None
    seconds: Number | None = None
    texts_per_second: Number | None = None


class ClassScore(_Part):
    """The scores of one class."""

    label: Name
    precision: Number
    recall: Number
    f1: Number
    support: int
    predicted: int


Counts = tuple[tuple[int, ...], ...]
Outcomes = tuple[tuple[tuple[int, int], tuple[int, int]], ...]


class Confusion(_Part):
    """What was decided for what; `matrix` is null where it would be too large."""

    labels: Many[Name] = ()
    matrix: Counts | Outcomes | None = None

    @model_validator(mode="after")
    def _fits(self) -> Confusion:
        size = len(self.labels)
        if self.matrix is not None and (len(self.matrix) != size or any(len(row) != size for row in self.counts)):
            raise ValueError(f"the matrix does not fit its {size} labels")
        return self

    @property
    def counts(self) -> Counts:
        """`[C, C]` of a single-label task, rows being targets; else empty."""
        return cast(Counts, self.matrix) if self.matrix and not self._is_of_labels else ()

    @property
    def outcomes(self) -> Outcomes:
        """`[C, 2, 2]` of a multi-label task, each `[[true negative, false positive], [false negative, true positive]]`."""
        return cast(Outcomes, self.matrix) if self.matrix and self._is_of_labels else ()

    @property
    def _is_of_labels(self) -> bool:
        return bool(self.matrix) and any(isinstance(cell, tuple) for cell in (self.matrix or ((),))[0])


class Scores(_Part):
    """The scores on one split; `intervals` are of 95 %."""

    n: int
    metrics: Named[Number | None] = {}
    intervals: Named[Pair | None] = {}
    per_class: Many[ClassScore] = ()
    confusion: Confusion | None = None


class Moment(_Part):
    """A row of the history of a training."""

    model_config = ConfigDict(frozen=True, extra="allow")  # the metrics, by name

    kind: str
    step: int
    split: str | None = None

    def value(self, name: str) -> float | None:
        """The finite value of a metric, if there is one."""
        found = (self.model_extra or {}).get(name)
        number = isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < float("inf")
        return float(found) if found is not None and number else None


class Verdict(_Part):
    """Whether training was worth it; `gain_interval` is the 95 % interval of the difference `score - baseline`."""

    kind: Literal["effective", "limited", "not_worth_it", "within_noise"]
    metric: Name
    split: Name
    against: Name
    score: Number
    baseline: Number
    relative_gain: Number | None = None
    gain_interval: Pair | None = None
    text: Text = ""


class Bin(_Part):
    """Texts of about the same confidence, and the share of them that was right."""

    confidence: Number | None = None
    accuracy: Number | None = None
    texts: int = 0


class Reliability(_Part):
    """Bins of equal mass before and after the calibration."""

    before: Many[Bin] = ()
    after: Many[Bin] = ()


class Rule(_Part):
    """Which decision rule was kept, and what the fitted one gained."""

    kept: str
    metric: Name
    plain: Number | None = None
    fitted: Number | None = None
    gain: Number | None = None
    interval: Pair | None = None
    reason: Text = ""


class Promise(_Part):
    """A share of texts that something holds for, from a probability on."""

    target: Number
    level: Number
    texts: int


class Kept(_Part):
    """What a promise rests on."""

    assumption: Text = ""


class Parameters(_Part):
    """A `veneer.tasks.Calibration`."""

    slopes: Many[Number] = ()
    shifts: Many[Number] = ()
    offsets: Many[Number] = ()
    thresholds: Many[Number] = ()
    coverage: Promise | None = None
    precision: Promise | None = None


class Calibrated(_Part):
    """How the calibration was fitted, and what it did to the probabilities."""

    target: Name | None = None
    texts: int | None = None
    split: Name | None = None
    method: Name | None = None
    parameters: Parameters | None = None
    rule: Rule | None = None
    measured_on: Text | None = None
    before: Named[Number | None] = {}
    after: Named[Number | None] = {}
    reliability: Reliability | None = None
    promises: Named[Kept] = {}


class Suggestion(_Part):
    """What to change next, and why."""

    rule: Name = ""
    advice: Text
    evidence: Text = ""


class Margin(_Part):
    """The margins of texts that have a label (`inside`) and of those that have not, counted in the same B bins."""

    name: Name
    overlap: Number | None = None
    edges: Many[Number]
    inside: Many[int]
    outside: Many[int]

    @model_validator(mode="after")
    def _fits(self) -> Margin:
        if not len(self.edges) - 1 == len(self.inside) == len(self.outside):
            raise ValueError("inside and outside must each have one value fewer than edges")
        return self


class Limit(_Part):
    """What the best threshold would give a label, and how well it ranks."""

    label: Name
    f1: Number | None = None
    best_f1: Number | None = None
    threshold: Number | None = None
    auc: Number | None = None
    support: int = 0


class Curve(_Part):
    """Precision, recall and F1 of a label at each threshold."""

    label: Name
    thresholds: Many[Number]
    precision: Many[Number | None]
    recall: Many[Number | None]
    f1: Many[Number | None]

    @model_validator(mode="after")
    def _fits(self) -> Curve:
        if len({len(self.thresholds), len(self.precision), len(self.recall), len(self.f1)}) != 1:
            raise ValueError("thresholds, precision, recall and f1 must be of one length")
        return self


class Fit(_Part):
    """Whether the training under- or over-fitted."""

    state: str
    evidence: Text = ""


class Slice(_Part):
    """The score on some of the texts."""

    by: Name
    value: Name
    texts: int
    score: Number | None = None
    interval: Pair | None = None


class Shown(_Part):
    """A text of the data."""

    row: int | Name | None = None
    text: Text
    pair: Text | None = None


class Confused(_Part):
    """Texts of one class that were taken for another."""

    target: Name
    decided: Name
    texts: int
    examples: Many[Shown] = ()


class Mistake(Shown):
    """A text that was decided wrongly, and how sure the model was."""

    given: Many[Name] = ()
    decided: Many[Name] = ()
    confidence: Number | None = None


class Diagnosis(_Part):
    """What the logits of a split say about what to change."""

    split: Name = "dev"
    suggestions: Many[Suggestion] = ()
    margins: Many[Margin] = ()
    limits: Many[Limit] = ()
    curves: Many[Curve] = ()
    fit: Fit | None = None
    slices: Many[Slice] = ()
    confused: Many[Confused] = ()
    mistakes: Many[Mistake] = ()


class Fingerprints(_Part):
    """SHA-256 of each split's texts and labels."""

    fingerprints: Named[Name | None] = {}


class Warned(_Part):
    """What is odd in the data, in `count` rows, of which `row` is the first."""

    source: Text = ""
    row: int | None = None
    column: Name | None = None
    value: Text = ""
    message: Text
    fix: Text = ""
    count: int = 1


class Report(_Part):
    """The whole of `report.json`."""

    task: Literal["single_label", "multi_label"]
    base: Name
    labels: Many[Name]
    splits: Named[Texts] = {}
    training: Training | None = None
    made_from: MadeFrom | None = None
    parameters: Named[int | None] = {}
    evaluations: Named[Scores] = {}
    versions: Named[Name | None] = {}
    configuration: dict[str, Any] | None = None
    data: Fingerprints | None = None
    warnings: Many[Warned] = ()
    history: Many[Moment] = ()
    verdict: Verdict | None = None
    calibration: Calibrated | None = None
    calibrated_since: bool = False
    dev_rescored: bool = False
    diagnosis: Diagnosis | None = None

    @property
    def metric(self) -> str:
        """The score that chose the best step, or that a run which was made is compared by."""
        told = self.training or self.made_from
        return told.metric if told is not None else "macro_f1"


def read_content(report: Mapping[str, Any]) -> Report:
    """The content of a report of the current format version.

    Raises:
        ArtifactError: as `read_part`.
    """
    return read_part(Report, report)
