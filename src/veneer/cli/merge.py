"""`veneer merge`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veneer.cli import flags
from veneer.cli.output import messages, print_lines, results
from veneer.errors import InputError

if TYPE_CHECKING:
    from veneer.export.rebased import JudgedTexts

_BUDGET_HELP = "of a run over nf4 or int8: the share of dev texts that the float32 checkpoint may decide otherwise; 0.02"


def merge(
    folder: flags.RunFolder,
    out: Annotated[Path, typer.Option("--out", metavar="DIR2", help="folder to write", show_default=False)],
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="X", min=0.0, max=1.0, help=_BUDGET_HELP, show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="write it whatever the budget says")] = False,
    base: flags.WhereBase = None,
) -> None:
    """Write a run as a plain transformers checkpoint: the adapter added to the base's weights, in float32."""
    from veneer.export.merged import BUDGET, merge_run
    from veneer.run_info import read_info

    exact = read_info(folder).base_precision == "auto"
    useless = ["--budget"] * (budget is not None) + ["--force"] * force if exact else []
    if useless:
        count = f"{' and '.join(useless)} {'do' if len(useless) > 1 else 'does'} not count"
        print_lines(messages(), f"{count}: {folder} was trained over a base in full precision, not nf4 or int8")
    judged = None if exact else _dev_texts(folder)
    report = merge_run(folder, out, base=base, judged=judged, budget=BUDGET if budget is None else budget, force=force)
    how = f"{report.loaded_by} loads it" if report.loaded_by else "an encoder and head.safetensors"
    difference = f"largest logit difference {report.difference:.1e}, {report.flips} decided otherwise"
    print_lines(
        results(),
        f"{report.folder}: {how}; its README.md says how to use it",
        f"verified on {report.texts} probe texts: {difference}",
        *([] if report.change is None else [report.change.describe()]),
    )


def _dev_texts(folder: Path) -> JudgedTexts | None:
    """The run's development texts; None, and a line why, where they cannot be read any more."""
    from veneer.cli.compared_run import open_run
    from veneer.export.rebased import JudgedTexts

    try:
        run = open_run(folder)
    except InputError as error:
        print_lines(messages(), f"the probe texts are compared, since the run's dev texts cannot be: {error}")
        return None
    dev, labels = run.material.examples["dev"], run.info.label_set
    return JudgedTexts(
        "dev",
        [example.text for example in dev],
        [example.pair or "" for example in dev] if run.info.pair else None,
        [[labels.id(label) for label in example.labels] for example in dev],
    )
