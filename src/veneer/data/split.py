"""A seeded split into train, dev and test that keeps the share of every label.

Knows examples and their labels; reads no file.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from veneer.data.checks import text_key
from veneer.data.types import Example
from veneer.errors import DataError

SIDES = ("train", "dev", "test")
Group = list[int]


def split_examples(
    examples: Sequence[Example], fractions: tuple[float, float], seed: int, multi_label: bool
) -> tuple[list[Example], list[Example], list[Example]]:
    """N examples as (train, dev, test), each in the order of the file; `fractions` are the shares of dev and test.

    Rows with the same text and pair stay on one side. Single-label: every class is split in proportion, and a class that has
    one text stays in train. Multi-label: iterative stratification (Sechidis et al., ECML PKDD 2011). The same arguments give
    the same split on any machine.

    Raises:
        DataError: the fractions leave nothing for training, or there are too few rows for a side that is asked for.
    """
    if min(fractions) < 0 or sum(fractions) >= 1:
        raise DataError(
            f"dev and test fractions {fractions} leave nothing for training. Fix: fractions that add up to less than 1"
        )
    groups = _same_text(examples)
    random.Random(seed).shuffle(groups)
    assign = _stratify_multi if multi_label else _stratify_single
    sides = assign(examples, groups, fractions)
    found: tuple[list[Example], list[Example], list[Example]] = ([], [], [])
    for example, side in zip(examples, sides, strict=True):
        found[side].append(example)
    for name, part, wanted in zip(SIDES, found, (1.0, *fractions), strict=True):
        if wanted > 0 and not part:
            raise DataError(
                f"{len(examples)} rows are too few to split off {name}. Fix: give {name} a file of its own, or more rows"
            )
    return found


def _same_text(examples: Sequence[Example]) -> list[Group]:
    """The rows of each distinct text, in the order of the file."""
    groups: defaultdict[object, Group] = defaultdict(list)
    for i, example in enumerate(examples):
        groups[text_key(example)].append(i)
    return list(groups.values())


def _stratify_single(examples: Sequence[Example], groups: list[Group], fractions: tuple[float, float]) -> list[int]:
    """`[N]` side of each example, class by class; a group of equal texts counts as its first row's class."""
    by_class: defaultdict[tuple[str, ...], list[Group]] = defaultdict(list)
    for group in sorted(groups, key=lambda group: examples[group[0]].labels):  # stable: the shuffle stays within a class
        by_class[examples[group[0]].labels].append(group)
    classes = list(by_class.values())
    rows = [sum(map(len, members)) for members in classes]
    free = [row - len(members[0]) for row, members in zip(rows, classes, strict=True)]  # the first group stays in train
    sides = [0] * len(examples)
    for side, fraction in enumerate(fractions, 1):
        for c, quota in enumerate(_quotas(rows, free, fraction)):
            taken = 0
            for group in classes[c][1:]:
                if sides[group[0]] == 0 and taken + len(group) <= quota:
                    taken += len(group)
                    for i in group:
                        sides[i] = side
            free[c] -= taken
    return sides


def _quotas(rows: Sequence[int], free: Sequence[int], fraction: float) -> list[int]:
    """Rows to take from each class: `fraction` of all rows, in proportion (largest remainder), at most what is free."""
    exact = [row * fraction for row in rows]
    quotas = [min(int(share), most) for share, most in zip(exact, free, strict=True)]
    left = round(sum(rows) * fraction) - sum(quotas)
    for c in sorted(range(len(rows)), key=lambda c: quotas[c] - exact[c]):
        if left > 0 and quotas[c] < free[c]:
            quotas[c] += 1
            left -= 1
    return quotas


def _stratify_multi(examples: Sequence[Example], groups: list[Group], fractions: tuple[float, float]) -> list[int]:
    """`[N]` side of each example: rarest label first, each text to the side that lacks most of that label, then most rows."""
    shares = (1 - sum(fractions), *fractions)
    labels = [examples[group[0]].labels for group in groups]
    members: defaultdict[str, list[int]] = defaultdict(list)
    left: defaultdict[str, int] = defaultdict(int)
    for g, group in enumerate(groups):
        for label in labels[g]:
            members[label].append(g)
            left[label] += len(group)
    room = [share * len(examples) for share in shares]
    lacks = {label: [share * count for share in shares] for label, count in left.items()}
    chosen: dict[int, int] = {}

    def place(g: int, lack: list[float]) -> None:
        # what the sides lack adds up to what is left, so a side of share 0 never lacks most
        side = max(range(len(shares)), key=lambda side: (lack[side], room[side]))
        chosen[g] = side
        room[side] -= len(groups[g])
        for label in labels[g]:
            lacks[label][side] -= len(groups[g])
            left[label] -= len(groups[g])

    while left:
        rarest = min(left, key=lambda label: (left[label], label))
        for g in members[rarest]:
            if g not in chosen:
                place(g, lacks[rarest])
        del left[rarest]
    for g in range(len(groups)):
        if g not in chosen:  # without any label
            place(g, room)
    return [side for _, side in sorted((i, chosen[g]) for g, group in enumerate(groups) for i in group)]
