"""The configuration and the report of a run folder that a command was given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veneer.config import RunConfig
from veneer.config_file import load_config
from veneer.errors import ArtifactError, DataError
from veneer.evaluation.page.made import read_made
from veneer.report_file import read_report
from veneer.run_files import CONFIG_FILE, INFO_FILE, MEMBERS

if TYPE_CHECKING:  # it loads torch
    from veneer.run_info import ArtifactInfo


def is_run(path: Path) -> bool:
    """Whether a path is a run folder."""
    return (path / INFO_FILE).is_file()


def run_config(folder: Path, overrides: Mapping[str, Any] | None = None, instead: Mapping[str, str] | None = None) -> RunConfig:
    """The configuration that `folder` (or the run it is the `last/` of) was trained with, with `overrides` laid over it.

    Args:
        folder: a run folder.
        overrides: dotted key -> value.
        instead: dotted key -> flag of the keys that do where `config.yaml` is not there, if all of them are overridden.

    Raises:
        ArtifactError: the folder has no `config.yaml`, without which nobody knows what it was trained with.
    """
    for place in (folder, folder.resolve().parent):
        if (place / CONFIG_FILE).is_file():
            return load_config(place / CONFIG_FILE, overrides)
    if instead and instead.keys() <= (overrides or {}).keys():
        return load_config(None, overrides)
    flags = " ".join(f"{flag} COLUMN" for flag in instead.values()) if instead else ""
    raise ArtifactError(
        f"{folder} has no {CONFIG_FILE}, which says what it was trained with. "
        f"Fix: copy that file too{f', or give {flags}' if flags else ''}"
    )


def require_own_texts(folder: Path) -> None:
    """Refuse a run that was made of others whose texts do not judge it: the files of its configuration are of the first alone.

    Raises:
        DataError: it is one.
    """
    made = read_made(read_report(folder))
    if made is not None and made.not_scored:
        sources = " and ".join(run.folder for run in made.runs)
        raise DataError(
            f"{folder} was made by {made.by} from {sources}, and has no dev texts of its own: {made.not_scored.splitlines()[0]}\n"
            "Fix: veneer evaluate or veneer calibrate with --data FILE, labelled texts that none of them was trained on"
        )


def trained_runs(folder: Path, info: ArtifactInfo) -> list[Path]:
    """The trained runs that a run goes back to: itself, or those it was made from, of an ensemble its copies of them."""
    from veneer.run_info import read_info

    if info.members:
        members = [folder / MEMBERS / str(number) for number in range(1, info.members + 1)]
        return [run for member in members for run in trained_runs(member, read_info(member))]
    made = read_made(read_report(folder))
    return [folder] if made is None else [Path(run) for run in made.trained]


def changed_files(folder: Path, config: RunConfig, trained_on: str, found: Mapping[str, str]) -> list[str]:
    """The files of a run whose texts or labels are no longer what it was trained with, each as `PLACE (split)`.

    Args:
        trained_on: fingerprint of the training texts, of `veneer.json`; those of the other files are in `report.json`.
        found: split -> fingerprint of what its file holds now.
    """
    of_report = read_report(folder).get("data", {}).get("fingerprints", {})
    known = {**(of_report if isinstance(of_report, dict) else {}), "train": trained_on}
    changed = [name for name, fingerprint in found.items() if known.get(name, fingerprint) != fingerprint]
    return [f"{getattr(config.data, name)} ({name})" for name in changed]
