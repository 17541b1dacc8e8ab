"""Ranks and alphas that only some layers have: PEFT's rule of which layer a key of `rank_pattern` or `alpha_pattern` means.

Knows paths of layers alone; knows nothing of files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

V = TypeVar("V")

# To PEFT a key is a regular expression. Names and paths are read here; an expression with repeats, from a file that nobody
# vouches for, could be one that takes for ever.
_PLAIN_KEY = re.compile(r"\^?(?:[\w-]|\.|\\\.)+")


def common_value(values: Mapping[str, V]) -> tuple[V, dict[str, V]]:
    """The value that most names have, and those of the other names."""
    most = Counter(values.values()).most_common(1)[0][0]
    return most, {name: value for name, value in values.items() if value != most}


def matched(pattern: Mapping[str, V], layers: Iterable[str]) -> dict[str, V]:
    """Layer -> its value by PEFT's rule: that of the first key that its path, or the end of its path, matches."""
    keys = {layer: next((key for key in pattern if re.match(rf"(.*\.)?({key})$", layer)), None) for layer in layers}
    return {layer: pattern[key] for layer, key in keys.items() if key is not None}


def misread(own: Mapping[str, V], layers: Iterable[str]) -> list[str]:
    """Layers that PEFT would take for another one of `own`, because their paths end as its path does."""
    read = matched(dict(sorted(own.items())), layers)  # a file's keys are sorted
    return [layer for layer, value in read.items() if own.get(layer) != value]


def is_pattern(value: object, is_value: Callable[[object], bool]) -> bool:
    """Whether `value` is a pattern with plain keys whose values are as they should be, or None."""
    if not isinstance(value, dict):
        return value is None
    return all(_PLAIN_KEY.fullmatch(key) is not None and is_value(one) for key, one in value.items())
