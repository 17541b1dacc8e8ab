"""Reading a configuration from YAML, `--set` and flags, and writing it; and saying what is wrong with one.

Knows how the sources are laid over each other; which keys there are is the schema's, `veneer.config`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from veneer.config import PRESETS, SHORT_FORMS, DataConfig, RunConfig, Section, TaskConfig
from veneer.errors import ConfigError
from veneer.run_files import CONFIG_FILE


def load_config(source: str | Path | RunConfig | None = None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a YAML file, or one made before, with `overrides` (dotted key -> value) laid over it.

    A preset gives the values that nobody else sets; one among the overrides goes before what the source says. So does a method
    with its learning rate, where the source has another method.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong; every problem is listed.
    """
    if isinstance(source, RunConfig):
        tree, where = source.model_dump(exclude_unset=True), ""
    else:
        tree, where = ({}, "") if source is None else (_read_yaml(Path(source)), f"{source}: ")
    overrides = dict(overrides or {})
    for key, value in _given_by_preset(overrides.get("lora.preset")):
        overrides.setdefault(key, value)
    if overrides.get("method") not in (None, tree.get("method", "lora")):
        overrides.setdefault("training.learning_rate", "auto")  # the source's is another method's
    for key, value in overrides.items():
        _put(tree, key, value)
    _apply_defaults(tree)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        problems = _describe(error.errors())
        raise ConfigError(where + "configuration cannot be used\n  " + "\n  ".join(problems)) from None


def config_text(config: RunConfig) -> str:
    """The configuration as `config.yaml` holds it."""
    tree = config.model_dump(mode="json", exclude=set(unused_keys(config)))
    return yaml.dump(tree, Dumper=_NumberDumper, sort_keys=False, allow_unicode=True, width=120)


def unused_keys(config: RunConfig) -> tuple[str, ...]:
    """The keys at the top that do not count: of a run of several tasks those that each task has, else those of several tasks."""
    return ("tasks", "sampling_temperature") if config.tasks is None else ("task", "data")


def expand_short_forms(given: Mapping[str, Any]) -> dict[str, Any]:
    """`{"rank": 4}` -> `{"lora.rank": 4}`; paths become strings and tuples lists.

    Raises:
        ConfigError: a name is not in `SHORT_FORMS`; the nearest one is suggested.
    """
    expanded: dict[str, Any] = {}
    for name, value in given.items():
        if name not in SHORT_FORMS:
            near = get_close_matches(name, SHORT_FORMS, n=1)
            hint = f". Did you mean '{near[0]}'?" if near else f". Known names: {', '.join(SHORT_FORMS)}"
            raise ConfigError(f"unknown setting '{name}'{hint}")
        plain = list(value) if isinstance(value, tuple) else value
        expanded[SHORT_FORMS[name]] = str(plain) if isinstance(plain, PathLike) else plain
    return expanded


