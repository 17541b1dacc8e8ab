"""Memory and speed of training over a base in four bits, against PEFT, transformers' Trainer and bitsandbytes on one CUDA GPU.

Not measured yet: no figure of this script is published, and it has only been run on a processor with --tiny.
See README.md beside this file for what is compared and how to read the table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _measure import Contestant, Sample, Spread, Work, Worker, interleave, markdown, parser, progress, start, write_json
from _training import _clock, _device_peak
from train_cuda import _device

RANK, ALPHA, DROPOUT = 8, 16, 0.1
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LEARNING_RATE, WEIGHT_DECAY = 2e-4, 0.01
CLASSES = 2


@dataclass(frozen=True)
class Shape:
    """A Qwen2 of random weights: none is at hand without a network, and neither memory nor speed depends on their values.

    Attributes:
        inner: width of the feed-forward layer.
    """

    layers: int
    width: int
    inner: int
    heads: int
    vocabulary: int


FULL = Shape(layers=24, width=2048, inner=5504, heads=16, vocabulary=151_936)  # as Qwen1.5-1.8B has them
TINY = Shape(layers=2, width=64, inner=192, heads=4, vocabulary=512)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--texts", type=int, default=320, help="texts a round")
    flags.add_argument("--batch-size", type=int, default=8, help="texts a step")
    flags.add_argument("--length", type=int, default=128, help="tokens of every text")
    flags.add_argument(
        "--tiny", action="store_true", help="a tiny model, on the processor where there is no GPU: a trial, no measurement"
    )
    options = flags.parse_args()
    device = "the processor" if options.tiny and not _has_gpu() else _device()
    machine = start(options)
    print(f"{device}\n")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        weights = save_base(TINY if options.tiny else FULL, folder)
        place = "cuda" if _has_gpu() else "cpu"
        settings = {"folder": name, "length": options.length, "batch_size": options.batch_size, "device": place}
        call = {"count": options.texts}
        contestants = {
            "veneer": Contestant("veneer, nf4", build_veneer, settings | {"base_precision": "nf4"}, call),
            "veneer bf16": Contestant("veneer, bf16", build_veneer, settings | {"base_precision": "auto"}, call),
            "PEFT": Contestant("PEFT + Trainer + bitsandbytes, nf4", build_peft, settings, call),
        }
        workers = {}
        for key, contestant in contestants.items():
            progress(f"starting {contestant.name}")
            workers[key] = stack.enter_context(Worker(contestant, options.threads))
            workers[key].run(seed=1000, count=4 * options.batch_size)  # warm-up
        facts = {key: worker.facts for key, worker in workers.items()}
        samples = interleave(workers, options.rounds)
    names = {key: contestant.name for key, contestant in contestants.items()}
    print(
        f"Qwen2 of {weights / 1e9:.2f} billion random weights; batch {options.batch_size} × {options.length} tokens, gradient "
        f"checkpointing, rank {RANK} on every linear layer, AdamW, dropout {DROPOUT}"
    )
    report(names, samples, facts)
    write_json(options.json, machine, options, device=device, weights=weights, names=names, facts=facts, samples=samples)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def save_base(shape: Shape, folder: Path) -> int:
    """Save a random base without head in bf16; how many weights it has."""
    import torch
    from transformers import AutoModel, Qwen2Config

    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.inner,
        pad_token_id=0,
    )
    progress(f"writing a base of {shape.layers} layers, width {shape.width}")
    torch.manual_seed(0)
    model = AutoModel.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def draw_ids(folder: str, count: int, length: int, seed: int) -> Any:
    """`[count, length]` random token ids, none of them the padding."""
    from transformers import AutoConfig

    rng = np.random.default_rng(seed)
    return rng.integers(1, AutoConfig.from_pretrained(folder).vocab_size, (count, length), dtype=np.int32)


def build_veneer(folder: str, length: int, batch_size: int, device: str, base_precision: str) -> tuple[Work, dict[str, Any]]:
    """veneer's training loop as `veneer train` runs it."""
    from rich.console import Console

    from veneer.bases import find_base
    from veneer.config_file import load_config
    from veneer.labels import LabelSet
    from veneer.tasks import TASKS
    from veneer.training.checkpoint import Checkpoints
    from veneer.training.loop import fit
    from veneer.training.setup import make_job, make_model, precision_of
    from veneer.training.tracking import Tracker

    config = load_config(
        None,
        {
            "base_precision": base_precision,
            "lora.rank": RANK,
            "lora.alpha": ALPHA,
            "lora.dropout": DROPOUT,
            "training.epochs": 1,
            "training.batch_size": batch_size,
            "training.learning_rate": LEARNING_RATE,
            "training.weight_decay": WEIGHT_DECAY,
            "training.gradient_checkpointing": True,
            "training.precision": "bf16",
            "training.checkpoint_every": 10**9,
            "evaluation.metric": "accuracy",
        },
    )
    precision, task, labels = precision_of(config), TASKS["single_label"], LabelSet(("no", "yes"))
    model = make_model(config, find_base(folder), CLASSES, precision)
    facts = {"loaded_bytes": _allocated(device)}

    def work(seed: int, count: int) -> Sample:
        train, dev = (_split(draw_ids(folder, rows, length, seed), seed) for rows in (count, batch_size))
        job = make_job(model, config, task, labels, train, dev, precision)
        _forget_peak(device)
        with tempfile.TemporaryDirectory() as name, Tracker(Path(name), Console(quiet=True)) as tracker:
            done = fit(job, Checkpoints(Path(name), {}), tracker)
        return {"seconds": done.seconds, "texts": count, "tokens": count * length, **_peaks(device)}

    return work, facts


