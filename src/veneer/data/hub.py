"""`hub:NAME[/SUBSET][:SPLIT]` to a `Table`, through `datasets`.

Knows how hub addresses are written; runs no code from the hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from veneer.data.table import Table
from veneer.errors import DataError

PREFIX = "hub:"
_HUB_TIMEOUT = 5.0  # seconds


def load_hub(address: str, default_split: str) -> Table:
    """The table of one split of a hub data set.

    `hub:imdb` is a data set, `hub:org/name/subset` a data set of an organisation and its subset. `hub:a/b` is subset `b` of
    the data set `a` where there is such (`glue/sst2`), and else the data set `a/b` (`stanfordnlp/imdb`). Ids of a class
    feature become the names it gives them; -1, the hub's sign for no label, becomes None.

    Raises:
        DataError: the address is not well formed, or there is no such data set, subset or split, or no hub is reached.
    """
    name, _, split = address.removeprefix(PREFIX).partition(":")
    parts = name.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise DataError(f"'{address}' is no hub address. Fix: write hub:NAME[/SUBSET][:SPLIT], such as hub:glue/sst2:validation")
    dataset = _load(address, _readings(parts), split or default_split)
    features = list(dataset.features.items())

    def cells(i: int) -> Sequence[object]:
        column, feature = features[i]
        values: list[object] = list(dataset[column])
        names = _class_names(feature)
        return values if names is None else [_named(value, names) for value in values]

    return Table(address, tuple(column for column, _ in features), cells, range(1, len(dataset) + 1))


def _readings(parts: list[str]) -> list[tuple[str, ...]]:
    """What `load_dataset` is asked for, in the order in which it is tried."""
    if len(parts) == 2:
        return [tuple(parts), ("/".join(parts),)]
    return [("/".join(parts[:2]), *parts[2:])] if len(parts) == 3 else [tuple(parts)]


def _load(address: str, readings: list[tuple[str, ...]], split: str) -> Any:
    import datasets  # a second to load
    from datasets.exceptions import DatasetsError

    failures: list[tuple[str, Exception]] = []
    with _offline_unless_reached(readings[0][0]):
        for reading in readings:
            try:
                return datasets.load_dataset(*reading, split=split)
            except (OSError, ValueError, RuntimeError, DatasetsError) as error:
                # not found, not reached, no such subset, no such split; a repository that wants to run code is a RuntimeError
                failures.append((" / ".join(reading), error))
    said = f"{address}: split '{split}' cannot be loaded"
    if all(isinstance(error, ConnectionError) for _, error in failures):
        raise DataError(
            f"{said}: there is no connection to the hub, and the data set is not in its cache. "
            "Fix: connect once, so that it is cached, or give a file"
        )
    tried = [f"  as {reading}: {_first_line(error)}" for reading, error in failures]
    raise DataError("\n".join([said, *tried, "  Fix: check the name, the subset and the split, or give a file"]))


@contextmanager
def _offline_unless_reached(name: str) -> Iterator[None]:
    """Where the hub does not answer, `datasets` looks into its cache alone: it would try for a minute, and say so on each try."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not _is_reached(name)
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _is_reached(name: str) -> bool:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        huggingface_hub.dataset_info(name, timeout=_HUB_TIMEOUT)
    except (HfHubHTTPError, HFValidationError):  # it answers, or will not be asked: `datasets` says why
        return True
    except Exception:  # the HTTP library behind the hub's client, and so its errors, differs between versions
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names a feature gives to its ids: of a class, or of a list of classes."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return tuple(names) if names is not None else None


def _named(value: object, names: tuple[str, ...]) -> object:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
