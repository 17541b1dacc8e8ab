"""`veneer calibrate`"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from veneer.cli import flags
from veneer.cli.output import messages, print_commands, print_hanging, print_json, print_lines, results
from veneer.cli.runs import changed_files, require_own_texts
from veneer.errors import DataError, InputError

if TYPE_CHECKING:
    from veneer.cli.labelled import Labelled
    from veneer.config import RunConfig
    from veneer.evaluation.calibration import Fitted
    from veneer.evaluation.metrics import Evaluation
    from veneer.predictor import Predictor
    from veneer.tasks import Calibration

MOST_ROWS = 30
_DATA_HELP = escape("labelled file or hub:NAME[/SUBSET][:SPLIT] that took no part in training; the run's dev texts if not given")


def calibrate(
    context: typer.Context,
    folder: flags.RunFolder,
    data: Annotated[str | None, typer.Option("--data", metavar="FILE", help=_DATA_HELP, show_default=False)] = None,
    target: Annotated[
        str,
        typer.Option(
            "--target", metavar="GOAL", help="what decisions are for: f1 | accuracy | precision=X | recall=X | cost=FILE"
        ),
    ] = "f1",
    coverage: Annotated[
        float | None,
        typer.Option("--coverage", metavar="X", help="give sets of labels that hold the right ones for this share of texts"),
    ] = None,
    precision: Annotated[
        float | None, typer.Option("--precision", metavar="X", help="abstain, so that this share of the answers is right")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="remove the calibration, so that all is plain again")] = False,
    text: flags.Text = None,
    pair: flags.Pair = None,
    label: flags.Label = None,
    label_separator: flags.LabelSeparator = None,
    label_names: flags.LabelNames = None,
    encoding: flags.Encoding = None,
    base: flags.WhereBase = None,
    json: flags.Json = False,
) -> None:
    """Make probabilities honest and decisions better with labelled texts, and tell when not to answer.

    What is fitted is judged on texts held out from the fit; a decision rule that is no better than chance explains is not kept.
    The result is stored in the run folder, where predict, evaluate and merge find it.
    """
    from veneer.cli.labelled import config_for
    from veneer.evaluation.calibration import fit_calibration
    from veneer.evaluation.goals import Goal
    from veneer.predictor import load
    from veneer.run_info import read_info

    info = read_info(folder)
    if clear:
        kept = _clear(folder, base)
        told = f"{folder} decides by the plain rule again" + (
            f"; the scores in its report stay as they were: {kept}" if kept else ""
        )
        print_json({"calibration": None}) if json else print_lines(results(), told)
        return
    goal = Goal.parse(target, info.label_set, info.task)  # type: ignore[arg-type]
    for flag, share in {"--coverage": coverage, "--precision": precision}.items():
        if share is not None and not 0 < share < 1:
            raise InputError(f"{flag} is a share above 0 and below 1, not {share:g}")
    with messages().status("loading the model"):
        predictor = load(folder, base=base)
    config = config_for(predictor, folder, context.params)
    source = "dev" if data is None else data
    labelled = _dev(predictor, folder, config) if data is None else _given(predictor, folder, config, data)
    fitted = fit_calibration(
        labelled.logits,
        labelled.targets,
        labelled.task,
        texts=labelled.texts,
        goal=goal,
        coverage=coverage,
        precision=precision,
        bootstrap=config.evaluation.bootstrap,
        seed=config.seed,
        source=source,
    )
    _store(folder, fitted, None if data is not None else _score(labelled, fitted.calibration, config, predictor.info.labels))
    print_json(fitted.to_json()) if json else _show(results(), fitted, predictor.info.labels, folder, config.data.test)


def _clear(folder: Path, base: str | None) -> str:
    """Take the calibration out, and score the run's development texts by the plain rule; why they could not be, else empty."""
    from veneer.cli.runs import run_config
    from veneer.predictor import load
    from veneer.tasks import PLAIN

    try:
        with messages().status("loading the model"):
            predictor = load(folder, base=base)
        config = run_config(folder)
        dev, kept = _score(_dev(predictor, folder, config), PLAIN, config, predictor.info.labels), ""
    except InputError as error:  # what is gone must not keep a calibration in force
        dev, kept = None, str(error).split("\n")[0]
    _store(folder, None, dev)
    return kept


