"""Several runs beside each other: what differs in their configurations, in their scores, and text by text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from veneer.cli.compare_baselines import difference_json, show_difference, show_interval, show_p
from veneer.cli.compared_run import ComparedRun, open_run
from veneer.config import METHOD_SETTINGS, MethodName, RunConfig
from veneer.data import Example, fingerprint
from veneer.errors import ConfigError, DataError
from veneer.evaluation.comparison import Compared, Difference, compare_decisions, right_texts, score_interval
from veneer.evaluation.metrics import Interval
from veneer.evaluation.page.made import MadeFrom
from veneer.evaluation.tables import NAMES
from veneer.training.baselines import compared_on

MOST_EXAMPLES = 5
TEXT_CELLS = 85


@dataclass(frozen=True)
class Scored:
    """A run and its score on the common split."""

    run: ComparedRun
    score: Interval
    decisions: NDArray[Any]


@dataclass(frozen=True)
class Duel:
    """The first run against another one.

    Attributes:
        difference: the other's score less the first's.
        counts: texts that both, only the first, only the second, and neither have right.
        examples: up to five texts that only the `first`, and only the `second` has right.
    """

    other: Scored
    difference: Difference
    counts: dict[str, int]
    examples: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class SideBySide:
    """The whole comparison, on the N texts of `split`."""

    split: str
    compared: Compared
    differing: dict[str, list[Any]]
    scored: tuple[Scored, ...]
    duels: tuple[Duel, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        first = str(self.scored[0].run.folder)
        return {
            "split": self.split,
            "texts": len(self.compared.targets),
            "metric": self.compared.metric,
            "runs": [
                {
                    "run": str(one.run.folder),
                    "score": one.score.value,
                    "interval": [one.score.low, one.score.high],
                    "seconds": one.run.seconds,
                    "trained_parameters": one.run.parameters,
                }
                for one in self.scored
            ],
            "configuration": self.differing,
            "pairs": [
                {
                    "first": first,
                    "second": str(duel.other.run.folder),
                    "second_lead": difference_json(duel.difference),
                    "within_noise": duel.difference.within_noise,
                    "right": duel.counts,
                    "examples": duel.examples,
                }
                for duel in self.duels
            ],
        }

    def print(self, console: Console) -> None:
        """Verdicts first, then scores, configurations and texts."""
        for duel in self.duels:
            console.print(Text(self._sentence(duel)), style="bold")
        if self.split == "dev":
            console.print(Text("Every run was picked by its score on dev, so all of them look a little better than they are."))
        if "evaluation.metric" in self.differing:
            console.print(Text(f"All are scored by {_name(self.compared)}; each was picked by its own evaluation.metric."))
        console.print()
        console.print(self._scores())
        console.print()
        console.print(self._configurations() if self.differing else Text("Configurations: no difference", "bold"))
        for duel in self.duels:
            self._print_duel(console, duel)

    def _sentence(self, duel: Duel) -> str:
        first, other = self._called(self.scored[0]), self._called(duel.other)
        found = f"{show_difference(duel.difference)} {_name(self.compared)}, p = {show_p(duel.difference.p)}"
        if duel.difference.within_noise:
            return f"{other} and {first} are not told apart: {found}."
        return f"{other} is {'better' if duel.difference.value > 0 else 'worse'} than {first}: {found}."

    def _scores(self) -> Table:
        table = _table(f"Scores on {len(self.compared.targets):,} {self.split} texts, 95 % intervals")
        table.add_column("run")
        for heading in (_name(self.compared), "seconds", "trained"):
            table.add_column(heading, justify="right", no_wrap=True)
        for one in self.scored:
            seconds = "–" if one.run.seconds is None else f"{one.run.seconds:,.0f}"
            trained = "–" if one.run.parameters is None else f"{one.run.parameters:,}"
            table.add_row(Text(self._called(one)), show_interval(one.score), seconds, trained)
        return table

    def _configurations(self) -> Table:
        table = _table("Configurations: what differs")
        table.add_column("key")
        for one in self.scored:
            table.add_column(Text(self._called(one)))
        for key, values in self.differing.items():
            table.add_row(key, *(Text("–" if value is None else str(value)) for value in values))
        return table

    def _print_duel(self, console: Console, duel: Duel) -> None:
        first, other = self._called(self.scored[0]), self._called(duel.other)
        counts = duel.counts
        console.print()
        both = f"{first} against {other}: both right {counts['both']:,}, neither {counts['neither']:,}"
        console.print(Text(f"{both}, only {first} {counts['first']:,}, only {other} {counts['second']:,}", "bold"))
        for side, name in (("first", first), ("second", other)):
            if duel.examples[side]:
                console.print(Text(f"right only in {name}:"))
            for item in duel.examples[side]:
                console.print(Text(f"  {item['row']:>6}  {item['text']}"))
                said = [f"{who} {', '.join(item[key]) or 'no label'}" for who, key in ((first, "first"), (other, "second"))]
                console.print(Text(f"          true: {', '.join(item['labels']) or 'no label'}; {'; '.join(said)}", "dim"))

    def _called(self, one: Scored) -> str:
        """The end of the folder's path that no other has: its own name, or with the folders above it as far as it takes."""
        folder = one.run.folder
        for length in range(1, len(folder.parts)):
            end = folder.parts[-length:]
            if sum(other.run.folder.parts[-length:] == end for other in self.scored) == 1:
                return str(Path(*end))
        return str(folder)


