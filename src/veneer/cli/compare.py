"""`veneer compare`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli import flags
from veneer.cli.output import print_json, results
from veneer.errors import ConfigError


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="run folders", show_default=False)],
    baselines: Annotated[
        bool, typer.Option("--baselines", help="with simpler ways: TF-IDF, frozen embeddings, the head alone")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="with --baselines: with full fine-tuning too, which takes long")] = False,
    base: flags.WhereBase = None,
    json: flags.Json = False,
) -> None:
    """Was it worth it? One run beside simpler ways, or several runs beside each other.

    The data is read again from where the configuration says; scores are on test where there is one, else on dev.
    """
    if full and not baselines:
        raise ConfigError("--full adds to the baselines. Fix: --baselines --full")
    if baselines and len(folders) > 1:
        raise ConfigError(f"--baselines takes one run, not {len(folders)}. Fix: leave it out, or give one DIR")
    if not baselines and len(folders) == 1:
        raise ConfigError("one run alone has nothing to be compared with. Fix: another DIR, or --baselines")
    console = results()
    if baselines:
        from veneer.cli.compare_baselines import compare_with_baselines

        standing = compare_with_baselines(folders[0], base, full=full)
        print_json(standing.to_json()) if json else standing.print(console)
    else:
        from veneer.cli.compare_runs import compare_runs

        side_by_side = compare_runs(folders, base)
        print_json(side_by_side.to_json()) if json else side_by_side.print(console)
