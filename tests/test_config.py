"""Configurations are read, checked whole, and written so that they come back the same."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml

from veneer.config import (
    LEARNING_RATES,
    PISSA_SHARE,
    PRESETS,
    RSLORA_SHARE,
    SHORT_FORMS,
    MethodName,
    RunConfig,
    TrainingConfig,
    settle,
)
from veneer.config_file import config_text, known_keys, load_config, parse_assignments
from veneer.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return folder / "run.yaml"


def problems_of(path: Path) -> dict[str, str]:
    """Key -> what is wrong with it, of a configuration that cannot be used."""
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: configuration cannot be used"
    return dict(line.strip().split(": ", 1) for line in lines)


def values_of(config: RunConfig) -> dict[str, object]:
    """Dotted key -> value."""
    tree = config.model_dump()
    return {key: tree[key] if "." not in key else tree[key.split(".")[0]][key.split(".")[1]] for key in known_keys()}


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing yet\n")) == load_config()
    assert load_config().model_dump() == RunConfig().model_dump()


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    text = """
        bse: minilm
        task: multi
        trainig: {epochs: 2}
        data: {txt: review, text: [1], max_length: 2}
        lora: {rank: 0, alpha: .nan, rnak: 4, layers: top}
        training: {epochs: two, learning_rate: 0, evaluate_every: 0, batch_size: 1.5, class_weights: {good: much}}
        evaluation: macro_f1
        rank: 8
        seed: -1
    """
    problems = problems_of(write(tmp_path, text))
    keys = """bse task trainig data.txt data.text data.max_length lora.rank lora.alpha lora.rnak lora.layers training.epochs
    training.learning_rate training.evaluate_every training.batch_size training.class_weights evaluation rank seed"""
    assert sorted(problems) == sorted(keys.split())
    assert problems["data.max_length"].startswith("input should be greater than or equal to 4, not 2 (longest text in tokens")
    assert problems["data.text"].startswith("input should be a valid string, or input should be a valid integer, not [1] (column")
    assert problems["lora.alpha"].startswith("input should be a finite number, not nan")
    assert problems["evaluation"] == "is a section with keys of its own, not 'macro_f1'"


def test_true_is_no_number_and_no_column() -> None:
    """YAML reads yes and on as true, which pydantic takes for 1."""
    for key in ("training.r_drop", "data.text", "seed", "training.patience", "lora.rank"):
        with pytest.raises(ConfigError, match=rf"{key}: input should be something else than true or false, not True"):
            load_config(None, {key: True})
    with pytest.raises(ConfigError, match=r"lora: is a section with keys of its own, not True"):
        load_config(None, {"lora": True})
    assert load_config(None, {"lora.dora": True, "training.gradient_checkpointing": False}).lora.dora


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("bse", "base"),
        ("trainig", "training"),
        ("rank", "lora.rank"),
        ("lora.rnak", "lora.rank"),
        ("data.epochs", "training.epochs"),
        ("training.learning_rat", "training.learning_rate"),
        ("trainig.epochs", "training"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key: str, suggestion: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key. Did you mean '{suggestion}'"):
        load_config(None, {key: 3})


def test_a_key_like_no_other_is_answered_with_all_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"zzzqqq": 1})
    assert all(key in str(caught.value) for key in known_keys())


def test_a_value_is_no_section() -> None:
    with pytest.raises(ConfigError, match=r"'base' is not a section, so 'base\.rank' cannot be set. Did you mean 'lora\.rank'"):
        load_config(None, {"base": "x", "base.rank": 3})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"seed: 1\nbase: [",
            r"run\.yaml is not valid YAML: line 2, column 8: expected the node content, but found",
        ),
        (b"base: \x01", r"run\.yaml is not valid YAML: unacceptable character #x0001: special characters are not allowed$"),
        (b"- base\n- task\n", "must hold keys and values, not a list"),
        (b"base: \xff", "is not UTF-8 text"),
        (b"base: !!python/object:os.system x", "is not valid YAML"),
        (None, "no configuration file"),
    ],
)
def test_a_file_that_is_no_configuration(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("written", ["5e-4", "5E-4", "5.0e-4", "0.0005", "+5e-4", ".5e-3", "5.e-4", "50e-5"])
def test_numbers_in_every_notation(written: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"training: {{learning_rate: {written}}}")
    assert load_config(path).training.learning_rate == pytest.approx(5e-4, rel=1e-12)
    assert parse_assignments([f"training.learning_rate={written}"]) == {"training.learning_rate": pytest.approx(5e-4, rel=1e-12)}


def test_assignments_are_read_as_yaml() -> None:
    given = ["training.epochs=5", "data.label=[primary, secondary]", " training.patience =null", "data.text=a=b", "out='1e3'"]
    assert parse_assignments(given) == {
        "training.epochs": 5,
        "data.label": ["primary", "secondary"],
        "training.patience": None,
        "data.text": "a=b",
        "out": "1e3",
    }
    with pytest.raises(ConfigError, match=r"takes section\.key=value, not 'epochs'"):
        parse_assignments(["epochs"])
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_assignments(["data.label=[a"])


def test_labels_may_look_like_numbers(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "data: {label_names: [0, 1]}\ntraining: {class_weights: {0: 1, 1: 2.5}}"))
    assert config.data.label_names == ["0", "1"]
    assert config.training.class_weights == {"0": 1.0, "1": 2.5}


DESIGNED: dict[str, dict[str, object]] = {
    "light": {"lora.rank": 4, "lora.target_modules": "query_value"},
    "balanced": {"lora.rank": 8, "lora.alpha": 16.0, "lora.dropout": 0.1, "lora.target_modules": "auto"},
    "strong": {"lora.rank": 16, "lora.alpha": 32.0, "lora.dropout": 0.1, "lora.target_modules": "auto"},
    "regularised": {"lora.rank": 8, "lora.dropout": 0.25, "lora.target_modules": "auto", "training.weight_decay": 0.05},
}


def test_the_presets_are_those_designed() -> None:
    assert PRESETS.keys() == DESIGNED.keys()
    for preset, designed in DESIGNED.items():
        config = values_of(load_config(None, {"lora.preset": preset}))
        assert {key: config[key] for key in designed} == designed
    assert values_of(RunConfig())["training.weight_decay"] < 0.05  # which is what regularises
    assert values_of(load_config(None)) == values_of(load_config(None, {"lora.preset": "balanced"}))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_what_nobody_sets(preset: str, tmp_path: Path) -> None:
    expected = PRESETS[preset]
    config, plain = values_of(load_config(write(tmp_path, f"lora: {{preset: {preset}}}"))), values_of(RunConfig())
    assert {key: config[key] for key in expected} == expected
    assert config == plain | expected | {"lora.preset": preset}  # and nothing else
    kept = load_config(tmp_path / "run.yaml", {"lora.rank": 3, "training.weight_decay": 0.5})
    assert (kept.lora.rank, kept.training.weight_decay) == (3, 0.5)
    assert kept.lora.alpha == expected["lora.alpha"]


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "training: {epochs: 5, batch_size: 8}\nlora:\n")
    config = load_config(path, {"training.epochs": 2, "lora.rank": 4, "out": "there"})
    assert (config.training.epochs, config.training.batch_size, config.lora.rank, config.out) == (2, 8, 4, "there")


def test_short_forms_name_keys_that_exist() -> None:
    assert set(SHORT_FORMS.values()) <= known_keys().keys()
    assert all(key.rpartition(".")[2] == name for name, key in SHORT_FORMS.items())


def test_every_key_has_a_description_and_a_place_in_the_file() -> None:
    tree = yaml.safe_load(config_text(RunConfig()))
    written = [f"{name}.{key}" for name, section in tree.items() if isinstance(section, dict) for key in section]
    written += [name for name, section in tree.items() if not isinstance(section, dict)]
    assert sorted([*written, "tasks", "sampling_temperature"]) == sorted(known_keys())  # those two of several tasks alone
    assert all(known_keys().values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data.text": "5e-4", "out": "1e3", "data.label": ["0", "1", "yes", "null"], "base": "1.5"},
        {"data.text": 0, "data.pair": 1, "data.label": [2, "3"], "data.label_separator": "\t", "lora.layers": [0, 5]},
        {"training.class_weights": {"1e5": 1.0, "0": 2.0, "诊断": 0.5}, "training.learning_rate": 1e-7, "seed": 2**62},
        {"lora.target_modules": r".*\.(q|v)_proj", "lora.preset": "strong", "training.evaluate_every": 50},
        {"data.train": "a: b#c", "data.label_names": ["", " x ", "é"], "training.gradient_clip": None},
    ],
)
def test_what_is_written_comes_back(changes: dict[str, object], tmp_path: Path) -> None:
    config = load_config(None, changes)
    assert load_config(write(tmp_path, config_text(config))) == config


def test_assignments_are_checked() -> None:
    config = RunConfig()
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        config.lora.rank = 0


@pytest.mark.parametrize(
    ("texts", "epochs", "batch_size", "learning_rate"),
    [
        (1, 40, 16, 1e-3),
        (60, 40, 16, 1e-3),
        (559, 12, 16, 1e-3),
        (1999, 4, 16, 1e-3),
        (2000, 7, 32, 5e-4),
        (67_349, 3, 32, 5e-4),
    ],
)
def test_few_texts_get_small_steps_and_enough_of_them(texts: int, epochs: int, batch_size: int, learning_rate: float) -> None:
    settled = settle(RunConfig(), texts)
    assert (settled.epochs, settled.batch_size, settled.learning_rate) == (epochs, batch_size, learning_rate)


def test_what_is_given_is_not_settled_otherwise() -> None:
    given = RunConfig(method="full", training=TrainingConfig(epochs=2, learning_rate=3e-4, gradient_accumulation=4))
    settled = settle(given, 559)
    assert (settled.epochs, settled.batch_size, settled.learning_rate) == (2, 16, 3e-4)
    assert settle(RunConfig(training=settled), 100_000) == settled
    assert settle(RunConfig(training=TrainingConfig(batch_size=64, gradient_accumulation=4)), 2560).epochs == 40


def test_every_method_has_a_rate_of_its_own_and_few_texts_double_it() -> None:
    assert LEARNING_RATES.keys() == set(get_args(MethodName))
    for method in get_args(MethodName):
        assert settle(RunConfig(method=method), 100_000).learning_rate == LEARNING_RATES[method]
        assert settle(RunConfig(method=method), 500).learning_rate == 2 * LEARNING_RATES[method]


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"lora": {"scaling": "rslora"}}, RSLORA_SHARE),
        ({"lora": {"init": "pissa"}}, PISSA_SHARE),
        ({"lora": {"scaling": "rslora", "init": "pissa"}}, RSLORA_SHARE * PISSA_SHARE),
        ({"training": {"lora_plus_ratio": 16}}, 1 / 4),
        ({"lora": {"dora": True}}, 1.0),
        ({"lora": {"scaling": "rslora"}, "training": {"learning_rate": 5e-4}}, 1.0),
        ({"lora": {"scaling": "rslora"}, "method": "adapter"}, 1.0),  # which has no update to scale
    ],
)
def test_variants_of_lora_take_smaller_steps(settings: dict[str, object], share: float) -> None:
    assert settle(RunConfig.model_validate(settings), 100_000).learning_rate == pytest.approx(5e-4 * share)


def test_another_method_does_not_take_over_a_rate() -> None:
    assert load_config(None, {"method": "full"}).training.learning_rate == "auto"
    assert load_config(None, {"method": "full", "training.learning_rate": 1e-4}).training.learning_rate == 1e-4
    given = load_config(None, {"training.learning_rate": 3e-4})
    assert load_config(given, {"method": "full"}).training.learning_rate == "auto"  # what was given was LoRA's
    for same in ({"method": "lora"}, {"seed": 3}):
        assert load_config(given, same).training.learning_rate == 3e-4
