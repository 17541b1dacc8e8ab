"""The configuration of a run folder that a command was given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from veneer.artifact import INFO_FILE
from veneer.config import CONFIG_FILE, RunConfig, load_config


def is_run(path: Path) -> bool:
    """Whether a path is a run folder."""
    return (path / INFO_FILE).is_file()


def run_config(folder: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration that `folder` (or the run it is the `last/` of) was trained with, with `overrides` laid over it."""
    for place in (folder, folder.resolve().parent):
        if (place / CONFIG_FILE).is_file():
            return load_config(place / CONFIG_FILE, overrides)
    return load_config(None, overrides)
