"""Reading `report.json` of a run folder. Knows no key of it, and loads no library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from veneer.errors import ArtifactError
from veneer.run_files import REPORT_FILE


def read_report(folder: Path) -> dict[str, Any]:
    """`report.json` as it is, its values not checked; empty where there is none.

    Raises:
        ArtifactError: it is no JSON object.
    """
    path = folder / REPORT_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from None
    if not isinstance(tree, dict):
        raise ArtifactError(f"{path} holds a {type(tree).__name__}, not an object")
    return tree
