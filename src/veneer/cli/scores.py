"""Evaluations on a terminal."""

from __future__ import annotations

from rich.console import Console

from veneer.evaluation.metrics import Evaluation
from veneer.evaluation.tables import confusion_table, per_class_table, scores_table


def print_evaluation(console: Console, evaluation: Evaluation, name: str = "") -> None:
    """Scores with intervals, per class, and what is taken for what; `name` is the split's."""
    scores = scores_table(evaluation)
    scores.title = f"{name}: {scores.title}" if name else scores.title
    for table in (scores, per_class_table(evaluation), confusion_table(evaluation)):
        console.print(table)
        console.print()
