"""N rows dealt into K folds, for scores that no row had a part in.

Knows examples and their labels; reads no file and trains nothing.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from veneer.data.checks import count_labels, text_key
from veneer.data.types import Example
from veneer.errors import DataError


def assign_folds(examples: Sequence[Example], folds: int, seed: int) -> NDArray[np.int64]:
    """`[N]` fold of each example, 0 to `folds` - 1; every fold has its share of each class.

    Rows with the same text and pair are in one fold: a twin among the training rows would tell the label of the one held out.
    A row with several labels is dealt out as one of its rarest.

    Raises:
        DataError: there are fewer texts than folds.
    """
    counts = count_labels(examples)
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        groups[text_key(example)].append(i)
    if len(groups) < folds:
        texts = "1 text" if len(groups) == 1 else f"{len(groups)} different texts"
        raise DataError(f"{texts} cannot be dealt into {folds} folds. Fix: fewer folds, or more rows")
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    shuffled.sort(key=len, reverse=True)  # the many single rows then even out what texts repeated often unbalance
    assigned = np.zeros(len(examples), dtype=np.int64)
    rows = [0] * folds
    rows_of: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for group in shuffled:
        rarest = min(examples[group[0]].labels, key=lambda label: (counts[label], label), default="")
        fold = min(range(folds), key=lambda fold: (rows_of[rarest][fold], rows[fold]))
        assigned[group] = fold
        rows_of[rarest][fold] += len(group)
        rows[fold] += len(group)
    return assigned
