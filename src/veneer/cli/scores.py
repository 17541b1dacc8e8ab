"""Evaluations on a terminal."""

from __future__ import annotations

from rich.console import Console

from veneer.evaluation.metrics import Evaluation
from veneer.evaluation.tables import confusion_table, per_class_table, scores_table


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Scores with intervals, per class, and what is taken for what."""
    for table in (scores_table(evaluation), per_class_table(evaluation), confusion_table(evaluation)):
        console.print()
        console.print(table)
