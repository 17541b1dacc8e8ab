"""Texts to predictions with a trained run folder.

Knows the run folder, the task and the batch loop; knows nothing of training or of the command line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from veneer import lora
from veneer.artifact import ArtifactInfo, Loaded, load_artifact
from veneer.errors import InputError
from veneer.evaluation.conformal import answered, candidate_sets
from veneer.inference import compute_logits
from veneer.tasks import PLAIN, TASKS, Calibration


@dataclass(frozen=True)
class Prediction:
    """What a model says of one text.

    Attributes:
        labels: the decided labels, the most probable first; empty where no label of a multi-label task passes its threshold.
        scores: label -> probability, for every label in the order of the label set.
        candidates: the labels among which the right ones are for the promised share of texts, the most probable first; None where
            the run promises no coverage.
        abstained: True where the run promises a precision and the decision is not sure enough for it.
    """

    labels: tuple[str, ...]
    scores: dict[str, float]
    candidates: tuple[str, ...] | None = None
    abstained: bool = False


class Predictor:
    """A trained classifier, ready for texts. Threads may share it: the model takes them one at a time."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._task = TASKS[loaded.info.task]  # type: ignore[index]
        stored = loaded.info.calibration
        self._calibration = PLAIN if stored is None else Calibration.from_json(stored, self._task.name, len(loaded.info.labels))
        self._model_in_use = threading.Lock()

    @property
    def info(self) -> ArtifactInfo:
        """What the run folder says of itself."""
        return self._loaded.info

    @property
    def calibration(self) -> Calibration:
        """How logits become probabilities and decisions."""
        return self._calibration

    @property
    def loaded(self) -> Loaded:
        """The model and its tokenizer."""
        return self._loaded

    def merge(self) -> Predictor:
        """Add the adapter's update to the base's weights, for speed; probabilities move by rounding only."""
        with self._model_in_use:
            lora.merge_lora(self._loaded.model.network)
        return self

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """`[N, C]` float32 logits of N texts.

        Raises:
            InputError: a single string instead of a list of them, or the model wants pairs and there are none, or the other way
                round.
        """
        if isinstance(texts, str) or isinstance(pairs, str):
            raise InputError("texts are given as a list, not as one string. Fix: predict([text])")
        if self.info.pair != (pairs is not None):
            raise InputError(
                "this model was trained on pairs of texts: give the second texts too"
                if self.info.pair
                else "this model was trained on single texts: give no second text"
            )
        if pairs is not None and len(pairs) != len(texts):
            raise InputError(f"every text needs its second one: there are {len(texts)} texts and {len(pairs)} second texts")
        if len(texts) == 0:
            return torch.empty(0, len(self.info.labels))
        encoded = self._loaded.encode(texts, pairs)
        with self._model_in_use:
            return compute_logits(self._loaded.model, encoded, progress=progress)

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        raw: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]:
        """A prediction a text.

        Args:
            raw: whether to leave the calibration out.

        Raises:
            InputError: as `logits`.
        """
        logits = self.logits(texts, pairs, progress=progress)
        calibration = PLAIN if raw else self._calibration
        probabilities = self._task.probabilities(logits, calibration).tolist()
        decisions = self._task.decide(logits, calibration).tolist()
        sets = [None] * len(logits)
        if calibration.coverage is not None:
            sets = candidate_sets(self._task, logits, calibration).tolist()
        sure = [True] * len(logits)
        if calibration.precision is not None:
            sure = answered(self._task, logits, calibration).tolist()
        return [self._prediction(*row) for row in zip(probabilities, decisions, sets, sure, strict=True)]

    def _prediction(self, row: list[float], decision: int | list[bool], candidates: list[bool] | None, sure: bool) -> Prediction:
        names = self.info.labels
        labels = (names[decision],) if isinstance(decision, int) else _chosen(names, row, decision)
        within = None if candidates is None else _chosen(names, row, candidates)
        return Prediction(labels, dict(zip(names, row, strict=True)), within, not sure)


def _chosen(names: Sequence[str], probabilities: list[float], flags: list[bool]) -> tuple[str, ...]:
    """The flagged names, the most probable first."""
    chosen = [i for i, flag in enumerate(flags) if flag]
    return tuple(names[i] for i in sorted(chosen, key=lambda i: -probabilities[i]))


def load(folder: str | Path, *, base: str | None = None, precision: str = "auto") -> Predictor:
    """The classifier of a run folder.

    Args:
        base: where the base is, if not where it was found in training.
        precision: auto | fp32 | bf16 | fp16.

    Raises:
        ArtifactError: the folder is missing, damaged, of another format version, or made for another base.
        BaseError: the base cannot be found.
    """
    return Predictor(load_artifact(Path(folder), base=base, precision=precision))