def config_to_resume(overrides: Mapping[str, Any]) -> Path:
    """The `config.yaml` of the run folder among the overrides, for a run that goes on without naming its configuration.

    Raises:
        ConfigError: no run folder is named, or it holds no `config.yaml`.
    """
    if (out := overrides.get("out")) is None:
        raise ConfigError("to resume needs the run folder. Fix: --out DIR")
    path = Path(out) / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"{out} holds no run to resume: there is no {path}. "
            "Fix: --out with the folder of an unfinished run, or leave out --resume to train from the start"
        )
    return path


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["training.epochs=5"]` -> `{"training.epochs": 5}`; the value is read as YAML.

    Raises:
        ConfigError: an assignment has no `=`, or its value is not YAML.
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes section.key=value, not '{assignment}'")
        try:
            parsed[key.strip()] = yaml.load(value, Loader=_NumberLoader)
        except yaml.YAMLError:
            raise ConfigError(f"--set {key}: the value '{value}' is not valid YAML") from None
    return parsed


def known_keys() -> dict[str, str]:
    """Every dotted key and its one-line description, in the order of `config.yaml`."""
    keys: dict[str, str] = {}
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys |= {f"{name}.{key}": inner.description or "" for key, inner in section.model_fields.items()}
        else:
            keys[name] = field.description or ""
    return keys


class _NumberLoader(yaml.SafeLoader):
    """YAML's safe loader that also reads `5e-4` as a number (YAML 1.1 wants `5.0e-4`)."""


class _NumberDumper(yaml.SafeDumper):
    """YAML's safe dumper that quotes the strings `_NumberLoader` would read as numbers."""


for _side in (_NumberLoader, _NumberDumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_NumberLoader)
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {path}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_yaml_problem(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(tree).__name__}")
    return tree


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What PyYAML met, and where, without its word for a file that it was given as a string."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).partition("\n")[0]  # a character that YAML does not have
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = tree.get(section)
        if inner is None:
            inner = tree[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"'{section}' is not a section, so '{key}' cannot be set{_suggest(key)}")
        tree = inner
    tree[name] = value


def _given_by_preset(name: object) -> list[tuple[str, Any]]:
    """The keys and values that a preset stands for; none for what is no name of one."""
    return list(PRESETS.get(name if isinstance(name, str) else "", {}).items())


def _apply_defaults(tree: dict[str, Any]) -> None:
    lora = tree.get("lora")
    preset = lora.get("preset", "balanced") if isinstance(lora, dict) else "balanced"
    for key, value in _given_by_preset(preset):
        section, name = key.split(".")
        if tree.get(section) is None:
            tree[section] = {}
        if isinstance(tree[section], dict):
            tree[section].setdefault(name, value)


def _describe(errors: Sequence[Any]) -> list[str]:
    """One line a key: pydantic reports each form that a value could have had by itself."""
    keys = known_keys()
    found: dict[str, list[Any]] = {}
    for item in errors:
        found.setdefault(_key_of([str(part) for part in item["loc"]], keys), []).append(item)
    return [_describe_key(key, sorted(items, key=lambda item: len(item["loc"])), keys) for key, items in found.items()]


def _key_of(parts: list[str], keys: Mapping[str, str]) -> str:
    """The dotted key that the place of a problem is in."""
    if parts[0] == "tasks" and len(parts) > 1:
        name = parts[1] if re.fullmatch(r"[\w-]+", parts[1]) else repr(parts[1])  # it is nobody's who vouches for it
        inside = [part for part in parts[2:4] if part != "[key]"]
        return ".".join(["tasks", name, *inside[: 2 if inside[:1] == ["data"] else 1]])
    return ".".join(parts[: 1 if parts[0] in keys else 2])


def _describe_key(key: str, items: list[Any], keys: Mapping[str, str]) -> str:
    value = repr(items[0]["input"])
    shown = value if len(value) < 60 else value[:57] + "..."
    if items[0]["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggest(key)}"
    if items[0]["type"] == "model_type":
        return f"{key}: is a section with keys of its own, not {shown}"
    messages = dict.fromkeys(f"{item['msg'][0].lower()}{item['msg'][1:]}" for item in items)
    return f"{key}: {', or '.join(messages)}, not {shown}" + (f" ({keys[key]})" if key in keys else "")


def _suggest(key: str) -> str:
    if inside := re.fullmatch(r"(tasks\.[^.]+\.)(.+)", key):
        prefix, key = inside.groups()
        keys = [f"data.{name}" for name in DataConfig.model_fields] + [name for name in TaskConfig.model_fields if name != "data"]
    else:
        prefix, keys = "", list(known_keys())
    name = key.rpartition(".")[2]
    near = [known for known in keys if known.rpartition(".")[2] == name][:1]  # the right name in the wrong section
    near = near or get_close_matches(key, [*keys, *(known.partition(".")[0] for known in keys)], n=1, cutoff=0.5)
    return f". Did you mean '{prefix}{near[0]}'?" if near else f". Known keys: {', '.join(keys)}"
