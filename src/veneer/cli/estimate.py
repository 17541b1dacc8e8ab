"""`veneer estimate`"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from veneer.cli import flags
from veneer.cli.output import messages, print_json, print_lines, results
from veneer.errors import BaseError, ConfigError, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from veneer.bases import BaseLocation
    from veneer.config import RunConfig, TrainingConfig
    from veneer.estimate import DeviceType, Memory
    from veneer.model import Classifier

MANY_TEXTS = 100_000  # what `auto` settings mean here
MANY_STEPS = 10_000  # of a course, whose first step is run
PARTS = ("weights", "trained", "copies", "gradients", "optimizer", "activations", "workspace")

_LABELS = typer.Option("--labels", metavar="N", min=1, help="number of labels")
_TFLOPS = typer.Option("--tflops", metavar="X", help="give times at this rate, in 10¹² operations a second", show_default=False)
_MEASURE = typer.Option("--measure", help="time some steps here, which needs the base's weights")


@dataclass(frozen=True)
class Column:
    """One way to train on one device."""

    device: DeviceType
    method: str
    checkpointing: bool
    precision: str
    base_precision: str
    memory: Memory


def estimate(
    context: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE", help="a base: its configuration alone is read", show_default=False)],
    method: flags.Method = None,
    labels: Annotated[int, _LABELS] = 2,
    batch_size: flags.BatchSize = None,
    max_length: flags.MaxLength = None,
    precision: flags.Precision = None,
    base_precision: flags.BasePrecision = None,
    pooling: flags.Pooling = None,
    template: flags.Template = None,
    length_normalised: flags.LengthNormalised = None,
    preset: flags.Preset = None,
    rank: flags.Rank = None,
    alpha: flags.Alpha = None,
    dropout: flags.Dropout = None,
    settings: flags.Set = None,
    tflops: Annotated[float | None, _TFLOPS] = None,
    measure: Annotated[bool, _MEASURE] = False,
    json: flags.Json = False,
) -> None:
    """Say what training would take: memory by part on CPU and GPU, with and without checkpointing, and full fine-tuning beside.

    A step of --batch-size texts, each as long as --max-length, is run without numbers, so that nothing is guessed and no
    weights are needed.
    """
    from veneer.bases import find_base
    from veneer.config import VerbaliserConfig, settle
    from veneer.config_file import load_config
    from veneer.estimate import texts_a_pass
    from veneer.training.rivals import by_method

    if tflops is not None and not tflops > 0:
        raise InputError(f"--tflops is a number above 0, not {tflops:g}")
    config = load_config(None, flags.overrides_of({**context.params, "base": base}, settings))
    _check_words(config, measure)
    training = settle(config, MANY_TEXTS)
    config = config.model_copy(update={"training": training})
    full = by_method(config, "full").model_copy(update={"verbaliser": VerbaliserConfig()})  # with a head, as it must be
    ways = [config] if config.method == "full" else [config, full]
    location = find_base(base, weights=measure)
    texts = texts_a_pass(training.batch_size, config.data.max_length, training.tokens_per_pass // training.answers)
    with messages().status("running a step without numbers"):
        asked = [
            _column(location, one, device, checkpointing, labels, texts)
            for device in _devices(training)
            for one in ways
            for checkpointing in (False, True)
        ]
    columns = [column for column in asked if column is not None]
    passes = -(-training.batch_size // texts)
    measured = _measured(location, config, labels) if measure else None
    if json:
        print_json(_document(config, columns, texts, passes, tflops, measured))
    else:
        _show(results(), config, columns, texts, passes, tflops, measured)


def _check_words(config: RunConfig, measure: bool) -> None:
    """Raise a ConfigError where the settings of label words want what an estimate has not: labels and their texts."""
    from veneer.data.label_words import check_places
    from veneer.training.verbaliser import CHAT

    settings, doctor = config.verbaliser, f"veneer doctor --data FILE --base {config.base}"
    if settings.length_normalised:
        raise ConfigError(
            "verbaliser.length_normalised: how often a text is read depends on the words' tokens, which are not looked at here. "
            f"Fix: {doctor} with the same settings, which measures"
        )
    if settings.template is None:
        return
    if measure:
        raise ConfigError(
            "--measure: a template is answered by the labels' words after real texts, of which there are none here. "
            f"Fix: {doctor} --set 'verbaliser.template=\"…\"', which measures; or no --measure"
        )
    if settings.template != CHAT:
        check_places(settings.template, config.data.pair is not None or "{pair}" in settings.template)


def _devices(training: TrainingConfig) -> tuple[DeviceType, ...]:
    alone_on_gpu = training.precision == "fp16" or training.optimizer == "paged_adamw_8bit"
    return ("cuda",) if alone_on_gpu else ("cpu", "cuda")


def _precision(config: RunConfig, device: DeviceType) -> str:
    """What the base would run in; weights of it that are trained are float32."""
    import torch

    from veneer.precision import choose_precision
    from veneer.training.setup import method_of, method_plan

    asked = config.training.precision
    if method_of(config).trains_base(method_plan(config)):
        return "fp32"
    if asked == "auto" and device == "cuda":
        return "bf16"
    return choose_precision(asked, torch.device(device)).name


def _column(
    base: BaseLocation, config: RunConfig, device: DeviceType, checkpointing: bool, labels: int, texts: int
) -> Column | None:
    """None where activations would be checkpointed, and the base's code cannot do so."""
    from veneer.adaptation import can_checkpoint, checkpoint_activations, turn_on_dropout
    from veneer.estimate import estimate_step
    from veneer.training.setup import base_dropout_rate, method_of, method_plan
    from veneer.training.weights import copies_kept

    precision = _precision(config, device)
    model = meta_model(base, config, device, precision, labels)
    turn_on_dropout(model, base_dropout_rate(config))
    if checkpointing:
        if not can_checkpoint(model):
            return None
        checkpoint_activations(model)
    model.train()
    loss, course = _loss(model, texts * config.training.answers, config.data.max_length), None
    if (make := method_of(config).course) is not None:
        course = make(model, method_plan(config), MANY_STEPS)

    def whole_loss() -> Tensor:
        return loss() if course is None else loss() + course.penalty()

    def remembered() -> list[Tensor]:
        if course is None:
            return []
        course.after_step(1)
        return list(course.state().values())

    try:
        copies = copies_kept(device, config.training.ema_decay)
        memory = estimate_step(
            model, whole_loss, device, optimizer=config.training.optimizer, copies=copies, remembered=remembered
        )
    except (RuntimeError, NotImplementedError) as error:
        raise BaseError(
            f"a step of {base.name} cannot be run without numbers: the code of {model.config.model_type} looks at them "
            f"({' '.join(str(error).split())[:100]}). Fix: veneer doctor --data FILE --base {base.name}, which measures"
        ) from None
    return Column(device, config.method, checkpointing, precision, config.base_precision, memory)


