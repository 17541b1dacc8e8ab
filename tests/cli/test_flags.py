"""Flags to dotted keys."""

from __future__ import annotations

import inspect

from veneer.cli.flags import overrides_of
from veneer.cli.train import train
from veneer.config import SHORT_FORMS


def test_train_has_a_flag_for_every_short_form() -> None:
    assert SHORT_FORMS.keys() <= inspect.signature(train).parameters.keys()


def test_only_what_was_given_is_set() -> None:
    assert overrides_of({"rank": 4, "epochs": None, "label": [], "resume": True, "config": "x"}) == {"lora.rank": 4}


def test_one_label_is_a_column_and_several_are_a_list() -> None:
    assert overrides_of({"label": ["a"]}) == {"data.label": "a"}
    assert overrides_of({"label": ["a", "b"]}) == {"data.label": ["a", "b"]}
    assert overrides_of({"label": ("a", "b")}) == {"data.label": ["a", "b"]}


def test_a_value_of_zero_counts_as_given() -> None:
    assert overrides_of({"dropout": 0.0, "seed": 0}) == {"lora.dropout": 0.0, "seed": 0}


def test_set_goes_last() -> None:
    overrides = overrides_of({"rank": 4}, ["lora.rank=2", "training.learning_rate=5e-4"])
    assert overrides == {"lora.rank": 2, "training.learning_rate": 5e-4}
