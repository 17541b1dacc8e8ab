"""What the curves of a training say: did it learn too little, too much, or is that not to be seen.

Knows the evaluation rows of `metrics.jsonl`; knows nothing of texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

FEWEST = 3  # evaluations that a trend can be seen in
RISE = 0.10  # of the dev loss above its minimum, as a share of it
SMALLEST_RISE = 0.01  # of a loss; less is no over-fitting however small the minimum
STILL_FALLING = 0.01  # share that both losses fell by from the last evaluation but one
LEARNED = 0.90  # macro-F1 on training texts from which on they count as learned

State = Literal["under", "over", "fine", "unknown"]


@dataclass(frozen=True)
class Fit:
    """How a training went.

    Attributes:
        evidence: the numbers behind `state`, a sentence.
        train: macro-F1 on training texts where dev's was best; None where that is not known.
        dev: the best macro-F1 on dev.
        last_gain: macro-F1 on dev at the last evaluation, less that of the one before.
        peaked: whether dev was better before the last evaluation than at it.
        steps: optimiser steps up to the last row of the history.
    """

    state: State
    evidence: str
    train: float | None = None
    dev: float | None = None
    last_gain: float | None = None
    peaked: bool = False
    steps: int = 0

    @property
    def gap(self) -> float:
        """How much better training texts are decided than those of dev; 0 where that is not known."""
        return 0.0 if self.train is None or self.dev is None else self.train - self.dev

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: `state` and `evidence`."""
        return {"state": self.state, "evidence": self.evidence}


@dataclass(frozen=True)
class _Evaluation:
    """Loss and macro-F1 of both splits at a step."""

    step: int
    train_loss: float
    dev_loss: float
    train: float
    dev: float


def judge_fit(history: Sequence[Mapping[str, Any]]) -> Fit:
    """Judge the curves of a training.

    Over: the dev loss ends `RISE` above its minimum, while the loss on training texts fell on. Under: both losses were still
    falling at the end, and training texts are not learned. Unknown: fewer than `FEWEST` evaluations of both splits.
    """
    found = _evaluations(history)
    steps = max((int(row["step"]) for row in history), default=0)
    if len(found) < FEWEST:
        count = "1 evaluation" if len(found) == 1 else f"{len(found)} evaluations"
        return Fit("unknown", f"{count} of dev and training texts: too few to see a trend", steps=steps)
    last, before = found[-1], found[-2]
    lowest = min(found, key=lambda one: one.dev_loss)
    best = max(found, key=lambda one: one.dev)
    numbers = (best.train, best.dev, last.dev - before.dev, best.dev > last.dev, steps)
    rise = last.dev_loss - lowest.dev_loss
    scores = f"macro F1 {best.train:.3f} on training texts and {best.dev:.3f} on dev (step {best.step})"
    if rise >= max(RISE * lowest.dev_loss, SMALLEST_RISE) and last.train_loss < lowest.train_loss:
        evidence = (
            f"the loss on dev rose from {lowest.dev_loss:.3f} (step {lowest.step}) to {last.dev_loss:.3f}, while that on "
            f"training texts fell from {lowest.train_loss:.3f} to {last.train_loss:.3f}; {scores}"
        )
        return Fit("over", evidence, *numbers)
    falling = (
        last.dev_loss <= (1 - STILL_FALLING) * before.dev_loss and last.train_loss <= (1 - STILL_FALLING) * before.train_loss
    )
    if falling and last.train < LEARNED:
        evidence = (
            f"at the end the losses were still falling (dev {before.dev_loss:.3f} to {last.dev_loss:.3f}, training texts "
            f"{before.train_loss:.3f} to {last.train_loss:.3f}); {scores}"
        )
        return Fit("under", evidence, *numbers)
    return Fit("fine", f"the loss on dev ended at {last.dev_loss:.3f}, its lowest was {lowest.dev_loss:.3f}; {scores}", *numbers)


def _evaluations(history: Sequence[Mapping[str, Any]]) -> list[_Evaluation]:
    """By step; of two rows of one step the later one counts, as a resumed run writes steps again."""
    rows = {(row["step"], row["split"]): row for row in history if row["kind"] == "evaluation"}
    steps = sorted({step for step, split in rows if split == "dev" and (step, "train") in rows})
    found = []
    for step in steps:
        train, dev = rows[step, "train"], rows[step, "dev"]
        numbers = (train["loss"], dev["loss"], train["macro_f1"], dev["macro_f1"])
        if all(number is not None and math.isfinite(number) for number in numbers):
            found.append(_Evaluation(step, *map(float, numbers)))
    return found
