"""How the commands write: results on standard output, everything else on standard error.

Strings of the user are never read as rich's markup.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


def results() -> Console:
    """Standard output."""
    return Console(highlight=False)


def messages() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    if isinstance(document, list):
        print(json_of_rows(document, ascii_only))
    else:
        print(json.dumps(document, indent=2, ensure_ascii=ascii_only, allow_nan=False))


def json_of_rows(rows: Sequence[Any], ascii_only: bool = False) -> str:
    """A JSON array, a row a line.

    Not indented: that is written by Python's own encoder, several times slower than C's with thousands of scores a row.
    """
    lines = ",\n".join(json.dumps(row, ensure_ascii=ascii_only, allow_nan=False) for row in rows)
    return f"[\n{lines}\n]" if rows else "[]"


def print_error(message: str) -> None:
    """`error: …` on standard error, as it is: no line is broken, so that a command in it can be copied."""
    messages().print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def print_lines(console: Console, *lines: str) -> None:
    """Plain lines, not broken at the terminal's width."""
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def print_hanging(console: Console, head: str, text: str) -> None:
    """`text` after `head`, broken between words at the terminal's width, its further lines as far to the right as the first."""
    width = len(head)
    lines = Text(text).wrap(console, max(20, console.width - width))
    print_lines(console, *(f"{' ' * width if i else head}{line.plain.rstrip()}" for i, line in enumerate(lines)))


def print_commands(console: Console, title: str, commands: Sequence[Sequence[object]]) -> None:
    """Commands to try next, quoted so that they can be copied."""
    console.print(f"\n[bold]{title}")
    print_lines(console, *(f"  {shlex.join(map(str, command))}" for command in commands))


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal; the block calls what it is given with how many are done."""
    console = messages()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
