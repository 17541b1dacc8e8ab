"""A run's report as one HTML page that needs nothing else: no network, no script.

Knows the template and what it is given; `page.content` checks the report, `page.views` chooses, `page.charts` draws.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from veneer.evaluation.page import charts, views
from veneer.evaluation.page.content import Report, read_content
from veneer.evaluation.tables import NAMES

VERDICTS = {
    "effective": "Effective",
    "limited": "Limited gain",
    "not_worth_it": "Not worth it",
    "within_noise": "Within the noise",
}


def render_page(report: Mapping[str, Any]) -> str:
    """The page of a report: a pure function of the content of `report.json`.

    Args:
        report: of the current format version; every part but `task`, `base` and `labels` may be null or missing.

    Raises:
        ArtifactError: a part is not what veneer writes.
    """
    content = read_content(report)
    return _environment().get_template("page.html").render(_context(content))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("veneer.evaluation.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": _fixed,
        "signed": _signed,
        "percent": _percent,
        "count": lambda value: "–" if value is None else f"{value:,}",
        "duration": _duration,
        "number": lambda value: "–" if value is None else f"{value:.4g}".replace("-", "−"),
        "sentence": _sentence,
        "under": _under,
        "breakable": _breakable,
        "metric": lambda name: NAMES.get(name, name.replace("_", " ")),
    }
    return environment


def _context(content: Report) -> dict[str, Any]:
    split = views.main_split(content)
    scores = content.evaluations[split] if split is not None else None
    confusion = scores.confusion if scores is not None else None
    diagnosis = content.diagnosis
    return {
        "report": content,
        "verdicts": VERDICTS,
        "split": split,
        "diagnosis": diagnosis,
        "scores": scores,
        "confusion": confusion,
        "views": views,
        "charts": charts,
        "pairs": views.confused_pairs(confusion, diagnosis),
        "pairs_of": diagnosis.split if diagnosis is not None and diagnosis.confused else split,
        "learning": _learning(content),
    }


def _learning(content: Report) -> list[Any]:
    """The curves of the loss and of the metric that chose the best step."""
    names = dict.fromkeys(("loss", content.metric))
    best = content.training.best_step if content.training is not None else None
    drawn = [charts.learning_chart(content.history, name, best) for name in names]
    return [chart for chart in drawn if chart is not None]


def _fixed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _percent(share: float | None) -> str:
    """To a tenth, such as `95 %`; the space is one that does not break."""
    return "–" if share is None else f"{100 * share:,.1f}".removesuffix(".0").replace("-", "−") + "\N{NO-BREAK SPACE}%"


def _sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text[-1:] in '.!?…)' else '.'}"


def _under(text: str, heading: str) -> str:
    """Without a beginning that says what the heading above it says: `A limited gain: the …` under `Limited gain`."""
    begun = re.match(rf"(a )?{re.escape(heading)}: ", text, re.IGNORECASE)
    return text if begun is None else _sentence(text[begun.end() :])


def _breakable(name: str) -> Markup:
    """With places where `change_appointment` may go on in the next line of a narrow column."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/-])(?=\w)", name))


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{minutes} min" if hours < 2 else f"{hours:.1f} h"
