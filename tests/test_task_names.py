"""Names of tasks become folders: none may lie elsewhere, or be another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from veneer.config_file import load_config
from veneer.errors import ConfigError


def names(*given: object) -> list[str]:
    return list(load_config(None, {"tasks": {name: {} for name in given}}).tasks or {})


def test_plain_names() -> None:
    assert names("reviews", "intents-2", "Größe_", "意图", 7) == ["reviews", "intents-2", "Größe_", "意图", "7"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../up",
        "a/b",
        "a\\b",
        "/abs",
        "-flag",
        "a b",
        "a.b",
        "a\nb",
        "a\x1bb",
        "x" * 61,
        "CON",
        "nul",
        "Com1",
        "last",
        "Checkpoints",
        "members",
        "~",
        "$HOME",
        "a:b",
    ],
)
def test_a_name_that_is_no_folder_s_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"a task's name is that of its folder.*Fix: another name") as caught:
        names("good", name)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("pair", [("a", "A"), ("straße", "STRASSE"), ("é", "e\u0301"), (1, "1")])
def test_names_of_one_folder(pair: tuple[object, object]) -> None:
    if pair == (1, "1"):
        assert names(*pair) == ["1"]  # one key
        return
    with pytest.raises(ConfigError, match=r"are one folder|is that of its folder"):
        names(*pair)


def test_no_task() -> None:
    with pytest.raises(ConfigError, match="names no task"):
        names()


def test_keys_inside_a_task_are_told_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("tasks: {a: {dta: {}, data: {trian: x, max_length: 2}, metric: f1}, b: 3}", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert "tasks.a.dta: unknown key. Did you mean 'tasks.a.data'?" in lines
    assert "tasks.a.data.trian: unknown key. Did you mean 'tasks.a.data.train'?" in lines
    starts = ["tasks.a.data.max_length: input should be greater", "tasks.a.metric: input should be", "tasks.b: is a section"]
    assert all(any(line.startswith(start) for line in lines) for start in starts)
    assert len(lines) == 6


def test_the_temperature_is_above_0() -> None:
    with pytest.raises(ConfigError, match="sampling_temperature: input should be greater than 0"):
        load_config(None, {"sampling_temperature": 0})
