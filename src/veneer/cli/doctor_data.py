"""`veneer doctor --data`: the survey of labelled files, and what training on them will take here.

Knows how findings are put together and shown; what is looked for is the data room's to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from veneer.cli.output import messages, print_json, results
from veneer.config import RunConfig, TrainingSettings, settle
from veneer.errors import BaseError, ConfigError, DataError, VeneerError

if TYPE_CHECKING:
    from veneer.data import Reading
    from veneer.data.survey import Survey
    from veneer.data.survey_finding import Finding, Sample
    from veneer.data.survey_tokens import Tokenization
    from veneer.labels import LabelSet
    from veneer.tasks import Task
    from veneer.training.measure import Measurement

FORMAT_VERSION = 1
MOST_LABELS = 12  # shown in the table; the document of --json has all
MARKS = {"error": Text("✗", "bold red"), "warning": Text("!", "bold yellow"), "note": Text("·", "dim")}
HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class _Report:
    """All that is shown; `survey` is None where no training row could be read."""

    rows: Mapping[str, int]
    task: str | None
    survey: Survey | None
    measurement: Measurement | None
    training: TrainingSettings | None  # as `auto` comes out with these texts
    seconds: float | None  # of training, projected
    findings: Sequence[Finding]


def survey_files(config: RunConfig, *, json: bool) -> None:
    """Survey the files of a configuration and show it; ends the command with 1 where an error is among the findings.

    Raises:
        ConfigError: a file is not there, or a key cannot be used.
    """
    report = _examine(config)
    if json:
        print_json(_document(report))
    else:
        _show(results(), config, report)
    if any(finding.severity == "error" for finding in report.findings):
        raise typer.Exit(1)


def _examine(config: RunConfig) -> _Report:
    from veneer.data.survey import ordered, survey
    from veneer.labels import LabelSet
    from veneer.tasks import TASKS
    from veneer.training import columns_of

    columns = columns_of(config.data)
    with messages().status("reading"):
        readings, findings = _read(config)
    splits = {name: reading for name, reading in readings.items() if reading.examples}
    rows = {name: len(reading.examples) for name, reading in readings.items()}
    if "train" not in splits:
        return _Report(rows, None, None, None, None, None, ordered(findings))
    train = splits["train"]
    multi_label = train.multi_label if config.task == "auto" else config.task == "multi_label"
    task = TASKS["multi_label" if multi_label else "single_label"]
    seen = LabelSet.from_labels(label for example in train.examples for label in example.labels)
    labels = LabelSet(columns.label_names) if columns.label_names else seen
    texts = _training_texts(config, rows)
    training = settle(config, texts)
    config = config.model_copy(update={"training": training})
    # measured first, so that the peak of memory is that of training
    tokenization, measurement, found = _with_base(config, train, labels, task)
    with messages().status("looking at texts and labels"):
        surveyed = survey(splits, labels, task, tokenization, named=columns.label_names is not None)
    findings += [*found, *surveyed.findings]
    seconds = None if measurement is None else texts * training.epochs / measurement.texts_per_second
    return _Report(rows, task.name, surveyed, measurement, training, seconds, ordered(findings))


def _read(config: RunConfig) -> tuple[dict[str, Reading], list[Finding]]:
    """What can be read of each split, and what is wrong with the rest."""
    from veneer.data import read_examples
    from veneer.data.hub import PREFIX
    from veneer.data.survey_finding import Finding, from_problem
    from veneer.training import columns_of

    columns, readings, findings = columns_of(config.data), {}, []
    files = {"train": config.data.train, "dev": config.data.dev, "test": config.data.test}
    sources = {name: source for name, source in files.items() if source is not None}
    missing = [source for source in sources.values() if not source.startswith(PREFIX) and not Path(source).is_file()]
    if missing:
        raise ConfigError(f"no such file: {', '.join(missing)}")
    for name, source in sources.items():
        try:
            reading = readings[name] = read_examples(source, columns, default_split=HUB_SPLITS[name])
        except DataError as error:
            message, _, fix = ("; ".join(line.strip() for line in part.splitlines()) for part in str(error).partition("Fix: "))
            findings.append(Finding("unreadable", "error", message.strip("; ").removesuffix("."), 1, fix))
            continue
        findings += [from_problem(problem, reading) for problem in reading.problems]
    return readings, findings


def _with_base(
    config: RunConfig, train: Reading, labels: LabelSet, task: Task
) -> tuple[Tokenization | None, Measurement | None, list[Finding]]:
    """What needs the base: its tokenizer and the measured steps, or why they cannot be had."""
    from veneer.bases import find_base, load_config, load_tokenizer
    from veneer.data.survey_tokens import Tokenization
    from veneer.families import max_positions
    from veneer.training.measure import measure
    from veneer.training.verbaliser import prompt_of

    try:
        with messages().status("finding the base"):
            base = find_base(config.base)
            tokenizer, limit = load_tokenizer(base), max_positions(load_config(base))
    except BaseError as error:
        return None, None, [_failure("no-base", error)]
    if limit is not None and config.data.max_length > limit:
        raise ConfigError(
            f"data.max_length: {config.data.max_length} is more than the {limit} tokens that {config.base} can take. "
            f"Fix: --max-length {limit}"
        )
    pair = bool(train.examples) and train.examples[0].pair is not None
    try:
        prompt = prompt_of(config, tokenizer, task, labels, pair=pair) if len(labels) else None
    except ConfigError as error:
        return Tokenization(tokenizer, config.data.max_length, limit), None, [_failure("no-prompt", error)]
    tokenization = Tokenization(tokenizer, config.data.max_length, limit, prompt)
    usable = [one for one in train.examples if all(label in labels for label in one.labels)]
    if task.name == "single_label":
        usable = [one for one in usable if len(one.labels) == 1]
    if not usable or not len(labels):
        return tokenization, None, []
    try:
        with messages().status("measuring ten training steps"):
            return tokenization, measure(config, base, tokenizer, usable, labels, task), []
    except VeneerError as error:
        return tokenization, None, [_failure("no-training-step", error)]


def _failure(rule: str, error: VeneerError) -> Finding:
    from veneer.data.survey_finding import Finding

    message, _, fix = str(error).partition(". Fix: ")
    return Finding(rule, "error", message, 1, fix or "--base with a folder that holds a base, or a model id of the hub")


def _training_texts(config: RunConfig, rows: Mapping[str, int]) -> int:
    """Texts that the configured run trains on, what is split off not among them."""
    parts = {"dev": config.data.dev_fraction, "test": config.data.test_fraction}
    share = 1 - sum(fraction for name, fraction in parts.items() if name not in rows)
    return round(rows["train"] * share)


def _document(report: _Report) -> dict[str, Any]:
    measurement = None if report.measurement is None else report.measurement.to_json()
    if measurement is not None and report.seconds is not None:
        measurement["training_seconds"] = round(report.seconds, 1)
    tokens = report.survey.tokens if report.survey else {}
    return {
        "format_version": FORMAT_VERSION,
        "task": report.task,
        "splits": {
            name: {"rows": rows, "tokens": tokens[name].to_json() if name in tokens else None}
            for name, rows in report.rows.items()
        },
        "labels": [label.to_json() for label in report.survey.labels] if report.survey else [],
        "measurement": measurement,
        "findings": [finding.to_json() for finding in report.findings],
    }


def _show(console: Console, config: RunConfig, report: _Report) -> None:
    if report.survey is not None:
        console.print(_split_table(report, config.data.max_length))
        console.print()
        console.print(_label_table(report.survey, report.rows["train"]))
        if report.measurement is not None and report.training is not None and report.seconds is not None:
            console.print(_expectation(config.base, report.training, report.measurement, report.seconds))
        console.print()
    table = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(width=1)
    table.add_column(overflow="fold")
    for (severity, _), alike in _by_rule(report.findings).items():
        table.add_row(MARKS[severity], _block(alike, console.width - 3))
    console.print(table)
    counts = {name: sum(one.severity == name for one in report.findings) for name in MARKS}
    told = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items() if count)
    console.print(Text(told or "nothing found", "bold"))


def _by_rule(findings: Sequence[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Findings of one severity and rule, such as those of train and dev, are shown together."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.rule), []).append(finding)
    return groups


def _block(findings: Sequence[Finding], width: int) -> Text:
    """Findings of one rule: what each says, the fixes, and the first one's examples, a line each."""
    first = findings[0]
    style = {"error": "red", "warning": "yellow"}.get(first.severity, "bold")
    lines = Text.assemble((first.rule, style), "  ", "\n".join(finding.message for finding in findings))
    for fix in dict.fromkeys(finding.fix for finding in findings if finding.fix):
        lines.append(f"\nFix: {fix}")
    for sample in first.examples:
        for row in [_row(sample), *([f"  as {_row(sample.twin)}"] if sample.twin else [])]:
            line = Text(row, "dim")
            line.truncate(width, overflow="ellipsis")
            lines.append("\n").append_text(line)
    return lines


