"""Small readings for the tests of the survey."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from veneer.data import Example, Reading
from veneer.data.survey_finding import Finding


def reading(
    texts: Sequence[str],
    labels: Sequence[str | Sequence[str]] | None = None,
    *,
    pairs: Sequence[str] | None = None,
    source: str = "f.csv",
) -> Reading:
    """Rows of these texts; labels are `a` and `b` in turn unless given, a string being one label."""
    given = labels if labels is not None else ["ab"[i % 2] for i in range(len(texts))]
    examples = tuple(
        Example(text, None if pairs is None else pairs[i], (given[i],) if isinstance(given[i], str) else tuple(given[i]), i + 1)
        for i, text in enumerate(texts)
    )
    return Reading(source, examples, (), any(len(example.labels) > 1 for example in examples), "")


def rules(findings: Iterable[Finding]) -> dict[str, Finding]:
    """Findings by their rules, each of which occurs once."""
    found = list(findings)
    assert len({finding.rule for finding in found}) == len(found)
    return {finding.rule: finding for finding in found}
