"""`veneer predict`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from veneer.cli import flags
from veneer.cli.output import messages, print_json, print_lines, progress_bar, results
from veneer.errors import DataError, InputError
from veneer.labels import shorten

if TYPE_CHECKING:
    from veneer.cli.prediction_file import Texts
    from veneer.predictor import Prediction, Predictor

TOP = 5  # labels shown of one text
BAR_CELLS = 30


def predict(
    folder: flags.RunFolder,
    text: Annotated[str | None, typer.Option("--text", help="one text", show_default=False)] = None,
    pair: Annotated[str | None, typer.Option("--pair", help="its second text, for a model of pairs", show_default=False)] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="texts: .csv .tsv .json .jsonl .parquet", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="where to write: .csv .tsv .json .jsonl", show_default=False)
    ] = None,
    text_column: Annotated[
        str | None, typer.Option("--text-column", metavar="COLUMN", help="of --file, if not as in training", show_default=False)
    ] = None,
    pair_column: Annotated[
        str | None, typer.Option("--pair-column", metavar="COLUMN", help="of --file, if not as in training", show_default=False)
    ] = None,
    encoding: Annotated[
        str | None, typer.Option("--encoding", help="of --file, if not as in training", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite --out")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", help="ask for texts one by one")] = False,
    raw: flags.Raw = False,
    base: flags.WhereBase = None,
    base_precision: flags.OtherBits = None,
    json: flags.Json = False,
) -> None:
    """Classify one text (--text), a file (--file and --out), texts you type (--interactive), or standard input.

    Standard input has one text a line; for a model of pairs, two with a tab between them.
    """
    _check_flags(text, pair, file, out, interactive, json)
    lines = _piped_lines() if text is None and file is None and not interactive else []

    from veneer.cli import prediction_file
    from veneer.predictor import load

    if out is not None:
        prediction_file.check_target(out, file, force)
    with messages().status("loading the model"):
        predictor = load(folder, base=base, base_precision=base_precision)
    if interactive:
        return _talk(predictor, raw)
    if file is not None:
        columns = {"data.text": text_column, "data.pair": pair_column, "data.encoding": encoding}
        texts = prediction_file.read_texts(file, folder, predictor.info.pair, columns)
    elif text is not None:
        texts = prediction_file.Texts([text], None if pair is None else [pair])
    else:
        texts = prediction_file.split_lines(lines, predictor.info.pair)
    with progress_bar("predicting", len(texts.texts)) as progress:
        predictions = predictor.predict(texts.texts, texts.pairs, raw=raw, progress=progress)
    abstains = not raw and predictor.calibration.precision is not None
    rows = prediction_file.documents(texts, predictions, abstains)
    if out is not None:
        prediction_file.write_rows(out, rows, predictor.info.labels)
    if json:
        print_json(rows)
    elif out is not None:
        print_lines(results(), f"{len(rows):,} predictions written to {out}")
    else:
        _show(results(), texts, predictions)
    return None


def _check_flags(text: str | None, pair: str | None, file: str | None, out: Path | None, interactive: bool, json: bool) -> None:
    asked = {"--text": text is not None, "--file": file is not None, "--interactive": interactive}
    sources = [flag for flag, given in asked.items() if given]
    if len(sources) > 1:
        raise InputError(f"{' and '.join(sources)} cannot go together. Fix: give one of them")
    if pair is not None and text is None:
        raise InputError("--pair is the second text of --text. Fix: give --text too; for a file, --pair-column")
    for flag, given in {"--text": text, "--pair": pair}.items():
        if given is not None and not given.strip():
            raise InputError(f"{flag} is empty")
        if given is not None and any("\ud800" <= character <= "\udfff" for character in given):
            raise InputError(f"{flag} is not valid Unicode text")
    if out is not None and file is None:
        raise InputError("--out belongs to --file. Fix: --file FILE --out FILE")
    if file is not None and out is None and not json:
        raise InputError("--file needs a place for the predictions. Fix: --out FILE, or --json")
    if interactive and json:
        raise InputError("--interactive and --json cannot go together")


def _piped_lines() -> list[str]:
    """The lines of standard input that are not blank."""
    if sys.stdin.isatty():
        raise InputError("nothing to classify. Fix: --text TEXT, --file FILE --out FILE, --interactive, or pipe in a text a line")
    try:
        piped = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 (byte {error.start}). Fix: convert it first, e.g. iconv -t UTF-8") from None
    lines = [line for line in piped.replace("\r\n", "\n").split("\n") if line.strip()]
    if not lines:
        raise InputError("standard input holds no text. Fix: one text a line, or --text TEXT")
    return lines


def _talk(predictor: Predictor, raw: bool) -> None:
    """Ask for texts until an empty line or the end of the input."""
    console = results()
    console.print("A text and Enter; an empty line ends.", style="dim")
    while text := _ask("text> "):
        pair = _ask("pair> ") if predictor.info.pair else None
        if pair == "":
            break
        (prediction,) = predictor.predict([text], None if pair is None else [pair], raw=raw)
        _show_one(console, prediction)


def _ask(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        print()
        return ""


def _show(console: Console, texts: Texts, predictions: list[Prediction]) -> None:
    if len(predictions) == 1:
        return _show_one(console, predictions[0])
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("labels", overflow="fold", max_width=30)
    table.add_column("score", justify="right")
    sets = predictions[0].candidates is not None
    if sets:
        table.add_column("candidates", overflow="fold", max_width=30)
    table.add_column("text", no_wrap=True, overflow="ellipsis")
    for text, prediction in zip(texts.texts, predictions, strict=True):
        scores = ", ".join(f"{prediction.scores[label]:.2f}" for label in prediction.labels)
        labels = Text(", ".join(prediction.labels)) if prediction.labels else Text("none", style="dim")
        if prediction.abstained:
            labels = Text.assemble(("abstain ", "yellow"), Text(f"({labels})", style="dim"))
        within = [Text(shorten(prediction.candidates or ()) or "none", style="dim")] if sets else []
        table.add_row(labels, scores or f"{max(prediction.scores.values()):.2f}", *within, Text(text))
    console.print(table)
    return None


def _show_one(console: Console, prediction: Prediction) -> None:
    """The top labels with bars of their probabilities, the decided ones marked."""
    from veneer.evaluation.tables import bar

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(width=1)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=30)
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    top = sorted(prediction.scores, key=lambda label: -prediction.scores[label])[:TOP]
    for label in [*top, *(label for label in prediction.labels if label not in top)]:
        decided = label in prediction.labels
        style = "bold green" if decided else "dim"
        score = prediction.scores[label]
        table.add_row("✓" if decided else "", Text(label, style), f"{score:.3f}", Text(bar(score, BAR_CELLS), style))
    console.print(table)
    if not prediction.labels:
        console.print("no label is likely enough to be given", style="dim")
    if prediction.abstained:
        console.print("abstain: not sure enough for the promised precision", style="yellow")
    if prediction.candidates is not None:
        console.print(Text(f"candidates: {shorten(prediction.candidates) or 'none'}", style="dim"), soft_wrap=True)
