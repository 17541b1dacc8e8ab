"""What a person sees of a run, and what is kept of it: progress bar, `train.log`, `metrics.jsonl`.

Knows rich and files; does not know what the numbers mean.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from veneer.durable import write_text
from veneer.run_files import LOG_FILE, METRICS_FILE


class Tracker:
    """Shows and records one run; a context manager that closes its files.

    Args:
        folder: of the run.
        console: where to show; a bar only where it is a terminal.
        keep: go on with the rows of `metrics.jsonl` that are there.
    """

    def __init__(self, folder: Path, console: Console, *, keep: bool = False) -> None:
        self._console = console
        self._path = folder / METRICS_FILE
        self.history: list[dict[str, Any]] = _read_rows(self._path) if keep else []
        self._metrics: TextIO = self._path.open("a", encoding="utf-8")
        self._log: TextIO = (folder / LOG_FILE).open("a", encoding="utf-8")
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._log.write(f"{_now()} stopped: {type(error).__name__}: {error}\n")
        self._metrics.close()
        self._log.close()

    def rewind(self, step: int) -> None:
        """Drop the rows beyond `step`, which a resumed run makes again."""
        self.history = [row for row in self.history if row["step"] <= step]
        self._metrics.close()
        write_text(self._path, "".join(_line(row) for row in self.history))
        self._metrics = self._path.open("a", encoding="utf-8")

    def say(self, message: str) -> None:
        """A line for the person and the log; not broken at the console's width, so that a command in it can be copied."""
        self._console.print(escape(message), highlight=False, soft_wrap=True)
        self.note(message)

    def show(self, renderable: Any) -> None:
        """A table for the person, and as plain text for the log."""
        self._console.print(renderable)
        plain = Console(width=100, file=self._log, color_system=None)
        plain.print(renderable)

    def note(self, message: str) -> None:
        """A line for the log alone."""
        self._log.write(f"{_now()} {message}\n")
        self._log.flush()

    def record(self, row: Mapping[str, Any]) -> None:
        """A row of `metrics.jsonl`."""
        self.history.append(dict(row))
        self._metrics.write(_line(row))

    def flush(self) -> None:
        """Hand everything written so far to the system."""
        self._metrics.flush()
        self._log.flush()

    @contextmanager
    def bar(self, total: int, done: int, what: str = "training") -> Iterator[None]:
        """A live bar over `total` steps while the block runs; nothing where the console is no terminal."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("[cyan]{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal, transient=True) as bar:
            self._bar, self._task = bar, bar.add_task(what, total=total, completed=done, numbers="")
            try:
                yield
            finally:
                self._bar = self._task = None

    def move(self, count: int) -> None:
        """So many more of the bar's total are done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count)

    def advance(self, row: Mapping[str, Any]) -> None:
        """One step is done; `row` is its row of `metrics.jsonl`."""
        self.record(row)
        if self._bar is not None and self._task is not None:
            numbers = (
                f"loss {row['loss']:.3f}  lr {row['learning_rate']:.1e}  grad {row['gradient_norm']:.2f}  "
                f"{row['texts_per_second']:.0f} texts/s"
            )
            self._bar.update(self._task, advance=1, numbers=numbers)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line of a killed run may be half a line
            continue
    return rows


def _line(row: Mapping[str, Any]) -> str:
    finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
