"""How fast veneer trains on one CUDA GPU, against PEFT with transformers' Trainer in bf16 on the same work.

Not measured yet: no figure of this script is published, and it has only been run where it stops for want of a GPU.
See README.md beside this file for what is compared and how to read the table.
"""

from __future__ import annotations

import importlib.metadata
from contextlib import ExitStack
from typing import Any

from _data import labelled_texts
from _measure import Contestant, Worker, build_products, interleave, parser, peak_flops, progress, start, write_json
from _training import TrainerWay, build_trainer, build_veneer, report

PRODUCTS = "matrix products"


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--rows", type=int, default=None, help="rows of the training file that make the epoch; all by default")
    flags.add_argument("--texts", type=int, default=16_384, help="texts a round")
    flags.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 256], help="batch sizes of every contestant")
    options = flags.parse_args()
    device = _device()
    machine = start(options)
    print(f"{device}\n")
    texts = labelled_texts("train", options.rows)
    ours: dict[str, Any] = {"texts": texts, "pooling": "auto", "device": "cuda"}
    theirs: dict[str, Any] = {"texts": texts, "way": TrainerWay(autocast=True, grouped=True), "device": "cuda"}
    contestants = {PRODUCTS: Contestant(PRODUCTS, build_products, {"device": "cuda", "size": 8192})}
    for size in options.batch_sizes:
        call = {"count": options.texts, "batch_size": size}
        contestants[f"veneer {size}"] = Contestant(f"veneer, batch {size}", build_veneer, ours, call)
        contestants[f"PEFT {size}"] = Contestant(f"PEFT + Trainer, bf16, by length, batch {size}", build_trainer, theirs, call)
    with ExitStack() as stack:
        workers = {}
        for key, contestant in contestants.items():
            progress(f"starting {contestant.name}")
            workers[key] = stack.enter_context(Worker(contestant, options.threads))
            if key != PRODUCTS:
                workers[key].run(seed=1000, count=20 * contestant.call["batch_size"])  # warm-up
        facts = next(worker.facts for worker in workers.values() if worker.facts)
        samples = interleave(workers, options.rounds)
    peaks = peak_flops(samples.pop(PRODUCTS))
    names = {key: contestants[key].name for key in samples}
    print(f"{texts.source}; veneer: {facts['precision']} base, {facts['pooling']} pooling; memory is the GPU's")
    report(names, samples, peaks, facts)
    results = {"texts": texts.source, "device": device, "names": names, "facts": facts, "product_peaks_flops": peaks}
    write_json(options.json, machine, options, **results, samples=samples)


def _device() -> str:
    """The GPU's name.

    Raises:
        SystemExit: there is none that torch can use.
    """
    import torch

    if not torch.cuda.is_available():
        build = importlib.metadata.version("torch")
        raise SystemExit(f"train_cuda.py needs a CUDA GPU, and torch {build} finds none. For processors: train_speed.py")
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


if __name__ == "__main__":
    main()
