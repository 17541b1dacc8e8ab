"""`veneer audit`"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from veneer.cli import flags
from veneer.cli.output import print_commands, print_json, print_lines, results
from veneer.errors import ArtifactError, InputError, Interrupted, TrainingError
from veneer.run_files import CONFIG_FILE

if TYPE_CHECKING:
    from rich.console import Console

    from veneer.bases import BaseLocation
    from veneer.config import RunConfig
    from veneer.training.audit import Audit

SHOWN = 10  # suspects on the screen; the file has all of them
MANY = 0.2  # of the rows; so many are hardly mislabelled

_DATA_HELP = escape("labelled file to audit, or hub:NAME[/SUBSET][:SPLIT]; the run's training file by default")
DataFile = Annotated[str | None, typer.Option("--data", metavar="FILE", help=_DATA_HELP, show_default=False)]
Out = Annotated[Path, typer.Option("--out", metavar="FILE.csv", help="CSV of suspects to write", show_default=False)]
Folds = Annotated[int, typer.Option("--folds", min=2, help="parts of the file; each is scored by a model trained on the others")]
Quick = Annotated[
    bool, typer.Option("--quick", help="train nothing: logistic regression on the base's vectors, in seconds, doubts more rows")
]
Accept = Annotated[
    float | None,
    typer.Option("--accept", min=0, max=1, metavar="P", help="mark suggestions of at least this probability with y, unseen"),
]
Force = Annotated[bool, typer.Option("--force", help="overwrite the file of suspects")]


def audit(
    context: typer.Context,
    folder: flags.RunFolder,
    out: Out,
    data: DataFile = None,
    quick: Quick = False,
    folds: Folds = 5,
    epochs: flags.Epochs = None,
    accept: Accept = None,
    text: flags.Text = None,
    pair: flags.Pair = None,
    label: flags.Label = None,
    label_separator: flags.LabelSeparator = None,
    label_names: flags.LabelNames = None,
    encoding: flags.Encoding = None,
    base: flags.WhereBase = None,
    force: Force = False,
    json: flags.Json = False,
) -> None:
    """Find rows that are probably mislabelled, by models that were not trained on them.

    Takes about as long as training --folds times; with --quick, about as long as reading the file once. Ctrl-C loses only the
    fold in work: the same command goes on.
    """
    from veneer.data.corrections import suspects_table
    from veneer.durable import write_text

    _check_out(out, force)
    if quick and epochs is not None:
        raise InputError("--quick trains nothing, so --epochs means nothing. Fix: leave one of them out")
    given = flags.overrides_of({name: value for name, value in context.params.items() if name not in ("base", "out")})
    config, info, location = _open(folder, data, base, given)
    found = _find(config, info, location, folds, None if quick else out.with_name(f"{out.name}.folds"))
    if not found.informed:
        raise TrainingError(_ignorant(found, quick))
    write_text(out, suspects_table(found.suspects, info.labels, accept))
    if json:
        print_json(_document(found, folds, quick, out))
    else:
        _show(results(), found, quick, out)
        settings = ["veneer", "train", folder / CONFIG_FILE, *([] if data is None else ["--train", data])]
        settings += [*_columns_again(context.params), *([] if base is None else ["--base", base])]
        print_commands(results(), "Then", [[*settings, "--corrections", out, "--out", "DIR"]])


def _find(config: RunConfig, info: Any, base: BaseLocation, folds: int, kept: Path | None) -> Audit:
    """The audit; `kept` holds its finished folds until it is done, None is for the quick one, which has nothing to keep."""
    from veneer.tasks import TASKS
    from veneer.training.audit import audit as slow_audit
    from veneer.training.audit import quick_audit

    task, labels = TASKS[info.task], info.label_set
    if kept is None:
        return quick_audit(config, task, labels, base, folds=folds)
    try:
        found = slow_audit(config, task, labels, base, folds=folds, kept=kept)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise typer.Exit(1) from None
    kept.unlink(missing_ok=True)
    return found


def _ignorant(found: Audit, quick: bool) -> str:
    """Why there are no suspects: the doubts of models that know nothing would be taken for corrections."""
    score, name = found.metrics[found.lead_metric], found.lead_metric.replace("_", " ").replace("f1", "F1")
    lead = f"{found.lead.value:+.4f}, 95 % interval {found.lead.low:+.4f} to {found.lead.high:+.4f}"
    fix = "leave out --quick, or more rows" if quick else "more epochs (--epochs), more rows, or --quick, which trains nothing"
    return (
        f"the models know too little to doubt a label: their out-of-fold {name} of {score:.4f} is not clearly above the "
        f"{score - found.lead.value:.4f} of an answer that does not read the text ({lead}). No suspects are written. Fix: {fix}"
    )


def _cautions(found: Audit, quick: bool) -> list[str]:
    """What makes the suspects worth less than they look."""
    cautions = []
    share = len(found.suspects) / len(found.examples)
    if share > MANY:
        cautions.append(
            f"{share:.0%} of the rows are doubted, more than are likely to be wrong: the models are often wrong themselves. "
            "Look at the first ones, and do not use --accept."
        )
    if quick:
        cautions.append("--quick trains nothing: its models are weaker than an adapter, and so doubt more rows that are right.")
    return cautions


def _columns_again(parameters: Mapping[str, Any]) -> list[str]:
    """The column flags that the command was given, for the next command on the same file."""
    from veneer.cli.labelled import COLUMN_FLAGS

    again = []
    for name in COLUMN_FLAGS:
        given = parameters[name]
        for value in [] if given is None else [given] if isinstance(given, str) else given:
            again += [f"--{name.replace('_', '-')}", value]
    return again


def _check_out(out: Path, force: bool) -> None:
    """Refuse a file that cannot be written before hours are spent on it."""
    if out.suffix.lower() != ".csv":
        raise InputError(f"{out}: suspects are written as CSV. Fix: --out {out.with_suffix('.csv').name}")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")
    if out.exists() and not force:
        raise InputError(f"{out} exists, perhaps with your marks in it. Fix: another --out, or --force to overwrite it")


def _open(folder: Path, data: str | None, base: str | None, given: dict[str, Any]) -> tuple[RunConfig, Any, BaseLocation]:
    """The run's settings with what to audit in `data.train`, what it says of itself, and its base."""
    from veneer.bases import fingerprint
    from veneer.cli.runs import run_config, trained_runs
    from veneer.run_info import find_own_base, read_info

    info = read_info(folder)
    if len(trained := trained_runs(folder, info)) > 1:
        raise ArtifactError(
            f"{folder} was made from several trained runs, so there is no one training to repeat on parts of the data. "
            f"Fix: veneer audit of one of them: {', '.join(map(str, trained))}"
        )
    overrides = given | ({} if data is None else {"data.train": data})
    config = run_config(folder, overrides)
    if config.data.train is None:
        raise InputError(f"{folder} does not say which file it was trained on. Fix: --data FILE")
    if config.data.label_names is not None and "data.label_names" not in given:
        config.data.label_names = list(info.labels)  # the file they came from may be gone
    if info.pair and config.data.pair is None:
        raise InputError(f"this model was trained on pairs of texts. Fix: --pair COLUMN of {config.data.train}")
    location = find_own_base(folder, info, base)
    if fingerprint(location) != info.base_fingerprint:
        raise ArtifactError(
            f"{folder} was trained on another base than {location.description}. Fix: --base with '{info.base_id}' as it was then"
        )
    return config, info, location


