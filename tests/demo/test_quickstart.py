"""The demo's configuration and the baseline beside it."""

from __future__ import annotations

from pathlib import Path

from veneer.data import raise_on_errors, read_examples
from veneer.demo.quickstart import CLINIC, demo_config, evaluate_baseline
from veneer.training import columns_of


def test_the_configuration_reads_the_built_in_files() -> None:
    config = demo_config(Path("somewhere"))
    assert (config.base, config.out) == ("minilm", "somewhere")
    reading = read_examples(str(config.data.train), columns_of(config.data))
    raise_on_errors(reading.problems)
    assert reading.multi_label
    assert {label for example in reading.examples for label in example.labels} >= {"prescription", "complaint_feedback"}


def test_the_baseline_is_an_honest_one() -> None:
    config = demo_config(Path("somewhere"))
    first, again = evaluate_baseline(config), evaluate_baseline(config)
    assert first.to_json() == again.to_json()
    test = read_examples(CLINIC / "test.csv", columns_of(config.data)).examples
    assert first.n == len(test)
    assert [item.support for item in first.per_class] == [
        sum(label in example.labels for example in test) for label in first.label_names
    ]
    # Far above giving every label to every text, as anyone would reach with scikit-learn in ten lines.
    assert first.metrics["macro_f1"].value > 0.5
    assert first.metrics["micro_f1"].low is not None
