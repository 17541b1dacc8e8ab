"""`veneer report`, on folders with nothing but a report.json."""

from __future__ import annotations

import json
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from page_samples import minimal, single_label
from veneer.cli.report import report
from veneer.errors import ArtifactError
from veneer.evaluation.page import render_page
from veneer.evaluation.report import FORMAT_VERSION


def call(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(report)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "report.json").write_text(json.dumps(single_label()), encoding="utf-8")
    return tmp_path


def test_the_page_is_written_and_its_path_printed(folder):
    (folder / "report.html").write_text("old")
    result = call(folder)
    assert result.exit_code == 0
    assert result.stdout.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text(encoding="utf-8") == render_page(single_label())
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]


def test_the_page_takes_neither_torch_nor_scipy(folder):
    code = (
        "import sys; from veneer.cli import app; app(['report', sys.argv[1]], standalone_mode=False); "
        "print({'torch', 'transformers', 'scipy', 'sklearn', 'matplotlib'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert (result.stdout.splitlines()[-1:], result.returncode) == (["set()"], 0), result.stderr


@pytest.mark.parametrize("works", [True, False])
def test_open_shows_the_page_or_says_that_it_cannot(folder, monkeypatch, works):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or works)
    result = call(folder, "--open")
    assert opened == [(folder / "report.html").resolve().as_uri()]
    assert ("no browser could be started" in result.stderr) is not works


def test_nothing_is_opened_unasked(folder, monkeypatch):
    monkeypatch.setattr(webbrowser, "open", pytest.fail)
    assert call(folder).exit_code == 0


def test_a_run_without_one_says_what_to_do(tmp_path):
    (tmp_path / "veneer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=rf"holds no report.json.*Fix: veneer evaluate {tmp_path} --data FILE"):
        call(tmp_path)


def test_of_several_tasks_the_folders_are_named(tmp_path):
    (tmp_path / "config.yaml").touch()
    for task in ("mood", "topic"):
        (tmp_path / task).mkdir()
        (tmp_path / task / "veneer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=rf"runs of 2 tasks.*Fix: one of them: {tmp_path / 'mood'}, {tmp_path / 'topic'}"):
        call(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no report.json"),
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[]", "has no format version"),
        ("{}", "has no format version"),
        ('{"format_version": true}', "has no format version"),
        (json.dumps({"format_version": FORMAT_VERSION - 1}), "of an older veneer.*Fix: train again: veneer train .*config.yaml"),
        (json.dumps({"format_version": FORMAT_VERSION + 1}), "Fix: update veneer"),
        (json.dumps({"format_version": FORMAT_VERSION}), "the report is damaged: task: Field required"),
        (json.dumps(minimal() | {"verdict": {"kind": "great"}}), r"the report is damaged: verdict\.kind"),
    ],
)
def test_a_report_that_cannot_be_used_is_an_error_and_the_old_page_stays(tmp_path, content, message):
    (tmp_path / "report.html").write_text("old")
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        call(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "Fix:" in str(caught.value)
    assert (tmp_path / "report.html").read_text() == "old"


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_that_is_none(tmp_path, make):
    path = tmp_path / "file"
    if make:
        path.touch()
    with pytest.raises(ArtifactError, match="is no folder"):
        call(path)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "report.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ArtifactError, match="is damaged"):
        call(tmp_path)
