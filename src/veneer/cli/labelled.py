"""A labelled file as a run sees it: its logits and targets. Shared by the commands that judge or calibrate a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from veneer.cli.flags import overrides_of
from veneer.cli.output import messages, print_lines, progress_bar
from veneer.cli.runs import run_config
from veneer.data import Example, Key, Reading, check_labels, raise_on_errors, read_examples, render_problems, text_key
from veneer.errors import DataError, InputError, UnlabelledError
from veneer.tasks import TASKS, Task
from veneer.training.prepare import columns_of

if TYPE_CHECKING:
    from veneer.config import RunConfig
    from veneer.predictor import Predictor


COLUMN_FLAGS = ("text", "pair", "label", "label_separator", "label_names", "encoding")


@dataclass(frozen=True)
class Labelled:
    """N labelled texts.

    Attributes:
        logits: `[N, C]` float32.
        targets: as `task.targets` gives them.
        texts: N keys, equal for rows with the same text.
    """

    task: Task
    logits: Tensor
    targets: Tensor
    texts: list[Key]


def config_for(predictor: Predictor, folder: Path, parameters: Mapping[str, Any]) -> RunConfig:
    """The configuration of the run, with the column flags among a command's parameters laid over it.

    Raises:
        ArtifactError: the run's configuration is gone, and the flags do not say enough.
    """
    given = overrides_of({name: parameters[name] for name in COLUMN_FLAGS})
    config = run_config(folder, given, {"data.text": "--text", "data.label": "--label"})
    if config.data.label_names is not None and "data.label_names" not in given:
        config.data.label_names = list(predictor.info.labels)  # the file they came from may be gone
    return config


def read_labelled(predictor: Predictor, config: RunConfig, source: str, doing: str) -> Labelled:
    """Read and check a file as `read_checked` does, and run the model on it.

    Args:
        doing: what the progress bar says.

    Raises:
        InputError: as `read_checked`.
    """
    return run_on(predictor, read_checked(predictor, config, source).examples, doing)


def read_checked(predictor: Predictor, config: RunConfig, source: str) -> Reading:
    """A file whose labels the model knows.

    Raises:
        DataError: the file cannot be used; every problem of it is listed.
        InputError: the model wants pairs and no column is known for the second texts.
    """
    info = predictor.info
    if info.pair and config.data.pair is None:
        raise InputError(f"this model was trained on pairs of texts. Fix: --pair COLUMN of {source}")
    columns = replace(columns_of(config.data), slices=())  # scored as a whole: another file need not have them
    try:
        reading = read_examples(source, columns, default_split="test")
    except UnlabelledError as error:
        raise DataError(f"{error}\n  To classify a file without labels: veneer predict DIR --file FILE --out FILE") from None
    problems = [*reading.problems, *check_labels(reading, info.label_set, info.task == "multi_label")]
    raise_on_errors(problems)
    if problems:
        print_lines(messages(), render_problems(problems))
    return reading


def run_on(predictor: Predictor, examples: tuple[Example, ...] | list[Example], doing: str) -> Labelled:
    """The model's logits of examples whose labels it knows."""
    info = predictor.info
    task, labels = TASKS[info.task], info.label_set  # type: ignore[index]
    pairs = [example.pair or "" for example in examples] if info.pair else None
    with progress_bar(doing, len(examples)) as progress:
        logits = predictor.logits([example.text for example in examples], pairs, progress=progress)
    targets = task.targets([[labels.id(label) for label in example.labels] for example in examples], len(labels))
    return Labelled(task, logits, targets, list(map(text_key, examples)))
