"""The two tasks: targets, loss, probabilities and decisions.

Knows torch and label ids; knows nothing of models, files or metrics. A loss is given a text, `[N]`, so that a batch cut into
micro-batches has the gradient of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

TaskName = Literal["single_label", "multi_label"]

FOCAL_GAMMA = 2.0  # of arXiv:1708.02002


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        class_weights: `[C]` float32 above 0, or None: single-label, of a text by its label; multi-label, of a label where a
            text has it.
        focal: weigh a label by (1 - p)^2 of the probability p its target gets (arXiv:1708.02002).
        label_smoothing: share of the target spread over all classes.
    """

    class_weights: Tensor | None = None
    focal: bool = False
    label_smoothing: float = 0.0


class Task(Protocol):
    """What distinguishes one kind of labels from another."""

    name: TaskName

    def targets(self, ids: Sequence[Sequence[int]], classes: int) -> Tensor:
        """Targets of N texts from their label ids."""

    def losses(self, logits: Tensor, targets: Tensor, objective: Objective) -> Tensor:
        """`[N]` losses of `[N, C]` logits."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """`[N, C]` probabilities."""

    def decide(self, logits: Tensor) -> Tensor:
        """Decisions in the form of the targets."""

    def class_weights(self, targets: Tensor, classes: int) -> Tensor:
        """`[C]` float32 weights that let rare classes count more, `balanced` in the configuration."""


class SingleLabel:
    """One label a text: cross-entropy, softmax, the largest logit. Targets are `[N]` int64."""

    name: TaskName = "single_label"

    def targets(self, ids: Sequence[Sequence[int]], classes: int) -> Tensor:
        """`[N]` int64, the one label of each text."""
        return torch.tensor([label for (label,) in ids], dtype=torch.int64)

    def losses(self, logits: Tensor, targets: Tensor, objective: Objective) -> Tensor:
        """`[N]`: −w·(1−p)^γ·log p of the target's probability p (γ = 0 unless focal)."""
        losses = functional.cross_entropy(
            logits, targets, weight=objective.class_weights, label_smoothing=objective.label_smoothing, reduction="none"
        )
        if objective.focal:
            p = self.probabilities(logits).gather(1, targets[:, None]).squeeze(1)
            losses = losses * (1.0 - p) ** FOCAL_GAMMA
        return losses

    def probabilities(self, logits: Tensor) -> Tensor:
        """`[N, C]`, rows that sum to 1."""
        return logits.float().softmax(-1)

    def decide(self, logits: Tensor) -> Tensor:
        """`[N]` int64."""
        return logits.argmax(-1)

    def class_weights(self, targets: Tensor, classes: int) -> Tensor:
        """n / (C·n_c) over the C classes with texts, as scikit-learn's `balanced`: their mean over the texts is 1.

        A class without texts gets 1.
        """
        counts = torch.bincount(targets, minlength=classes).float()
        return torch.where(counts > 0, len(targets) / (int((counts > 0).sum()) * counts.clamp(min=1.0)), 1.0)


class MultiLabel:
    """Any number of labels a text: binary cross-entropy a label, sigmoid, threshold 0.5. Targets are `[N, C]` float32."""

    name: TaskName = "multi_label"

    def targets(self, ids: Sequence[Sequence[int]], classes: int) -> Tensor:
        """`[N, C]` float32 of 0 and 1."""
        targets = torch.zeros(len(ids), classes)
        for row, labels in enumerate(ids):
            targets[row, list(labels)] = 1.0
        return targets

    def losses(self, logits: Tensor, targets: Tensor, objective: Objective) -> Tensor:
        """`[N]`: the mean over labels of w·(1−p)^γ·BCE, where the weight w is of the positive side."""
        smoothed = targets * (1.0 - objective.label_smoothing) + objective.label_smoothing / 2.0
        losses = functional.binary_cross_entropy_with_logits(
            logits, smoothed, pos_weight=objective.class_weights, reduction="none"
        )
        if objective.focal:
            p = self.probabilities(logits)
            losses = losses * (1.0 - torch.where(targets > 0.5, p, 1.0 - p)) ** FOCAL_GAMMA
        return losses.mean(-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """`[N, C]`, each its own probability."""
        return logits.float().sigmoid()

    def decide(self, logits: Tensor) -> Tensor:
        """`[N, C]` bool: probability above 0.5."""
        return logits > 0

    def class_weights(self, targets: Tensor, classes: int) -> Tensor:
        """sqrt(negatives / positives) of each label, 0.1 to 10: the plain ratio overshoots badly on labels of a percent.

        A label without texts gets 1; nothing is normalised, so the mean is not 1.
        """
        positives = targets.sum(0)
        ratio = (len(targets) - positives) / positives.clamp(min=1.0)
        return torch.where(positives > 0, ratio.sqrt().clamp(0.1, 10.0), 1.0)


TASKS: dict[TaskName, Task] = {"single_label": SingleLabel(), "multi_label": MultiLabel()}
