"""The flags that are short forms of configuration keys: their help is the keys' own description.

Knows typer and the configuration's keys; does not know what any command does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.models import OptionInfo

from veneer.config import SHORT_FORMS
from veneer.config_file import expand_short_forms, known_keys, parse_assignments

_HELP = known_keys()


def _flag(name: str, panel: str, metavar: str | None) -> OptionInfo:
    help_text = escape(_HELP[SHORT_FORMS[name]])  # a bracket in it is no markup
    option: OptionInfo = typer.Option(
        f"--{name.replace('_', '-')}", help=help_text, metavar=metavar, rich_help_panel=panel, show_default=False
    )
    return option


_DATA, _MODEL, _TRAINING = "Data", "Model and adapter", "Training"

Train = Annotated[str | None, _flag("train", _DATA, "FILE")]
Dev = Annotated[str | None, _flag("dev", _DATA, "FILE")]
Test = Annotated[str | None, _flag("test", _DATA, "FILE")]
Corrections = Annotated[str | None, _flag("corrections", _DATA, "FILE")]
Text = Annotated[str | None, _flag("text", _DATA, "COLUMN")]
Pair = Annotated[str | None, _flag("pair", _DATA, "COLUMN")]
Label = Annotated[list[str] | None, _flag("label", _DATA, "COLUMN")]
LabelSeparator = Annotated[str | None, _flag("label_separator", _DATA, "TEXT")]
LabelNames = Annotated[str | None, _flag("label_names", _DATA, "FILE")]
MaxLength = Annotated[int | None, _flag("max_length", _DATA, "N")]
Encoding = Annotated[str | None, _flag("encoding", _DATA, "NAME")]

Base = Annotated[str | None, _flag("base", _MODEL, "BASE")]
Task = Annotated[str | None, _flag("task", _MODEL, "NAME")]
BasePrecision = Annotated[str | None, _flag("base_precision", _MODEL, "NAME")]
Pooling = Annotated[str | None, _flag("pooling", _MODEL, "NAME")]
Method = Annotated[str | None, _flag("method", _MODEL, "NAME")]
Template = Annotated[str | None, _flag("template", _MODEL, "TEXT")]
LengthNormalised = Annotated[bool | None, _flag("length_normalised", _MODEL, None)]
Preset = Annotated[str | None, _flag("preset", _MODEL, "NAME")]
Rank = Annotated[int | None, _flag("rank", _MODEL, "N")]
Alpha = Annotated[float | None, _flag("alpha", _MODEL, "X")]
Dropout = Annotated[float | None, _flag("dropout", _MODEL, "X")]

Epochs = Annotated[int | None, _flag("epochs", _TRAINING, "N")]
BatchSize = Annotated[int | None, _flag("batch_size", _TRAINING, "N")]
LearningRate = Annotated[float | None, _flag("learning_rate", _TRAINING, "X")]
Precision = Annotated[str | None, _flag("precision", _TRAINING, "NAME")]
Metric = Annotated[str | None, _flag("metric", _TRAINING, "NAME")]
Out = Annotated[str | None, _flag("out", _TRAINING, "DIR")]
Seed = Annotated[int | None, _flag("seed", _TRAINING, "N")]

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="any key of the configuration, such as training.schedule=cosine"),
]

# Shared by the commands that take a run folder.
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="run folder", show_default=False)]
WhereBase = Annotated[
    str | None, typer.Option("--base", help="where the base is now, if not where training found it", show_default=False)
]
OtherBits = Annotated[
    str | None,
    typer.Option("--base-precision", metavar="NAME", help="auto | nf4 | int8, if not as in training", show_default=False),
]
Raw = Annotated[bool, typer.Option("--raw", help="leave the calibration out: plain probabilities and decisions")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else")]


def overrides_of(parameters: Mapping[str, Any], settings: list[str] | None = None) -> dict[str, Any]:
    """Dotted key -> value of the flags that were given, `--set` last; one `--label` is a column, several are a list."""
    given = {name: value for name, value in parameters.items() if name in SHORT_FORMS and value not in (None, [], ())}
    if len(given.get("label", ())) == 1:
        given["label"] = given["label"][0]
    return {**expand_short_forms(given), **parse_assignments(settings or [])}
