"""Which texts of a file a run was trained on: what is fitted to those promises what no other text keeps."""

from __future__ import annotations

from pathlib import Path

from veneer.cli.output import messages, print_lines
from veneer.cli.runs import run_config
from veneer.data import Example, Reading
from veneer.data.checks import text_key
from veneer.errors import DataError, InputError
from veneer.run_info import ArtifactInfo
from veneer.training.prepare import read_material

MOST_TRAINED = 0.5  # with a larger share of texts trained on, a file is not one of other texts
_FIX = "Fix: labelled texts that took no part in training, or no --data: the run's own dev texts are taken then"


def untrained(folder: Path, info: ArtifactInfo, reading: Reading) -> tuple[Example, ...]:
    """The examples of a file without those whose text the run was trained on; how many those are is told.

    Where the training files can no longer be read, that is told, and only the fingerprint of the whole file is looked at.

    Raises:
        DataError: it is the training file, or most of its texts were trained on.
    """
    if reading.fingerprint == info.data_fingerprint:
        raise DataError(f"{reading.source}: these are the texts that {folder} was trained on. {_FIX}")
    try:
        trained = _trained_texts(folder, info)
    except InputError as error:
        reason = str(error).splitlines()[0]
        print_lines(
            messages(), f"whether {reading.source} has texts of the training is not known, as they cannot be read: {reason}"
        )
        return reading.examples
    kept = tuple(example for example in reading.examples if text_key(example) not in trained)
    total, count = len(reading.examples), len(reading.examples) - len(kept)
    if count > MOST_TRAINED * total:
        raise DataError(f"{reading.source}: {folder} was trained on {count:,} of its {total:,} texts. {_FIX}")
    if count:
        print_lines(messages(), f"{reading.source}: {count:,} of {total:,} texts are left out, as {folder} was trained on them")
    return kept


def _trained_texts(folder: Path, info: ArtifactInfo) -> set[tuple[str, str | None]]:
    config = run_config(folder)
    if config.data.label_names is not None:
        config.data.label_names = list(info.labels)  # the file they came from may be gone
    return {text_key(example) for example in read_material(config).examples["train"]}
