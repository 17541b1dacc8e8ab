"""The two tasks: targets, loss, probabilities and decisions, the latter two as a calibration says.

Knows torch and label ids; knows nothing of models, files or metrics. A loss is given a text, `[N]`, so that a batch cut into
micro-batches has the gradient of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

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


@dataclass(frozen=True)
class Promise:
    """A share of texts that something shall hold for, and the probability at which it does.

    Attributes:
        target: the share asked for, such as 0.95.
        level: the probability from which on a class is in the set, or an answer is given.
        texts: how many labelled texts the level was found on.
    """

    target: float
    level: float
    texts: int


@dataclass(frozen=True)
class Calibration:
    """How logits become probabilities and decisions, fitted on labelled texts after training.

    Logits z become z' = slope·z + shift; probabilities are their softmax or sigmoid. An empty tuple stands for "not fitted".

    Attributes:
        slopes: 1/temperature: one for single-label, `[C]` for multi-label.
        shifts: `[C]`, of multi-label tasks (Platt scaling).
        offsets: `[C]`, of single-label tasks: added to z' before the largest is taken.
        left: ids of the classes of a single-label task that offsets leave alone: exactly those texts are decided to be of them
            that have their largest logit there.
        thresholds: `[C]`, of multi-label tasks: the probability from which on a label is given.
        coverage: sets of classes that hold the right ones for a share of the texts.
        precision: answers that are right for a share of the answered texts; the others are abstained from.
    """

    slopes: tuple[float, ...] = ()
    shifts: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    coverage: Promise | None = None
    precision: Promise | None = None
    left: tuple[int, ...] = ()

    def calibrated(self, logits: Tensor) -> Tensor:
        """`[N, C]` float32 logits z' of `[N, C]` logits z."""
        z = logits.float()
        if self.slopes:
            z = z * z.new_tensor(self.slopes)
        return z + z.new_tensor(self.shifts) if self.shifts else z

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, what `from_json` reads."""
        tree: dict[str, Any] = {name: list(getattr(self, name)) for name in _NUMBERS}
        promises = {name: getattr(self, name) for name in _PROMISES}
        tree |= {name: None if one is None else vars(one) | {} for name, one in promises.items()}
        return tree | ({"left": list(self.left)} if self.left else {})

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], task: TaskName, classes: int) -> Calibration:
        """The inverse of `to_json`, checked.

        Raises:
            ValueError: a key or a value is not what `to_json` writes for this task and number of classes.
        """
        if set(tree) - {"left"} != {*_NUMBERS, *_PROMISES}:
            raise ValueError(f"a calibration has the keys {', '.join([*_NUMBERS, *_PROMISES])}, not {', '.join(map(str, tree))}")
        sizes = {"slopes": 1, "offsets": classes} if task == "single_label" else dict.fromkeys(_NUMBERS, classes) | {"offsets": 0}
        numbers: dict[str, Any] = {}
        for name in _NUMBERS:
            values = tree[name]
            if not isinstance(values, list) or len(values) not in (0, sizes.get(name, 0)) or not all(map(_is_number, values)):
                raise ValueError(f"calibration.{name} is not {sizes.get(name, 0)} finite numbers: {str(values)[:60]}")
            numbers[name] = tuple(float(value) for value in values)
        numbers |= {name: _promise(name, tree[name]) for name in _PROMISES}
        return cls(**numbers, left=_left(tree.get("left", []), len(numbers["offsets"])))


_NUMBERS = ("slopes", "shifts", "offsets", "thresholds")
_PROMISES = ("coverage", "precision")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _left(ids: Any, offsets: int) -> tuple[int, ...]:
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < offsets for one in ids):
        raise ValueError(f"calibration.left is not ids of classes that have an offset: {str(ids)[:60]}")
    return tuple(ids)


def _promise(name: str, tree: Any) -> Promise | None:
    if tree is None:
        return None
    if not isinstance(tree, dict) or set(tree) != {"target", "level", "texts"} or not all(map(_is_number, tree.values())):
        raise ValueError(f"calibration.{name} is not a target, a level and a number of texts: {str(tree)[:60]}")
    return Promise(float(tree["target"]), float(tree["level"]), int(tree["texts"]))


class Task(Protocol):
    """What distinguishes one kind of labels from another."""

    name: TaskName

    def targets(self, ids: Sequence[Sequence[int]], classes: int) -> Tensor:
        """Targets of N texts from their label ids."""

    def losses(self, logits: Tensor, targets: Tensor, objective: Objective) -> Tensor:
        """`[N]` losses of `[N, C]` logits."""

    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        """`[N]`: by how much two answers of `[N, C]` logits differ, half of KL(p‖q) + KL(q‖p), on the scale of the losses."""

    def probabilities(self, logits: Tensor, calibration: Calibration | None = None) -> Tensor:
        """`[N, C]` probabilities."""

    def decide(self, logits: Tensor, calibration: Calibration | None = None) -> Tensor:
        """Decisions in the form of the targets."""

    def confidence(self, logits: Tensor, calibration: Calibration | None = None) -> Tensor:
        """`[N]` probabilities that the decision on a text is right as a whole."""

    def averaged(self, logits: Tensor) -> Tensor:
        """`[N, C]` logits whose probabilities are the means of those of `[M, N, C]` logits of M models."""

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

    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        """`[N]`: of the two distributions over classes."""
        return _divergences(self, one, other).sum(-1)

    def probabilities(self, logits: Tensor, calibration: Calibration | None = None) -> Tensor:
        """`[N, C]`, rows that sum to 1."""
        return (calibration or PLAIN).calibrated(logits).softmax(-1)

    def decide(self, logits: Tensor, calibration: Calibration | None = None) -> Tensor:
        """`[N]` int64: the largest logit, or the largest z' + offset among classes that are not left alone."""
        plain = logits.argmax(-1)
        if calibration is None or not calibration.offsets:
            return plain
        moved = calibration.calibrated(logits) + logits.new_tensor(calibration.offsets, dtype=torch.float32)
        left = torch.tensor(calibration.left, dtype=torch.int64, device=logits.device)
        return torch.where(torch.isin(plain, left), plain, moved.index_fill(-1, left, -math.inf).argmax(-1))

    def confidence(self, logits: Tensor, calibration: Calibration | None = None) -> Tensor:
        """`[N]`: the probability of the decided class."""
        decided = self.decide(logits, calibration)
        return self.probabilities(logits, calibration).gather(1, decided[:, None]).squeeze(1)

    def averaged(self, logits: Tensor) -> Tensor:
        """`[N, C]`: the logarithm of the mean probability."""
        return _log_mean(logits.double().log_softmax(-1)).float()

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

    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        """`[N]`: the mean over labels of that of the label's two probabilities."""
        return _divergences(self, one, other).mean(-1)

    def probabilities(self, logits: Tensor, calibration: Calibration | None = None) -> Tensor:
        """`[N, C]`, each its own probability."""
        return (calibration or PLAIN).calibrated(logits).sigmoid()

    def decide(self, logits: Tensor, calibration: Calibration | None = None) -> Tensor:
        """`[N, C]` bool: probability above 0.5, or at least the label's threshold."""
        if calibration is None or not calibration.thresholds:
            return (calibration or PLAIN).calibrated(logits) > 0
        probabilities = self.probabilities(logits, calibration)
        return probabilities >= probabilities.new_tensor(calibration.thresholds)

    def confidence(self, logits: Tensor, calibration: Calibration | None = None) -> Tensor:
        """`[N]`: the product of each label's probability of being as decided, as if labels were independent."""
        probabilities = self.probabilities(logits, calibration)
        return torch.where(self.decide(logits, calibration), probabilities, 1.0 - probabilities).prod(-1)

    def averaged(self, logits: Tensor) -> Tensor:
        """`[N, C]`: log p − log(1 − p) of the mean probability p."""
        z = logits.double()
        return (_log_mean(functional.logsigmoid(z)) - _log_mean(functional.logsigmoid(-z))).float()

    def class_weights(self, targets: Tensor, classes: int) -> Tensor:
        """sqrt(negatives / positives) of each label, 0.1 to 10: the plain ratio overshoots badly on labels of a percent.

        A label without texts gets 1; nothing is normalised, so the mean is not 1.
        """
        positives = targets.sum(0)
        ratio = (len(targets) - positives) / positives.clamp(min=1.0)
        return torch.where(positives > 0, ratio.sqrt().clamp(0.1, 10.0), 1.0)