def _document(found: Audit, folds: int, quick: bool, out: Path) -> dict[str, Any]:
    return {
        "data": found.source,
        "texts": len(found.examples),
        "folds": folds,
        "quick": quick,
        "out": str(out),
        "out_of_fold": found.metrics,
        "warnings": _cautions(found, quick),
        "suspects": [{"rank": rank, **asdict(suspect)} for rank, suspect in enumerate(found.suspects, 1)],
    }


def _show(console: Console, found: Audit, quick: bool, out: Path) -> None:
    share = len(found.suspects) / len(found.examples)
    print_lines(
        console, f"Out-of-fold macro F1: {found.metrics['macro_f1']:.4f}. The nearer to 1, the more its doubts are worth."
    )
    print_lines(console, f"{len(found.suspects):,} of {len(found.examples):,} rows ({share:.1%}) have doubtful labels: {out}")
    print_lines(console, *_cautions(found, quick))
    if not found.suspects:
        return
    table = Table(title="Most doubtful", title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    for name, right in (("row", True), ("text", False), ("given", False), ("suggested", False), ("score", True)):
        table.add_column(name, justify="right" if right else "left", max_width=60)
    for one in found.suspects[:SHOWN]:
        text = one.text if one.pair is None else f"{one.text} | {one.pair}"
        cells = [" ".join(text.split())[:120], ", ".join(one.given), ", ".join(one.suggested)]
        table.add_row(str(one.row), *map(escape, cells), f"{one.score:.4f}")
    console.print(table)
    print_lines(
        console, "", "Write y in the column 'use' of the rows to correct; change 'suggested' where another label is right."
    )
