"""`veneer evaluate`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from veneer.cli import flags
from veneer.cli.output import messages, print_json, print_lines, progress_bar, results
from veneer.errors import InputError

if TYPE_CHECKING:
    from veneer.config import RunConfig
    from veneer.evaluation.metrics import Evaluation
    from veneer.predictor import Predictor

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
    base: flags.WhereBase = None,
    json: flags.Json = False,
) -> None:
    """Score a run on a labelled file: 95 % bootstrap intervals, every class, confusion.

    Columns are those of the training files unless they are given here.
    """
    from veneer.cli.runs import run_config
    from veneer.cli.scores import print_evaluation
    from veneer.predictor import load

    with messages().status("loading the model"):
        predictor = load(folder, base=base)
    given = flags.overrides_of({name: value for name, value in context.params.items() if name != "base"})
    config = run_config(folder, given, {"data.text": "--text", "data.label": "--label"})
    if config.data.label_names is not None and "data.label_names" not in given:
        config.data.label_names = list(predictor.info.labels)  # the file they came from may be gone
    evaluation = _evaluate(predictor, config, data)
    if json:
        print_json(evaluation.to_json())
    else:
        print_evaluation(results(), evaluation)


def _evaluate(predictor: Predictor, config: RunConfig, source: str) -> Evaluation:
    from veneer.data import check_labels, raise_on_errors, read_examples, render_problems
    from veneer.evaluation.metrics import score
    from veneer.tasks import TASKS
    from veneer.training import columns_of

    info = predictor.info
    if info.pair and config.data.pair is None:
        raise InputError(f"this model was trained on pairs of texts. Fix: --pair COLUMN of {source}")
    task, labels = TASKS[info.task], info.label_set  # type: ignore[index]
    multi_label = task.name == "multi_label"
    reading = read_examples(source, columns_of(config.data), default_split="test")
    problems = [*reading.problems, *check_labels(reading, labels, multi_label)]
    raise_on_errors(problems)
    if problems:
        print_lines(messages(), render_problems(problems))
    pairs = [example.pair or "" for example in reading.examples] if info.pair else None
    with progress_bar("evaluating", len(reading.examples)) as progress:
        logits = predictor.logits([example.text for example in reading.examples], pairs, progress=progress)
    targets = task.targets([[labels.id(label) for label in example.labels] for example in reading.examples], len(labels))
    return score(
        targets.bool().numpy() if multi_label else targets.numpy(),
        task.decide(logits).numpy(),
        labels.names,
        multi_label=multi_label,
        bootstrap=config.evaluation.bootstrap,
        seed=config.seed,
    )
