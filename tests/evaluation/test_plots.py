"""The curves of a training: what is drawn, for histories of every size."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from veneer.evaluation import plots
from veneer.evaluation.plots import plot_curves

Rows = list[dict[str, Any]]


def history(steps: int, evaluate_every: int, *, train: bool = False) -> Rows:
    rows: Rows = []
    for step in range(1, steps + 1):
        epoch = 3 * step / steps
        rows.append({"kind": "step", "step": step, "epoch": epoch, "loss": 1 / step, "learning_rate": 1e-3, "gradient_norm": 1.0})
        if step % evaluate_every == 0:
            dev = {"kind": "evaluation", "step": step, "epoch": epoch, "split": "dev", "loss": 2 / step, "macro_f1": 1 - 1 / step}
            rows += [dev, dev | {"split": "train", "loss": 1 / step}] if train else [dev]
    return rows


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written."""
    figures: list[Figure] = []
    write = plots._write

    def remember(figure: Figure, path: Path) -> None:
        figures.append(figure)
        write(figure, path)

    monkeypatch.setattr(plots, "_write", remember)
    return figures


def legends(figure: Figure) -> list[list[str]]:
    return [[line.get_text() for line in axes.get_legend().get_texts()] if axes.get_legend() else [] for axes in figure.axes]


def test_two_panels_with_titles_axes_and_the_best_step(tmp_path, drawn):
    rows = history(60, 20, train=True)
    rows[-2]["macro_f1"] = 0.5  # dev at step 60, so that the best is at step 40
    plot_curves(rows, "macro_f1", tmp_path / "curves.png")
    figure = drawn[0]
    assert [axes.get_title() for axes in figure.axes] == ["Loss", "Macro F1"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["step (3 epochs)"] * 2
    assert legends(figure) == [
        ["training objective", "train", "dev"],
        ["train", "dev", "best: 0.975 at step 40"],
    ]
    dev = figure.axes[1].get_lines()[1]
    np.testing.assert_allclose(dev.get_xydata(), [[20, 0.95], [40, 0.975], [60, 0.5]])
    height, width, _ = imread(tmp_path / "curves.png").shape
    assert (width, height) == (1352, 507)


def test_one_panel_when_the_loss_decides_and_the_lowest_is_best(tmp_path, drawn):
    plot_curves(history(40, 20), "loss", tmp_path / "curves.png")
    assert legends(drawn[0]) == [["training objective", "dev", "best: 0.050 at step 40"]]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (history(20, 20), [["training objective", "dev"], ["dev", "best: 0.950 at step 20"]]),
        (history(5, 20), [["training objective"], []]),
        (history(1, 1), [["training objective", "dev"], ["dev", "best: 0.000 at step 1"]]),
        ([], [[], []]),
        ([{"kind": "evaluation", "split": "dev", "step": 0, "epoch": 0.0, "loss": 1.0}], [["dev"], []]),
    ],
    ids=["one evaluation", "none", "one step", "nothing at all", "only before the first step"],
)
def test_short_histories(tmp_path, drawn, rows, found):
    plot_curves(rows, "macro_f1", tmp_path / "curves.png")
    assert legends(drawn[0]) == found
    assert imread(tmp_path / "curves.png").std() > 0


def test_a_long_training_is_drawn_with_few_points_from_first_to_last(tmp_path, drawn):
    plot_curves(history(10_000, 1000), "macro_f1", tmp_path / "curves.png")
    raw, smooth = drawn[0].axes[0].get_lines()[:2]
    for line in (raw, smooth):
        x = line.get_xdata()
        assert len(x) == plots.MOST_POINTS
        assert (x[0], x[-1]) == (1, 10_000)


def test_smoothing_is_a_plain_moving_average():
    y = np.random.default_rng(0).normal(size=200)
    found = plots._smooth(plots._Series(np.arange(200.0), y))
    expected = [y[max(i - 5, 0) : i + 6].mean() for i in range(200)]
    np.testing.assert_allclose(found.y, expected, atol=1e-12)


def test_of_a_step_written_twice_by_a_resumed_run_the_later_row_counts(tmp_path, drawn):
    rows = history(4, 10)
    plot_curves([*rows, rows[1] | {"loss": 9.0}], "macro_f1", tmp_path / "curves.png")
    np.testing.assert_allclose(drawn[0].axes[0].get_lines()[0].get_xydata(), [[1, 1], [2, 9], [3, 1 / 3], [4, 1 / 4]])


def test_values_that_are_not_finite_are_left_out(tmp_path, drawn):
    rows = history(4, 2)
    rows[0]["loss"], rows[1]["loss"] = math.nan, math.inf
    plot_curves(rows, "macro_f1", tmp_path / "curves.png")
    assert drawn[0].axes[0].get_lines()[0].get_xdata().tolist() == [3, 4]


def test_a_picture_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    plot_curves(history(4, 2), "macro_f1", path)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        plot_curves(history(60, 2), "macro_f1", path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
