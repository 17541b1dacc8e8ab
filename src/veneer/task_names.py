"""Which names tasks may have: each is a folder's, on any system, and comes from a file that nobody vouches for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from pydantic_core import PydanticCustomError

_NAME = re.compile(r"\w[\w-]{0,59}")
# Names that Windows keeps for devices, and what a run folder holds beside its tasks.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})
_OURS = frozenset({"checkpoints", "last", "members"})


def check_task_name(name: str) -> str:
    """The name, if it can be a folder's.

    Raises:
        PydanticCustomError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise PydanticCustomError(
            "task_name",
            "a task's name is that of its folder: letters, digits, - and _, at most 60, no - in front (Fix: another name)",
        )
    if name.casefold() in _DEVICES | _OURS:
        raise PydanticCustomError("task_name", "a task's name is that of its folder, and this one is taken (Fix: another name)")
    return name


def check_task_names(names: Sequence[str]) -> None:
    """Refuse names that are one folder on some system, and no name at all.

    Raises:
        PydanticCustomError: there are such.
    """
    if not names:
        raise PydanticCustomError("task_names", "names no task (Fix: one at least, NAME: {{data: {{train: FILE}}}}, or no tasks)")
    seen: dict[str, str] = {}
    for name in names:
        same = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if same in seen:
            raise PydanticCustomError(
                "task_names",
                "'{first}' and '{second}' are one folder where case does not count (Fix: rename one of them)",
                {"first": seen[same], "second": name},
            )
        seen[same] = name
