"""A configuration, a base and splits to a model ready for `fit`, and the `Job` that trains it.

Knows how settings become layers, weights of classes and a gradient scaler; knows no files of a run.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from veneer.adaptation import AdapterPlan, checkpoint_activations, turn_on_dropout
from veneer.bases import BaseLocation
from veneer.config import RunConfig, settle
from veneer.data import Prompt
from veneer.errors import ConfigError
from veneer.labels import LabelSet
from veneer.lora import LoraLinear
from veneer.methods import METHODS, Method, MethodPlan
from veneer.model import Classifier, build_classifier
from veneer.precision import Precision, choose_precision, pick_device
from veneer.tasks import Objective, Task
from veneer.training.loop import Job
from veneer.training.optim import check_optimizer
from veneer.training.prepare import Split
from veneer.word_model import build_word_classifier


def make_model(
    config: RunConfig, base: BaseLocation, classes: int, precision: Precision, prompt: Prompt | None = None
) -> Classifier:
    """The base with what the method adds, fresh, and a head of C classes, on the device; the seed decides their weights.

    With a `prompt` its label words are read, and there is no head.

    Raises:
        BaseError: the base cannot be loaded.
        LoraError: the adapter's settings fit no layer, or the base does not allow the method.
        ConfigError: as `method_plan`.
    """
    plan = method_plan(config)
    torch.manual_seed(config.seed)
    if prompt is None:
        model = build_classifier(
            base, classes, pooling=config.pooling, dtype=precision.dtype, base_precision=config.base_precision
        )
    else:
        model = build_word_classifier(base, prompt, dtype=precision.dtype, base_precision=config.base_precision)
    method_of(config).apply(model, plan)
    model.to(pick_device())
    turn_on_dropout(model, base_dropout_rate(config))
    if config.training.gradient_checkpointing:
        checkpoint_activations(model)
    return model


def base_dropout_rate(config: RunConfig) -> float | None:
    """Of the base's own dropout layers; None for the rates that the base was made with.

    A head alone is trained without: it has too few parameters to learn the texts by heart, and so each text has one vector in the
    whole training, which is computed once (`vectors.py`).
    """
    rate = config.training.base_dropout
    if rate == "auto":
        return 0.0 if config.method == "head" else None
    return rate


def method_of(config: RunConfig) -> Method:
    """The method that the configuration asks for."""
    return METHODS[config.method]


def method_plan(config: RunConfig) -> MethodPlan:
    """What the method is built from.

    Raises:
        ConfigError: a setting asks for what the method does not do.
    """
    if config.method != "lora" and (wrong := [key for key, asked in _lora_only(config).items() if asked]):
        raise ConfigError(f"{', '.join(wrong)}: not for the method {config.method}. Fix: leave that out, or method: lora")
    if config.lora.dora and config.lora.init == "pissa":  # the conversion to the untouched base is exact for sums alone
        raise ConfigError("lora.dora and lora.init: pissa do not go together. Fix: leave one of them out")
    return MethodPlan(AdapterPlan(**config.lora.model_dump(exclude={"preset"})), **config.tuning.model_dump())


def _lora_only(config: RunConfig) -> dict[str, bool]:
    """The settings that ask for something beside the shape of an update, and whether they are given."""
    lora = config.lora
    return {
        "lora.dora": lora.dora,
        "lora.init": lora.init != "standard",
        "training.lora_plus_ratio": config.training.lora_plus_ratio is not None,
        "lora.bias": lora.bias != "none",
        "lora.train_top_layers": lora.train_top_layers > 0,
        "lora.train_embeddings": lora.train_embeddings,
    }


def precision_of(config: RunConfig) -> Precision:
    """The number format of the base; weights of it that are trained must be float32.

    Raises:
        ConfigError: this machine does not have the one that is asked for, or as `method_plan`.
    """
    if config.training.precision == "auto" and method_of(config).trains_base(method_plan(config)):
        return Precision("fp32", "weights of the base are trained")
    return choose_precision(config.training.precision, pick_device())


def make_job(
    model: Classifier, config: RunConfig, task: Task, labels: LabelSet, train: Split, dev: Split, precision: Precision
) -> Job:
    """What `fit` needs to train `model` on `train`, picking the best step on `dev`.

    Raises:
        ConfigError: weights are not given for every label, this machine does not have the optimiser, the method cannot be
            averaged, or two answers to a text are asked for and nothing would tell them apart.
    """
    training, device = settle(config, len(train)), model.device
    check_optimizer(training.optimizer, device)
    weights = _class_weights(training.class_weights, labels, task, train)
    objective = Objective(
        None if weights is None else weights.to(device), focal=training.loss == "focal", label_smoothing=training.label_smoothing
    )
    if training.r_drop is not None and not drops(model):
        own = "lora.dropout or " if config.method == "lora" else ""
        raise ConfigError(
            "training.r_drop: nothing is dropped in this training, so that both answers to a text would be the same. "
            f"Fix: {own}training.base_dropout above 0, or training.r_drop: null"
        )
    scaler = torch.amp.GradScaler(device.type, enabled=precision.name == "fp16")
    job = Job(model, task, objective, train, dev, training, config.evaluation.metric, config.seed, scaler)
    course = method_of(config).course
    if course is not None and training.ema_decay is not None:
        raise ConfigError(
            f"training.ema_decay: {config.method} changes what it trains on the way, which an average would undo. "
            "Fix: training.ema_decay: null"
        )
    return job if course is None else replace(job, course=course(model, method_plan(config), job.steps))


def drops(model: Classifier) -> bool:
    """Whether a layer drops something in training, so that two answers to a text differ.

    The dropout of a base's attention weights counts as one, although packed attention has none.
    """
    mode = model.training
    layers = [module for module in model.train().modules() if module.training]
    model.train(mode)
    return any(
        (isinstance(layer, torch.nn.Dropout) and layer.p > 0) or (isinstance(layer, LoraLinear) and layer.dropout > 0)
        for layer in layers
    )


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
