"""The whole diagnosis: plain JSON whatever comes in, bounded for many labels, readable in a terminal."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from diagnosis_cases import binary, evidence, leads, many, multi
from rich.cells import cell_len

from veneer.evaluation.diagnosis import diagnose, suggestion_lines

KEYS = {"split", "suggestions", "margins", "limits", "curves", "fit", "slices", "confused", "mistakes"}


def degenerate():
    zeros = np.zeros((12, 3), np.float32)
    yield "all logits equal", evidence("single_label", ("a", "b", "c"), zeros, np.arange(12) % 3)
    yield (
        "all logits equal, multi-label",
        evidence("multi_label", ("a", "b", "c"), zeros, np.eye(3, dtype=bool)[np.arange(12) % 3]),
    )
    yield "one class in dev", leads(np.ones(30, dtype=np.int64), np.linspace(-1, 3, 30))
    absent = many(60)
    yield "a class absent", replace(absent, labels=[*absent.labels[:-1], "never"], targets=absent.targets % 4)
    yield "no label at all", evidence("multi_label", ("a", "b"), np.full((9, 2), -1, np.float32), np.zeros((9, 2), bool))
    yield "one text", leads(np.array([1]), np.array([0.3]))
    yield "one wrong text", leads(np.array([0]), np.array([0.3]))
    yield "one text, multi-label", multi(1)
    yield "one label", multi(20, classes=1)
    yield "one class", evidence("single_label", ("a",), np.ones((5, 1), np.float32), np.zeros(5, np.int64))
    yield "all wrong", leads(np.zeros(40, dtype=np.int64), np.linspace(1, 3, 40))
    yield "all right", leads(np.arange(40) % 2, np.where(np.arange(40) % 2, 50.0, -50.0))
    yield "huge logits", leads(np.arange(40) % 2, np.linspace(-1e4, 1e4, 40))
    yield "one positive", binary(50, positives=0.02)
    yield "no words, no training texts", replace(binary(20), texts=[""] * 20, train_texts=[])
    yield "labels like numbers", replace(many(30, classes=2), labels=("0", "1"))
    yield "duplicated rows", leads(np.repeat([0, 1], 20), np.repeat([-1.0, -0.5], 20))


@pytest.mark.parametrize(("name", "given"), list(degenerate()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_degenerate_input_gives_a_defined_result(name, given):
    found = diagnose(given)
    tree = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(tree) == KEYS
    assert len(tree["suggestions"]) <= 3
    assert suggestion_lines(found)


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_of_thousands_of_labels_a_bounded_number_is_shown(task):
    rng = np.random.default_rng(0)
    classes, n = 3000, 200
    targets = rng.integers(0, classes, n)
    if task == "multi_label":
        targets = np.eye(classes, dtype=bool)[targets]
    found = diagnose(evidence(task, [f"label {i}" for i in range(classes)], rng.normal(size=(n, classes)), targets))
    tree = found.to_json()
    sizes = {name: len(tree[name]) for name in ("margins", "limits", "curves", "confused", "mistakes")}
    assert sizes == {"margins": 40, "limits": 100, "curves": 30, "confused": 20, "mistakes": 20}


def test_the_same_evidence_gives_the_same_diagnosis():
    assert diagnose(multi(300)).to_json() == diagnose(multi(300)).to_json()


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"decisions \(4,\)"):
        replace(binary(5), decisions=np.zeros(4, np.int64))
    with pytest.raises(ValueError, match=r"source \(1,\)"):
        replace(binary(5), columns={"source": ["web"]})


def test_a_healthy_run_is_told_so():
    assert suggestion_lines(diagnose(binary())) == ["Diagnosis of dev: nothing stands out."]


def test_suggestions_fit_a_terminal_whatever_the_labels_are_called():
    given = replace(binary(separation=0.5), labels=("预约医生的时间和地点以及需要带来的全部材料清单", "[bold]x[/bold]" * 20))
    found = diagnose(given)
    lines = suggestion_lines(found)
    assert lines[0] == "What to change next, by dev"
    assert max(map(cell_len, lines)) <= 80
    joined = "".join("".join(lines).split())  # a name without spaces is broken where the line ends
    for number, one in enumerate(found.suggestions, 1):
        assert "".join(f"{number}. {one.advice} ({one.rule}) {one.evidence}".split()) in joined
    assert "[bold]x[/bold]" in joined
