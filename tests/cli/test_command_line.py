"""What all commands share: help, exit codes, where things are printed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

import veneer as package
from veneer.cli import predict as predict_command
from veneer.config_file import known_keys
from veneer.errors import TrainingError

PROGRAM = [sys.executable, "-c", "from veneer.cli import main; main()"]
COMMANDS = ("demo", "train", "evaluate", "predict", "inspect", "merge", "doctor")


def program(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False, **options)


def test_help_lists_the_commands_and_loads_no_torch() -> None:
    code = "import sys; from veneer.cli import app; app(['--help'], standalone_mode=False); assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert all(command in result.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    "module",
    ["cli.labelled", "cli.compare_runs", "predictor", "training.finish", "evaluation.calibration", "evaluation.conformal"],
)
def test_what_most_commands_import_loads_nothing_that_few_of_them_need(module: str) -> None:
    code = f"import sys, veneer.{module}; print({{'matplotlib', 'sklearn', 'scipy.stats', 'datasets'}} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("set()\n", 0), result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(veneer: Callable[..., Any], command: str) -> None:
    result = veneer(command, "--help")
    assert result.code == 0
    assert f"Usage: veneer {command}" in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines())


def test_the_help_of_a_flag_is_the_description_of_its_key(veneer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = veneer("train", "--help").out
    for key in ("data.train", "lora.rank", "training.learning_rate", "evaluation.metric", "seed"):
        assert known_keys()[key] in shown  # brackets and all


def test_version(veneer: Callable[..., Any]) -> None:
    assert veneer("--version").out == f"veneer {package.__version__}\n"


def test_a_users_mistake_is_a_message_and_exit_code_2(tmp_path: Path) -> None:
    folder = tmp_path / "a folder with a long name, which no line break may cut in two" / "because it is to be copied"
    result = program("train", "--out", folder, "--resume")
    assert (result.returncode, result.stdout) == (2, "")
    said = f"error: {folder} holds no run to resume: there is no {folder / 'config.yaml'}. Fix: --out with the folder of an "
    assert result.stderr == f"{said}unfinished run, or leave out --resume to train from the start\n"  # no colours


@pytest.mark.parametrize(
    "arguments", [("fly",), ("train", "--rnk", "3"), ("evaluate",), ("predict",), ("train", "--rank", "two")]
)
def test_wrong_usage_is_exit_code_2(veneer: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    result = veneer(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Usage: veneer" in result.err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TrainingError("the loss is nan"), "error: the loss is nan\n"),
        (KeyboardInterrupt(), "interrupted\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "error: /x cannot be written or read: Permission denied\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: a file cannot be written or read: No space left on device\n"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            "error: a file cannot be written or read: No space left on device\n",
        ),
    ],
)
def test_a_run_that_fails_is_exit_code_1(
    veneer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(predict_command, "_check_flags", fail)
    result = veneer("predict", "x")
    assert (result.code, result.err) == (1, message)


def test_a_bug_keeps_its_traceback(veneer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(predict_command, "_check_flags", fail)
    with pytest.raises(ZeroDivisionError):
        veneer("predict", "x")


def test_json_is_all_there_is_on_standard_output(single_run: Path) -> None:
    dev = single_run.parent / "dev.csv"
    result = program("evaluate", single_run, "--data", dev, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["n"] == 12


def test_json_survives_a_terminal_without_the_characters(single_run: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = program("predict", single_run, "--text", "头痛", "--json", env=environment, encoding="ascii")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)[0]["text"] == "头痛"


def test_ctrl_c_ends_quietly(tmp_path: Path) -> None:
    code = (
        "import signal; from veneer.cli import main, predict\n"
        f"predict._check_flags = lambda *_: signal.raise_signal({int(signal.SIGINT)})\n"
        "main()"
    )
    result = subprocess.run([sys.executable, "-c", code, "predict", "x"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "interrupted\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen([*PROGRAM, "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
