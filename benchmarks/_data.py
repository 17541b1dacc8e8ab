"""The labelled texts benchmarks run on: SST-2 where it is at hand, else the clinic messages that come with veneer.

Knows the two sets' files; does not know what is measured on them.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _measure import progress


@dataclass(frozen=True)
class Texts:
    """N texts, each with one label.

    Attributes:
        ids: the label of each text, an index into `labels`.
        source: what they are, in words for the reader of a table.
    """

    source: str
    texts: tuple[str, ...]
    ids: tuple[int, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


def shared_folder(name: str) -> Path:
    """Where a public data set is expected: under `VENEER_SHARED_DATA`, or under `shared/data` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("VENEER_SHARED_DATA") or beside) / name


def labelled_texts(split: str, rows: int | None = None) -> Texts:
    """The first `rows` rows of SST-2's `train` or `dev`, or of the clinic messages with their primary intent as label."""
    path = shared_folder("sst2") / f"{split}.tsv"
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = [line.rstrip("\r\n").split("\t") for line in file]
        label, text = header.index("label"), header.index("sentence")
        labels, texts = [line[label] for line in lines[:rows]], [line[text] for line in lines[:rows]]
        return _texts(f"SST-2 {split}, {len(texts):,} rows", texts, labels, ("0", "1"))
    import veneer

    progress(f"{path} is not there (VENEER_SHARED_DATA says where to look): the clinic messages stand in, with other lengths")
    with (Path(veneer.__file__).parent / "demo" / "clinic" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    names = sorted({row["primary"] for row in table})
    chosen = table[:rows]
    source = f"clinic messages {split}, {len(chosen):,} rows"
    return _texts(source, [row["text"] for row in chosen], [row["primary"] for row in chosen], names)


def _texts(source: str, texts: Sequence[str], labels: Sequence[str], names: Sequence[str]) -> Texts:
    places = {name: i for i, name in enumerate(names)}
    return Texts(source, tuple(texts), tuple(places[label] for label in labels), tuple(names))
