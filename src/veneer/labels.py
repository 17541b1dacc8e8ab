"""The ordered names of the classes. Knows nothing about files, tasks or models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches

from veneer.errors import DataError


@dataclass(frozen=True)
class LabelSet:
    """C distinct label names in a fixed order; a label's id is its place in it.

    Raises:
        DataError: two names are equal, or a name is empty.
    """

    names: tuple[str, ...]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = {name: i for i, name in enumerate(self.names)}
        if len(ids) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise DataError(f"label names must differ; named more than once: {', '.join(twice)}")
        if "" in ids:
            raise DataError("a label name is empty")
        object.__setattr__(self, "_ids", ids)

    @classmethod
    def from_labels(cls, labels: Iterable[str]) -> LabelSet:
        """The distinct labels seen: whole numbers by value when all are such, else alphabetically."""
        seen = set(labels)
        numeric = all(label.removeprefix("-").isdecimal() for label in seen)
        return cls(tuple(sorted(seen, key=lambda label: (int(label), label)) if numeric else sorted(seen)))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    def id(self, name: str) -> int:
        """The id of `name`.

        Raises:
            DataError: no such label; the message suggests the nearest one.
        """
        try:
            return self._ids[name]
        except KeyError:
            near = get_close_matches(name, self.names, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise DataError(f"unknown label '{name}'.{hint} Known labels: {shorten(self.names)}") from None

    def __getitem__(self, index: int) -> str:
        return self.names[index]


def shorten(names: Iterable[str], most: int = 12) -> str:
    """The first `most` names joined by commas, then how many more there are."""
    names = list(names)
    more = f", … ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
