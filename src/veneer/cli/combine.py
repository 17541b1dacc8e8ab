"""`veneer combine`"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veneer.cli import flags
from veneer.cli.output import print_commands, print_json, print_lines, progress_bar, results
from veneer.errors import InputError

if TYPE_CHECKING:
    from veneer.config import RunConfig
    from veneer.thinner import Dev

_RUNS = typer.Argument(metavar="DIR...", help="run folders over one base, with the same labels", show_default=False)
_WEIGHTS = typer.Option("--weights", metavar="W,W,…", help="a weight a run; equal ones if not given", show_default=False)
_ENSEMBLE = typer.Option("--ensemble", help="keep the runs side by side and average their probabilities")


def combine(
    folders: Annotated[list[Path], _RUNS],
    out: Annotated[Path, typer.Option("--out", metavar="DIR2", help="folder to write", show_default=False)],
    weights: Annotated[str | None, _WEIGHTS] = None,
    ensemble: Annotated[bool, _ENSEMBLE] = False,
    base: flags.WhereBase = None,
    json: flags.Json = False,
) -> None:
    """Make one run of several: the weighted sum of their adapters, or with --ensemble the mean of their probabilities.

    Labels are matched by name. The new run is scored and calibrated on the dev texts of the first, where these can be read and
    none of the others was trained on them. The runs are not touched.
    """
    if ensemble and weights is not None:
        raise InputError("--weights are for adapters that are summed; an ensemble is a plain mean. Fix: leave one of them out")
    shares = [1 / len(folders)] * len(folders) if weights is None else _parse(weights)
    from veneer.cli.runs import run_config
    from veneer.thinner import combine_runs, make_ensemble

    _check(folders, ensemble)
    config = run_config(folders[0])
    dev = _dev(folders, config)
    passes = len(folders) if ensemble else 1
    with progress_bar("scoring on dev", 0 if isinstance(dev, str) else len(dev)) as progress:
        if ensemble:
            made = make_ensemble(folders, out, config, dev, base=base, progress=progress)
        else:
            made = combine_runs(folders, out, shares, config, dev, base=base, progress=progress)
    if json:
        print_json(made.to_json() | {"not_scored": dev if isinstance(dev, str) else ""})
        return
    console = results()
    what = f"the mean of {passes} runs' probabilities" if ensemble else f"ranks up to {max(made.ranks.values())}"
    print_lines(console, f"{made.folder}: {what}; loaded again, the logits of probe texts are the same")
    if isinstance(dev, str) or made.score is None:
        print_lines(console, f"scores and calibration: none. {dev}")
    else:
        score = made.score
        print_lines(
            console,
            f"{made.metric} on {made.texts:,} dev texts of {folders[0]}: {score.value:.4f} [{score.low:.4f}, {score.high:.4f}]",
        )
        print_lines(console, "calibration: fitted anew on them" if made.calibrated else "calibration: none")
    print_commands(console, "Next", [["veneer", "evaluate", made.folder, "--data", "FILE"]])


def _check(folders: list[Path], ensemble: bool) -> None:
    """Refuse folders that are no runs, a run given twice, and an ensemble of one."""
    from veneer.run_info import read_tree

    for folder in folders:
        read_tree(folder)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("a run folder is given twice. Fix: give each once; --weights says how much each of them counts")
    if ensemble and len(folders) == 1:
        raise InputError(f"an ensemble is of two runs or more, and {folders[0]} is one. Fix: name the others, too")


def _parse(weights: str) -> list[float]:
    try:
        return [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise InputError(f"--weights takes numbers with commas between them, such as 0.5,0.5, not '{weights}'") from None


def _dev(folders: list[Path], config: RunConfig) -> Dev | str:
    """The dev texts of the first run, and its test texts if they judge too; or why none can judge what the runs are together."""
    from veneer.cli.compared_run import open_run
    from veneer.thinner import Dev

    try:
        first, *others = [open_run(folder) for folder in folders]
    except InputError as error:
        return f"The data of the runs cannot be used: {error}"
    material = first.material
    own = {(one.text, one.pair) for one in material.examples["train"]}
    for run in others:
        seen = {(one.text, one.pair) for one in run.material.examples["train"]} - own
        known = {name: sum((one.text, one.pair) in seen for one in examples) for name, examples in material.examples.items()}
        if known["dev"]:
            return (
                f"{run.folder} was trained on {known['dev']:,} of the {len(material.examples['dev']):,} dev texts "
                f"of {first.folder}. "
                "Fix: train the runs with one --dev file; or veneer evaluate and calibrate with --data FILE"
            )
        if known.get("test"):
            material = replace(material, examples={name: some for name, some in material.examples.items() if name != "test"})
    return Dev.of(material, config, first.info.label_set)