def _split(ids: Any, seed: int) -> Any:
    """The rows of `ids` as a `Split` with random targets."""
    import torch

    from veneer.data import EncodedTexts, Example
    from veneer.training.prepare import Split

    count, length = ids.shape
    texts = EncodedTexts(ids.reshape(-1), np.zeros(ids.size, np.uint8), np.arange(count + 1) * length, 0)
    targets = torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    return Split(tuple(Example("", None, ("no",), row) for row in range(count)), texts, targets)


def build_peft(folder: str, length: int, batch_size: int, device: str) -> tuple[Work, dict[str, Any]]:
    """PEFT's model over bitsandbytes' layers in transformers' Trainer, prepared as PEFT's guide to quantisation has it."""
    from datasets import Dataset
    from transformers import PrinterCallback, Trainer, TrainingArguments

    model, clock = _peft_model(folder, device), _clock(device)
    facts = {"loaded_bytes": _allocated(device)}

    def work(seed: int, count: int) -> Sample:
        ids = draw_ids(folder, count, length, seed)
        labels = np.random.default_rng(seed).integers(0, CLASSES, count)
        rows = Dataset.from_dict({"input_ids": ids, "attention_mask": np.ones_like(ids), "label": labels})
        with tempfile.TemporaryDirectory() as name:
            arguments = TrainingArguments(
                name,
                num_train_epochs=1,
                per_device_train_batch_size=batch_size,
                learning_rate=LEARNING_RATE,
                weight_decay=WEIGHT_DECAY,
                bf16=True,
                gradient_checkpointing=True,
                gradient_checkpointing_kwargs={"use_reentrant": False},
                seed=seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=device == "cpu",
                dataloader_pin_memory=device != "cpu",
            )
            trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[clock])
            trainer.remove_callback(PrinterCallback)
            _forget_peak(device)
            trainer.train()
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # each Trainer wraps its forward once more
        return {"seconds": clock.seconds, "texts": count, "tokens": count * length, **_peaks(device)}

    return work, facts


def _peft_model(folder: str, device: str) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    torch.manual_seed(0)
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=CLASSES, quantization_config=bits, dtype=torch.bfloat16, device_map={"": device}
    )
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    config = LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=list(TARGETS))
    return get_peft_model(model, config)


def _allocated(device: str) -> float:
    """Bytes that torch holds on the GPU."""
    if device != "cuda":
        return 0.0
    import torch

    return float(torch.cuda.memory_allocated())


def _forget_peak(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peaks(device: str) -> Sample:
    """Most bytes of tensors on the GPU, and most that torch kept for them, since `_forget_peak`."""
    if device != "cuda":
        return {}
    import torch

    return {**_device_peak(device), "reserved_bytes": float(torch.cuda.max_memory_reserved())}


def report(names: dict[str, str], samples: dict[str, list[Sample]], facts: dict[str, dict[str, Any]]) -> None:
    """A row a contestant: speed, and the memory of the GPU (of the process, where there is none)."""
    columns = ["contestant", "tokens/s", "texts/s", "peak MiB", "reserved MiB", "loaded MiB"]
    print(markdown(columns, [_row(names[key], some, facts[key]) for key, some in samples.items()]) + "\n")
    ours, theirs = samples["veneer"], samples["PEFT"]
    ratio = Spread.of(_speeds(ours)).median / Spread.of(_speeds(theirs)).median
    rounds = [one / other for one, other in zip(_speeds(ours), _speeds(theirs), strict=True)]
    memory = _most(theirs, "device_bytes") / _most(ours, "device_bytes")
    print(
        f"veneer over nf4: {ratio:.2f}× the tokens/s of PEFT ({min(rounds):.2f}–{max(rounds):.2f}), 1/{memory:.2f} of its memory"
    )


def _row(name: str, samples: Sequence[Sample], facts: dict[str, Any]) -> list[str]:
    return [
        name,
        Spread.of(_speeds(samples)).show(),
        Spread.of(_speeds(samples, "texts")).show(",.1f"),
        f"{_most(samples, 'device_bytes') / 2**20:,.0f}",
        f"{_most(samples, 'reserved_bytes') / 2**20:,.0f}",
        f"{facts['loaded_bytes'] / 2**20:,.0f}",
    ]


def _most(samples: Sequence[Sample], what: str) -> float:
    return max(sample.get(what, sample["peak_bytes"]) for sample in samples)


def _speeds(samples: Sequence[Sample], what: str = "tokens") -> list[float]:
    return [sample[what] / sample["seconds"] for sample in samples]


if __name__ == "__main__":
    main()
