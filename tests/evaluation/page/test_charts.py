"""The charts draw what the numbers say, and nothing where there is nothing."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from page_samples import minimal, multi_label, single_label, verdict
from veneer.evaluation.page import charts
from veneer.evaluation.page.content import Bin, Curve, Limit, Margin, Moment, Reliability, Report, Verdict, read_content


@pytest.fixture
def report() -> Report:
    return read_content(multi_label())


def drawing(markup: Markup | None) -> ElementTree.Element:
    assert markup is not None
    return ElementTree.fromstring(markup)  # it is well-formed


def texts(markup: Markup | None) -> list[str]:
    return [element.text or "" for element in drawing(markup).iter("text")]


def points(markup: Markup | None, tag: str = "polyline") -> list[list[tuple[float, float]]]:
    lines = [element.attrib["points"].split() for element in drawing(markup).iter(tag)]
    return [[(float(x), float(y)) for x, y in (place.split(",") for place in line)] for line in lines]


def test_every_chart_says_what_it_is_and_writes_no_number_that_is_none(report):
    assert report.diagnosis is not None
    assert report.calibration is not None
    assert report.verdict is not None
    drawn = [
        charts.gain_chart(report.verdict),
        charts.reliability_chart(report.calibration.reliability or Reliability()),
        charts.precision_recall_chart(report.diagnosis.curves[0]),
        charts.threshold_chart(report.diagnosis.curves[0], report.diagnosis.limits[0]),
        charts.margin_chart(report.diagnosis.margins[0]),
        charts.learning_chart(report.history, "loss", 900),
        charts.learning_chart(report.history, "macro_f1", 900),
    ]
    for chart in drawn:
        root = drawing(chart)
        assert root.attrib["role"] == "img"
        assert root.findtext("title")
        assert root.findtext("desc")
        assert "nan" not in str(chart)
        assert "inf" not in str(chart)


@pytest.mark.parametrize("kind", ["effective", "limited", "not_worth_it", "within_noise"])
def test_the_gain_lies_inside_its_interval_and_zero_is_marked(kind):
    one = Verdict.model_validate(verdict(kind))
    root = drawing(charts.gain_chart(one))
    dot = float(next(root.iter("circle")).attrib["cx"])
    whisker = next(line for line in root.iter("line") if line.attrib["class"] == "whisker")
    zero = next(float(line.attrib["x1"]) for line in root.iter("line") if line.attrib["class"] == "rule")
    low, high = float(whisker.attrib["x1"]), float(whisker.attrib["x2"])
    assert low < dot < high
    assert (low < zero < high) == (kind == "within_noise")
    assert (zero < low) == (kind in ("effective", "limited"))


def test_a_verdict_without_an_interval_has_no_chart():
    assert charts.gain_chart(Verdict.model_validate(verdict("limited") | {"gain_interval": None})) is None


def test_reliability_goes_through_its_bins_in_order():
    bins = (Bin(confidence=1.0, accuracy=0.0), Bin(confidence=0.0, accuracy=1.0), Bin(confidence=0.5, accuracy=None))
    (line,) = points(charts.reliability_chart(Reliability(before=bins)))
    assert len(line) == 2
    assert line[0][0] < line[1][0]  # the confidence grows to the right
    assert line[0][1] < line[1][1]  # and heights are counted from above
    assert "after" not in texts(charts.reliability_chart(Reliability(before=bins)))


def test_curves_leave_out_what_is_not_defined():
    curve = Curve(label="a", thresholds=(0.0, 0.5, 1.0), precision=(0.2, 0.5, None), recall=(1.0, 0.5, 0.0), f1=(0.3, 0.5, None))
    (line,) = points(charts.precision_recall_chart(curve))
    assert len(line) == 2
    assert [len(line) for line in points(charts.threshold_chart(curve, None))] == [2, 3, 2]
    assert "best 0.50" in texts(charts.threshold_chart(curve, Limit(label="a", threshold=0.5)))


def test_histograms_are_shares_of_their_own_texts():
    margin = Margin(name="joy", edges=(-1, 0, 1), inside=(0, 2), outside=(0, 2000))
    inside, outside = points(charts.margin_chart(margin), "polygon")
    assert inside == outside
    assert {"has it (2)", "has it not (2,000)"} <= set(texts(charts.margin_chart(margin)))


def test_a_pair_of_classes_is_named_in_the_legend():
    margin = Margin(name="yes against no", edges=(-1, 0, 1), inside=(0, 2), outside=(1, 0))
    assert {"yes (2)", "no (1)"} <= set(texts(charts.margin_chart(margin)))


def test_learning_curves_have_train_dev_and_the_steps_only_for_the_loss():
    history = read_content(single_label()).history
    assert {"each step", "train", "dev", "kept: step 900"} <= set(texts(charts.learning_chart(history, "loss", 900)))
    shown = texts(charts.learning_chart(history, "macro_f1", None))
    assert "each step" not in shown
    assert "macro F1" in shown
    assert not any(text.startswith("kept") for text in shown)


def test_a_long_history_is_thinned_and_ends_where_it_ends():
    rows = [Moment.model_validate({"kind": "step", "step": step, "loss": 1.0 / step}) for step in range(1, 5001)]
    (line,) = points(charts.learning_chart(rows, "loss", None))
    assert len(line) == charts.MOST_POINTS
    assert line[-1][0] == pytest.approx(max(x for x, _ in line))


def test_the_later_of_two_rows_of_a_step_counts():
    rows = [{"kind": "evaluation", "split": "dev", "step": step, "loss": loss} for step, loss in ((1, 9.0), (2, 0.4), (1, 0.8))]
    description = drawing(charts.learning_chart([Moment.model_validate(row) for row in rows], "loss", None)).findtext("desc")
    assert description is not None
    assert description.startswith("dev 0.800 at first, 0.400 at last")


NOTHING: list[Any] = [
    charts.reliability_chart(Reliability()),
    charts.precision_recall_chart(Curve(label="a", thresholds=(), precision=(), recall=(), f1=())),
    charts.threshold_chart(Curve(label="a", thresholds=(0.5,), precision=(None,), recall=(None,), f1=(None,)), None),
    charts.margin_chart(Margin(name="a", edges=(0, 1), inside=(0,), outside=(0,))),
    charts.margin_chart(Margin(name="a", edges=(1, 1), inside=(3,), outside=(2,))),
    charts.learning_chart(read_content(minimal()).history, "loss", None),
]


def test_nothing_is_drawn_of_nothing():
    assert NOTHING == [None] * 6


@pytest.mark.parametrize("values", [(0.0,), (1.0,), (1.0, 1.0), (-3.0, -3.0), (1e-9, 2e-9), (12345.0, 1e7)])
def test_values_that_are_all_the_same_or_extreme_still_have_an_axis(values):
    rows = [Moment.model_validate({"kind": "step", "step": i + 1, "loss": value}) for i, value in enumerate(values)]
    assert "nan" not in str(charts.learning_chart(rows, "loss", None))
