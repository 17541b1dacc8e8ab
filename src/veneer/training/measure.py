"""What training will take on this machine: some real steps on a sample of the texts, timed.

Knows the one path from examples to an optimiser step; writes nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from veneer.bases import BaseLocation
from veneer.config import RunConfig
from veneer.data import Example
from veneer.labels import LabelSet
from veneer.packing import plan_training
from veneer.tasks import Task
from veneer.training.checkpoint import Progress
from veneer.training.loop import run_step, start_optimizer
from veneer.training.prepare import Split, encode_split
from veneer.training.setup import make_job, make_model, precision_of
from veneer.training.verbaliser import prompt_of

STEPS = 10
MOST_SECONDS = 60.0  # after which no further step is begun
MOST_SAMPLED = 5000  # texts the measured batches are drawn from


@dataclass(frozen=True)
class Measurement:
    """What a few training steps took.

    Attributes:
        steps: that were timed, after one that was not.
        texts: in them.
        seconds: of them.
        peak_bytes: most memory held at any time, of the GPU or, on a CPU, of the process; None where the system does not say.
        device: cpu or cuda.
        precision: of the frozen base.
        padding: why texts are padded, None where they are packed.
    """

    steps: int
    texts: int
    seconds: float
    peak_bytes: int | None
    device: str
    precision: str
    padding: str | None

    @property
    def texts_per_second(self) -> float:
        """Texts trained on, a second."""
        return self.texts / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"texts_per_second": round(self.texts_per_second, 1), "seconds": round(self.seconds, 3)}


def measure(
    config: RunConfig,
    base: BaseLocation,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    labels: LabelSet,
    task: Task,
) -> Measurement:
    """Time `STEPS` training steps as `config` asks for them, on batches from the shortest to the longest of a sample.

    The longest batch goes first, untimed: it warms up, and holds most memory.

    Raises:
        VeneerError: the base or the adapter cannot be built.
    """
    prompt = prompt_of(config, tokenizer, task, labels, pair=examples[0].pair is not None)
    split = encode_split(_sample(config, examples), tokenizer, config.data.max_length, task, labels, prompt)
    precision = precision_of(config)
    model = make_model(config, base, len(labels), precision, prompt)
    job = make_job(model, config, task, labels, split, split, precision)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    longest, *batches = _batches(split, job.settings.batch_size, config.seed)
    optimizer, progress = start_optimizer(job), Progress(step=1)
    model.train()
    run_step(job, optimizer, progress, [longest])
    progress.seconds, progress.texts, steps = 0.0, 0, 0
    started = time.perf_counter()
    for batch in batches:
        run_step(job, optimizer, progress, [batch])
        steps += 1
        if time.perf_counter() - started > MOST_SECONDS:
            break
    return Measurement(
        steps,
        progress.texts,
        progress.seconds,
        _peak_bytes(model.device),
        model.device.type,
        precision.name,
        model.padding_reason,
    )


def _sample(config: RunConfig, examples: Sequence[Example]) -> Sequence[Example]:
    if len(examples) <= MOST_SAMPLED:
        return examples
    rows = np.sort(np.random.default_rng(config.seed).choice(len(examples), MOST_SAMPLED, replace=False))
    return [examples[row] for row in rows.tolist()]


def _batches(split: Split, batch_size: int, seed: int) -> list[np.ndarray[Any, Any]]:
    """The batch with most tokens, then `STEPS` evenly spread from the one with fewest to the one with most."""
    lengths = split.texts.lengths
    batches = sorted(plan_training(lengths, batch_size, seed=seed, epoch=0), key=lambda batch: int(lengths[batch].sum()))
    if len(batches) > 1:  # the last, smaller one stands for nothing
        batches = [batch for batch in batches if len(batch) == batch_size]
    middle = (np.arange(STEPS) + 0.5) / STEPS * len(batches)
    return [batches[-1], *(batches[int(place)] for place in middle)]


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource  # Windows has none
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
