"""`veneer shrink`"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from veneer.cli import flags
from veneer.cli.output import messages, print_commands, print_json, print_lines, results
from veneer.errors import InputError

if TYPE_CHECKING:
    from veneer.evaluation.goals import Goal
    from veneer.evaluation.metrics import Interval
    from veneer.run_info import ArtifactInfo
    from veneer.thinner import Shrunk


def shrink(
    folder: flags.RunFolder,
    out: Annotated[Path, typer.Option("--out", metavar="DIR2", help="run folder to write", show_default=False)],
    keep: Annotated[float, typer.Option("--keep", metavar="SHARE", help="share of the dev score that must be left")] = 0.99,
    base: flags.WhereBase = None,
    json: flags.Json = False,
) -> None:
    """Make a run's adapter smaller: the lowest rank of each layer that keeps the score on its dev texts.

    The score stays at --keep of what it was, and inside its 95 % interval. What remains of each update is exact; DIR is not
    touched.
    """
    if not 0 < keep <= 1:
        raise InputError(f"--keep is a share above 0 and at most 1, not {keep:g}")
    from veneer.cli.compared_run import open_run
    from veneer.thinner import Dev, shrink_run

    run = open_run(folder)
    dev = Dev.of(run.material, run.config, run.info.label_set)
    with messages().status("searching the lowest ranks: a pass over dev each") as status:
        done = 0

        def progress(passes: int) -> None:
            nonlocal done
            done += passes
            status.update(f"searching the lowest ranks: {done} passes over {len(dev):,} dev texts")

        goal = _goal(folder, run.info)
        shrunk = shrink_run(folder, out, dev, run.config, keep=keep, goal=goal, base=base, progress=progress)
    if json:
        print_json(shrunk.to_json())
    else:
        _show(results(), shrunk, run.info)


def _goal(folder: Path, info: ArtifactInfo) -> Goal | None:
    """What the run's decision rule was fitted for; None where that cannot be done again."""
    from veneer.evaluation.goals import Goal
    from veneer.report_file import read_report

    told = read_report(folder).get("calibration")
    target = told.get("target") if isinstance(told, dict) else None
    if not isinstance(target, str) or target == "cost":  # the file of costs is not kept
        return None
    return Goal.parse(target, info.label_set, info.task)  # type: ignore[arg-type]


def _show(console: Console, shrunk: Shrunk, info: ArtifactInfo) -> None:
    table = Table(
        title="Ranks by layer", title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    for heading in ("layer", "before", "after"):
        table.add_column(heading, justify="left" if heading == "layer" else "right", overflow="fold")
    for kind, (before, after) in _by_kind(shrunk.ranks).items():
        table.add_row(Text(kind), before, after)
    console.print(table)
    console.print()
    parameters, stored = shrunk.parameters, shrunk.stored
    print_lines(
        console,
        f"LoRA parameters  {parameters[0]:,} -> {parameters[1]:,} ({parameters[1] / parameters[0]:.0%})",
        f"stored           {stored[0]:,} -> {stored[1]:,} bytes ({stored[1] / stored[0]:.0%})",
        f"energy left      {shrunk.energy:.1%} of the updates' squared norm",
        f"{shrunk.metric} on {shrunk.texts:,} dev texts  {_interval(shrunk.before)} -> {_interval(shrunk.after)}; "
        f"at least {shrunk.bound:.4f} was asked for",
    )
    if info.calibration is not None:
        print_lines(console, f"calibration      {shrunk.calibration}")
    print_lines(console, "", f"written to {shrunk.folder} and loaded again: the logits of probe texts are the same")
    print_commands(console, "Next", [["veneer", "evaluate", shrunk.folder, "--data", "FILE"]])


def _interval(score: Interval) -> str:
    return f"{score.value:.4f}" if score.low is None else f"{score.value:.4f} [{score.low:.4f}, {score.high:.4f}]"


def _by_kind(ranks: dict[str, tuple[int, int]]) -> dict[str, tuple[str, str]]:
    """Layers that differ in their number alone in one row, their ranks in the order of the numbers."""
    kinds: dict[str, list[tuple[int, int]]] = {}
    for name, pair in ranks.items():
        kinds.setdefault(re.sub(r"\.\d+\.", ".*.", name, count=1), []).append(pair)
    return {kind: (_list([old for old, _ in pairs]), _list([new for _, new in pairs])) for kind, pairs in kinds.items()}


def _list(numbers: list[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else " ".join(map(str, numbers))
