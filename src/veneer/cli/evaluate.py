"""`veneer evaluate`"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from veneer.cli import flags
from veneer.cli.output import messages, print_json, print_lines, results

_DATA_HELP = escape("labelled file, or hub:NAME[/SUBSET][:SPLIT]")
DataFile = Annotated[str, typer.Option("--data", metavar="FILE", help=_DATA_HELP, show_default=False)]


def evaluate(
    context: typer.Context,
    folder: flags.RunFolder,
    data: DataFile,
    text: flags.Text = None,
    pair: flags.Pair = None,
    label: flags.Label = None,
    label_separator: flags.LabelSeparator = None,
    label_names: flags.LabelNames = None,
    encoding: flags.Encoding = None,
    raw: flags.Raw = False,
    base: flags.WhereBase = None,
    base_precision: flags.OtherBits = None,
    json: flags.Json = False,
) -> None:
    """Score a run on a labelled file: 95 % bootstrap intervals, every class, confusion.

    Columns are those of the training files unless they are given here. Decisions are those of the run's calibration, where it has
    one; what that promises is checked on the file, too.
    """
    from veneer.cli.labelled import config_for, read_labelled
    from veneer.cli.scores import print_evaluation
    from veneer.evaluation.conformal import check_promises
    from veneer.evaluation.metrics import score
    from veneer.predictor import load
    from veneer.tasks import PLAIN

    with messages().status("loading the model"):
        predictor = load(folder, base=base, base_precision=base_precision)
    config = config_for(predictor, folder, context.params)
    labelled = read_labelled(predictor, config, data, "evaluating")
    task, calibration = labelled.task, PLAIN if raw else predictor.calibration
    multi_label = task.name == "multi_label"
    evaluation = score(
        (labelled.targets.bool() if multi_label else labelled.targets).numpy(),
        task.decide(labelled.logits, calibration).numpy(),
        predictor.info.labels,
        multi_label=multi_label,
        bootstrap=config.evaluation.bootstrap,
        seed=config.seed,
    )
    promises = check_promises(labelled.logits, labelled.targets, task, calibration)
    if json:
        print_json(evaluation.to_json() | {"promises": promises})
        return
    print_evaluation(results(), evaluation)
    print_lines(results(), *promise_lines(promises))


def promise_lines(promises: dict[str, dict[str, float]]) -> list[str]:
    """What was promised and what came of it, a line each."""
    lines = []
    if found := promises.get("coverage"):
        lines.append(
            f"coverage {found['target']:g}: {found['held']:.1%} of the candidate sets hold every right label; "
            f"{found['mean_size']:.2f} labels a set"
        )
    if found := promises.get("precision"):
        share = found["right"] / found["answered"] if found["answered"] else 0.0
        lines.append(
            f"precision {found['target']:g}: {found['answered_share']:.1%} of the texts are answered, {share:.1%} of them right; "
            "from the others it abstains"
        )
    return lines
