"""Several runs over one base as one run: the weighted sum of their updates, their heads averaged label by label.

Runs that read label words have no head, and go together where they read the same words behind the same template.

Knows run folders, labels and adapters; the arithmetic of updates is `veneer.lora.combine`'s.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from veneer import lora
from veneer.adaptation import replace_adapter
from veneer.artifact import Loaded, load_artifact
from veneer.config import RunConfig
from veneer.data.problems import shown
from veneer.errors import ArtifactError, InputError
from veneer.evaluation.calibration import Fitted
from veneer.evaluation.comparison import compared_metric
from veneer.evaluation.metrics import Evaluation, Interval
from veneer.evaluation.report import MadeFrom
from veneer.heads import label_tensors
from veneer.labels import shorten
from veneer.model import Classifier
from veneer.predictor import Predictor
from veneer.run_info import HEAD_FILE, ArtifactInfo, package_versions, read_info
from veneer.thinner.dev import Dev
from veneer.thinner.folder import check_free, plain_lora, write_run
from veneer.thinner.made import count_together, made_report, score_of, source_of, stored_bytes

# What must be the same in runs that go together, and how it is called in a message.
_SHARED = {
    "base_fingerprint": "base",
    "base_precision": "base_precision",  # an update makes up for what rounding took from the base; an ensemble has one base
    "task": "task",
    "pooling": "pooling",
    "own_head": "head of the base's family",
    "pair": "pairs of texts",
}


@dataclass(frozen=True)
class Combined:
    """What came of several runs.

    Attributes:
        score: on the dev texts of the first run, with its 95 % interval; None where there are none to score.
        calibrated: whether a calibration was fitted there.
    """

    folder: Path
    ranks: dict[str, int]
    metric: str
    texts: int
    score: Interval | None
    calibrated: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        score = None if self.score is None else [self.score.value, self.score.low, self.score.high]
        return {
            "folder": str(self.folder),
            "ranks": self.ranks,
            "metric": self.metric,
            "dev_texts": self.texts,
            "score": score,
            "calibrated": self.calibrated,
        }


def combine_runs(
    folders: Sequence[Path],
    out: Path,
    weights: Sequence[float],
    config: RunConfig,
    dev: Dev | str,
    *,
    base: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Combined:
    """Write one run whose updates are the weighted sums of those of the runs in `folders`.

    Heads, and whatever else a run stores whole, are averaged by the weights' shares of their sum, label by label.

    Args:
        weights: one a run, of a sum above 0.
        config: of the first run, whose labels' order, tokenizer and precision the new one has.
        dev: its development texts, if none of the others was trained on them; else why there are none, so that scores and
            calibration are left out.
        base: where the base is, if not where training found it.

    Raises:
        ArtifactError: the runs do not go together; what differs is named.
        InputError: the weights cannot be used, `out` exists, or a run cannot be loaded.
        VerificationError: the new folder does not give the logits it gave in memory.
    """
    check_free(out)
    _check_weights(folders, weights)
    infos = [read_info(folder) for folder in folders]
    check_alike(folders, infos)
    adapters = [plain_lora(folder, info) for folder, info in zip(folders, infos, strict=True)]
    _check_stored(folders, adapters)
    loaded = load_artifact(folders[0], base=base)
    sources = [
        source_of(folder, score_of(info, config), adapter, weight)
        for folder, info, adapter, weight in zip(folders, infos, adapters, weights, strict=True)
    ]
    _fill(loaded.model, folders, infos, adapters, weights)
    loaded = replace(loaded, info=joint_info(infos, loaded, dev))
    judged = judge(dev, Predictor(loaded), config, progress)
    loaded = replace(loaded, info=judged.told(loaded.info))
    parameters = count_together([loaded.model])
    ranks = {row.name: row.rank for row in lora.adapted_layers(loaded.model.network)}

    def report(writing: Path) -> dict[str, Any]:
        made = MadeFrom("combine", sources, judged.metric, stored_bytes(writing), parameters["lora"], ranks, judged.why)
        return made_report(loaded.info, config, judged.dev, parameters, judged.evaluations, judged.fitted, made)

    write_run(out, loaded, config, report)
    return judged.combined(out, ranks)


def _fill(
    model: Classifier,
    folders: Sequence[Path],
    infos: Sequence[ArtifactInfo],
    adapters: Sequence[lora.AdapterFile],
    weights: Sequence[float],
) -> None:
    """Put the sum of the adapters and the mean of the heads into a model of the first run's labels."""
    rows = label_tensors(model.network) if infos[0].own_head else ()
    orders = [[info.label_set.id(label) for label in infos[0].labels] for info in infos]
    adapters = [
        replace(adapter, tensors=_reordered(adapter.tensors, rows, order))
        for adapter, order in zip(adapters, orders, strict=True)
    ]
    replace_adapter(model, lora.combine_adapters(adapters, weights))
    if model.head is not None:
        heads = [load_file(folder / HEAD_FILE) for folder in folders]
        heads = [_reordered(head, tuple(head), order) for head, order in zip(heads, orders, strict=True)]
        model.head.load_state_dict(lora.average_tensors(heads, weights))


