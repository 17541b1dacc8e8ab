"""Estimated memory of a training step beside what the step takes, in a new process for each case.

On a CPU the measured peak is the growth of the process's resident memory while a step runs, after a warm-up step; beside a tiny
model that is mostly the allocator's own doing, so that for these the bytes that autograd saves are compared, counted by torch's
hooks. The C library's allocator is told to give freed blocks back, unless --default-allocator says otherwise. With a GPU the peak
is torch's own count, weights and optimiser included. No weights are needed: they are random.

    python benchmarks/memory.py
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from _measure import Contestant, Sample, Spread, Work, Worker, markdown, parser, progress, start, write_json

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 200}
BASES: dict[str, dict[str, Any]] = {
    "tiny BERT": {"model_type": "bert"} | TINY,
    "tiny Qwen2": {"model_type": "qwen2", "num_key_value_heads": 2} | TINY,
    "MiniLM-L6": {"model_type": "bert", "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6}
    | {"num_attention_heads": 12, "intermediate_size": 1536},
    # 1.84 billion weights as a language model; as the classifier that is built here, without the output matrix, 1.53 billion.
    "Qwen2 1.8B": {"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 24}
    | {"num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 5504},
}


@dataclass(frozen=True)
class Case:
    """One training step: N texts of L tokens on a base."""

    base: str
    texts: int
    length: int
    checkpointing: bool
    precision: str
    device: str
    method: str = "lora"

    @property
    def what(self) -> str:
        """Which bytes are compared."""
        if self.base.startswith("tiny"):
            return "saved"
        return "all" if self.device == "cuda" else "of a step"


def cases(cuda: bool) -> list[Case]:
    """On a CPU tiny models and MiniLM; with a GPU MiniLM and a Qwen2 of 1.53 billion weights."""
    if cuda:
        both = [
            Case(name, texts, 128, on, "bf16", "cuda")
            for name, texts in (("MiniLM-L6", 64), ("Qwen2 1.8B", 8))
            for on in (False, True)
        ]
        return [*both, Case("MiniLM-L6", 64, 128, False, "fp32", "cuda", "full")]
    tiny = [
        Case(name, n, length, False, "fp32", "cpu")
        for name in ("tiny BERT", "tiny Qwen2")
        for n, length in ((4, 16), (8, 60), (16, 128))
    ]
    mini = [
        Case("MiniLM-L6", n, length, on, "fp32", "cpu") for n, length in ((32, 64), (32, 128), (64, 128)) for on in (False, True)
    ]
    return [
        *tiny,
        *mini,
        Case("MiniLM-L6", 32, 128, False, "bf16", "cpu"),
        Case("MiniLM-L6", 32, 128, False, "fp32", "cpu", "full"),
    ]


def build(case: Case) -> tuple[Work, dict[str, Any]]:
    """The model with random weights, and the estimate of its step."""
    import torch
    from transformers import AutoConfig

    from veneer.adaptation import adapt, checkpoint_activations, turn_on_dropout
    from veneer.bases import find_base
    from veneer.cli.estimate import meta_model
    from veneer.config_file import load_config
    from veneer.estimate import estimate_step
    from veneer.model import skeleton
    from veneer.precision import DTYPES
    from veneer.training.setup import method_plan

    with tempfile.TemporaryDirectory() as name:
        settings = dict(BASES[case.base])
        AutoConfig.for_model(settings.pop("model_type"), **settings).save_pretrained(name)
        config = load_config(None, {"training.precision": case.precision, "method": case.method})
        base = find_base(name, weights=False)
        counted = meta_model(base, config, case.device, case.precision, 2)  # type: ignore[arg-type]
        model = skeleton(base, 2, dtype=DTYPES[case.precision])  # type: ignore[index]
    if case.method == "lora":
        adapt(model, method_plan(config).lora)
    else:
        model.requires_grad_(True)
    model.to_empty(device=case.device)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.02)
        for tensor in model.buffers():
            tensor.zero_()
    for one in (counted, model):
        turn_on_dropout(one)
        if case.checkpointing:
            checkpoint_activations(one)
        one.train()
    estimate = estimate_step(counted, _loss(counted, case), case.device)  # type: ignore[arg-type]
    held = estimate.weights + estimate.trained + estimate.optimizer
    estimated = {"saved": estimate.activations, "all": estimate.total, "of a step": estimate.total - held}[case.what]
    measure = {"saved": _saved, "all": _cuda_peak, "of a step": _cpu_peak}[case.what]
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], fused=True)
    _step(model, replace(case, texts=2), optimizer)  # the libraries' own buffers, and the optimiser's states

    def work(seed: int = 0) -> Sample:
        return {"estimated": float(estimated), "measured": float(measure(model, case, optimizer))}

    return work, {}


def _loss(model: Any, case: Case) -> Callable[[], Any]:
    import numpy as np

    from veneer.data import EncodedTexts

    tokens = case.texts * case.length
    ids, types = np.full(tokens, 7, np.int32), np.zeros(tokens, np.uint8)
    texts = EncodedTexts(ids, types, np.arange(case.texts + 1) * case.length, 0)
    batch = model.batch(texts, range(case.texts))
    return lambda: model(batch).sum()


def _saved(model: Any, case: Case, optimizer: Any) -> int:
    """Bytes of the distinct storages that autograd saves, the model's own and the bank of dropout masks apart."""
    import torch

    from veneer.lora.dropout import BANK

    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}
    kept: list[Any] = []

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.nbytes() != BANK * tensor.element_size():
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = _loss(model, case)()
    del result
    return sum(sizes.values())


