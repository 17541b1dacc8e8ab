"""Ten real steps, timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toy_runs import toy_config, toy_rows
from veneer.bases import find_base, load_tokenizer
from veneer.config import RunConfig
from veneer.data import EncodedTexts, Example
from veneer.errors import LoraError
from veneer.labels import LabelSet
from veneer.tasks import TASKS
from veneer.training import measure as room
from veneer.training.measure import Measurement, measure
from veneer.training.prepare import Split

Base = Callable[..., Path]


def run(config: RunConfig, count: int = 60) -> Measurement:
    base = find_base(config.base)
    examples = [Example(row["text"], None, (row["label"],), i) for i, row in enumerate(toy_rows(count), 1)]
    return measure(config, base, load_tokenizer(base), examples, LabelSet(("bad", "good")), TASKS["single_label"])


def split_of(lengths: list[int]) -> Split:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    texts = EncodedTexts(np.ones(offsets[-1], np.int32), np.zeros(offsets[-1], np.uint8), offsets, 0)
    examples = tuple(Example("x", None, ("a",), i) for i in range(len(lengths)))
    return Split(examples, texts, torch.zeros(len(lengths), dtype=torch.int64))


def test_ten_steps_are_timed_after_one_that_warms_up(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = room.run_step

    def counted(job: Any, optimizer: Any, progress: Any, batches: Any) -> dict[str, Any]:
        steps.append(len(batches[0]))
        before = {name: tensor.detach().clone() for name, tensor in job.model.trainable().items()}
        row = step(job, optimizer, progress, batches)
        assert any(not torch.equal(before[name], tensor) for name, tensor in job.model.trainable().items())
        return row

    monkeypatch.setattr(room, "run_step", counted)
    measured = run(toy_config(tmp_path, tiny_base()))
    assert steps == [4] * 11
    assert (measured.steps, measured.texts, measured.device, measured.precision) == (10, 40, "cpu", "fp32")
    assert measured.seconds > 0
    assert measured.texts_per_second == measured.texts / measured.seconds
    assert measured.peak_bytes is None or measured.peak_bytes > 50e6
    assert measured.padding is None


def test_a_base_that_cannot_pack_says_why(tiny_base: Base, tmp_path: Path) -> None:
    padding = run(toy_config(tmp_path, tiny_base("mpnet"))).padding
    assert padding is not None
    assert "mpnet" in padding


def test_one_text_is_enough(tiny_base: Base, tmp_path: Path) -> None:
    measured = run(toy_config(tmp_path, tiny_base()), 1)
    assert (measured.steps, measured.texts) == (10, 10)


def test_it_stops_when_it_takes_too_long(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_SECONDS", -1.0)
    measured = run(toy_config(tmp_path, tiny_base()))
    assert (measured.steps, measured.texts) == (1, 4)


def test_an_adapter_that_fits_no_layer_is_told(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(LoraError):
        run(toy_config(tmp_path, tiny_base(), lora__target_modules=["nowhere"]))


def test_batches_run_from_short_to_long_after_the_longest() -> None:
    split = split_of([5] * 400 + [50] * 400 + [7])
    batches = room._batches(split, 8, seed=0)
    tokens = [int(split.texts.lengths[batch].sum()) for batch in batches]
    assert len(batches) == 1 + room.STEPS
    assert tokens[0] == max(tokens) == 400
    assert tokens[1:] == sorted(tokens[1:])
    assert (tokens[1], tokens[-1]) == (40, 400)
    assert np.mean(tokens[1:]) == pytest.approx(220, rel=0.2)  # as long as a batch is on average
    assert {len(batch) for batch in batches} == {8}


def test_the_smaller_last_batch_of_an_epoch_is_left_out() -> None:
    assert [len(batch) for batch in room._batches(split_of([5] * 9), 8, seed=0)] == [8] * 11
    assert [len(batch) for batch in room._batches(split_of([5] * 3), 8, seed=0)] == [3] * 11
