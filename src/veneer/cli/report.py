"""`veneer report`"""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from veneer.cli import flags
from veneer.cli.output import messages, print_lines, results
from veneer.errors import ArtifactError
from veneer.run_files import INFO_FILE, PAGE_FILE, REPORT_FILE


def report(
    folder: flags.RunFolder,
    open_page: Annotated[bool, typer.Option("--open", help="show it in the browser")] = False,
) -> None:
    """Write a run's report.html again, from its report.json: one page that needs no network."""
    from veneer.durable import write_text
    from veneer.evaluation.page import render_page

    content = _read(folder)
    try:
        page = render_page(content)
    except ArtifactError as error:
        raise ArtifactError(f"{folder / REPORT_FILE}: {error}. Fix: copy it again, or train again") from None
    path = folder / PAGE_FILE
    write_text(path, page)
    print_lines(results(), str(path))
    if open_page and not webbrowser.open(path.resolve().as_uri()):
        print_lines(messages(), f"no browser could be started. Fix: open {path} in one")


def _read(folder: Path) -> dict[str, Any]:
    """`report.json` of a run folder.

    Raises:
        ArtifactError: there is none, it is no JSON, or another version of veneer wrote it.
    """
    from veneer.evaluation.report import FORMAT_VERSION

    path = folder / REPORT_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if (folder / INFO_FILE).is_file():
            raise ArtifactError(
                f"{folder} holds no {REPORT_FILE}: it was not copied, or this is the last step of a run. "
                f"Fix: veneer evaluate {folder} --data FILE for its scores, or the folder that the run's command wrote"
            ) from None
        from veneer.run_info import why_several  # it takes torch: only now that there is nothing to show

        if several := why_several(folder):
            raise ArtifactError(f"{folder} {several}") from None
        why = f"holds no {REPORT_FILE}" if folder.is_dir() else "is no folder"
        raise ArtifactError(f"{folder} {why}. Fix: the folder that veneer train wrote, once the run has ended") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {error}. Fix: copy it again, or train again") from None
    found = content.get("format_version") if isinstance(content, dict) else None
    if type(found) is not int:
        raise ArtifactError(f"{path} is damaged: it has no format version. Fix: copy it again, or train again")
    if found > FORMAT_VERSION:
        raise ArtifactError(f"{path} has format version {found}; this veneer reads version {FORMAT_VERSION}. Fix: update veneer")
    if found < FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {found}, of an older veneer, and lacks what the page shows. "
            f"Fix: train again: veneer train {folder / 'config.yaml'} --out NEW_DIR"
        )
    return dict(content)
