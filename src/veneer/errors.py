"""Every error veneer raises on purpose.

    VeneerError                 the run failed                                   exit code 1
    ├── TrainingError           training cannot go on (not finite, not learning, out of memory)
    ├── Interrupted             the person stopped a run; a checkpoint is saved
    ├── VerificationError       what was saved is not what was in memory
    └── InputError              something the user gave is wrong                 exit code 2
        ├── ConfigError         a configuration key or flag
        ├── DataError           a data file; carries every problem found
        │   └── UnlabelledError it has none of the label columns
        ├── BaseError           a base that is missing or cannot be used
        ├── ArtifactError       a run folder that is missing, damaged or foreign
        ├── LoraError           adapter settings that fit no layer of the model
        └── ResumeError         a checkpoint that is missing or belongs to another run

A message says what is wrong, where, and what to do about it. Messages of an `InputError` are shown without a traceback.
"""

from __future__ import annotations

import errno
import os
import re

# What a file system refuses for reasons of its own: the person's to mend, not ours.
_REFUSALS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR, errno.EISDIR}
)


class VeneerError(Exception):
    """The run failed for a reason that is not the user's input."""

    exit_code = 1


class TrainingError(VeneerError):
    """Training cannot go on: a loss that is not finite, an adapter that does not move, no memory left."""


class Interrupted(VeneerError):
    """The person stopped the run; a checkpoint is saved, and the message says how to go on."""


class VerificationError(VeneerError):
    """Something written to disk does not give the logits it gave in memory."""


class InputError(VeneerError):
    """Something the user gave is wrong: usage, configuration, data or files."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration key or a flag is unknown or has a value that cannot be used."""


class DataError(InputError):
    """A data file cannot be used; the message lists every problem found in it."""


class UnlabelledError(DataError):
    """A data file that has its texts and none of the label columns."""


class BaseError(InputError):
    """A base model that is not found, or that cannot do what is asked of it."""


class ArtifactError(InputError):
    """A run folder that is missing, damaged, of another format, or made for another base."""


class LoraError(InputError):
    """LoRA settings that fit no layer of the model, or adapter files that cannot be honoured."""


class ResumeError(InputError):
    """No checkpoint, or one that belongs to another configuration, other data or another batch plan."""


def file_refusal(error: BaseException) -> str | None:
    """One line on a file that the system does not let be written or read, such as on a full disk; None for any other error.

    safetensors tells such a thing as an error of its own, with the system's number in its text.
    """
    number = error.errno if isinstance(error, OSError) else None
    if type(error).__name__ == "SafetensorError" and (told := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(told[1])
    if number not in _REFUSALS:
        return None
    name = error.filename if isinstance(error, OSError) else None
    return f"{name or 'a file'} cannot be written or read: {os.strerror(number)}"
