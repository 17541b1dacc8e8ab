"""The contestants of the training benchmarks: veneer's own loop, and PEFT with transformers' Trainer.

All train rank 8, alpha 16, dropout 0.1 on query, key, value and dense with AdamW, on texts that are tokenised beforehand. A
round is a sample of the steps of one epoch: texts (or batches, as the contestant's own sampler makes them) are sorted by
length and taken at even distances from a random start, so that every round sees the set's own mix of lengths.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _data import Texts
from _measure import Sample, Spread, Work, markdown, progress
from numpy.typing import NDArray

BASE = "minilm"
MAX_LENGTH = 128
RANK, ALPHA, DROPOUT = 8, 16, 0.1
TARGETS = ("query", "key", "value", "dense")
LEARNING_RATE, WEIGHT_DECAY = 5e-4, 0.01

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class TrainerWay:
    """How PEFT and the Trainer are used.

    Attributes:
        autocast: `bf16=True` for the Trainer.
        grouped: batches of texts of like length, as `train_sampling_strategy="group_by_length"` makes them.
        full_length: every text padded to `MAX_LENGTH`, not to the longest of its batch.
        low_precision_base: the base loaded in bf16; PEFT keeps the adapter in float32.
        base_dropout: the base's own dropout, which its configuration asks for, stays on.
    """

    autocast: bool = False
    grouped: bool = False
    full_length: bool = False
    low_precision_base: bool = False
    base_dropout: bool = True


def representative(sizes: Indices, count: int, seed: int) -> Indices:
    """`count` indices into `sizes` (all, where there are fewer): evenly spread over the order by size, then shuffled."""
    rng = np.random.default_rng(seed)
    if count >= len(sizes):
        return rng.permutation(len(sizes))
    places = ((np.arange(count) + rng.random()) * (len(sizes) / count)).astype(np.int64)
    return rng.permutation(np.argsort(sizes, kind="stable")[places])


def flops(frozen: int, lora: int) -> int:
    """Of a step, for one row: forward 2N + 2P, backward 2N + 4P, with N frozen and P LoRA parameters in the adapted layers."""
    return 4 * frozen + 6 * lora


def build_veneer(texts: Texts, pooling: str, device: str, base_dropout: bool = True) -> tuple[Work, dict[str, Any]]:
    """veneer's training loop as `veneer train` runs it: batching, steps, its log rows, one (tiny) evaluation, a checkpoint."""
    import torch
    from rich.console import Console

    from veneer import lora
    from veneer.adaptation import AdapterPlan, adapt, turn_on_dropout
    from veneer.bases import find_base, load_tokenizer
    from veneer.config import TrainingSettings
    from veneer.data import Example
    from veneer.labels import LabelSet
    from veneer.model import build_classifier
    from veneer.precision import choose_precision
    from veneer.tasks import TASKS, Objective
    from veneer.training.checkpoint import Checkpoints
    from veneer.training.loop import Job, fit
    from veneer.training.prepare import encode_split
    from veneer.training.tracking import Tracker

    base, place = find_base(BASE), torch.device(device)
    precision = choose_precision("auto", place)
    examples = [
        Example(text, None, (texts.labels[i],), row) for row, (text, i) in enumerate(zip(texts.texts, texts.ids, strict=True), 1)
    ]
    task, tokenizer = TASKS["single_label"], load_tokenizer(base)
    split = encode_split(examples, tokenizer, MAX_LENGTH, task, LabelSet(texts.labels))
    torch.manual_seed(0)
    model = build_classifier(base, len(texts.labels), pooling=pooling, dtype=precision.dtype)
    adapt(model, AdapterPlan(rank=RANK, alpha=ALPHA, dropout=DROPOUT, target_modules=TARGETS))
    turn_on_dropout(model, None if base_dropout else 0.0)
    model.to(place)
    dev = _part(split, np.arange(min(8, len(split))))
    rows = lora.adapted_layers(model)
    frozen, adapter = _sizes(rows)
    # In a narrowed last layer all but keys and values see one row a text, not one a token.
    last = (model.narrowed_query or "").partition(".attention")[0]
    narrow = [row for row in rows if last and row.name.startswith(f"{last}.") and not row.name.endswith(("key", "value"))]
    narrow_flops = flops(*_sizes(narrow))
    facts = {
        "frozen": frozen,
        "lora": adapter,
        "precision": precision.name,
        "pooling": model.plan.pooling,
    }

    def work(seed: int, count: int, batch_size: int) -> Sample:
        part = _part(split, representative(split.texts.lengths, count, seed))
        settings = TrainingSettings(
            epochs=1,
            batch_size=batch_size,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            checkpoint_every=1_000_000_000,
            precision=precision.name,
        )
        job = Job(model, task, Objective(), part, dev, settings, "accuracy", seed)
        with tempfile.TemporaryDirectory() as name, Tracker(Path(name), Console(quiet=True)) as tracker:
            progress = fit(job, Checkpoints(Path(name), {}), tracker)
        tokens = int(part.texts.lengths.sum())
        # Of the steps alone: the Trainer is not asked to evaluate or to save, so neither may count here.
        done = tokens * (flops(frozen, adapter) - narrow_flops) + len(part) * narrow_flops
        counts = {"texts": len(part), "tokens": tokens, "places": tokens, "flops": done}
        return {"seconds": progress.seconds, **counts, **_device_peak(device)}

    return work, facts


