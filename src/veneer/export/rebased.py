"""What changes when a run leaves the few bits of its base for float32, as merging does.

The adapter was trained to mend the rounded base, not the exact one, so that a merged checkpoint may decide otherwise. Both are
run on the same texts by the run's own calibration, and compared.

Knows predictors and scores; does not know where texts come from, or what is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from veneer.errors import VerificationError
from veneer.evaluation.metrics import point_metrics
from veneer.predictor import Predictor, load
from veneer.run_info import ArtifactInfo
from veneer.tasks import TASKS

METRIC = "macro_f1"


@dataclass(frozen=True)
class JudgedTexts:
    """N texts on which two ways to run a model are compared.

    Attributes:
        source: what they are, in a word: dev, probe.
        pairs: their second texts, or None.
        label_ids: the ids of each text's labels; None where they are not known, and nothing can be scored.
    """

    source: str
    texts: Sequence[str]
    pairs: Sequence[str] | None
    label_ids: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True)
class Change:
    """How a run over the float32 base differs from the run over its base in fewer bits.

    Attributes:
        base_precision: of the run.
        source: of the texts.
        texts: how many were compared.
        flips: of them are decided otherwise.
        scores: the run's macro-F1 and that over float32; None where no labels are known.
    """

    base_precision: str
    source: str
    texts: int
    flips: int
    scores: tuple[float, float] | None

    @property
    def share(self) -> float:
        """Of the texts, those that are decided otherwise."""
        return self.flips / self.texts

    def describe(self) -> str:
        """One line."""
        line = f"over float32 instead of {self.base_precision}, {self.flips} of {self.texts} {self.source} texts"
        line += f" ({self.share:.1%}) are decided otherwise"
        if self.scores is None:
            return f"{line}; no labels to score them by"
        before, after = self.scores
        return f"{line}; {METRIC} {before:.4f} -> {after:.4f} ({after - before:+.4f})"


def measure_change(folder: Path, judged: JudgedTexts, *, base: str | None = None) -> Change:
    """Run the texts over the base as in training and over the float32 base, one model after the other.

    Raises:
        InputError: the run or its base cannot be loaded.
    """
    info, few = _decide(load(folder, base=base), judged)
    _, full = _decide(load(folder, base=base, precision="fp32", base_precision="auto"), judged)
    flips = int((few != full).reshape(len(few), -1).any(-1).sum())
    scores = None
    if judged.label_ids is not None:
        targets = TASKS[info.task].targets(judged.label_ids, len(info.labels))  # type: ignore[index]
        multi_label = info.task == "multi_label"
        known = (targets.bool() if multi_label else targets).numpy()
        before, after = (point_metrics(known, one.numpy(), len(info.labels), multi_label)[METRIC] for one in (few, full))
        scores = before, after
    return Change(info.base_precision, judged.source, len(few), flips, scores)


def _decide(predictor: Predictor, judged: JudgedTexts) -> tuple[ArtifactInfo, Tensor]:
    """What the run folder says, and `[N]` ids or `[N, C]` bool."""
    logits = predictor.logits(judged.texts, judged.pairs)
    return predictor.info, TASKS[predictor.info.task].decide(logits, predictor.calibration)  # type: ignore[index]


def require_within(change: Change, budget: float, out: Path) -> None:
    """Raise a VerificationError where more than the share `budget` of the texts is decided otherwise."""
    if change.share > budget:
        raise VerificationError(
            f"{change.describe()}. That is more than --budget {budget:g}, so {out} was not written. "
            "Fix: train over a base in full precision, or take it as it is with --force or a larger --budget"
        )
