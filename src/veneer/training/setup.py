"""A configuration, a base and splits to a model ready for `fit`, and the `Job` that trains it.

Knows how settings become layers, weights of classes and a gradient scaler; knows no files of a run.
"""

from __future__ import annotations

import torch

from veneer.bases import BaseLocation
from veneer.config import RunConfig, settle
from veneer.data import Prompt
from veneer.errors import ConfigError
from veneer.labels import LabelSet
from veneer.model import AdapterPlan, Classifier, adapt, build_classifier, checkpoint_activations
from veneer.precision import Precision, choose_precision, pick_device
from veneer.tasks import Objective, Task
from veneer.training.loop import Job
from veneer.training.prepare import Split
from veneer.word_model import build_word_classifier


def make_model(
    config: RunConfig, base: BaseLocation, classes: int, precision: Precision, prompt: Prompt | None = None
) -> Classifier:
    """The base with a fresh adapter and head of C classes on the device; the seed of the configuration decides their weights.

    With a `prompt` its label words are read, and there is no head.

    Raises:
        BaseError: the base cannot be loaded.
        LoraError: the adapter's settings fit no layer.
    """
    torch.manual_seed(config.seed)
    if prompt is None:
        model = build_classifier(base, classes, pooling=config.pooling, dtype=precision.dtype)
    else:
        model = build_word_classifier(base, prompt, dtype=precision.dtype)
    adapt(model, adapter_plan(config))
    model.to(pick_device())
    if config.training.gradient_checkpointing:
        checkpoint_activations(model)
    return model


def adapter_plan(config: RunConfig) -> AdapterPlan:
    """The adapter's shape that the configuration asks for."""
    return AdapterPlan(**config.lora.model_dump(exclude={"preset"}))


def precision_of(config: RunConfig) -> Precision:
    """The number format of the base; weights of it that are trained must be float32.

    Raises:
        ConfigError: this machine does not have the one that is asked for.
    """
    if config.training.precision == "auto" and adapter_plan(config).trains_base:
        return Precision("fp32", "weights of the base are trained")
    return choose_precision(config.training.precision, pick_device())


def make_job(
    model: Classifier, config: RunConfig, task: Task, labels: LabelSet, train: Split, dev: Split, precision: Precision
) -> Job:
    """What `fit` needs to train `model` on `train`, picking the best step on `dev`.

    Raises:
        ConfigError: weights are not given for every label.
    """
    training, device = settle(config.training, len(train)), model.device
    weights = _class_weights(training.class_weights, labels, task, train)
    objective = Objective(
        None if weights is None else weights.to(device), focal=training.loss == "focal", label_smoothing=training.label_smoothing
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision.name == "fp16")
    return Job(model, task, objective, train, dev, training, config.evaluation.metric, config.seed, scaler)


def _class_weights(given: str | dict[str, float] | None, labels: LabelSet, task: Task, train: Split) -> torch.Tensor | None:
    if given is None:
        return None
    if isinstance(given, str):
        return task.class_weights(train.targets, len(labels))
    if set(given) != set(labels) or min(given.values()) <= 0:
        raise ConfigError(
            f"training.class_weights must give every label a weight above 0: {', '.join(labels)}; given: {', '.join(given)}"
        )
    return torch.tensor([given[label] for label in labels])
