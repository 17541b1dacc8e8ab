"""Reading a report: what may be missing, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from page_samples import minimal, multi_label, single_label
from veneer.errors import ArtifactError
from veneer.evaluation.page.content import read_content


def test_a_missing_part_is_as_good_as_null():
    bare = {key: value for key, value in minimal().items() if value is not None}
    assert read_content(bare) == read_content(minimal())


def test_both_kinds_of_matrix_are_told_apart():
    one, many = (read_content(report()).evaluations["test"].confusion for report in (single_label, multi_label))
    assert one is not None
    assert many is not None
    assert (len(one.counts), len(one.outcomes)) == (5, 0)
    assert (len(many.counts), len(many.outcomes)) == (0, 8)


def test_two_labels_of_a_multi_label_task_are_no_matrix_of_two_classes():
    report = minimal() | {"evaluations": {"dev": {"n": 1, "confusion": {"labels": ["a", "b"], "matrix": [[[1, 2], [3, 4]]] * 2}}}}
    confusion = read_content(report).evaluations["dev"].confusion
    assert confusion is not None
    assert confusion.outcomes == (((1, 2), (3, 4)),) * 2


def put(report: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    place: Any = report
    *way, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in way:
        place = place[key]
    place[last] = value
    return report


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("task", "regression"),
        ("labels", "ab"),
        ("base", 3),
        ("verdict.kind", "great"),
        ("verdict.score", math.nan),
        ("verdict.gain_interval", [0.1]),
        ("evaluations.dev.metrics.macro_f1", math.inf),
        ("evaluations.dev.confusion.matrix", [[1, 2]]),
        ("evaluations.dev.confusion.matrix.1", [1]),
        ("diagnosis.margins.0.inside", [1, 2]),
        ("diagnosis.curves.0.recall", [0.5]),
        ("diagnosis.mistakes.0.text", None),
        ("history", [{"kind": "step"}]),
    ],
)
def test_what_veneer_does_not_write_is_refused_with_its_place(path, value):
    with pytest.raises(ArtifactError, match=r"the report is damaged: ") as caught:
        read_content(put(single_label(), path, value))
    assert path.split(".")[0] in str(caught.value)


def test_a_refusal_names_a_few_places_and_counts_the_rest():
    report = single_label()
    for mistake in report["diagnosis"]["mistakes"]:
        mistake["text"] = None
    with pytest.raises(ArtifactError, match=r"diagnosis\.mistakes\.0\.text.*; and 7 more$"):
        read_content(report)


def test_a_moment_gives_numbers_only():
    rows = [{"kind": "step", "step": 1, "loss": value} for value in (0.5, None, "x", True, math.inf, 3)]
    moments = read_content(minimal() | {"history": rows}).history
    assert [moment.value("loss") for moment in moments] == [0.5, None, None, None, None, 3.0]
    assert moments[0].value("accuracy") is None
