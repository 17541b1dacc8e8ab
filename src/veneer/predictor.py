"""Texts to predictions with a trained run folder, or with an ensemble of several.

Knows the run folder, the task and the batch loop; knows nothing of training or of the command line.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from veneer.adaptation import share_frozen
from veneer.artifact import Loaded, load_artifact
from veneer.errors import InputError
from veneer.evaluation.conformal import answered, candidate_sets
from veneer.inference import compute_logits
from veneer.methods import METHODS
from veneer.run_files import MEMBERS
from veneer.run_info import ArtifactInfo, read_info
from veneer.tasks import PLAIN, TASKS, Calibration

_log = logging.getLogger(__name__)  # what nobody listens to, Python writes on standard error


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


@dataclass(frozen=True)
class Ensemble:
    """Several runs whose calibrated probabilities are averaged; their decision rules play no part.

    Attributes:
        info: of the whole; its labels are those of the members, in its own order.
        members: the runs, over one base in memory.
    """

    info: ArtifactInfo
    members: tuple[Predictor, ...]

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None, progress: Callable[[int], None] | None) -> Tensor:
        """`[N, C]` float32 logits of the mean probabilities."""
        every = _Parts(progress, len(self.members)) if progress is not None else None
        return TASKS[self.info.task].averaged(  # type: ignore[index]
            torch.stack([self._calibrated(member, member.logits(texts, pairs, progress=every)) for member in self.members])
        )

    def _calibrated(self, member: Predictor, logits: Tensor) -> Tensor:
        places = [member.info.label_set.id(label) for label in self.info.labels]
        return member.calibration.calibrated(logits)[:, places]


class _Parts:
    """Progress of several passes over the texts, told as if it were one."""

    def __init__(self, progress: Callable[[int], None], passes: int) -> None:
        self._progress, self._passes, self._rest = progress, passes, 0

    def __call__(self, texts: int) -> None:
        whole, self._rest = divmod(self._rest + texts, self._passes)
        self._progress(whole)


class Predictor:
    """A trained classifier, ready for texts. Threads may share it: the model takes them one at a time."""

    def __init__(self, loaded: Loaded | Ensemble) -> None:
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
        """The model and its tokenizer.

        Raises:
            InputError: of an ensemble, which has several.
        """
        if isinstance(self._loaded, Ensemble):
            raise InputError("an ensemble has no single model. Fix: load one of its runs")
        return self._loaded

    def merge(self) -> Predictor:
        """Put what was learned into the base's weights, for speed; probabilities move by rounding only.

        The runs of an ensemble then have weights of their own each, no longer one base.

        Raises:
            InputError: the run's method cannot be merged.
        """
        if isinstance(self._loaded, Ensemble):
            for member in self._loaded.members:
                member.merge()
            return self
        method = METHODS[self.info.method]
        if method.merge is None:
            raise InputError(f"this model cannot be merged: the method {method.name} {method.unmergeable}")
        with self._model_in_use:
            method.merge(self._loaded.model)
        return self

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """`[N, C]` float32 logits of N texts. How many of them are cut to the model's `max_length` is logged as a warning.

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
        if isinstance(self._loaded, Ensemble):
            return self._loaded.logits(texts, pairs, progress)
        encoded = self._loaded.encode(texts, pairs)
        if encoded.cut:
            _log.warning("%d of %d texts are longer than %d tokens and cut", encoded.cut, len(texts), self.info.max_length)
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


def load(folder: str | Path, *, base: str | None = None, precision: str = "auto", base_precision: str | None = None) -> Predictor:
    """The classifier of a run folder, or of an ensemble of runs over one base.

    Args:
        base: where the base is, if not where it was found in training.
        precision: auto | fp32 | bf16 | fp16, that the base computes in.
        base_precision: auto | nf4 | int8, bits of the base's linear layers, if not those of training.

    Raises:
        ArtifactError: the folder is missing, damaged, of another format version, or made for another base.
        BaseError: the base cannot be found.
    """
    folder = Path(folder)
    info = read_info(folder)
    places = [folder / MEMBERS / str(number) for number in range(1, info.members + 1)] or [folder]
    loaded = load_members(places, base=base, precision=precision, base_precision=base_precision)
    return together(info, loaded) if info.members else Predictor(loaded[0])


def load_members(
    folders: Sequence[Path], *, base: str | None = None, precision: str = "auto", base_precision: str | None = None
) -> list[Loaded]:
    """Runs over one base, of which one copy stays in memory, and never more than two are.

    Raises:
        ArtifactError, BaseError: as `load`.
    """
    members: list[Loaded] = []
    for folder in folders:
        member = load_artifact(folder, base=base, precision=precision, base_precision=base_precision)
        for other in members:  # not the first alone: its base may be in another precision
            share_frozen(member.model, other.model)
        members.append(member)
    return members


def together(info: ArtifactInfo, members: Sequence[Loaded]) -> Predictor:
    """The ensemble of runs over one base.

    Args:
        info: of the whole.
        members: as `load_members` gives them.
    """
    return Predictor(Ensemble(info, tuple(map(Predictor, members))))
