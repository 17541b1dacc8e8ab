"""What a report says of a run that was made from others: checked, for the page and for commands that must know.

Knows the keys of `made_from`; knows nothing of folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from veneer.evaluation.page.parts import PART, Many, Name, Named, Number, Text, read_part


class _Part(BaseModel):
    model_config = PART


class Source(_Part):
    """A run that another was made from; `score` is the value and the ends of its 95 % interval."""

    folder: Text
    weight: Number | None = None
    score: tuple[Number, Number | None, Number | None] | None = None
    stored_bytes: int | None = None
    lora_parameters: int | None = None
    ranks: Named[int] = {}
    made_from: MadeFrom | None = None


class MadeFrom(_Part):
    """How a run was made, and from what."""

    how: Literal["shrink", "combine", "ensemble"]
    runs: Many[Source]
    metric: Name
    stored_bytes: int | None = None
    lora_parameters: int | None = None
    ranks: Named[int] = {}
    not_scored: Text = ""
    told: Named[Number | Text] = {}

    @property
    def by(self) -> str:
        """The command that made it."""
        return {"shrink": "veneer shrink", "combine": "veneer combine", "ensemble": "veneer combine --ensemble"}[self.how]

    @property
    def trained(self) -> tuple[str, ...]:
        """The folders of the trained runs that it goes back to, each once."""
        found = [(run.folder,) if run.made_from is None else run.made_from.trained for run in self.runs]
        return tuple(dict.fromkeys(folder for folders in found for folder in folders))


Source.model_rebuild()


def read_made(report: Mapping[str, Any]) -> MadeFrom | None:
    """What `report.json` says of the making of a run; None of one that was trained.

    Raises:
        ArtifactError: as `read_part`.
    """
    found = report.get("made_from")
    if found is None:
        return None
    return read_part(MadeFrom, found if isinstance(found, Mapping) else {})
