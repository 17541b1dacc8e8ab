"""One run beside simpler ways to classify, and whether it was worth it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from veneer.cli.compared_run import ComparedRun, open_run
from veneer.cli.output import messages, print_lines, progress_bar
from veneer.evaluation.comparison import Compared, Difference, Verdict, compare_decisions, judge, score_interval
from veneer.evaluation.metrics import Interval
from veneer.evaluation.tables import NAMES
from veneer.run_info import find_own_base
from veneer.training.baselines import TEXT_BASELINE, compared_on, decide_like_ours, judged_split
from veneer.training.rivals import (
    EMBEDDINGS,
    FULL,
    HEAD_ONLY,
    Contender,
    Ground,
    embedding_contender,
    full_contender,
    head_contender,
    majority_contender,
    text_contender,
)

OURS = "this run"  # of any method: a head alone is no adapter
COSTS = ("seconds", "trained")
WIDE = 100  # columns from which on names have room beside everything else


@dataclass(frozen=True)
class Row:
    """A contender and its score; `lead` is how far the adapter is ahead of it, None for the adapter itself."""

    contender: Contender
    score: Interval
    lead: Difference | None


@dataclass(frozen=True)
class Standing:
    """The whole comparison.

    Attributes:
        rows: the adapter's is the last but full fine-tuning's.
        left_out: contenders that are too much work here.
        verdict: against the best of those that cost less than an adapter.
        full: likewise against full fine-tuning, if that was trained.
    """

    folder: Path
    split: str
    compared: Compared
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    verdict: Verdict
    full: Verdict | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "run": str(self.folder),
            "split": self.split,
            "texts": len(self.compared.targets),
            "metric": self.compared.metric,
            "contenders": [_row_json(row) for row in self.rows],
            "left_out": list(self.left_out),
            "verdict": self.verdict.to_json(),
            "against_full_fine_tuning": None if self.full is None else self.full.to_json(),
        }

    def print(self, console: Console) -> None:
        """The verdict, the table, and how each contender came about."""
        for verdict in (self.verdict, self.full):
            if verdict is not None:
                console.print(Text(verdict.text), style="bold")
        console.print()
        wide = console.width >= WIDE
        console.print(self._table(costs=wide))
        console.print()
        if not wide:
            console.print(self._costs())
            console.print()
        for row in self.rows:
            if row.contender.note:
                console.print(Text(f"{row.contender.name}: {row.contender.note}", "dim"))
        if self.left_out:
            console.print(Text(f"left out, as fitting them would take too long: {', '.join(self.left_out)}", "dim"))

    def _table(self, *, costs: bool) -> Table:
        """Scores and leads, and beside them what each contender cost."""
        name = NAMES[self.compared.metric].split(" (")[0]
        title = f"{self.folder} on {len(self.compared.targets):,} {self.split} texts, 95 % intervals"
        table = _table(name, "this run's lead", "p", *(COSTS if costs else ()), title=title)
        for row in self.rows:
            cells = [*_scores_of(row), *(_costs_of(row) if costs else ())]
            table.add_row(Text(row.contender.name), *cells, style="green" if row.lead is None else None)
        return table

    def _costs(self) -> Table:
        table = _table(*COSTS)
        for row in self.rows:
            table.add_row(Text(row.contender.name), *_costs_of(row), style="green" if row.lead is None else None)
        return table


def compare_with_baselines(folder: Path, base: str | None, *, full: bool) -> Standing:
    """Fit and train every contender on the run's own data and compare.

    Args:
        folder: of the run.
        base: where the base is, if not where training found it.
        full: whether to fine-tune the whole base too.

    Raises:
        VeneerError: the run, its data or its base cannot be used, or training cannot go on.
    """
    run = open_run(folder)
    split = judged_split(run.material)
    compared = compared_on(run.material, run.config)
    logits = run.logits(dict.fromkeys(["dev", split]), base)
    adapter = Contender(OURS, decide_like_ours(run.config, run.material, logits), run.seconds, run.parameters)
    _tell(adapter, compared)
    contenders: list[Contender] = []
    left_out: list[str] = []
    for name, contender in _contenders(run, base, full):
        if contender is None:
            left_out.append(name)
        else:
            contenders.append(contender)
            _tell(contender, compared)
    return _standing(run, compared, adapter, contenders, tuple(left_out))


def _contenders(run: ComparedRun, base: str | None, full: bool) -> Iterator[tuple[str, Contender | None]]:
    """Each when it is asked for, so that what is done can be told."""
    console = messages()
    with console.status("tokenizing"):
        ground = Ground.of(run.config, run.material, find_own_base(run.folder, run.info, base))
    majority = majority_contender(ground)
    yield majority.name, majority
    with console.status(TEXT_BASELINE):
        text = text_contender(ground)
    yield TEXT_BASELINE, text
    with progress_bar("vectors of the texts", sum(map(len, ground.splits.values()))) as bar:
        ground = ground.with_vectors(bar)
    with console.status(EMBEDDINGS):
        embeddings = embedding_contender(ground)
    yield EMBEDDINGS, embeddings
    trained: dict[str, Callable[[Ground, Console], Contender]] = {HEAD_ONLY: head_contender}
    if full:
        trained[FULL] = full_contender
    for name, train in trained.items():
        print_lines(console, f"training: {name}")
        yield name, train(ground, console)


def _standing(
    run: ComparedRun, compared: Compared, adapter: Contender, contenders: list[Contender], left_out: tuple[str, ...]
) -> Standing:
    rows = [
        Row(one, score_interval(compared, one.decisions), compare_decisions(compared, adapter.decisions, one.decisions))
        for one in contenders
    ]
    cheaper = [row for row in rows if row.contender.name != FULL]
    split = judged_split(run.material)

    def verdict(row: Row) -> Verdict:
        return judge(compared, adapter.decisions, row.contender.decisions, split=split, against=row.contender.name)

    best = max(cheaper, key=lambda row: row.score.value)
    whole = [row for row in rows if row.contender.name == FULL]
    ours = Row(adapter, score_interval(compared, adapter.decisions), None)
    full = verdict(whole[0]) if whole else None
    return Standing(run.folder, split, compared, (*cheaper, ours, *whole), left_out, verdict(best), full)


def _tell(contender: Contender, compared: Compared) -> None:
    seconds = "" if contender.seconds is None else f", {_seconds(contender.seconds)} s"
    print_lines(messages(), f"{contender.name}: {compared.metric} {compared.score(contender.decisions):.4f}{seconds}")


def _table(*headings: str, title: str | None = None) -> Table:
    """Names, and columns of numbers."""
    table = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _scores_of(row: Row) -> tuple[str, str, str]:
    lead = row.lead
    return show_interval(row.score), "" if lead is None else show_difference(lead), "" if lead is None else show_p(lead.p)


def _costs_of(row: Row) -> tuple[str, str]:
    one = row.contender
    return (
        "–" if one.seconds is None else _seconds(one.seconds),
        "–" if one.parameters is None else f"{one.parameters:,}",
    )


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "name": row.contender.name,
        "score": row.score.value,
        "interval": [row.score.low, row.score.high],
        "adapter_lead": None if row.lead is None else difference_json(row.lead),
        "seconds": row.contender.seconds,
        "trained_parameters": row.contender.parameters,
        "note": row.contender.note,
    }


def difference_json(difference: Difference) -> dict[str, Any]:
    """Plain JSON values."""
    return {"value": difference.value, "interval": [difference.low, difference.high], "p": difference.p}


def show_interval(score: Interval) -> str:
    """Such as `0.790 (0.737 – 0.837)`."""
    return f"{score.value:.3f} ({score.low:.3f}–{score.high:.3f})"


def show_difference(difference: Difference) -> str:
    """Such as `+0.235 (+0.151 to +0.309)`."""
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def show_p(p: float) -> str:
    """Two digits that matter, or how small it is at most."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"
