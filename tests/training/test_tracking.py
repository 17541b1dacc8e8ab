"""`metrics.jsonl`, `train.log` and the bar."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from veneer.training.tracking import Tracker

STEP = {"loss": 0.5, "learning_rate": 1e-3, "gradient_norm": 2.0, "texts_per_second": 100.0}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; a bare NaN or Infinity, which is no JSON, is an error."""

    def refuse(name: str) -> float:
        raise ValueError(name)

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_rows_beyond_the_checkpoint_are_dropped_and_half_a_line_is(tmp_path: Path) -> None:
    with Tracker(tmp_path, quiet()) as tracker:
        for step in range(1, 6):
            tracker.advance({"step": step, **STEP})
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "los')
    with Tracker(tmp_path, quiet(), keep=True) as tracker:
        tracker.rewind(3)
        assert [row["step"] for row in tracker.history] == [1, 2, 3]
        tracker.advance({"step": 4, **STEP})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]


def test_rows_are_kept_when_the_rewriting_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Tracker(tmp_path, quiet()) as tracker:
        for step in range(1, 4):
            tracker.advance({"step": step, **STEP})

    def fail(self: Path, target: Path) -> Path:
        raise OSError("killed")

    with monkeypatch.context() as patched, Tracker(tmp_path, quiet(), keep=True) as tracker:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="killed"):
            tracker.rewind(2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_rows_are_json_whatever_the_numbers(tmp_path: Path) -> None:
    with Tracker(tmp_path, quiet()) as tracker:
        tracker.advance({"step": 1, **STEP, "loss": float("nan"), "gradient_norm": float("inf")})
    assert rows(tmp_path) == [{"step": 1, **STEP, "loss": None, "gradient_norm": None}]


def test_flushed_rows_are_in_the_file(tmp_path: Path) -> None:
    with Tracker(tmp_path, quiet()) as tracker:
        tracker.advance({"step": 1, **STEP})
        tracker.flush()
        assert len(rows(tmp_path)) == 1


def test_the_log_has_what_was_said_shown_and_noted(tmp_path: Path) -> None:
    console = quiet()
    table = Table("part", "number")
    table.add_row("LoRA", "1,234")
    with Tracker(tmp_path, console) as tracker:
        tracker.say("saved in [bold]runs/a[/bold]")
        tracker.show(table)
        tracker.note("for the log alone")
    log = (tmp_path / "train.log").read_text(encoding="utf-8")
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for text in (log, said):
        assert "saved in [bold]runs/a[/bold]" in text
        assert "1,234" in text
    assert "for the log alone" in log
    assert "for the log alone" not in said
    assert "\x1b" not in log


def test_the_log_tells_why_a_run_stopped(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Tracker(tmp_path, quiet()):
        raise RuntimeError("no more")
    assert "stopped: RuntimeError: no more" in (tmp_path / "train.log").read_text(encoding="utf-8")


def test_the_bar_shows_the_numbers_on_a_terminal_and_nothing_elsewhere(tmp_path: Path) -> None:
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=140)
        with Tracker(tmp_path, console) as tracker, tracker.bar(10, 4):
            tracker.advance({"step": 5, **STEP})
            if terminal:
                assert tracker._bar is not None
                tracker._bar.refresh()
        said = console.file.getvalue()  # type: ignore[attr-defined]
        if terminal:
            assert re.search(r"(\d+:\d\d|--):(\d\d|--)", said)  # time left
            for shown in ("5/10", "loss 0.500", "lr 1.0e-03", "grad 2.00", "100 texts/s"):
                assert shown in said
        else:
            assert said.strip() == ""
