"""The command line: one file a command. `veneer --help` must be quick, so commands import torch and its kin when they run."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import veneer
from veneer.cli import (
    audit,
    calibrate,
    combine,
    compare,
    demo,
    doctor,
    estimate,
    evaluate,
    inspect,
    merge,
    predict,
    report,
    shrink,
    train,
)
from veneer.cli.output import print_error
from veneer.errors import VeneerError, file_refusal


class _Commands(TyperGroup):
    """The group of commands, which turns an error meant for people into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except VeneerError as error:
            print_error(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(1) from None
        except Exception as error:
            if (refusal := file_refusal(error)) is None:
                raise
            print_error(refusal)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"veneer {veneer.__version__}")
        raise typer.Exit


@app.callback()
def _veneer(
    version: Annotated[bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Fine-tune, calibrate and judge text classifiers as thin LoRA layers over one frozen base model."""


app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("calibrate")(calibrate.calibrate)
app.command("compare")(compare.compare)
app.command("audit")(audit.audit)
app.command("report")(report.report)
app.command("inspect")(inspect.inspect)
app.command("merge")(merge.merge)
app.command("estimate")(estimate.estimate)
app.command("shrink")(shrink.shrink)
app.command("combine")(combine.combine)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """The program `veneer`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without some character must not stop a run
    app(prog_name="veneer")
