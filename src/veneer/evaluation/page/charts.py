"""The charts of the page, each a function from a part of the report to a picture; None where there is nothing to draw.

Knows what the numbers mean; `page.svg` knows how to draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from markupsafe import Markup

from veneer.evaluation.page.content import Bin, Curve, Limit, Margin, Moment, Reliability, Verdict
from veneer.evaluation.page.svg import (
    LEFT,
    RIGHT,
    WIDTH,
    Axis,
    Line,
    Points,
    add,
    canvas,
    ends,
    number,
    picture,
    tick_label,
    ticks,
    written,
)
from veneer.evaluation.tables import LOWER_IS_BETTER

MOST_POINTS = 300  # of a line: about one a pixel


def gain_chart(verdict: Verdict) -> Markup | None:
    """The difference to the baseline with its 95 % interval, beside zero."""
    if verdict.gain_interval is None:
        return None
    low, high = verdict.gain_interval
    gain = verdict.score - verdict.baseline
    values = (low, high, gain, 0.0)
    room = max(max(values) - min(values), 1e-3) * 0.12
    axis = Axis("", min(values) - room, max(values) + room)
    said = f"Difference {gain:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}; zero is no difference"
    root = picture("Gain over the baseline", said, 66)

    def at(value: float) -> float:
        return LEFT / 2 + axis.share(value) * (WIDTH - LEFT / 2 - RIGHT)

    marked = ticks(axis.low, axis.high, 5)
    for value in marked:
        add(root, "line", {"class": "axis", **ends(at(value), 34, at(value), 38)})
        place = {"x": number(at(value)), "y": "50", "text-anchor": "middle"}
        add(root, "text", place, tick_label(value, marked[-1] - marked[-2] if len(marked) > 1 else 1.0))
    add(root, "line", {"class": "axis", **ends(at(axis.low), 34, at(axis.high), 34)})
    add(root, "line", {"class": "rule", **ends(at(0), 4, at(0), 34)})
    add(root, "line", {"class": "whisker", **ends(at(low), 18, at(high), 18)})
    for end in (low, high):
        add(root, "line", {"class": "whisker", **ends(at(end), 12, at(end), 24)})
    add(root, "circle", {"class": "dot", "cx": number(at(gain)), "cy": "18", "r": "5"})
    middle = {"x": number(WIDTH / 2), "y": "63", "text-anchor": "middle"}
    add(root, "text", {"class": "name", **middle}, "difference to the baseline, 95 % interval")
    return written(root)


def reliability_chart(reliability: Reliability) -> Markup | None:
    """Confidence against the share that was right, before and after; on the diagonal, confidence means what it says."""
    lines = [Line("before", _bins(reliability.before), 1, marks=True), Line("after", _bins(reliability.after), 0, marks=True)]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    said = [f"{line.name}: " + ", ".join(f"{x:.2f} sure, {y:.2f} right" for x, y in line.points) for line in lines]
    drawn = canvas("Reliability", "; ".join(said), Axis("confidence", 0, 1), Axis("share right", 0, 1), lines)
    drawn.diagonal()
    for line in lines:
        drawn.draw(line)
    return written(drawn.root)


def precision_recall_chart(curve: Curve) -> Markup | None:
    """Precision against recall of a label, over all thresholds."""
    points = [(r, p) for r, p in zip(curve.recall, curve.precision, strict=True) if r is not None and p is not None]
    if not points:
        return None
    said = f"Recall from {min(r for r, _ in points):.2f} to {max(r for r, _ in points):.2f}"
    drawn = canvas(f"{curve.label}: precision and recall", said, Axis("recall", 0, 1), Axis("precision", 0, 1), [])
    drawn.draw(Line(curve.label, _thin(points), 0))
    return written(drawn.root)


def threshold_chart(curve: Curve, limit: Limit | None) -> Markup | None:
    """Precision, recall and F1 of a label against the threshold, the best threshold marked."""
    named = (("precision", curve.precision, 1), ("recall", curve.recall, 2), ("F1", curve.f1, 0))
    lines = [Line(name, _known(curve.thresholds, values), style) for name, values, style in named]
    if not any(line.points for line in lines):
        return None
    low, high = min(curve.thresholds), max(curve.thresholds)
    x = Axis("threshold", *((0, 1) if low >= 0 and high <= 1 else _padded(curve.thresholds)))
    best = max((value for value in curve.f1 if value is not None), default=0.0)
    drawn = canvas(f"{curve.label}: by threshold", f"The best F1 is {best:.3f}", x, Axis("score", 0, 1), lines)
    if limit is not None and limit.threshold is not None:
        drawn.upright(limit.threshold, f"best {limit.threshold:.2f}")
    for line in lines:
        drawn.draw(line)
    return written(drawn.root)


def margin_chart(margin: Margin) -> Markup | None:
    """Two histograms in the same bins, each as shares of its own texts, so that a rare label is seen as well as a common one."""
    inside, outside = (_density(margin.edges, counts) for counts in (margin.inside, margin.outside))
    top = max((*inside, *outside), default=0.0)
    if top <= 0 or margin.edges[-1] <= margin.edges[0]:
        return None
    one, _, other = margin.name.partition(" against ")
    names = [f"{one if other else 'has it'} ({sum(margin.inside):,})", f"{other or 'has it not'} ({sum(margin.outside):,})"]
    lines = [Line(names[0], _steps(margin.edges, inside), 0), Line(names[1], _steps(margin.edges, outside), 1)]
    overlap = "" if margin.overlap is None else f"; they overlap by {margin.overlap:.0%}"
    said = f"Margins of two groups of texts, {names[0]} and {names[1]}{overlap}"
    x, y = Axis("margin", margin.edges[0], margin.edges[-1]), Axis("density", 0, top * 1.05)
    drawn = canvas(f"Margins of {margin.name}", said, x, y, lines)
    for line in reversed(lines):
        drawn.fill(line)
        drawn.draw(line)
    if x.low < 0 < x.high:
        drawn.upright(0, "")
    return written(drawn.root)


def learning_chart(history: Sequence[Moment], name: str, best_step: int | None) -> Markup | None:
    """A metric over the steps of the training: of train, of dev and, for `loss`, the objective of each step."""
    rows = {split: [row for row in history if row.kind == "evaluation" and row.split == split] for split in ("dev", "train")}
    steps = [row for row in history if row.kind == "step"] if name == "loss" else []
    lines = [
        Line("each step", _values(steps, name), 2, faint=True),
        Line("train", _values(rows["train"], name), 1, marks=True),
        Line("dev", _values(rows["dev"], name), 0, marks=True),
    ]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    shown = name.replace("_", " ").replace("f1", "F1")
    better = "lower" if name in LOWER_IS_BETTER else "higher"
    said = [f"{line.name} {line.points[0][1]:.3f} at first, {line.points[-1][1]:.3f} at last" for line in lines]
    last = max(line.points[-1][0] for line in lines)
    y = Axis(shown, *_padded([value for line in lines for _, value in line.points]))
    title = f"{shown} over the training"
    drawn = canvas(title, f"{'; '.join(said)}; {better} is better", Axis("step", 0, max(last, 1.0)), y, lines)
    if best_step is not None and best_step <= last:
        drawn.upright(best_step, f"kept: step {best_step:,}")
    for line in lines:
        drawn.draw(line)
    return written(drawn.root)


def _bins(bins: Sequence[Bin]) -> list[tuple[float, float]]:
    return sorted((one.confidence, one.accuracy) for one in bins if one.confidence is not None and one.accuracy is not None)


def _known(x: Sequence[float], y: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(at, value) for at, value in zip(x, y, strict=True) if value is not None]


def _values(rows: Iterable[Moment], name: str) -> list[tuple[float, float]]:
    """The values by step; of two rows of one step the later one counts, as a resumed run writes steps again."""
    found = {row.step: value for row in rows if (value := row.value(name)) is not None}
    return _thin([(float(step), value) for step, value in sorted(found.items())])


def _thin(points: Points) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` of the points, the first and the last among them."""
    last = len(points) - 1
    if last < MOST_POINTS:
        return list(points)
    return [points[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest value with some room; scores keep their bounds of 0 and 1."""
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or max(abs(high) * 0.1, 0.05)
    return (max(0.0, low - room) if low >= 0 else low - room), (min(1.0, high + room) if low >= 0 and high <= 1 else high + room)


def _density(edges: Sequence[float], counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    widths = [high - low for low, high in pairwise(edges)]
    return [count / total / width if total and width > 0 else 0.0 for count, width in zip(counts, widths, strict=True)]


def _steps(edges: Sequence[float], heights: Sequence[float]) -> list[tuple[float, float]]:
    """The outline of a histogram."""
    points = [(edges[0], 0.0)]
    for (low, high), height in zip(pairwise(edges), heights, strict=True):
        points += [(low, height), (high, height)]
    return [*points, (edges[-1], 0.0)]
