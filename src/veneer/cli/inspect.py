"""`veneer inspect`"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from veneer.cli import flags
from veneer.cli.output import print_json, results

if TYPE_CHECKING:
    from veneer.lora import LayerRow
    from veneer.model import Classifier


def inspect(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="BASE|DIR", help="a base, or a run folder", show_default=False)],
    labels: Annotated[
        int | None, typer.Option("--labels", metavar="N", min=1, help="number of labels; 2, or the run's own", show_default=False)
    ] = None,
    pooling: flags.Pooling = None,
    method: flags.Method = None,
    preset: flags.Preset = None,
    rank: flags.Rank = None,
    alpha: flags.Alpha = None,
    dropout: flags.Dropout = None,
    settings: flags.Set = None,
    base: flags.WhereBase = None,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="list every parameter: name, shape, trained or frozen")
    ] = False,
    json: flags.Json = False,
) -> None:
    """Show the layers a method would touch and count parameters, from the base's configuration alone."""
    given = {name: value for name, value in context.params.items() if name != "base"}
    model = _model(what, labels, flags.overrides_of(given, settings), base)
    if json:
        print_json(_document(model, parameters))
    else:
        _show(results(), model, parameters)


def _model(what: str, labels: int | None, overrides: dict[str, Any], base: str | None) -> Classifier:
    """The adapted model without weights."""
    from veneer.bases import find_base
    from veneer.cli.runs import is_run, run_config
    from veneer.config_file import load_config
    from veneer.errors import ArtifactError, ConfigError
    from veneer.lora import apply_adapter, read_adapter
    from veneer.model import skeleton
    from veneer.run_files import CONFIG_FILE
    from veneer.run_info import check_single, find_own_base, read_info, why_none
    from veneer.training.setup import method_of, method_plan
    from veneer.training.verbaliser import check_settings
    from veneer.word_model import word_skeleton

    if is_run(Path(what)):
        info = read_info(Path(what))
        check_single(Path(what), info)
        config = run_config(Path(what), overrides)
        location, labels = find_own_base(Path(what), info, base, weights=False), labels or len(info.labels)
    elif (Path(what) / CONFIG_FILE).is_file():
        raise ArtifactError(f"{what} {why_none(Path(what))}")
    else:
        if base is not None:
            raise ConfigError(f"--base says where the base of a run folder is, and {what} is none. Fix: veneer inspect {base}")
        config, location = load_config(None, overrides), find_base(what, weights=False)
    if config.verbaliser.template is None:
        model = skeleton(location, labels or 2, pooling=config.pooling)
    else:
        check_settings(config)
        model = word_skeleton(location, labels or 2)
    if is_run(Path(what)) and not overrides and config.method == "lora":
        apply_adapter(model.network, read_adapter(Path(what)))  # whose ranks may be other ones than it was trained with
    else:
        method_of(config).apply(model, method_plan(config))
    return model


def _document(model: Classifier, parameters: bool) -> dict[str, Any]:
    from veneer.lora import adapted_layers, count_parameters, parameter_rows

    counts = count_parameters(model)
    document = {
        "lora_parameters": counts.lora,
        "trainable": counts.trainable,
        "total": counts.total,
        "peft_trainable": counts.peft_trainable,
        "peft_total": counts.peft_total,
        "layers": [asdict(row) for row in adapted_layers(model.network)],
    }
    if parameters:
        document["parameters"] = [
            {"name": row.name.removeprefix("network."), "shape": list(row.shape), "trained": row.trained}
            for row in parameter_rows(model)
        ]
    return document


def _show(console: Console, model: Classifier, parameters: bool) -> None:
    from veneer.lora import adapted_layers, parameter_rows

    if parameters:
        table = _table("Parameters", "name", "shape", "")
        for row in parameter_rows(model):
            state = Text("trained", "green") if row.trained else Text("frozen", "dim")
            table.add_row(row.name.removeprefix("network."), " × ".join(map(str, row.shape)), state)
        console.print(table)
        console.print()
    layers = adapted_layers(model.network)
    table = _table("Adapted layers", "layer", "in → out", ">rank", ">parameters")
    for name, rows in _alike(layers):
        total = sum(row.parameters for row in rows)
        table.add_row(Text(name), f"{rows[0].in_features} → {rows[0].out_features}", str(rows[0].rank), f"{total:,}")
    if layers:
        console.print(table)
        console.print()
    console.print(_counts(model))


def _counts(model: Classifier) -> Table:
    from veneer.lora import count_parameters

    counts = count_parameters(model)
    table = _table("Counts", "", ">parameters", ">of all")
    if counts.lora:
        table.add_row("LoRA", f"{counts.lora:,}", f"{counts.lora / counts.total:.2%}")
    table.add_row("trained", f"{counts.trainable:,}", f"{counts.trainable / counts.total:.2%}")
    table.add_row("all", f"{counts.total:,}", "")
    peft = (f"{counts.peft_trainable:,}", f"{counts.peft_trainable / counts.peft_total:.2%}")
    table.add_row("trained, as PEFT counts", *peft)
    table.add_row("all, as PEFT counts (a trained head twice)", f"{counts.peft_total:,}", "")
    return table


def _table(title: str, *columns: str) -> Table:
    """A plain table; a column whose name begins with `>` is set to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def _alike(rows: list[LayerRow]) -> list[tuple[str, list[LayerRow]]]:
    """Layers that differ in their number only, together: `encoder.layer.{0-11}.attention.self.query`."""
    groups: dict[tuple[str, int, int, int], list[LayerRow]] = {}
    for row in rows:
        pattern = re.sub(r"\.\d+\.", ".*.", row.name, count=1)
        groups.setdefault((pattern, row.in_features, row.out_features, row.rank), []).append(row)
    return [(_range(pattern, same), same) for (pattern, *_), same in groups.items()]


def _range(pattern: str, rows: list[LayerRow]) -> str:
    numbers = [int(match[1]) for row in rows if (match := re.search(r"\.(\d+)\.", row.name))]
    if not numbers:
        return pattern
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    shown = f"{numbers[0]}-{numbers[-1]}" if whole and len(numbers) > 1 else ",".join(map(str, numbers))
    return pattern.replace("*", f"{{{shown}}}" if len(numbers) > 1 else shown, 1)