def compare_runs(folders: Sequence[Path], base: str | None) -> SideBySide:
    """Score every run on the texts that all of them have, and hold each against the first.

    Args:
        folders: two or more run folders.
        base: where the base is, if not where training found it.

    Raises:
        DataError: the runs have no split in common, other labels or another task.
        VeneerError: a run, its data or its base cannot be used.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("a run folder is given twice. Fix: give each once")
    runs = [open_run(folder) for folder in folders]
    first = runs[0]
    split = "test" if all("test" in run.material.examples for run in runs) else "dev"
    for run in runs[1:]:
        _check_same(first, run, split)
    examples = first.material.examples[split]
    compared = compared_on(first.material, first.config, split)
    scored = []
    for run in runs:
        decisions = run.decide(split, base)
        scored.append(Scored(run, score_interval(compared, decisions), decisions))
    duels = tuple(_duel(compared, scored[0], other, examples) for other in scored[1:])
    return SideBySide(split, compared, _differing([run.config for run in runs], [run.made for run in runs]), tuple(scored), duels)


def _check_same(first: ComparedRun, other: ComparedRun, split: str) -> None:
    names = f"{first.folder} and {other.folder}"
    if first.info.task != other.info.task:
        raise DataError(f"{names} cannot be compared: one is {first.info.task}, the other {other.info.task}")
    if first.info.labels != other.info.labels:
        different = sorted(set(first.info.labels) ^ set(other.info.labels))
        what = f"only one of them has {', '.join(different[:5])}" if different else "their order differs"
        raise DataError(f"{names} cannot be compared: their labels differ ({what})")
    ours, theirs = first.material.examples[split], other.material.examples[split]
    if fingerprint(ours) == fingerprint(theirs):
        return
    if len(ours) != len(theirs):
        what = f"{len(ours):,} texts against {len(theirs):,}"
    else:
        pairs = enumerate(zip(ours, theirs, strict=True), 1)
        place = next(i for i, (a, b) in pairs if (a.text, a.pair, sorted(a.labels)) != (b.text, b.pair, sorted(b.labels)))
        what = f"text {place:,} is the first that differs"
    raise DataError(
        f"{names} cannot be compared: their {split} texts are not the same ({what}). "
        "Fix: train them with the same --dev and --test files, or score both with veneer evaluate on one file"
    )


def _duel(compared: Compared, first: Scored, other: Scored, examples: Sequence[Example]) -> Duel:
    mine, theirs = right_texts(compared.targets, first.decisions), right_texts(compared.targets, other.decisions)
    sides = {"both": mine & theirs, "first": mine & ~theirs, "second": theirs & ~mine, "neither": ~mine & ~theirs}
    labels = first.run.info.labels

    def shown(row: int) -> dict[str, Any]:
        example = examples[row]
        text = example.text if example.pair is None else f"{example.text} ⇄ {example.pair}"
        return {
            "row": example.row,
            "text": _shortened(text),
            "labels": list(example.labels),
            "first": _decided(first.decisions[row], labels),
            "second": _decided(other.decisions[row], labels),
        }

    some = {side: [shown(int(row)) for row in np.flatnonzero(sides[side])[:MOST_EXAMPLES]] for side in ("first", "second")}
    difference = compare_decisions(compared, other.decisions, first.decisions)
    return Duel(other, difference, {side: int(where.sum()) for side, where in sides.items()}, some)


def _decided(decision: NDArray[Any], labels: tuple[str, ...]) -> list[str]:
    return [labels[int(i)] for i in (np.flatnonzero(decision) if decision.ndim else [decision])]


def _differing(configs: Sequence[RunConfig], made: Sequence[MadeFrom | None]) -> dict[str, list[Any]]:
    """Dotted key -> its value in each run's configuration, of the keys whose values differ; the folder itself is none.

    None stands for a setting that the run's method does not read; one that none of the methods reads is left out. How a run was
    made from others comes first, and its ranks stand for those of the configuration, which is that of the first of them.
    """
    flat = [{**_making(one), **_flat(config), **_own_ranks(one)} for config, one in zip(configs, made, strict=True)]
    differing: dict[str, list[Any]] = {}
    for key in flat[0]:
        if key != "out" and any(one[key] != flat[0][key] for one in flat):
            values = [one[key] if _reads(config.method, key) else None for config, one in zip(configs, flat, strict=True)]
            if any(value is not None for value in values):
                differing[key] = values
    return differing


def _making(made: MadeFrom | None) -> dict[str, str | None]:
    return {"made by": None if made is None else f"{made.by}, from {', '.join(source.folder for source in made.runs)}"}


def _own_ranks(made: MadeFrom | None) -> dict[str, str | None]:
    """The ranks of a run that was made from others; an ensemble has none of its own."""
    if made is None:
        return {}
    ranks = sorted(set(made.ranks.values()))
    return {"lora.rank": (str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}") if ranks else None}


def _flat(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value."""
    tree = config.model_dump(mode="json")
    return {
        f"{section}.{key}" if isinstance(tree[section], dict) else section: value
        for section in tree
        for key, value in (tree[section].items() if isinstance(tree[section], dict) else [("", tree[section])])
    }


def _reads(method: MethodName, key: str) -> bool:
    return key in METHOD_SETTINGS[method] or not key.startswith(("lora.", "tuning."))


def _name(compared: Compared) -> str:
    return NAMES[compared.metric].split(" (")[0]


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT_CELLS else line[: TEXT_CELLS - 1] + "…"


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 2, 0, 0))