def _dev(predictor: Predictor, folder: Path, config: RunConfig) -> Labelled:
    """The development texts of the run, which must be those it was trained with."""
    from veneer.cli.labelled import run_on
    from veneer.training.prepare import read_material

    require_own_texts(folder)
    fix = "Fix: --data FILE with labelled texts that took no part in training"
    try:
        material = read_material(config)
    except InputError as error:
        raise DataError(f"the run's own development texts cannot be read: {error}\n{fix}") from None
    if changed := changed_files(folder, config, predictor.info.data_fingerprint, material.fingerprints):
        raise DataError(f"{folder} was trained with other texts or labels than are now in {', '.join(changed)}. {fix}")
    return run_on(predictor, material.examples["dev"], "calibrating")


def _given(predictor: Predictor, folder: Path, config: RunConfig, data: str) -> Labelled:
    """The texts of a file that took no part in training."""
    from veneer.cli.labelled import read_checked, run_on
    from veneer.cli.trained_texts import untrained

    return run_on(predictor, untrained(folder, predictor.info, read_checked(predictor, config, data)), "calibrating")


def _score(labelled: Labelled, calibration: Calibration, config: RunConfig, labels: tuple[str, ...]) -> Evaluation:
    """What the run's development texts score by its new calibration."""
    from veneer.evaluation.metrics import score

    multi_label = labelled.task.name == "multi_label"
    return score(
        (labelled.targets.bool() if multi_label else labelled.targets).numpy(),
        labelled.task.decide(labelled.logits, calibration).numpy(),
        labels,
        multi_label=multi_label,
        bootstrap=config.evaluation.bootstrap,
        seed=config.seed,
    )


def _store(folder: Path, fitted: Fitted | None, dev: Evaluation | None) -> None:
    """Into `veneer.json`, and into the report and its page where there is one of this version; both with the scores on `dev`."""
    from veneer.evaluation.report import FORMAT_VERSION
    from veneer.report_file import read_report
    from veneer.run_info import read_info, update_info
    from veneer.training.finish import write_report

    report, info = read_report(folder), read_info(folder)
    calibration = None if fitted is None else fitted.calibration.to_json()
    if report.get("format_version") == FORMAT_VERSION:
        report["calibration"] = None if fitted is None else fitted.to_json()
        if report.get("calibrated_since") or calibration != info.calibration:  # the same again leaves all as true as it was
            kept = report.get("dev_rescored", False) and calibration == info.calibration
            report |= {"calibrated_since": True, "dev_rescored": dev is not None or kept}
        if dev is not None:
            report["evaluations"] = {**(report.get("evaluations") or {}), "dev": dev.to_json()}
        write_report(folder, report)  # before the run itself is changed: a damaged report is an error
    scores = info.scores if dev is None else {name: found.value for name, found in dev.metrics.items()}
    update_info(folder, replace(info, calibration=calibration, scores=scores))


def _show(console: Console, fitted: Fitted, labels: tuple[str, ...], folder: Path, test: str | None) -> None:
    console.print(Text(f"Probabilities, on {fitted.to_json()['measured_on']}", style="bold"), soft_wrap=True)
    console.print(_quality_table(fitted))
    console.print()
    for head, line in _explanations(fitted, labels):
        print_hanging(console, f"{head:<15}", line)
    if rule := _rule_table(fitted, labels):
        console.print()
        console.print(rule)
    print_lines(console, "", f"Stored in {folder}: predict, evaluate and merge follow it; predict --raw does not.")
    commands: list[list[object]] = [
        ["veneer", "evaluate", folder, "--data", test or "FILE"],
        ["veneer", "predict", folder, "--text", "a text"],
    ]
    print_commands(console, "Next", commands)


