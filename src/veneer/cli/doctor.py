"""`veneer doctor`: what is installed, what the processor can do, which base would load, and one training step; with `--data`,
what is wrong with labelled files instead.

Each check is a function that gives lines; a check that fails gives a line with the fix instead of an exception.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from veneer.cli import flags
from veneer.cli.output import messages, print_json, results
from veneer.config_file import load_config
from veneer.errors import ConfigError, VeneerError

REINSTALL = "pip install --force-reinstall -e '.[demo]' -c constraints.txt  (in the folder it was cloned into)"
PRODUCT = (512, 1024, 1024)
SECONDS = 0.3  # of timed products a number format
SMALL_MEMORY = 2.0  # GiB below which training the built-in base is at risk
TEXTS = ("the waiting room was cold", "see you on monday", "please refill my prescription", "thank you for your kind help")


@dataclass(frozen=True)
class Line:
    """One finding; `good` is None for what is neither right nor wrong."""

    good: bool | None
    what: str
    finding: str
    fix: str = ""


Data = Annotated[
    str | None,
    typer.Option("--data", metavar="FILE", help="survey these training rows instead", rich_help_panel="Data", show_default=False),
]


def doctor(
    context: typer.Context,
    data: Data = None,
    dev: flags.Dev = None,
    test: flags.Test = None,
    text: flags.Text = None,
    pair: flags.Pair = None,
    label: flags.Label = None,
    label_separator: flags.LabelSeparator = None,
    label_names: flags.LabelNames = None,
    max_length: flags.MaxLength = None,
    encoding: flags.Encoding = None,
    base: flags.Base = None,
    task: flags.Task = None,
    epochs: flags.Epochs = None,
    batch_size: flags.BatchSize = None,
    precision: flags.Precision = None,
    settings: flags.Set = None,
    json: flags.Json = False,
) -> None:
    """Check the installation (packages, processor, base, one tiny training step), or with --data, the data before training."""
    overrides = flags.overrides_of(context.params, settings)
    if data is None:
        if overrides:
            raise ConfigError("these flags say how to read data. Fix: --data FILE")
        _check_installation(as_json=json)
        return
    from veneer.cli.doctor_data import survey_files

    survey_files(load_config(None, {**overrides, "data.train": data}), json=json)


def _check_installation(*, as_json: bool) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    found: list[Line] = []
    console = messages()
    for check in (_packages, _extras, _machine, _products, _training_step):
        with console.status(f"checking: {check.__name__.strip('_').replace('_', ' ')}"):
            found += _findings(check)
    for line in found:
        mark = {True: Text("✓", "green"), False: Text("✗", "bold red"), None: Text("·", "dim")}[line.good]
        table.add_row(mark, Text(line.what), Text(line.finding + (f". Fix: {line.fix}" if line.fix else "")))
    if as_json:
        print_json({"checks": [asdict(line) for line in found]})
    else:
        results().print(table)
    if any(line.good is False for line in found):
        raise typer.Exit(1)


def _findings(check: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """The lines of a check; where it fails with an exception, those before it and one that tells of it."""
    try:
        yield from check()
    except Exception as error:  # whatever a broken installation raises is what this command is asked for
        yield _failure(check.__name__.strip("_").replace("_", " "), error)


def _failure(what: str, error: Exception) -> Line:
    if isinstance(error, VeneerError):
        message, _, fix = str(error).partition(". Fix: ")
        return Line(False, what, message, fix)
    return Line(False, what, f"{type(error).__name__}: {' '.join(str(error).split())}", REINSTALL)


def _packages() -> Iterator[Line]:
    yield Line(True, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Line(True, "veneer", version("veneer"))
    for package, requirement in _requirements("").items():
        if _missing(package):
            yield Line(False, package, "is not installed", f"pip install '{requirement}'")
        else:
            yield Line(True, package, version(package))


def _requirements(extra: str) -> dict[str, str]:
    """Package -> requirement of one of veneer's extras, or of veneer itself for `""`."""
    found = {}
    for line in requires("veneer") or []:
        requirement, _, marker = line.partition(";")
        match = re.search(r"""extra == ['"]([\w-]+)['"]""", marker)
        if (match[1] if match else "") == extra:
            found[re.split(r"[^\w.-]", requirement, maxsplit=1)[0]] = requirement.strip()
    return found


