"""The development texts that a new run is scored and calibrated on, as training does it.

Knows examples, tasks and scores; knows nothing of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from veneer.config import RunConfig
from veneer.data import Example, text_key
from veneer.evaluation.calibration import Fitted, fit_calibration
from veneer.evaluation.comparison import RESAMPLES, compared_metric
from veneer.evaluation.goals import Goal
from veneer.evaluation.metrics import Evaluation, Interval, score
from veneer.labels import LabelSet
from veneer.predictor import Predictor
from veneer.tasks import TASKS, Calibration, Task


@dataclass(frozen=True)
class Dev:
    """N labelled texts and how decisions on them are judged.

    Attributes:
        targets: as `task.targets` gives them for `labels`.
        metric: the score that runs are compared by.
        bootstrap: resamples behind the choice of a decision rule.
    """

    examples: tuple[Example, ...]
    targets: Tensor
    task: Task
    labels: LabelSet
    metric: str
    bootstrap: int
    seed: int

    @classmethod
    def of(cls, examples: Sequence[Example], config: RunConfig, labels: LabelSet) -> Dev:
        """The development texts of a run with this resolved configuration."""
        task = TASKS[config.task]  # type: ignore[index]
        targets = task.targets([[labels.id(label) for label in example.labels] for example in examples], len(labels))
        evaluation = config.evaluation
        metric = compared_metric(evaluation.metric)
        return cls(tuple(examples), targets, task, labels, metric, evaluation.bootstrap, config.seed)

    def logits(self, predictor: Predictor, progress: Callable[[int], None] | None = None) -> Tensor:
        """`[N, C]` logits of a model of these labels, in this order."""
        pairs = [example.pair or "" for example in self.examples] if predictor.info.pair else None
        return predictor.logits([example.text for example in self.examples], pairs, progress=progress)

    def evaluate(self, logits: Tensor, calibration: Calibration, resamples: int = RESAMPLES) -> Evaluation:
        """The scores of the decisions that `[N, C]` logits lead to, with intervals of so many resamples."""
        multi_label = self.task.name == "multi_label"
        return score(
            (self.targets.bool() if multi_label else self.targets).numpy(),
            self.task.decide(logits, calibration).numpy(),
            self.labels.names,
            multi_label=multi_label,
            bootstrap=resamples,
            seed=self.seed,
        )

    def score(self, logits: Tensor, calibration: Calibration, resamples: int = 0) -> Interval:
        """The score that runs are compared by."""
        return self.evaluate(logits, calibration, resamples).metrics[self.metric]

    def fit(self, logits: Tensor, goal: Goal | None = None, like: Calibration | None = None) -> Fitted:
        """A calibration, for the promises of `like` where that makes any.

        Raises:
            DataError: the goal or a promise cannot be reached with these texts.
        """
        coverage, precision = (None, None) if like is None else (like.coverage, like.precision)
        return fit_calibration(
            logits,
            self.targets,
            self.task,
            texts=list(map(text_key, self.examples)),
            goal=goal,
            coverage=None if coverage is None else coverage.target,
            precision=None if precision is None else precision.target,
            bootstrap=self.bootstrap,
            seed=self.seed,
        )
