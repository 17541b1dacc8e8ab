"""Axes, legends and their arithmetic."""

from __future__ import annotations

import pytest

from veneer.evaluation.page.svg import LEFT, RIGHT, WIDTH, Axis, Line, canvas, tick_label, ticks, written


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.4, 0.761, ["0.4", "0.5", "0.6", "0.7"]),
        (-6, 6, ["−5", "0", "5"]),
        (0, 1200, ["0", "500", "1,000"]),
        (0, 60_000, ["0", "20k", "40k", "60k"]),
        (0, 7e6, ["0", "2M", "4M", "6M"]),
        (0.001, 0.0031, ["0.0010", "0.0015", "0.0020", "0.0025", "0.0030"]),
        (0, 3e-9, ["0", "1e−09", "2e−09", "3e−09"]),
    ],
)
def test_ticks_are_round_and_labelled_as_exactly_as_they_differ(low, high, labels):
    found = ticks(low, high, 5 if labels[-1] != "5" else 4)
    assert all(low - 1e-12 <= value <= high * (1 + 1e-9) for value in found)
    assert [tick_label(value, found[1] - found[0]) for value in found] == labels


def test_a_point_outside_an_axis_stays_on_the_canvas():
    drawn = canvas("t", "d", Axis("x", 0, 1), Axis("y", 0, 1), [])
    assert drawn.at(5, 5) == drawn.at(1, 1) == (WIDTH - RIGHT, drawn.top)
    assert drawn.at(-1, 0)[0] == LEFT


def test_lines_are_told_apart_without_colour():
    lines = [Line("a", [(0, 0), (1, 1)], style) for style in range(4)]
    dashes = [line.look.get("stroke-dasharray") for line in lines]
    assert len(set(dashes)) == 4


def test_a_long_legend_takes_more_rows_and_no_entry_leaves_the_canvas():
    lines = [Line(name, [(0, 0)], 0) for name in ("short", "预约医生的时间和地点以及需要带来的全部材料清单", "a" * 90, "last")]
    drawn = canvas("t", "d", Axis("x", 0, 1), Axis("y", 0, 1), lines)
    assert drawn.height > canvas("t", "d", Axis("x", 0, 1), Axis("y", 0, 1), lines[:1]).height
    shown = [text.text or "" for text in drawn.root.iter("text")]
    assert "short" in shown
    assert any(text.startswith("预约") and text.endswith("…") for text in shown)
    assert max(len(text) for text in shown) < 40


def test_text_and_attributes_are_escaped():
    markup = written(canvas('<b>"', "</svg><script>", Axis("<i>", 0, 1), Axis("&", 0, 1), [Line("</text>", [], 0)]).root)
    for raw in ("<b>", "<script>", "<i>", "</text></text>"):
        assert raw not in markup
    assert "&lt;script&gt;" in markup
    assert markup.count("</svg>") == 1