def meta_model(base: BaseLocation, config: RunConfig, device: DeviceType, precision: str, labels: int) -> Classifier:
    """The model to be trained, without its weights."""
    from transformers import AttentionInterface, AttentionMaskInterface

    from veneer.estimate import KERNEL_ATTENTION, kernel_attention
    from veneer.model import skeleton
    from veneer.packing import PACKED_ATTENTION
    from veneer.precision import DTYPES
    from veneer.training.setup import method_of, method_plan
    from veneer.training.verbaliser import check_settings
    from veneer.word_model import word_skeleton

    attention = PACKED_ATTENTION
    if device == "cuda" and precision != "fp32":
        attention = KERNEL_ATTENTION
        AttentionInterface.register(KERNEL_ATTENTION, kernel_attention)
        AttentionMaskInterface.register(KERNEL_ATTENTION, lambda *_, **__: None)
    dtype = DTYPES[precision]  # type: ignore[index]
    if config.verbaliser.template is None:
        model = skeleton(
            base, labels, pooling=config.pooling, dtype=dtype, base_precision=config.base_precision, attention=attention
        )
    else:
        check_settings(config)
        model = word_skeleton(base, labels, dtype=dtype, base_precision=config.base_precision, attention=attention)
    method_of(config).apply(model, method_plan(config))
    return model