@dataclass(frozen=True)
class Judged:
    """What texts say of a new model.

    Attributes:
        dev: None where there are none that it can be judged by, and `why`.
        metric: the score that runs are compared by.
        fitted: the calibration; None where none was wanted, or could be fitted.
    """

    dev: Dev | None
    metric: str
    why: str
    evaluations: Mapping[str, Evaluation]
    fitted: Fitted | None

    def told(self, info: ArtifactInfo) -> ArtifactInfo:
        """`info` with the scores and the calibration."""
        scores = {name: one.value for name, one in self.evaluations["dev"].metrics.items()} if self.dev is not None else {}
        return replace(info, scores=scores, calibration=None if self.fitted is None else self.fitted.calibration.to_json())

    def combined(self, folder: Path, ranks: dict[str, int]) -> Combined:
        """What the command says."""
        if self.dev is None:
            return Combined(folder, ranks, "", 0, None, False)
        return Combined(
            folder, ranks, self.metric, len(self.dev), self.evaluations["dev"].metrics[self.metric], self.fitted is not None
        )


def judge(dev: Dev | str, predictor: Predictor, config: RunConfig, progress: Callable[[int], None] | None) -> Judged:
    """Score and calibrate a new model on dev, or do neither where that is why there are no such texts."""
    if isinstance(dev, str):
        return Judged(None, compared_metric(config.evaluation.metric), dev, {}, None)
    logits = dev.logits(predictor, progress)
    fitted = dev.fit(logits) if config.evaluation.calibrate else None
    return Judged(dev, dev.metric, "", dev.judge(predictor, logits, fitted), fitted)


def joint_info(infos: Sequence[ArtifactInfo], first: Loaded, dev: Dev | str) -> ArtifactInfo:
    """What several runs are as one, its scores and calibration yet to be found.

    Where the first run's dev texts do not judge it, its data is not the new run's: no data has its fingerprint.
    """
    together = hashlib.sha256("\n".join(info.data_fingerprint for info in infos).encode()).hexdigest()
    return replace(
        infos[0],
        data_fingerprint=infos[0].data_fingerprint if isinstance(dev, Dev) else together,
        max_length=max(info.max_length for info in infos),
        precision=first.precision.name,
        versions=package_versions(),
        scores={},
        calibration=None,
    )


def check_alike(folders: Sequence[Path], infos: Sequence[ArtifactInfo]) -> None:
    """Raise an ArtifactError that names every run which does not go with the first one, and what is different in it."""
    problems = []
    for folder, info in zip(folders[1:], infos[1:], strict=True):
        for key, name in _SHARED.items():
            first, other = getattr(infos[0], key), getattr(info, key)
            if first != other:
                problems.append(f"{folder}: {name} {_brief(other)}, but {_brief(first)} in {folders[0]}")
        if set(info.labels) != set(infos[0].labels):
            lacking = [label for label in infos[0].labels if label not in info.label_set]
            foreign = [label for label in info.labels if label not in infos[0].label_set]
            told = [f"lacks {shorten(lacking)}"] * bool(lacking) + [f"has {shorten(foreign)}"] * bool(foreign)
            problems.append(f"{folder}: other labels than {folders[0]}: it {' and '.join(told)}")
        problems += [f"{folder}{told} {folders[0]}" for told in _other_words(info, infos[0])]
    if problems:
        raise ArtifactError("the runs do not go together\n  " + "\n  ".join(problems))


def _other_words(info: ArtifactInfo, first: ArtifactInfo) -> list[str]:
    """How a run reads label words otherwise than the first one, up to where that one's name follows."""
    if info.members or first.members or set(info.labels) != set(first.labels):
        return []  # an ensemble reads by its members; and of other labels the words are others, too
    mine, theirs = _word_settings(info), _word_settings(first)
    if not mine or not theirs:
        return [] if mine == theirs else [" reads label words, unlike" if mine else " has a head, and reads no label words like"]
    return [f": {key} {shown(repr(mine[key]))}, but {shown(repr(theirs[key]))} in" for key in mine if mine[key] != theirs[key]]


def _word_settings(info: ArtifactInfo) -> dict[str, object]:
    """What label words are read by; none of it where a run has a head. Words are those of the labels, whose order may differ."""
    if info.verbaliser is None:
        return {}
    given: dict[str, object] = {"none": None} | info.verbaliser
    given["words"] = dict(sorted(zip(info.labels, info.verbaliser["words"], strict=True)))
    return {f"verbaliser.{key}": value for key, value in given.items()}


def _check_weights(folders: Sequence[Path], weights: Sequence[float]) -> None:
    shown = ", ".join(f"{weight:g}" for weight in weights)
    if len(weights) != len(folders):
        raise InputError(f"--weights takes a number for each of the {len(folders)} runs, and {len(weights)} are given: {shown}")
    if not all(map(math.isfinite, weights)) or not sum(weights) > 0:
        raise InputError(f"--weights are finite numbers with a sum above 0, not {shown}")


def _check_stored(folders: Sequence[Path], adapters: Sequence[lora.AdapterFile]) -> None:
    """Raise an ArtifactError where the runs store different things beside their updates."""
    first = adapters[0].settings
    for folder, adapter in zip(folders[1:], adapters[1:], strict=True):
        settings = adapter.settings
        if settings.bias != first.bias:
            raise ArtifactError(f"{folder} was trained with lora.bias {settings.bias}, {folders[0]} with {first.bias}")
        if set(settings.saved_modules) != set(first.saved_modules):
            here, there = ("; ".join(sorted(one.saved_modules)) or "nothing" for one in (settings, first))
            raise ArtifactError(f"{folder} has trained in full: {here}; {folders[0]}: {there}")


def _reordered(tensors: dict[str, Tensor], rows: Sequence[str], order: Sequence[int]) -> dict[str, Tensor]:
    """The tensors, those named in `rows` with their rows in this order."""
    return {name: tensor[list(order)] if name in rows else tensor for name, tensor in tensors.items()}


def _brief(value: object) -> str:
    text = {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    return text if len(text) <= 24 else f"{text[:20]}…"
