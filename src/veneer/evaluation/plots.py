"""Pictures of a run, drawn with matplotlib's object API: no window, no global state.

Knows the rows of `metrics.jsonl` and the look of a picture; does not know how a training goes. matplotlib is loaded to draw
one, and not before: most commands draw none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.tables import LOWER_IS_BETTER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; the marker differs as well.
TRAIN = "#0072B2"
DEV = "#D55E00"
BEST = "#444444"
MOST_POINTS = 1000  # of a line; more than the picture has pixels across
SMOOTHING = 0.05  # width of the moving average as a share of the steps


@dataclass(frozen=True)
class _Series:
    """Values `y` `[n]` at increasing steps `x` `[n]`, all finite."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], key: str) -> _Series:
        """The finite values of `key`; of two rows of one step the later one counts, as a resumed run writes steps again."""
        values = {row["step"]: float(row[key]) for row in rows if row.get(key) is not None}
        points = [(step, value) for step, value in sorted(values.items()) if np.isfinite(value)]
        x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
        return cls(x, y)

    def __len__(self) -> int:
        return len(self.x)


def plot_curves(history: Sequence[Mapping[str, Any]], metric: str, path: str | Path) -> None:
    """Draw loss and `metric` over the steps of a training as a PNG at `path`, replacing it in one move.

    The loss of a step is the training objective (with class weights, smoothing and dropout); the losses of evaluations are
    plain, and so are comparable with each other.

    Args:
        history: rows of `metrics.jsonl`, `kind` being `step` (with `loss`) or `evaluation` (with `split`, `loss` and metrics).
        metric: what the best step was chosen by; with `loss` there is one panel.
        path: the picture; its folder exists.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [row for row in history if row["kind"] == "step"]
    dev = [row for row in history if row["kind"] == "evaluation" and row["split"] == "dev"]
    train = [row for row in history if row["kind"] == "evaluation" and row["split"] == "train"]
    panels = ["loss"] if metric == "loss" else ["loss", metric]
    figure = Figure(figsize=(5.2 * len(panels), 3.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False, sharex=True)[0], panels, strict=True):
        _draw_line(axes, _Series.of(steps, "loss") if name == "loss" else None)
        _draw_points(axes, _Series.of(train, name), "train", TRAIN, "s")
        _draw_points(axes, _Series.of(dev, name), "dev", DEV, "o")
        if name == metric:
            _mark_best(axes, _Series.of(dev, name), name)
        _dress(axes, name, history)
    _write(figure, Path(path))


def _draw_line(axes: Axes, series: _Series | None) -> None:
    """The objective at every step, faint, under its moving average."""
    if series is None or not len(series):
        return
    raw, smooth = _thin(series), _thin(_smooth(series))
    axes.plot(raw.x, raw.y, color=TRAIN, alpha=0.25, linewidth=0.8)
    axes.plot(smooth.x, smooth.y, color=TRAIN, linewidth=1.8, label="training objective")


def _draw_points(axes: Axes, series: _Series, label: str, colour: str, marker: str) -> None:
    if len(series):
        axes.plot(
            series.x, series.y, color=colour, marker=marker, markerfacecolor="white", markersize=5, linewidth=1.5, label=label
        )


def _mark_best(axes: Axes, series: _Series, name: str) -> None:
    if not len(series):
        return
    best = int(series.y.argmin() if name in LOWER_IS_BETTER else series.y.argmax())
    label = f"best: {series.y[best]:.3f} at step {series.x[best]:,.0f}"
    axes.axvline(series.x[best], color=BEST, linestyle="--", linewidth=1.0, zorder=1)
    axes.plot(series.x[best], series.y[best], "*", color=DEV, markeredgecolor=BEST, markersize=13, zorder=5, label=label)


def _dress(axes: Axes, name: str, history: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = max((row["epoch"] for row in history), default=0)
    last = max([1, *(row["step"] for row in history)])
    title = name.replace("_", " ").replace("f1", "F1")
    axes.set_title(title[0].upper() + title[1:])
    axes.set_xlabel(f"step ({epochs:.3g} {'epoch' if epochs == 1 else 'epochs'})" if history else "step")
    axes.set_ylabel(title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlim(0, last * 1.03)
    if axes.has_data():
        axes.legend(frameon=False, fontsize=9)
    else:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", color=BEST)


def _smooth(series: _Series) -> _Series:
    """The centred moving average over `SMOOTHING` of the steps, at least five; at both ends over what there is of that window."""
    n = len(series)
    half = max(2, round(n * SMOOTHING / 2))
    start = np.maximum(np.arange(n) - half, 0)
    end = np.minimum(np.arange(n) + half + 1, n)
    sums = np.concatenate([[0.0], np.cumsum(series.y)])
    return _Series(series.x, (sums[end] - sums[start]) / (end - start))


def _thin(series: _Series) -> _Series:
    """At most `MOST_POINTS` of the points, the first and the last among them."""
    if len(series) <= MOST_POINTS:
        return series
    kept = np.linspace(0, len(series) - 1, MOST_POINTS).round().astype(np.int64)
    return _Series(series.x[kept], series.y[kept])


def _write(figure: Figure, path: Path) -> None:
    picture = BytesIO()
    figure.savefig(picture, format="png")
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(picture.getvalue())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
