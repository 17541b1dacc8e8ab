"""Measuring contestants side by side: each in a process of its own, in interleaved rounds, with medians and spread.

Knows processes, clocks and tables; does not know what is measured. The parent process imports no torch, so that nothing but
the contestant at work competes for cores. A contestant is a function at the top of a module:

    build(**arguments) -> (work, facts)      called once in the new process; loading happens here, untimed
    work(**call) -> sample                   called once a round; a dict of numbers, `seconds` among them
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

Sample = dict[str, float]
Work = Callable[..., Sample]
Build = Callable[..., tuple[Work, dict[str, Any]]]

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16", "sve")
_PACKAGES = ("veneer", "torch", "transformers", "tokenizers", "peft", "accelerate", "onnxruntime")


@dataclass(frozen=True)
class Contestant:
    """One way to do the work, before it is started.

    Attributes:
        build: see the module's docstring; a top-level function, since it is found by name in the new process.
        arguments: for `build`.
        call: for each `work`, beside the round's `seed`.
    """

    name: str
    build: Build
    arguments: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of a number over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def show(self, pattern: str = ",.0f") -> str:
        return f"{self.median:{pattern}} ({self.low:{pattern}}–{self.high:{pattern}})"


class Worker:
    """A contestant in its own process, waiting between rounds on a pipe, where it takes no processor time.

    Raises:
        SystemExit: from any method, with the process's own traceback, when the contestant fails.
    """

    def __init__(self, contestant: Contestant, threads: int) -> None:
        self.contestant = contestant
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, contestant.build, dict(contestant.arguments), threads)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.facts: dict[str, Any] = self._receive()

    def run(self, **call: Any) -> Sample:
        """One round; the sample also holds `peak_bytes`, the process's largest resident memory since it was built."""
        self._pipe.send({**self.contestant.call, **call})
        sample: Sample = self._receive()
        return sample

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pipe.close()  # it then ends by itself
        self._process.join(10 if error is None else 1)
        self._process.terminate()
        self._process.join()

    def _receive(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._pipe.recv()
        except EOFError:
            raise SystemExit(f"the process of '{self.contestant.name}' ended by itself (out of memory?)") from None
        if "failed" in answer:
            raise SystemExit(f"'{self.contestant.name}' failed:\n{answer['failed']}")
        return answer


def _serve(pipe: Connection, build: Build, arguments: dict[str, Any], threads: int) -> None:
    """The worker process's life."""
    import torch

    sys.stdout = sys.stderr  # libraries print; standard output is the table's
    torch.set_num_threads(threads)
    try:
        work, facts = build(**arguments)
        pipe.send(facts)
        _forget_peak()
        while True:
            sample = work(**pipe.recv())
            pipe.send({**sample, "peak_bytes": peak_bytes()})
    except (EOFError, KeyboardInterrupt):
        return
    except BaseException:
        pipe.send({"failed": traceback.format_exc()})


def _forget_peak() -> None:
    """Start the record of the largest memory anew, so that loading does not count; where Linux allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        progress("the peak of memory cannot be reset here: it includes loading")


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    # ru_maxrss of a spawned process starts at its parent's size; VmHWM is its own
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def interleave(workers: Mapping[str, Worker], rounds: int) -> dict[str, list[Sample]]:
    """Run every worker once a round, in an order that rotates, so that a slow minute of the machine hits all alike."""
    samples: dict[str, list[Sample]] = {name: [] for name in workers}
    names = list(workers)
    for number in range(rounds):
        for name in rotated(names, number):
            samples[name].append(workers[name].run(seed=number))
            progress(f"round {number + 1}/{rounds}  {name}: {samples[name][-1]['seconds']:.2f} s")
    return samples


def interleave_here(tasks: Mapping[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a call of small tasks in this process: one warm-up call, then `rounds` times `repeats` calls of each, rotating."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for number in range(rounds):
        for name in rotated(list(tasks), number):
            start = time.perf_counter()
            for _ in range(repeats):
                tasks[name]()
            seconds[name].append((time.perf_counter() - start) / repeats)
    return seconds


def rotated(names: Sequence[str], by: int) -> list[str]:
    """`names`, beginning with another one each time."""
    first = by % len(names)
    return [*names[first:], *names[:first]]


def build_products(device: str = "cpu", size: int = 2048, repeats: int = 6) -> tuple[Work, dict[str, Any]]:
    """A contestant that measures the machine: the best of `repeats` large matrix products, in FLOP/s, fp32 and bf16."""
    import torch

    operands = {
        name: tuple(torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }

    def work(seed: int) -> Sample:
        begin = time.perf_counter()
        best = dict.fromkeys(operands, 0.0)
        for name, (a, b) in operands.items():
            for _ in range(repeats):
                start = time.perf_counter()
                product = torch.mm(a, b)
                if product.is_cuda:
                    torch.cuda.synchronize()
                best[name] = max(best[name], 2 * size**3 / (time.perf_counter() - start))
        return {**best, "seconds": time.perf_counter() - begin}

    return work, {}


def peak_flops(samples: Sequence[Sample]) -> dict[str, float]:
    """The best FLOP/s of all rounds of `build_products`, by precision."""
    return {name: max(sample[name] for sample in samples) for name in ("fp32", "bf16")}


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on.

    Attributes:
        flags: the processor's instructions that matter here, of those it names.
        memory_bytes: of the whole machine.
        load: the average number of busy processes in the minute before; a quiet machine shows less than 0.5.
    """

    processor: str
    cores: int
    threads: int
    flags: tuple[str, ...]
    memory_bytes: int
    system: str
    load: float
    versions: dict[str, str]

    def show(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.processor}, {self.cores} cores, {self.threads} threads used, {self.memory_bytes / 2**30:.0f} GiB, "
            f"{self.system}\n"
            f"instructions: {' '.join(self.flags) or 'unknown'}\n"
            f"load before: {self.load:.2f}\n"
            f"{versions}"
        )


def describe_machine(threads: int) -> Machine:
    """This machine, and the packages installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    words = _cpuinfo("flags", "Features").split()
    return Machine(
        processor=_cpuinfo("model name") or platform.processor() or platform.machine(),
        cores=cores(),
        threads=threads,
        flags=tuple(flag for flag in _FLAGS if flag in words),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.machine()}",
        load=os.getloadavg()[0],
        versions=versions,
    )


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo(*names: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in names:
                return value.strip()
    except OSError:
        pass
    return ""


def parser(description: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """A parser with the flags all benchmarks share."""
    flags = argparse.ArgumentParser(
        description=(description or "").partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    flags.add_argument("--rounds", type=int, default=rounds, help="times each contestant runs")
    flags.add_argument("--threads", type=int, default=cores(), help="torch's threads")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings and every sample there too")
    return flags


def start(flags: argparse.Namespace) -> Machine:
    """Describe the machine, and keep libraries off the network and quiet, in this process and those it starts."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the libraries compared with, in the processes started
    machine = describe_machine(flags.threads)
    print(machine.show() + "\n", flush=True)
    if machine.load > 0.5:
        progress(f"the machine is busy (load {machine.load:.2f}): the figures will show it")
    return machine


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, padded so that it reads as text too; the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *others in [columns, ruler, *rows]:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_json(path: Path | None, machine: Machine, flags: argparse.Namespace, **results: Any) -> None:
    """Everything measured, for later reading; nothing when no path is given."""
    if path is None:
        return
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(flags).items()}
    tree = {"machine": asdict(machine), "settings": settings, **results}
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def progress(line: str) -> None:
    """A line for the person who waits, on standard error."""
    print(line, file=sys.stderr, flush=True)