def _quality_table(fitted: Fitted) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("lower is better")
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    names = {
        "ece": "calibration error (ECE)",
        "ece_label_mean": "  mean of each label's own",
        "brier": "Brier score",
        "nll": "loss (NLL)",
    }
    after = fitted.after.scores()
    for key, before in fitted.before.scores().items():
        table.add_row(names[key], f"{before:.4f}", f"{after[key]:.4f}")
    return table


def _explanations(fitted: Fitted, labels: tuple[str, ...]) -> list[tuple[str, str]]:
    """What each line is about, if not the same as the one above, and the line."""
    rule, slopes = fitted.rule, fitted.calibration.slopes
    method = {
        "none": "as they were; no scaling made them better",
        "temperature": f"logits times {min(slopes, default=1):.2f}"
        + (f" to {max(slopes):.2f}, a factor a label" if len(set(slopes)) > 1 else ""),
        "platt": "a slope and a shift a label (Platt scaling)",
    }[fitted.method]
    name = rule.metric.replace("_", " ").replace(" f1", " F1")
    interval = "" if rule.interval is None else f", 95 % interval {rule.interval[0]:+.3f} to {rule.interval[1]:+.3f}"
    lines = [
        ("texts", f"{fitted.texts:,}, each counted once"),
        ("probabilities", method),
        ("decisions", f"{name} {rule.plain:.3f} by the plain rule, {rule.fitted:.3f} by a fitted one"),
        ("", f"gain {rule.gain:+.3f}{interval}"),
        ("", f"the {rule.kept} rule is kept: {rule.reason}"),
    ]
    if rule.kept == "fitted" and fitted.goal.least is not None and len(labels) == 2 and not fitted.calibration.thresholds:
        lines.append(("", f"{fitted.goal.name} is that of '{labels[1]}', the second label"))
    if fitted.left:
        named = ", ".join(labels[i] for i in fitted.left[:8]) + (", …" if len(fitted.left) > 8 else "")
        lines.append(("", f"decided as before, as these texts do not say how else: {named}"))
    return lines + _promise_lines(fitted)


def _promise_lines(fitted: Fitted) -> list[tuple[str, str]]:
    from veneer.evaluation.conformal import ASSUMPTION

    lines: list[tuple[str, str]] = []
    for found in fitted.promises:
        facts, promise = found.facts, found.promise
        if found.kind == "coverage":
            line = (
                f"sets of labels of probability {promise.level:.3f} and more hold every right one for at least "
                f"{promise.target:.1%} of texts; {facts['mean_size']:.2f} labels a set"
            )
        else:
            line = (
                f"answers of confidence {promise.level:.3f} and more: at least {promise.target:.1%} are right "
                f"(95 % confidence); {facts['answered_share']:.1%} of texts are answered, the rest abstained from"
            )
        lines.append((found.kind, line))
    if lines:
        each = "each " if len(lines) > 1 else ""
        lines.append(("", f"{each}found on {fitted.promises[0].promise.texts:,} other texts than the fit; it {ASSUMPTION}"))
    return lines


def _rule_table(fitted: Fitted, labels: tuple[str, ...]) -> Table | None:
    """Thresholds or offsets of a fitted rule; None for the plain one."""
    values = fitted.calibration.thresholds or fitted.calibration.offsets
    if fitted.rule.kept != "fitted" or not values:
        return None
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("label", no_wrap=True, overflow="ellipsis", max_width=30)
    table.add_column("given from probability" if fitted.calibration.thresholds else "added to its logit", justify="right")
    for name, value in list(zip(labels, values, strict=True))[:MOST_ROWS]:
        table.add_row(Text(name), f"{value:.3f}" if fitted.calibration.thresholds else f"{value:+.3f}")
    if len(labels) > MOST_ROWS:
        table.caption = f"{len(labels) - MOST_ROWS:,} more are in veneer.json"
    return table