def training_losses(task: Task, logits: Tensor, targets: Tensor, objective: Objective, r_drop: float | None) -> Tensor:
    """`[N]`: what a step minimises of each text.

    Args:
        logits: `[N, C]`; with R-Drop (arXiv:2106.14448) `[2N, C]`, the first answers to all texts and then the second ones.
        r_drop: None, or how much the divergence of the two answers weighs beside the mean of their losses; the paper's objective
            is twice as large and has its alpha in the place of 2·r_drop.
    """
    if r_drop is None:
        return task.losses(logits, targets, objective)
    one, other = logits.chunk(2)
    losses = (task.losses(one, targets, objective) + task.losses(other, targets, objective)) / 2
    return losses + r_drop * task.divergence(one, other)


def _divergences(task: Task, one: Tensor, other: Tensor) -> Tensor:
    """`[N, C]`: ½·(p − q)·(z_p − z_q), whose sum over classes is ½(KL(p‖q) + KL(q‖p)), as what normalises p and q cancels.

    Of a label by itself it is the divergence as it stands, as there log p − log(1 − p) = z.
    """
    return (task.probabilities(one) - task.probabilities(other)) * (one - other) / 2


def _log_mean(logs: Tensor) -> Tensor:
    """The logarithm of the mean over the first dimension of what `logs` are the logarithms of; no small number is lost."""
    return logs.logsumexp(0) - math.log(len(logs))


PLAIN = Calibration()
TASKS: dict[TaskName, Task] = {"single_label": SingleLabel(), "multi_label": MultiLabel()}
