"""`veneer demo`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from veneer.cli.output import print_commands, print_lines, results

if TYPE_CHECKING:
    from veneer.evaluation.metrics import Evaluation, Interval
    from veneer.predictor import Prediction

COMPARED = {"macro_f1": "macro F1", "micro_f1": "micro F1", "subset_accuracy": "all labels right"}


def demo(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="run folder; runs/demo by default", show_default=False)
    ] = None,
) -> None:
    """Train on the built-in messages to a clinic and compare with TF-IDF and logistic regression."""
    from veneer.cli.scores import print_findings
    from veneer.cli.train import train_or_stop
    from veneer.demo import quickstart
    from veneer.predictor import load
    from veneer.training import free_folder

    console = results()
    config = quickstart.demo_config(out or free_folder(Path("runs/demo")))
    result = train_or_stop(config)
    baseline = quickstart.evaluate_baseline(config)
    predictions = load(result.folder).predict(quickstart.MESSAGES)
    console.print()
    console.print(_comparison(result.evaluations["test"], baseline))
    console.print()
    print_findings(console, result.verdict, result.diagnosis)
    console.print("[bold]Messages it has not seen")
    for message, prediction in zip(quickstart.MESSAGES, predictions, strict=True):
        _show(console, message, prediction)
    print_lines(console, "", f"Run folder: {result.folder}", f"One page to read: {result.folder / 'report.html'}")
    commands: list[list[object]] = [
        ["veneer", "predict", result.folder, "--interactive"],
        ["veneer", "evaluate", result.folder, "--data", config.data.test or ""],
        ["veneer", "calibrate", result.folder, "--coverage", "0.9"],
        ["veneer", "compare", result.folder, "--baselines"],
        ["veneer", "train", "--train", "YOUR.csv", "--text", "COLUMN", "--label", "COLUMN", "--out", "runs/mine"],
    ]
    print_commands(console, "Try next", commands)


def _comparison(ours: Evaluation, baseline: Evaluation) -> Table:
    title = f"Scores on {ours.n} test messages, 95 % intervals"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("veneer", justify="right", style="green")
    table.add_column("TF-IDF + logistic regression", justify="right")
    for name, shown in COMPARED.items():
        table.add_row(shown, _interval(ours.metrics[name]), _interval(baseline.metrics[name]))
    return table


def _interval(score: Interval) -> str:
    return f"{score.value:.3f} ({score.low:.3f} – {score.high:.3f})"


def _show(console: Console, message: str, prediction: Prediction) -> None:
    labels = ", ".join(f"{label} {prediction.scores[label]:.2f}" for label in prediction.labels) or "no label"
    console.print(Padding(Text(message), (0, 2)))
    console.print(Padding(Text(f"→ {labels}", "green"), (0, 4)))
