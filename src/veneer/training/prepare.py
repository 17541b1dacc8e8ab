"""From files to what training takes: examples read and checked, split, encoded, with targets.

Knows the configuration, the data room and the tasks; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from veneer.config import DataConfig, RunConfig
from veneer.data import (
    Columns,
    EncodedTexts,
    Example,
    Problem,
    Prompt,
    Reading,
    check_splits,
    encode,
    raise_on_errors,
    read_examples,
    render_problems,
    split_examples,
)
from veneer.data.corrections import correct
from veneer.errors import ConfigError, DataError
from veneer.labels import LabelSet
from veneer.tasks import TASKS, Task


@dataclass(frozen=True)
class Split:
    """N texts with their token ids and targets.

    Attributes:
        examples: the rows, N of them.
        texts: their token ids.
        targets: `[N]` int64, or `[N, C]` float32 where a text has any number of labels.
        vectors: `[N, H]` float32 that the head reads, where training does not change them (`vectors.py`); else None.
    """

    examples: tuple[Example, ...]
    texts: EncodedTexts
    targets: Tensor
    vectors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def sample(self, most: int, seed: int) -> Split:
        """At most `most` of the texts, in their order, drawn by a generator of their own from `seed`."""
        if len(self) <= most:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self), most, replace=False))
        texts, lengths = self.texts, self.texts.lengths
        tokens = np.repeat(np.isin(np.arange(len(self)), rows), lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths[rows])])
        chosen = EncodedTexts(texts.ids[tokens], texts.type_ids[tokens], offsets, cut=0)
        vectors = None if self.vectors is None else self.vectors[rows]
        return Split(tuple(self.examples[row] for row in rows), chosen, self.targets[rows], vectors)


@dataclass(frozen=True)
class Material:
    """All that is known of a run's data.

    Attributes:
        task: single-label or multi-label.
        labels: the C labels.
        examples: name of a split -> its rows, before encoding.
        fingerprints: name of a file -> hash of its texts and labels.
        rows: name of a file -> its rows, before anything is split off.
        warnings: what is odd, but can be trained on.
        corrected: training rows whose labels are those of a file of corrections.
    """

    task: Task
    labels: LabelSet
    examples: dict[str, tuple[Example, ...]]
    fingerprints: dict[str, str]
    rows: dict[str, int]
    warnings: tuple[Problem, ...]
    corrected: int = 0

    @property
    def pair(self) -> bool:
        """Whether texts come in pairs."""
        return self.examples["train"][0].pair is not None


def columns_of(data: DataConfig) -> Columns:
    """The data section's columns, with a file of label names read.

    Raises:
        ConfigError: the file of label names cannot be read.
    """
    label = data.label if isinstance(data.label, list) else [data.label]
    names = data.label_names
    if isinstance(names, str):
        try:
            names = [line.strip() for line in Path(names).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"data.label_names: cannot read {data.label_names}: {error}") from None
    given = tuple(names) if names else None
    slices = tuple(data.slice_columns)
    return Columns(data.text, data.pair, tuple(label), data.label_separator, given, data.encoding, slices)


def read_material(config: RunConfig) -> Material:
    """Read, check and split the files of a configuration.

    Raises:
        ConfigError: no training file is given.
        DataError: files cannot be used; every problem of all of them is listed.
    """
    data = config.data
    if data.train is None:
        raise ConfigError("no training file. Fix: --train FILE, or data.train in the configuration")
    columns = columns_of(data)
    files = {"train": data.train, "dev": data.dev, "test": data.test}
    sources = {name: source for name, source in files.items() if source is not None}
    readings = _read_all(sources, columns)
    multi_label = _is_multi_label(config.task, readings["train"])
    corrected = 0
    if data.corrections is not None:
        readings["train"], corrected = correct(readings["train"], data.corrections, columns.label_names, multi_label)
    labels = LabelSet(columns.label_names) if columns.label_names else _label_set(readings["train"])
    problems = [problem for reading in readings.values() for problem in reading.problems]
    problems += check_splits(readings["train"], readings.get("dev"), readings.get("test"), labels, multi_label)
    raise_on_errors(problems)
    try:
        examples = _split(config, readings, multi_label)
    except DataError as error:
        raise _with_problems([str(error)], problems) from None
    return Material(
        TASKS["multi_label" if multi_label else "single_label"],
        labels,
        examples,
        {name: reading.fingerprint for name, reading in readings.items()},
        {name: len(reading.examples) for name, reading in readings.items()},
        tuple(problems),
        corrected,
    )


def _read_all(sources: dict[str, str], columns: Columns) -> dict[str, Reading]:
    """Every source read, or one error that tells what is wrong with all of them."""
    readings: dict[str, Reading] = {}
    unreadable = []
    for name, source in sources.items():
        try:
            readings[name] = read_examples(source, columns, default_split=_hub_split(name))
        except DataError as error:
            unreadable.append(str(error))
    if unreadable:
        raise _with_problems(unreadable, [problem for reading in readings.values() for problem in reading.problems])
    return readings


def _with_problems(errors: Sequence[str], problems: Sequence[Problem]) -> DataError:
    """One error that tells the rows' problems too."""
    others = render_problems(problems)
    return DataError("\n".join([*errors, *([others] if others else [])]))


def encode_split(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    task: Task,
    labels: LabelSet,
    prompt: Prompt | None = None,
) -> Split:
    """Token ids and targets of labelled examples, in their prompt where label words are read."""
    pairs = [example.pair or "" for example in examples] if examples[0].pair is not None else None
    texts = encode(tokenizer, [example.text for example in examples], pairs, max_length, prompt)
    ids = [[labels.id(label) for label in example.labels] for example in examples]
    return Split(tuple(examples), texts, task.targets(ids, len(labels)))


def _hub_split(name: str) -> str:
    return {"train": "train", "dev": "validation", "test": "test"}[name]


def _is_multi_label(task: str, train: Reading) -> bool:
    return train.multi_label if task == "auto" else task == "multi_label"


def _label_set(train: Reading) -> LabelSet:
    return LabelSet.from_labels(label for example in train.examples for label in example.labels)


def _split(config: RunConfig, readings: dict[str, Reading], multi_label: bool) -> dict[str, tuple[Example, ...]]:
    given = {name: reading.examples for name, reading in readings.items()}
    dev_fraction = 0.0 if "dev" in given else config.data.dev_fraction
    test_fraction = 0.0 if "test" in given else config.data.test_fraction
    try:
        train, dev, test = split_examples(given["train"], (dev_fraction, test_fraction), config.seed, multi_label)
    except DataError as error:
        raise DataError(f"{readings['train'].source}: {error}") from None
    parts = {"train": tuple(train), "dev": given.get("dev", tuple(dev)), "test": given.get("test", tuple(test))}
    if not parts["train"] or not parts["dev"]:
        raise DataError(
            f"{readings['train'].source}: {len(given['train'])} rows are too few to split off a development set. "
            "Fix: give a larger file, or --dev FILE"
        )
    return {name: examples for name, examples in parts.items() if examples}
