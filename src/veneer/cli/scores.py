"""Evaluations, verdicts and diagnoses on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from veneer.cli.output import print_lines
from veneer.evaluation.comparison import Verdict
from veneer.evaluation.diagnosis import Diagnosis, suggestion_lines
from veneer.evaluation.metrics import Evaluation
from veneer.evaluation.tables import confusion_table, per_class_table, scores_table


def print_evaluation(console: Console, evaluation: Evaluation, name: str = "") -> None:
    """Scores with intervals, per class, and what is taken for what; `name` is the split's."""
    scores = scores_table(evaluation)
    scores.title = f"{name}: {scores.title}" if name else scores.title
    for table in (scores, per_class_table(evaluation), confusion_table(evaluation)):
        console.print(table)
        console.print()


def print_findings(console: Console, verdict: Verdict | None, diagnosis: Diagnosis) -> None:
    """Whether the adapter was worth it, and what to change next."""
    if verdict is not None:
        console.print("[bold]Was it worth it?")
        console.print(Text(verdict.text))
        console.print()
    print_lines(console, *suggestion_lines(diagnosis), "")
