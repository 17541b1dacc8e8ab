"""A diagnosis from evidence: everything that is measured, and what to change next.

`diagnose` is the page to read. Knows the order of the work and the form of its result; the measuring is done beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from veneer.evaluation.diagnosis.evidence import Evidence, labelwise
from veneer.evaluation.diagnosis.fit import Fit, judge_fit
from veneer.evaluation.diagnosis.limits import Curve, Limit, curves, limits
from veneer.evaluation.diagnosis.margins import Margin, margins
from veneer.evaluation.diagnosis.mistakes import confused_pairs, surest_mistakes
from veneer.evaluation.diagnosis.slices import Slice, slices
from veneer.evaluation.diagnosis.suggestions import Findings, Suggestion, suggest

CELLS = 78  # of a terminal's 80 columns


@dataclass(frozen=True)
class Diagnosis:
    """What was found on the texts of `split`, and at most three suggestions, the most promising first.

    Attributes:
        confused: `target`, `decided`, `texts`, up to three `examples`.
        mistakes: `row`, `text`, `pair`, `given`, `decided`, `confidence`.
    """

    split: str
    suggestions: tuple[Suggestion, ...]
    margins: tuple[Margin, ...]
    limits: tuple[Limit, ...]
    curves: tuple[Curve, ...]
    fit: Fit
    slices: tuple[Slice, ...]
    confused: tuple[dict[str, Any], ...]
    mistakes: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the `diagnosis` of `report.json`."""
        parts = ("suggestions", "margins", "limits", "curves", "slices")
        tree = {name: [one.to_json() for one in getattr(self, name)] for name in parts}
        examples = {"confused": list(self.confused), "mistakes": list(self.mistakes)}
        return {"split": self.split, **tree, "fit": self.fit.to_json(), **examples}


def diagnose(evidence: Evidence) -> Diagnosis:
    """Measure what limits a classifier on N labelled texts, in O(N log N · min(C, 100) + N·C) time."""
    labels = labelwise(evidence)
    findings = Findings(
        evidence,
        labels,
        margins=margins(evidence, labels),
        limits=limits(evidence, labels),
        fit=judge_fit(evidence.history),
        slices=slices(evidence, labels),
    )
    return Diagnosis(
        evidence.split,
        suggest(findings),
        findings.margins,
        findings.limits,
        curves(evidence, labels),
        findings.fit,
        findings.slices,
        tuple(confused_pairs(evidence, labels)),
        tuple(surest_mistakes(evidence)),
    )


def suggestion_lines(diagnosis: Diagnosis) -> list[str]:
    """The suggestions as lines for a terminal of 80 columns."""
    if not diagnosis.suggestions:
        return [f"Diagnosis of {diagnosis.split}: nothing stands out."]
    lines = [f"What to change next, by {diagnosis.split}"]
    for number, suggestion in enumerate(diagnosis.suggestions, 1):
        lines += _hanging(f"{number}. ", suggestion.advice)
        lines += _hanging("   ", f"({suggestion.rule}) {suggestion.evidence}")
    return lines


def _hanging(head: str, text: str) -> list[str]:
    """`text` after `head`, its further lines indented as far; wide characters count as two columns."""
    wrapped = Text(text).wrap(Console(width=CELLS), CELLS - len(head))
    return [f"{head if i == 0 else ' ' * len(head)}{line.plain.rstrip()}" for i, line in enumerate(wrapped)]
