"""`veneer merge`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli import flags
from veneer.cli.output import print_lines, results


def merge(
    folder: flags.RunFolder,
    out: Annotated[Path, typer.Option("--out", metavar="DIR2", help="folder to write", show_default=False)],
    base: flags.WhereBase = None,
) -> None:
    """Write a run as a plain transformers checkpoint: the adapter added to the base's weights, in float32."""
    from veneer.export.merged import merge_run

    report = merge_run(folder, out, base=base)
    how = f"{report.loaded_by} loads it" if report.loaded_by else "an encoder and head.safetensors"
    difference = f"largest logit difference {report.difference:.1e}, {report.flips} decided otherwise"
    print_lines(
        results(),
        f"{report.folder}: {how}; its README.md says how to use it",
        f"verified on {report.texts} probe texts: {difference}",
    )
