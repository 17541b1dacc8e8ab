"""A survey of labelled data before any training: what is wrong, odd or good to know, with examples and fixes.

`survey` is the page to read. Knows readings, labels and a tokenizer; knows no model, and prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from veneer.data.survey_duplicates import duplicate_findings
from veneer.data.survey_finding import SEVERITIES, Finding, Splits
from veneer.data.survey_labels import LabelFacts, label_facts, label_findings
from veneer.data.survey_texts import text_findings
from veneer.data.survey_tokens import TokenFacts, Tokenization, survey_tokens
from veneer.labels import LabelSet
from veneer.tasks import Task


@dataclass(frozen=True)
class Survey:
    """What is known of labelled data.

    Attributes:
        tokens: split -> what the base's tokenizer makes of it; empty without a base.
        labels: the C labels, in their order.
        findings: errors first, then warnings, then notes.
    """

    tokens: Mapping[str, TokenFacts]
    labels: tuple[LabelFacts, ...]
    findings: tuple[Finding, ...]


def survey(splits: Splits, labels: LabelSet, task: Task, tokenization: Tokenization | None, *, named: bool) -> Survey:
    """Survey splits by their names, `train` among them, each with at least one usable row.

    Args:
        labels: the C labels to be told apart.
        tokenization: None leaves out lengths and vocabulary.
        named: whether names were given for the labels' ids.
    """
    facts = label_facts(splits, labels, task)
    findings = list(label_findings(splits, labels, facts, task, named))
    tokens: dict[str, TokenFacts] = {}
    for name, reading in splits.items():
        findings += text_findings(name, reading)
        if tokenization is not None:
            tokens[name], found = survey_tokens(name, reading, tokenization)
            findings += found
    findings += duplicate_findings(splits)
    return Survey(tokens, facts, ordered(findings))


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes; otherwise as they came."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
