"""The texts that a new run is scored and calibrated on, as training does it: dev, and test where there is one.

Knows examples, tasks and scores; knows nothing of adapters.
"""

from __future__ import annotations

from collections.abc import Callable
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
from veneer.tasks import PLAIN, TASKS, Calibration, Task
from veneer.training.prepare import Material


@dataclass(frozen=True)
class Dev:
    """N labelled texts and how decisions on them are judged.

    Attributes:
        material: the run's data, of which they are a split.
        targets: as `task.targets` gives them for `labels`.
        metric: the score that runs are compared by.
        bootstrap: resamples behind the choice of a decision rule.
        test: the test texts, likewise; None where there are none.
    """

    material: Material
    examples: tuple[Example, ...]
    targets: Tensor
    task: Task
    labels: LabelSet
    metric: str
    bootstrap: int
    seed: int
    test: Dev | None

    @classmethod
    def of(cls, material: Material, config: RunConfig, labels: LabelSet, split: str = "dev") -> Dev:
        """The development texts of a run with this resolved configuration and data, and its test texts."""
        task, examples = TASKS[config.task], material.examples[split]  # type: ignore[index]
        targets = task.targets([[labels.id(label) for label in example.labels] for example in examples], len(labels))
        evaluation = config.evaluation
        metric = compared_metric(evaluation.metric)
        test = cls.of(material, config, labels, "test") if split == "dev" and "test" in material.examples else None
        return cls(material, tuple(examples), targets, task, labels, metric, evaluation.bootstrap, config.seed, test)

    def __len__(self) -> int:
        return len(self.examples)

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

    def judge(
        self, predictor: Predictor, logits: Tensor, fitted: Fitted | None, calibration: Calibration = PLAIN
    ) -> dict[str, Evaluation]:
        """The scores of a model on dev, whose `[N, C]` logits these are, and on test; by `fitted`, else by `calibration`."""
        decided = calibration if fitted is None else fitted.calibration
        found = {"dev": self.evaluate(logits, decided)}
        if self.test is not None:
            found["test"] = self.test.evaluate(self.test.logits(predictor), decided)
        return found

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