def _loss(model: Classifier, texts: int, length: int) -> Callable[[], Tensor]:
    import numpy as np

    from veneer.data import EncodedTexts

    tokens = texts * length
    ids, types = np.zeros(tokens, np.int32), np.zeros(tokens, np.uint8)
    encoded = EncodedTexts(ids, types, np.arange(texts + 1) * length, 0)
    batch = model.batch(encoded, range(texts))

    def loss() -> Tensor:
        total: Tensor = model(batch).sum()
        return total

    return loss


def _measured(base: BaseLocation, config: RunConfig, labels: int) -> dict[str, Any]:
    """Steps of texts of full length, timed as `veneer doctor --data` does."""
    from veneer.bases import load_tokenizer
    from veneer.config import settle
    from veneer.data import Example
    from veneer.labels import LabelSet
    from veneer.tasks import TASKS
    from veneer.training.measure import STEPS, measure

    names = LabelSet(tuple(str(i) for i in range(labels)))
    tokenizer = load_tokenizer(base)
    text = " ".join(["word"] * config.data.max_length)
    count = settle(config, MANY_TEXTS).batch_size * (STEPS + 1)
    examples = [Example(text, None, (names[i % labels],), i + 1) for i in range(count)]
    with messages().status("timing some steps"):
        return measure(config, base, tokenizer, examples, names, TASKS["single_label"]).to_json()


def _document(
    config: RunConfig,
    columns: list[Column],
    texts: int,
    passes: int,
    tflops: float | None,
    measured: dict[str, Any] | None,
) -> dict[str, Any]:
    rows = [
        {
            "device": column.device,
            "method": column.method,
            "checkpointing": column.checkpointing,
            "precision": column.precision,
            "base_precision": column.base_precision,
            "bytes": {key: value for key, value in column.memory.to_json().items() if key != "flops"},
            "flops_a_step": column.memory.flops * passes,
            "seconds_a_step": None if tflops is None else column.memory.flops * passes / (tflops * 1e12),
        }
        for column in columns
    ]
    training = config.training
    settings = {"batch_size": training.batch_size, "max_length": config.data.max_length, "texts_a_pass": texts}
    settings["answers"] = training.answers
    return settings | {"estimates": rows, "measured": measured}


def _show(
    console: Console,
    config: RunConfig,
    columns: list[Column],
    texts: int,
    passes: int,
    tflops: float | None,
    measured: dict[str, Any] | None,
) -> None:
    for device in dict.fromkeys(column.device for column in columns):
        console.print(_table([column for column in columns if column.device == device], passes, tflops))
        console.print()
    twice = ", answered twice" if config.training.answers == 2 else ""
    cut = f", in {passes} passes of {texts} texts" if passes > 1 else ""
    print_lines(
        console,
        f"a step of {config.training.batch_size} texts of {config.data.max_length} tokens each{twice}{cut}; shorter texts take "
        "less",
        "not counted: the libraries themselves (some 400 MiB of a process on a CPU) and freed blocks that the C library keeps",
        "(docs/estimate.md); on a GPU its driver's context",
    )
    if not any(column.checkpointing for column in columns):
        print_lines(console, "nothing is shown with checkpointing: the code of this base cannot do it")
    if measured is not None:
        steps = f"{measured['steps']} steps on {measured['device']} in {measured['precision']}"
        print_lines(console, f"measured here: {measured['texts_per_second']} texts a second ({steps})")
    elif tflops is None:
        print_lines(console, "for times: --tflops X, or --measure where the base's weights are")


def _table(columns: list[Column], passes: int, tflops: float | None) -> Table:
    title = {"cpu": "On a CPU", "cuda": "On a GPU"}[columns[0].device]
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("MiB")
    for column in columns:
        bits = "" if column.base_precision == "auto" else f", {column.base_precision}"
        way = f"{column.method}, {column.precision}{bits}"
        table.add_column(way + ("\ncheckpointed" if column.checkpointing else ""), justify="right")
    for part in (*PARTS, "total"):
        sizes = [f"{getattr(column.memory, part) / 2**20:,.1f}" for column in columns]
        table.add_row("most at once" if part == "total" else part, *sizes, end_section=part == PARTS[-1])
    table.add_row("10⁹ operations", *(f"{column.memory.flops * passes / 1e9:,.0f}" for column in columns))
    if tflops is not None:
        table.add_row("seconds a step", *(f"{column.memory.flops * passes / (tflops * 1e12):,.3f}" for column in columns))
    return table
