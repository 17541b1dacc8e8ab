"""What a report says of a run that was made from others, checked."""

from __future__ import annotations

from typing import Any

import pytest

from page_samples import made, single_label
from veneer.errors import ArtifactError
from veneer.evaluation.page.made import read_made


def test_a_trained_run_was_made_from_nothing() -> None:
    assert read_made(single_label() | {"made_from": None}) is None
    assert read_made({}) is None


@pytest.mark.parametrize(
    ("how", "by", "trained"),
    [
        ("shrink", "veneer shrink", ("runs/a",)),
        ("combine", "veneer combine", ("runs/a", "runs/b-large")),
        ("ensemble", "veneer combine --ensemble", ("runs/a", "runs/b-large")),
    ],
)
def test_it_goes_back_to_trained_runs(how: str, by: str, trained: tuple[str, ...]) -> None:
    found = read_made(made(how))
    assert found is not None
    assert (found.by, found.trained) == (by, trained)


def test_a_trained_run_is_named_once() -> None:
    report = made()
    report["made_from"]["runs"] *= 2
    found = read_made(report)
    assert found is not None
    assert found.trained == ("runs/a", "runs/b-large")


@pytest.mark.parametrize(
    ("changed", "place"),
    [({"how": "magic"}, "how"), ({"runs": [{}]}, r"runs\.0\.folder"), ({"ranks": {"layer": "many"}}, r"ranks\.layer")],
)
def test_what_veneer_does_not_write_is_refused_with_its_place(changed: dict[str, Any], place: str) -> None:
    report = made()
    report["made_from"] |= changed
    with pytest.raises(ArtifactError, match=f"the report is damaged: {place}: "):
        read_made(report)


@pytest.mark.parametrize("found", ["shrink", [], 1])
def test_no_object_is_refused(found: Any) -> None:
    with pytest.raises(ArtifactError, match="the report is damaged: how: Field required"):
        read_made({"made_from": found})