def _row(sample: Sample) -> str:
    labels = f" [{', '.join(sample.labels)}]" if sample.labels else ""
    return f"{Path(sample.source).name} row {sample.row}{labels}" + (f": {sample.text}" if sample.text else "")


def _split_table(report: _Report, max_length: int) -> Table:
    assert report.survey is not None
    table = _table("split", "rows", "tokens: median", "95 %", "longest", f"cut at {max_length}", "unknown", "scripts")
    table.columns[-1].justify = "left"
    for name, rows in report.rows.items():
        facts = report.survey.tokens.get(name)
        if facts is None:
            table.add_row(name, f"{rows:,}")
            continue
        scripts = ", ".join(f"{script} {share:.0%}" for script, (share, _) in facts.scripts.items() if share >= 0.01)
        numbers = (rows, facts.median, facts.p95, facts.longest, facts.cut)
        table.add_row(name, *(f"{number:,}" for number in numbers), f"{facts.unknown:.1%}", scripts)
    return table


def _label_table(survey: Survey, rows: int) -> Table:
    splits = list(survey.labels[0].rows) if survey.labels else []
    table = _table("label", *splits, "share", "balanced weight")
    ordered = sorted(survey.labels, key=lambda label: -label.rows["train"])
    for label in ordered[:MOST_LABELS]:
        weight = "" if label.weight is None else f"{label.weight:.2f}"
        counts = (f"{label.rows[name]:,}" for name in splits)
        table.add_row(_cell(label.name), *counts, f"{label.rows['train'] / rows:.1%}", weight)
    if len(ordered) > MOST_LABELS:
        table.add_row(Text(f"… {len(ordered) - MOST_LABELS:,} more", "dim"))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _cell(name: str) -> Text:
    """A label's name, of which nothing is markup and no character controls the terminal."""
    from veneer.data.problems import shown

    return Text(shown(name, 40))


def _expectation(base: str, training: TrainingSettings, measured: Measurement, seconds: float) -> Text:
    memory = "" if measured.peak_bytes is None else f", {measured.peak_bytes / 2**30:.1f} GiB of memory at most"
    padded = f"; texts are padded: {measured.padding}" if measured.padding else ""
    text = (
        f"{base} on this machine: {measured.texts_per_second:,.0f} texts/s in {measured.steps} measured steps of "
        f"{training.batch_size} ({measured.device}, {measured.precision}{padded}){memory}. "
        f"{training.epochs} epochs will take about {_duration(seconds)}, evaluations not counted."
    )
    return Text(f"\n{text}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