def _step(model: Any, case: Case, optimizer: Any) -> None:
    _loss(model, case)().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _cuda_peak(model: Any, case: Case, optimizer: Any) -> int:
    import torch

    torch.cuda.reset_peak_memory_stats()
    _step(model, case, optimizer)
    return torch.cuda.max_memory_allocated()


def _cpu_peak(model: Any, case: Case, optimizer: Any) -> int:
    """How far the resident memory rises above where it was before the step."""
    import ctypes

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps of the last step is no part of where it was
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    _step(model, case, optimizer)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    flags = parser(__doc__, rounds=3)
    flags.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the steps run")
    flags.add_argument("--only", metavar="BASE", help="one of " + ", ".join(BASES))
    flags.add_argument("--default-allocator", action="store_true", help="let glibc keep freed blocks, as it does by itself")
    arguments = flags.parse_args()
    if not arguments.default_allocator:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # larger blocks go back to the system at once
    machine = start(arguments)
    columns = ("base", "texts", "method", "precision", "checkpointed", "bytes", "estimated MiB", "measured MiB", "ratio")
    rows, results = [], []
    for case in cases(arguments.device == "cuda"):
        if arguments.only not in (None, case.base):
            continue
        progress(f"{case.base}: {case.texts} x {case.length}")
        with Worker(Contestant(case.base, build, {"case": case}), arguments.threads) as worker:
            samples = [worker.run() for _ in range(arguments.rounds)]
        estimated, measured = samples[0]["estimated"], Spread.of([sample["measured"] for sample in samples])
        facts = [
            case.base,
            f"{case.texts} x {case.length}",
            case.method,
            case.precision,
            "yes" if case.checkpointing else "no",
            case.what,
        ]
        shown = Spread(*(one / 2**20 for one in (measured.median, measured.low, measured.high))).show(",.2f")
        rows.append([*facts, f"{estimated / 2**20:,.2f}", shown, f"{estimated / measured.median:.2f}"])
        results.append({"case": asdict(case), "samples": samples})
    print(markdown(columns, rows))
    write_json(arguments.json, machine, arguments, cases=results)


if __name__ == "__main__":
    main()
