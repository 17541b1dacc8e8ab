"""What is chosen for the page, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from page_samples import made, many_labels, minimal, multi_label, single_label
from veneer.evaluation.page import views
from veneer.evaluation.page.content import Diagnosis, Report, read_content


def diagnosis_of(report: Report) -> Diagnosis:
    assert report.diagnosis is not None
    return report.diagnosis


@pytest.mark.parametrize(("rows", "seen", "folded", "left_out"), [(0, 0, 0, 0), (12, 12, 0, 0), (13, 10, 3, 0), (60, 10, 40, 10)])
def test_a_long_list_is_folded_and_the_rest_counted(rows, seen, folded, left_out):
    found = views.fold(list(range(rows)), 10, 50)
    assert (len(found.seen), len(found.folded), found.left_out) == (seen, folded, left_out)
    assert [*found.seen, *found.folded] == list(range(rows))[: seen + folded]


@pytest.mark.parametrize(
    ("splits", "of_verdict", "expected"),
    [
        (["dev", "test"], None, "test"),
        (["dev"], None, "dev"),
        (["dev", "test"], "dev", "dev"),
        (["other"], "test", "other"),
        ([], None, None),
    ],
)
def test_the_split_that_stands_for_the_run(splits, of_verdict, expected):
    report = single_label()
    report["verdict"] = None if of_verdict is None else report["verdict"] | {"split": of_verdict}
    report["evaluations"] = dict.fromkeys(splits, report["evaluations"]["dev"])
    assert views.main_split(read_content(report)) == expected


def test_the_metric_that_chose_the_best_step_comes_first_and_an_accuracy_once():
    names = views.metric_names(read_content(multi_label()))
    assert names[0] == "macro_f1"
    assert "subset_accuracy" in names
    assert "accuracy" not in names
    assert "accuracy" in views.metric_names(read_content(single_label()))


def test_ranks_of_a_made_run_stand_beside_those_of_what_it_was_made_from():
    rows = views.rank_rows(read_content(made("shrink")).made_from).seen
    assert [(row.before, row.now) for row in rows] == [((8,), 5), ((8,), 2), ((8,), None)]
    assert views.rank_rows(read_content(made("ensemble")).made_from).seen == ()


def test_the_metric_of_a_made_run_is_the_one_it_is_compared_by():
    report = made()
    report["made_from"]["metric"] = "accuracy"
    content = read_content(report)
    assert content.metric == views.metric_names(content)[0] == "accuracy"


def test_few_classes_keep_their_order_and_of_many_the_worst_that_occur_come_first():
    few = views.class_rows(read_content(single_label()).evaluations["dev"])
    assert [row.label for row in few.seen] == single_label()["labels"]
    many = views.class_rows(read_content(many_labels(False)).evaluations["dev"])
    assert all(row.support for row in many.seen)
    assert [row.f1 for row in many.seen] == sorted(row.f1 for row in many.seen)
    assert len(many.seen) + len(many.folded) + many.left_out == 10_000


def with_matrix(matrix: list[Any]) -> Report:
    labels = [f"c{i}" for i in range(len(matrix))]
    return read_content(minimal() | {"evaluations": {"dev": {"n": 9, "confusion": {"labels": labels, "matrix": matrix}}}})


def test_heat_is_the_share_of_the_row():
    confusion = with_matrix([[9, 1, 0], [0, 0, 0], [1, 1, 2]]).evaluations["dev"].confusion
    assert confusion is not None
    rows = views.heat_rows(confusion)
    assert rows[0].cells == ((9, 5, True), (1, 1, False), (0, 0, False))
    assert rows[1].cells == ((0, 0, False), (0, 0, True), (0, 0, False))
    assert [cell[1] for cell in rows[2].cells] == [2, 2, 3]


@pytest.mark.parametrize(("classes", "shown"), [(20, 20), (21, 0)])
def test_a_matrix_is_shown_up_to_twenty_classes(classes, shown):
    confusion = with_matrix([[1] * classes for _ in range(classes)]).evaluations["dev"].confusion
    assert confusion is not None
    assert len(views.heat_rows(confusion)) == shown


def test_the_most_confused_pairs_of_a_matrix_leave_out_the_diagonal():
    confusion = with_matrix([[50, 2, 0], [7, 50, 0], [0, 1, 50]]).evaluations["dev"].confusion
    pairs = views.confused_pairs(confusion, None)
    assert [(pair.target, pair.decided, pair.texts) for pair in pairs] == [("c1", "c0", 7), ("c0", "c1", 2), ("c2", "c1", 1)]


def test_pairs_with_examples_are_preferred():
    report = read_content(single_label())
    pairs = views.confused_pairs(report.evaluations["test"].confusion, report.diagnosis)
    assert pairs[0].examples


def test_outcomes_of_a_label_are_named_rightly():
    confusion = with_matrix([[[90, 3], [2, 5]]]).evaluations["dev"].confusion
    assert confusion is not None
    (row,) = views.label_errors(confusion).seen
    assert (row.right, row.wrongly_given, row.missed, row.rightly_not) == (5, 3, 2, 90)


def test_of_many_labels_the_lowest_f1_with_enough_texts_is_seen():
    report = multi_label(28)
    for limit, f1, support in zip(report["diagnosis"]["limits"], (0.1, 0.3, 0.2), (3, 50, 50), strict=False):
        limit |= {"f1": f1, "support": support}
    for limit in report["diagnosis"]["limits"][3:]:
        limit |= {"f1": 0.9, "support": 50}
    diagnosis = diagnosis_of(read_content(report))
    assert [curve.label for curve, _ in views.interesting_curves(diagnosis).seen[:2]] == ["curiosity", "anger"]
    assert len(views.interesting_curves(diagnosis).seen) == views.FEW
    assert views.interesting_limits(diagnosis).folded[-1].label == "amusement"


def test_the_largest_overlap_of_enough_texts_is_seen_first():
    margins = [
        {"name": name, "overlap": overlap, "edges": [0, 1], "inside": [inside], "outside": [500]}
        for name, overlap, inside in (("a", 0.1, 50), ("few", 0.9, 3), ("b", 0.7, 50))
    ]
    report = single_label()
    report["diagnosis"]["margins"] = margins
    assert [margin.name for margin in views.interesting_margins(diagnosis_of(read_content(report))).seen] == ["b", "a", "few"]


def test_slices_are_grouped_by_what_they_are_slices_of():
    titles = [title for title, _ in views.slice_tables(diagnosis_of(read_content(single_label())))]
    assert titles == ["By length", "By label", "Cut or whole", "By vocabulary"]


def test_one_temperature_is_no_value_of_each_label():
    assert views.label_calibrations(read_content(single_label())).seen == ()
    first = views.label_calibrations(read_content(multi_label())).seen[0]
    assert (first.temperature, first.shift, first.offset, first.threshold) == (1.25, 0.1, None, 0.31)


def test_settings_are_flat():
    tree = {"base": "minilm", "data": {"label": ["a", "b"], "pair": None, "none": {}}, "lora": {"rank": 8, "deep": {"on": True}}}
    assert views.settings(tree) == [
        ("base", "minilm"),
        ("data.label", '["a", "b"]'),
        ("data.pair", "null"),
        ("data.none", "{}"),
        ("lora.rank", "8"),
        ("lora.deep.on", "true"),
    ]
    assert views.settings(None) == []
