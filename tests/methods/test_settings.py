"""Which settings a method reads is written down in the configuration, and is what it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from veneer.adaptation import AdapterPlan
from veneer.bases import find_base
from veneer.config import METHOD_SETTINGS, LoraSettings, TuningSettings
from veneer.methods import METHODS, MethodPlan
from veneer.model import skeleton


class Noting:
    """A plan that notes which of its fields are read."""

    def __init__(self, plan: Any, section: str, read: set[str]) -> None:
        self._plan, self._section, self._read = plan, section, read
        self._fields = {field.name for field in fields(plan)}

    def __getattr__(self, name: str) -> Any:
        if name in self._fields:
            self._read.add(f"{self._section}.{name}")
            return getattr(self._plan, name)
        return getattr(type(self._plan), name).fget(self)  # a property, which reads fields


@pytest.mark.parametrize("method", METHODS)
def test_a_method_reads_what_is_written_down(method: str, tiny_base: Callable[..., Path]) -> None:
    read: set[str] = set()
    plan = Noting(MethodPlan(), "tuning", read)
    plan._plan = MethodPlan(lora=Noting(AdapterPlan(), "lora", read))  # type: ignore[arg-type]
    METHODS[method].apply(skeleton(find_base(str(tiny_base())), 2), plan)  # type: ignore[arg-type]
    read.discard("tuning.lora")
    assert read == METHOD_SETTINGS[method] - {"lora.preset"}  # type: ignore[index]


def test_they_are_keys_of_the_configuration() -> None:
    known = {f"lora.{name}" for name in LoraSettings.model_fields} | {f"tuning.{name}" for name in TuningSettings.model_fields}
    assert set().union(*METHOD_SETTINGS.values()) == known