def _sizes(rows: Sequence[Any]) -> tuple[int, int]:
    """Frozen and LoRA parameters of adapted layers."""
    return sum(row.in_features * row.out_features for row in rows), sum(row.parameters for row in rows)


def _part(split: Any, chosen: Indices) -> Any:
    """The `chosen` rows of a `Split`."""
    from veneer.data import EncodedTexts
    from veneer.training.prepare import Split

    texts = split.texts
    spans = [slice(texts.offsets[i], texts.offsets[i + 1]) for i in chosen]
    offsets = np.concatenate([[0], np.cumsum(texts.lengths[chosen])])
    encoded = EncodedTexts(
        np.concatenate([texts.ids[span] for span in spans]), np.concatenate([texts.type_ids[span] for span in spans]), offsets, 0
    )
    return Split(tuple(split.examples[i] for i in chosen), encoded, split.targets[chosen])


def build_trainer(texts: Texts, way: TrainerWay, device: str) -> tuple[Work, dict[str, Any]]:
    """PEFT's model in transformers' Trainer, timed from the first to the last step: its set-up and tear-down do not count."""
    import transformers
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments

    from veneer.bases import find_base

    transformers.logging.disable_progress_bar()
    path = find_base(BASE).path
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoded = tokenizer(
        list(texts.texts), truncation=True, max_length=MAX_LENGTH, padding="max_length" if way.full_length else False
    )
    dataset = Dataset.from_dict({**encoded, "label": list(texts.ids)})
    lengths = np.array([sum(mask) for mask in encoded["attention_mask"]], dtype=np.int64)
    model = _peft_model(path, len(texts.labels), way)
    counts = {"tokens": 0, "places": 0, "texts": 0}
    model.register_forward_pre_hook(lambda module, given, named: _count(counts, named["attention_mask"]), with_kwargs=True)
    clock = _clock(device)

    def work(seed: int, count: int, batch_size: int) -> Sample:
        counts.update(tokens=0, places=0, texts=0)
        order = _epoch_sample(lengths, count, batch_size, way.grouped, seed)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                num_train_epochs=1,
                per_device_train_batch_size=batch_size,
                learning_rate=LEARNING_RATE,
                weight_decay=WEIGHT_DECAY,
                bf16=way.autocast,
                train_sampling_strategy="sequential",  # the epoch's order is made above, and only a sample of it is run
                seed=seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=device == "cpu",
                dataloader_pin_memory=device != "cpu",
            )
            collator = DataCollatorWithPadding(tokenizer)
            trainer = Trainer(model, arguments, train_dataset=dataset.select(order), data_collator=collator, callbacks=[clock])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            # each Trainer wraps the model's forward for autocast once more
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        numbers = {name: int(number) for name, number in counts.items()}
        return {"seconds": clock.seconds, **numbers, **_device_peak(device)}

    return work, {}


def _peft_model(path: Path, classes: int, way: TrainerWay) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    options = {} if way.base_dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    dtype = torch.bfloat16 if way.low_precision_base else torch.float32
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=classes, dtype=dtype, **options)
    config = LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=list(TARGETS))
    return get_peft_model(model, config)


def _count(counts: dict[str, Any], mask: Any) -> None:
    counts["texts"] += len(mask)
    counts["places"] += mask.numel()
    counts["tokens"] = counts["tokens"] + mask.sum()  # a tensor: no waiting for a GPU