def _extras() -> Iterator[Line]:
    """The optional packages, by the extra that brings them."""
    extras = {extra: list(_requirements(extra)) for extra in metadata("veneer").get_all("Provides-Extra") or []}
    for extra, packages in extras.items():
        missing = [package for package in packages if _missing(package)]
        if missing:
            yield Line(None, f"[{extra}]", f"without {', '.join(missing)}", f"pip install 'veneer[{extra}]', if you need it")
        else:
            yield Line(True, f"[{extra}]", ", ".join(packages))


def _missing(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return True
    return False


def _machine() -> Iterator[Line]:
    import torch

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    yield Line(True, "processor", f"{_count(cores, 'core')}; torch computes with {_count(threads, 'thread')}")
    if memory := _memory():
        small = memory < SMALL_MEMORY
        fix = "close other programs, or --batch-size 8" if small else ""
        yield Line(not small, "memory", f"{memory:.1f} GiB available", fix)
    if torch.cuda.is_available():
        yield Line(True, "GPU", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    else:
        yield Line(None, "GPU", "none; everything runs on the processor")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _memory() -> float | None:
    """GiB that can be had now, None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            available = next(line for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(available.split()[1]) / 2**20


def _products() -> Iterator[Line]:
    import torch

    from veneer.precision import choose_precision, pick_device

    device = pick_device()
    speeds = {"fp32": _speed(torch.float32, device), "bf16": _speed(torch.bfloat16, device)}
    shown = ", ".join(f"{name} {speed:,.0f} GFLOP/s" for name, speed in speeds.items())
    yield Line(True, "matrix products", f"{shown} ({' × '.join(map(str, PRODUCT))}, {device.type})")
    chosen = choose_precision("auto", device)
    yield Line(True, "precision auto", f"{chosen.name}: {chosen.reason}")


def _speed(dtype: object, device: object) -> float:
    """10⁹ operations a second of one matrix product, the median of what fits in `SECONDS`."""
    import torch

    n, k, m = PRODUCT
    x, weight = (torch.ones(shape, dtype=dtype, device=device) for shape in ((n, k), (m, k)))  # type: ignore[call-overload]
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    times.sort()
    return 2e-9 * n * k * m / times[len(times) // 2]


def _training_step() -> Iterator[Line]:
    """Build the built-in base, adapt it, and see the adapter move in one step."""
    from veneer.bases import find_base

    try:
        base = find_base("minilm")
    except VeneerError as error:
        yield _failure("base minilm", error)
        return
    yield Line(True, "base minilm", base.description)
    started = time.perf_counter()
    loss, moved, layers = _step(base)
    seconds = time.perf_counter() - started
    finding = f"loss {loss:.3f}; {moved} of {layers} LoRA layers moved; {seconds:.1f} s with loading"
    if moved == layers:
        yield Line(True, "training step", finding)
    else:
        yield Line(False, "training step", finding, REINSTALL)


def _step(base: object) -> tuple[float, int, int]:
    """The loss of one optimiser step, how many LoRA layers it moved, and how many there are."""
    import torch

    from veneer import lora
    from veneer.adaptation import AdapterPlan, adapt
    from veneer.bases import BaseLocation, load_tokenizer
    from veneer.data import encode
    from veneer.model import build_classifier
    from veneer.precision import choose_precision, pick_device
    from veneer.tasks import TASKS, Objective
    from veneer.training.optim import build_optimizer

    assert isinstance(base, BaseLocation)
    device = pick_device()
    model = build_classifier(base, 2, dtype=choose_precision("auto", device).dtype)
    adapt(model, AdapterPlan())
    model.to(device).train()
    optimizer = build_optimizer(model, 1e-3, None, 0.0)
    task = TASKS["single_label"]
    texts = encode(load_tokenizer(base), TEXTS, None, 64)
    targets = task.targets([[0], [1], [0], [1]], 2).to(device)
    loss = task.losses(model(model.batch(texts, range(len(TEXTS)))), targets, Objective()).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    layers = lora.lora_layers(model.network)
    moved = sum(bool(layer.lora_B.any()) and bool(torch.isfinite(layer.lora_B).all()) for layer in layers.values())
    return float(loss.detach()), moved, len(layers)
