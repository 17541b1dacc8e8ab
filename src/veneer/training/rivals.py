"""The ways an adapter is compared with, from the most frequent answer to full fine-tuning, on the same splits.

Each takes a `Ground` and gives a `Contender`. Those that are trained run the same loop as the adapter, in a folder that is
removed again: they are measured, not kept.

Knows how to train each; does not know how they are compared or shown.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from veneer.bases import BaseLocation, load_tokenizer
from veneer.config import RunConfig
from veneer.config_file import load_config
from veneer.errors import Interrupted
from veneer.methods import METHODS, MethodPlan
from veneer.model import Classifier, build_classifier
from veneer.precision import pick_device
from veneer.training.baselines import (
    TEXT_BASELINE,
    Judged,
    decide_like_ours,
    describe_choice,
    fit_linear,
    fit_text_baseline,
    judged_split,
    majority,
    standardised,
)
from veneer.training.checkpoint import Checkpoints
from veneer.training.loop import fit
from veneer.training.prepare import Material, Split, encode_split
from veneer.training.setup import drops, make_job, make_model, precision_of
from veneer.training.tracking import Tracker
from veneer.training.vectors import split_logits, vectors_stay, with_vectors
from veneer.training.weights import load_trained

MAJORITY = "most frequent answer"
EMBEDDINGS = "frozen embeddings + logistic regression"
HEAD_ONLY = "head alone"
FULL = "full fine-tuning"
_NEVER = 2**62  # steps between checkpoints of what is not kept

Array = NDArray[Any]
Bar = Callable[[int], None]


@dataclass(frozen=True)
class Contender:
    """One way to classify, and what it decided.

    Attributes:
        decisions: on the judged split, `[N]` ids or `[N, C]` bool.
        seconds: of training or fitting; None where unknown.
        parameters: how many numbers were trained; None where unknown.
        note: what was chosen, or how it was trained.
    """

    name: str
    decisions: Array
    seconds: float | None
    parameters: int | None
    note: str = ""


@dataclass(frozen=True)
class Ground:
    """What all contenders share: a run's configuration, its data, and its base, which is not adapted.

    Attributes:
        vector_seconds: what it took to compute the vectors of the splits, once they have them.
    """

    config: RunConfig
    material: Material
    base: BaseLocation
    splits: dict[str, Split]
    vector_seconds: float = 0.0

    @classmethod
    def of(cls, config: RunConfig, material: Material, base: BaseLocation) -> Ground:
        """The splits are tokenized here.

        Raises:
            BaseError: the base has no tokenizer that can be used.
        """
        tokenizer, longest = load_tokenizer(base), config.data.max_length
        splits = {
            name: encode_split(examples, tokenizer, longest, material.task, material.labels)
            for name, examples in material.examples.items()
        }
        return cls(config, material, base, splits)

    def with_vectors(self, bar: Bar) -> Ground:
        """The splits with the base's vectors of their texts, which two contenders read.

        Args:
            bar: called with how many texts of all splits are done, batch by batch.

        Raises:
            BaseError: the base cannot be loaded.
        """
        start = time.perf_counter()
        model = _fresh(self)
        splits = {name: with_vectors(model, split, bar) for name, split in self.splits.items()}
        return replace(self, splits=splits, vector_seconds=time.perf_counter() - start)

    @property
    def judged(self) -> Split:
        """The split that contenders are compared on."""
        return self.splits[judged_split(self.material)]

    @property
    def decisive(self) -> set[str]:
        """The names of the splits that decisions need logits of: dev, and the judged one."""
        return {"dev", judged_split(self.material)}


def majority_contender(ground: Ground) -> Contender:
    """The most frequent class, or set of labels, for every text."""
    judged = _judged(ground)
    answer = majority(judged.train)
    decisions = np.broadcast_to(answer, (len(ground.judged), *answer.shape))
    labels = ground.material.labels
    chosen = [labels[int(i)] for i in (np.flatnonzero(answer) if judged.multi_label else [answer])]
    return Contender(MAJORITY, decisions, 0.0, 0, f"always {', '.join(chosen) or 'no label'}")


def text_contender(ground: Ground) -> Contender | None:
    """TF-IDF + logistic regression; None where it is too much work."""
    material = ground.material
    metric = ground.config.evaluation.metric
    found = fit_text_baseline(material.examples["train"], material.examples["dev"], material.labels, material.task, metric)
    if found is None:
        return None
    logits = {name: found.logits(material.examples[name]) for name in ground.decisive}
    decisions = decide_like_ours(ground.config, material, logits)
    return Contender(TEXT_BASELINE, decisions, found.seconds, found.model.parameters, found.description)


def embedding_contender(ground: Ground) -> Contender | None:
    """Logistic regression on the vectors of `Ground.with_vectors`; None where it is too much work."""
    start = time.perf_counter()
    vectors = {name: split.vectors.numpy() for name, split in ground.splits.items() if split.vectors is not None}
    vectors = {name: standardised(one, vectors["train"]) for name, one in vectors.items()}
    found = fit_linear(vectors["train"], vectors["dev"], _judged(ground))
    if found is None:
        return None
    linear = found[1]
    logits = {name: linear.logits(vectors[name]) for name in ground.decisive}
    decisions = decide_like_ours(ground.config, ground.material, logits)
    seconds = ground.vector_seconds + time.perf_counter() - start
    return Contender(EMBEDDINGS, decisions, seconds, linear.parameters, describe_choice(linear))


def head_contender(ground: Ground, console: Console) -> Contender:
    """The head trained over the frozen base: the method `head`, on the vectors of the ground where it has them.

    Raises:
        BaseError: the base cannot be loaded.
        TrainingError: training cannot go on.
        Interrupted: stopped from outside.
    """
    return _trained(ground, console, HEAD_ONLY, "head")


def full_contender(ground: Ground, console: Console) -> Contender:
    """Every weight of the base trained, in float32: the method `full`.

    Raises:
        BaseError: the base cannot be loaded.
        TrainingError: training cannot go on.
        Interrupted: stopped from outside.
    """
    return _trained(ground, console, FULL, "full")


def _fresh(ground: Ground) -> Classifier:
    """The base as it is, with a fresh head that nothing reads, on the device."""
    config = ground.config
    torch.manual_seed(config.seed)
    model = build_classifier(
        ground.base,
        len(ground.material.labels),
        pooling=config.pooling,
        dtype=precision_of(by_method(config, "head")).dtype,
        base_precision=config.base_precision,
    )
    return model.to(pick_device())


def _trained(ground: Ground, console: Console, name: str, method: str) -> Contender:
    material = ground.material
    config = by_method(ground.config, method)
    precision = precision_of(config)
    model = make_model(config, ground.base, len(material.labels), precision)
    if not drops(model):  # the adapter's dropout may have been all there was
        config.training.r_drop = None
    given = vectors_stay(model)
    splits = {name: split if given else replace(split, vectors=None) for name, split in ground.splits.items()}
    job = make_job(model, config, material.task, material.labels, splits["train"], splits["dev"], precision)
    with tempfile.TemporaryDirectory() as folder, Tracker(Path(folder), console) as tracker:
        try:
            progress = fit(job.with_vectors(tracker), Checkpoints(Path(folder), {}), tracker)
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted(f"stopped while training: {name}; nothing of it is kept") from None
    load_trained(model, progress.best_tensors)
    trained = sum(parameter.numel() for parameter in model.trainable().values())
    logits = {name: split_logits(model, splits[name]) for name in ground.decisive}
    decisions = decide_like_ours(ground.config, material, logits)
    seconds = progress.seconds + (ground.vector_seconds if given else 0.0)
    return Contender(name, decisions, seconds, trained, f"learning rate {job.settings.learning_rate:g}, {precision.name}")


def by_method(config: RunConfig, method: str) -> RunConfig:
    """The run's configuration with another method, its learning rate and number format, and nothing of an adapter's own."""
    changes: dict[str, Any] = {
        "method": method,
        "training.learning_rate": "auto",
        "training.head_learning_rate": None,
        "training.checkpoint_every": _NEVER,
        "training.lora_plus_ratio": None,
        "lora.dora": False,
        "lora.init": "standard",
        "lora.bias": "none",
        "lora.train_top_layers": 0,
        "lora.train_embeddings": False,
    }
    if METHODS[method].trains_base(MethodPlan()):
        changes |= {"training.precision": "fp32", "base_precision": "auto"}
    if method == "head":
        changes["training.base_dropout"] = "auto"
    return load_config(config, changes)


def _judged(ground: Ground) -> Judged:
    material = ground.material
    metric = ground.config.evaluation.metric
    return Judged.of(material.examples["train"], material.examples["dev"], material.labels, material.task, metric)
