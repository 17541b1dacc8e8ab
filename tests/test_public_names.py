"""`import veneer`: the names it gives, and what it does not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import veneer
from veneer.config import SHORT_FORMS, RunConfig
from veneer.config_file import config_text, load_config
from veneer.errors import ConfigError
from veneer.training import keywords
from veneer.training.keywords import Keywords


def test_all_is_sorted_complete_and_there() -> None:
    assert veneer.__all__ == sorted(veneer.__all__)
    assert set(veneer.__all__) == {"Prediction", "Predictor", "VeneerError", "__version__", "load", "train"}
    assert all(hasattr(veneer, name) for name in veneer.__all__)
    assert set(veneer.__all__) <= set(dir(veneer))


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = veneer.trian  # type: ignore[attr-defined]


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, veneer; veneer.__version__; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_keywords_are_the_short_forms() -> None:
    assert Keywords.__annotations__.keys() == SHORT_FORMS.keys()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    calls: list[RunConfig] = []
    monkeypatch.setattr(keywords, "train_config", lambda config, **_: calls.append(config))
    return calls


def test_keywords_become_the_configuration(asked: list[RunConfig]) -> None:
    veneer.train(train=Path("a.csv"), label=["x", "y"], rank=2, out="run", settings={"training.schedule": "cosine"})
    settings: dict[str, Any] = {"data.train": "a.csv", "data.label": ["x", "y"], "lora.rank": 2, "out": "run"}
    assert asked == [load_config(None, settings | {"training.schedule": "cosine"})]


def test_keywords_go_before_a_configuration(asked: list[RunConfig]) -> None:
    veneer.train(load_config(None, {"data.train": "a.csv", "training.epochs": 9}), epochs=1, preset="light")
    (config,) = asked
    assert (config.data.train, config.training.epochs, config.lora.rank) == ("a.csv", 1, 4)


def test_resume_takes_the_folders_own_configuration(asked: list[RunConfig], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config_text(load_config(None, {"data.train": "b.csv"})), encoding="utf-8")
    veneer.train(out=tmp_path, resume=True)
    (config,) = asked
    assert (config.data.train, config.out) == ("b.csv", str(tmp_path))


def test_a_wrong_keyword_suggests_the_nearest(asked: list[RunConfig]) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'rank'"):
        veneer.train(train="a.csv", ranks=3)  # type: ignore[call-arg]