def _epoch_sample(lengths: Indices, count: int, batch_size: int, grouped: bool, seed: int) -> list[int]:
    """About `count` rows: whole batches of one epoch over all rows, as the Trainer's own samplers order it."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    generator = torch.Generator().manual_seed(seed)
    if grouped:
        order = np.array(get_length_grouped_indices(lengths.tolist(), batch_size, generator=generator))
    else:
        order = torch.randperm(len(lengths), generator=generator).numpy()
    batches = order[: max(1, len(order) // batch_size) * batch_size].reshape(-1, min(batch_size, len(order)))
    chosen = representative(lengths[batches].max(axis=1), math.ceil(count / batch_size), seed)
    return [int(row) for row in batches[chosen].ravel()]


def _clock(device: str) -> Any:
    """A callback that takes the time from the first step to the end of the last."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        seconds = 0.0
        _start = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            _wait(device)
            self._start = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            _wait(device)
            self.seconds = time.perf_counter() - self._start

    return Clock()


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _device_peak(device: str) -> Sample:
    if device != "cuda":
        return {}
    import torch

    return {"device_bytes": float(torch.cuda.max_memory_allocated())}


def best_batch_size(name: str, run: Any, sizes: Sequence[int]) -> tuple[int, dict[int, float]]:
    """The batch size with the most texts a second, and the texts a second of each: the better of two passes over `sizes`.

    Args:
        run: `run(seed, batch_size)` gives a sample; the first one is a warm-up.
    """
    speeds = dict.fromkeys(sizes, 0.0)
    if len(sizes) > 1:
        run(0, sizes[0])
        for seed in (1, 2):
            for size in sizes:
                sample = run(seed, size)
                speeds[size] = max(speeds[size], sample["texts"] / sample["seconds"])
        progress(f"batch sizes of {name}: " + ", ".join(f"{size}: {speed:,.0f} texts/s" for size, speed in speeds.items()))
    best = max(sizes, key=lambda size: speeds[size])
    if len(sizes) > 1 and best == max(sizes):
        progress(f"{name} is fastest at the largest of them: a longer --sweep may find a faster one")
    return best, speeds


def report(names: dict[str, str], samples: dict[str, list[Sample]], peaks: dict[str, float], facts: dict[str, Any]) -> None:
    """Print a row a contestant, and how many times as fast those whose key begins with `veneer` are as the others."""
    peak, work = max(peaks.values()), flops(facts["frozen"], facts["lora"])
    print("matrix-product peak: " + ", ".join(f"{name} {flops / 1e9:,.0f} GFLOP/s" for name, flops in peaks.items()))
    print(
        f"work a token: forward 2N+2P, backward 2N+4P = {work / 1e6:.1f} MFLOP "
        f"(N = {facts['frozen']:,} frozen, P = {facts['lora']:,} LoRA parameters of the adapted layers)\n"
    )
    columns = ["median (least–most) of rounds", "texts/s", "tokens/s, no padding", "padding", "tokens/text"]
    columns += ["share of peak", "memory MiB"]
    print(markdown(columns, [_row(names[key], some, work, peak) for key, some in samples.items()]) + "\n")
    ours = [key for key in samples if key.startswith("veneer")]
    others = [key for key in samples if key not in ours]
    if ours and others:
        lines = [[names[key], *(_ratio(samples[key], samples[other]) for other in others)] for key in ours]
        print(markdown(["texts/s, times that of", *(f"({key})" for key in others)], lines))


def _row(name: str, samples: Sequence[Sample], work: int, peak: float) -> list[str]:
    tokens = sum(sample["tokens"] for sample in samples)
    return [
        name,
        Spread.of(_speeds(samples)).show(),
        Spread.of(_speeds(samples, "tokens")).show(),
        f"{1 - tokens / sum(sample['places'] for sample in samples):.1%}",
        f"{tokens / sum(sample['texts'] for sample in samples):.1f}",
        Spread.of([one.get("flops", one["tokens"] * work) / one["seconds"] / peak for one in samples]).show(".1%"),
        f"{max(sample.get('device_bytes', sample['peak_bytes']) for sample in samples) / 2**20:,.0f}",
    ]


def _ratio(ours: Sequence[Sample], theirs: Sequence[Sample]) -> str:
    """Ratio of the medians, and the least and most of the rounds' own ratios."""
    medians = Spread.of(_speeds(ours)).median / Spread.of(_speeds(theirs)).median
    rounds = [one / other for one, other in zip(_speeds(ours), _speeds(theirs), strict=True)]
    return f"{medians:.1f}× ({min(rounds):.1f}–{max(rounds):.1f})"


def _speeds(samples: Sequence[Sample], what: str = "texts") -> list[float]:
    return [sample[what] / sample["seconds"] for sample in samples]
