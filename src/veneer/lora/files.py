"""Reading JSON and safetensors from a folder that is not trusted: any fault of a file is a `LoraError`, never a traceback.

Knows nothing of what the files mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from veneer.errors import LoraError

_LARGEST_JSON = 16 * 2**20  # bytes


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; NaN and infinity are refused.

    Raises:
        LoraError: the file is missing, unreadable, too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise LoraError(f"{path} is larger than {_LARGEST_JSON} bytes, too large for settings")
        fields = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise LoraError(f"{path} is missing") from None
    except OSError as error:
        raise LoraError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise LoraError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise LoraError(f"{path} must hold an object, not a {type(fields).__name__}")
    return fields


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        LoraError: the file is missing, unreadable or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise LoraError(f"{path} is missing") from None
    except OSError as error:
        raise LoraError(f"cannot read {path}: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise LoraError(f"{path} is damaged or not a safetensors file: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")
