"""Which of a preset, a file, a configuration and overrides wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from veneer.config import RunConfig
from veneer.config_file import config_text, config_to_resume, expand_short_forms, load_config
from veneer.errors import ConfigError


def test_a_preset_gives_way_to_what_stands_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lora: {preset: strong, alpha: 5}", encoding="utf-8")
    config = load_config(file, {"lora.dropout": 0.3})
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (16, 5, 0.3)


def test_a_preset_asked_for_now_goes_before_what_a_finished_run_wrote(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(config_text(load_config(None, {"seed": 3})), encoding="utf-8")  # every value is in it
    config = load_config(file, {"lora.preset": "strong", "lora.alpha": 5})
    assert (config.lora.rank, config.lora.alpha, config.seed) == (16, 5, 3)


def test_a_configuration_can_be_changed_without_being_touched() -> None:
    before = load_config(None, {"lora.rank": 2})
    after = load_config(before, {"lora.alpha": 1, "data.text": "t"})
    assert (after.lora.rank, after.lora.alpha, after.data.text) == (2, 1, "t")
    assert before == load_config(None, {"lora.rank": 2})
    assert load_config(RunConfig(seed=1)).seed == 1


def test_a_wrong_preset_is_told_as_any_value() -> None:
    with pytest.raises(ConfigError, match=r"lora\.preset"):
        load_config(None, {"lora.preset": "huge"})
    with pytest.raises(ConfigError, match=r"lora\.preset"):
        load_config(None, {"lora.preset": ["light"]})


def test_short_forms() -> None:
    assert expand_short_forms({"train": Path("a"), "label": ("x", "y")}) == {"data.train": "a", "data.label": ["x", "y"]}
    with pytest.raises(ConfigError, match="Did you mean 'epochs'"):
        expand_short_forms({"epoch": 1})


def test_the_configuration_of_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out"):
        config_to_resume({})
    with pytest.raises(ConfigError, match="no run to resume"):
        config_to_resume({"out": str(tmp_path)})
    (tmp_path / "config.yaml").touch()
    assert config_to_resume({"out": str(tmp_path)}) == tmp_path / "config.yaml"
