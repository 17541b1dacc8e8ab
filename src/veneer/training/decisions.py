"""Decisions that can be compared: an adapter and all its rivals get them from their logits in the same way.

A calibration is fitted on dev, for macro-F1, of each; where dev itself is judged, each text is decided by what was fitted without
it. Knows logits and splits; knows nothing of what gave the logits.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from veneer.config import RunConfig
from veneer.evaluation.calibration import Fitted, fit_calibration
from veneer.tasks import Task


def judged_of(splits: Mapping[str, Any]) -> str:
    """The split that says most: test where there is one, else dev."""
    return "test" if "test" in splits else "dev"


def fit_on_dev(
    config: RunConfig, task: Task, dev: Tensor, targets: Tensor, texts: Sequence[Hashable] | None = None
) -> Fitted | None:
    """The calibration of `[N, C]` logits of dev that ends a training; None where the configuration does not want one.

    Args:
        texts: as of `fit_calibration`.
    """
    evaluation = config.evaluation
    if not evaluation.calibrate:
        return None
    return fit_calibration(dev, targets, task, texts=texts, bootstrap=evaluation.bootstrap, seed=config.seed)


def decide_judged(fitted: Fitted | None, task: Task, logits: Mapping[str, Tensor]) -> NDArray[Any]:
    """`[N]` ids or `[N, C]` bool on the judged split.

    Args:
        fitted: as `fit_on_dev` gives it; None for the plain rule.
        logits: `[N, C]` by split: dev, and test where there is one.
    """
    split = judged_of(logits)
    if fitted is not None and split == "dev":
        decisions = fitted.held_out
    else:
        decisions = task.decide(logits[split], None if fitted is None else fitted.calibration)
    found: NDArray[Any] = decisions.numpy()
    return found
