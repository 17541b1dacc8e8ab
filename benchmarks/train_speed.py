"""How fast veneer trains on this processor, against PEFT with transformers' Trainer on the same work.

See README.md beside this file for what is compared and how to read the table.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from _data import Texts, labelled_texts
from _measure import (
    Contestant,
    Sample,
    Spread,
    Worker,
    build_products,
    interleave,
    markdown,
    parser,
    peak_flops,
    progress,
    start,
    write_json,
)
from _training import TrainerWay, best_batch_size, build_trainer, build_veneer, flops_per_token

PLAIN_BATCH = 32
WAYS = {
    "a": TrainerWay(),
    "b": TrainerWay(autocast=True, grouped=True),
    "b+": TrainerWay(autocast=True, grouped=True, low_precision_base=True, base_dropout=False),
    "c": TrainerWay(full_length=True),
}
KEYS = ("veneer", "veneer*", *WAYS)
PRODUCTS = "matrix products"


def main() -> None:
    flags = _flags()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # this one is about processors; train_cuda.py is about GPUs
    machine = start(flags)
    texts = labelled_texts("train", flags.rows)
    best, sweeps = _sweep(flags, texts)
    contestants = _contestants(flags, texts, best)
    with ExitStack() as stack:
        workers = {}
        for key, contestant in contestants.items():
            progress(f"starting {contestant.name}")
            workers[key] = stack.enter_context(Worker(contestant, flags.threads))
            if key != PRODUCTS:
                workers[key].run(seed=1000, count=2 * contestant.call["batch_size"])  # warm-up
        facts = next((workers[key].facts for key in ("veneer", "veneer*") if key in workers), None) or _facts(flags, texts)
        samples = interleave(workers, flags.rounds)
    peaks = peak_flops(samples.pop(PRODUCTS))
    names = {key: contestants[key].name for key in samples}
    _report(texts, names, samples, peaks, facts)
    write_json(
        flags.json,
        machine,
        flags,
        texts=texts.source,
        names=names,
        facts=facts,
        batch_size_sweep=sweeps,
        product_peaks_flops=peaks,
        samples=samples,
    )


def _flags() -> argparse.Namespace:
    flags = parser(__doc__)
    flags.add_argument("--rows", type=int, default=16_000, help="rows of the training file that make the epoch")
    flags.add_argument("--texts", type=int, default=2048, help="texts a round of the fast contestants")
    flags.add_argument("--slow-texts", type=int, default=512, help="texts a round of (a); (c) takes a quarter of it")
    flags.add_argument("--sweep", type=int, nargs="+", default=[16, 32, 64, 128], help="batch sizes tried for veneer* and (b)")
    flags.add_argument("--sweep-texts", type=int, default=512, help="texts of each try")
    flags.add_argument("--pooling", default="auto", help="veneer's pooling: auto (mean, for this base) | cls | mean")
    flags.add_argument("--only", nargs="+", choices=KEYS, default=list(KEYS), help="run these contestants alone")
    return flags.parse_args()


def _veneer(flags: argparse.Namespace, texts: Texts, name: str, batch_size: int) -> Contestant:
    arguments = {"texts": texts, "pooling": flags.pooling, "device": "cpu"}
    return Contestant(name, build_veneer, arguments, {"count": flags.texts, "batch_size": batch_size})


def _trainer(texts: Texts, name: str, way: TrainerWay, count: int, batch_size: int) -> Contestant:
    return Contestant(name, build_trainer, {"texts": texts, "way": way, "device": "cpu"}, {"count": count, "batch_size": batch_size})


def _sweep(flags: argparse.Namespace, texts: Texts) -> tuple[dict[str, int], dict[str, dict[int, float]]]:
    """The best batch size of veneer and of (b), each tried in a process that ends with it, so that its memory does not count."""
    best, speeds = {}, {}
    tried = {"veneer*": _veneer(flags, texts, "veneer", PLAIN_BATCH), "b": _trainer(texts, "(b)", WAYS["b"], 0, PLAIN_BATCH)}
    for key, contestant in tried.items():
        if len(flags.sweep) == 1 or not {key, key + "+"} & set(flags.only):
            best[key] = flags.sweep[0]
            continue
        with Worker(contestant, flags.threads) as worker:

            def run(seed: int, size: int, worker: Worker = worker) -> Sample:
                return worker.run(seed=seed, count=max(flags.sweep_texts, 4 * size), batch_size=size)

            best[key], speeds[key] = best_batch_size(contestant.name, run, flags.sweep)
    return best, speeds


def _contestants(flags: argparse.Namespace, texts: Texts, best: dict[str, int]) -> dict[str, Contestant]:
    own, grouped = best["veneer*"], best["b"]
    all_of_them = {
        "veneer": _veneer(flags, texts, f"veneer, batch {PLAIN_BATCH}", PLAIN_BATCH),
        "veneer*": _veneer(flags, texts, f"veneer, batch {own} (its best)", own),
        "a": _trainer(texts, f"(a) PEFT + Trainer, fp32, batch {PLAIN_BATCH}", WAYS["a"], flags.slow_texts, PLAIN_BATCH),
        "b": _trainer(texts, f"(b) PEFT + Trainer, bf16, by length, batch {grouped} (its best)", WAYS["b"], flags.texts, grouped),
        "b+": _trainer(texts, f"(b+) as (b), base held in bf16, without its dropout, batch {grouped}", WAYS["b+"], flags.texts, grouped),
        "c": _trainer(texts, f"(c) as (a), padded to 128, batch {PLAIN_BATCH}", WAYS["c"], max(PLAIN_BATCH, flags.slow_texts // 4), PLAIN_BATCH),
    }
    chosen = {key: contestant for key, contestant in all_of_them.items() if key in flags.only}
    if own == PLAIN_BATCH and "veneer" in chosen:
        chosen.pop("veneer*", None)
    return {PRODUCTS: Contestant(PRODUCTS, build_products), **chosen}


def _facts(flags: argparse.Namespace, texts: Texts) -> dict[str, Any]:
    with Worker(_veneer(flags, texts, "veneer", PLAIN_BATCH), flags.threads) as worker:
        return worker.facts


def _report(
    texts: Texts, names: dict[str, str], samples: dict[str, list[Sample]], peaks: dict[str, float], facts: dict[str, Any]
) -> None:
    peak, work = max(peaks.values()), flops_per_token(facts)
    print(f"{texts.source}; veneer: {facts['precision']} base, {facts['pooling']} pooling")
    print("matrix-product peak: " + ", ".join(f"{name} {flops / 1e9:,.0f} GFLOP/s" for name, flops in peaks.items()))
    print(
        f"work a token: forward 2N+2P, backward 2N+4P = {work / 1e6:.1f} MFLOP "
        f"(N = {facts['frozen']:,} frozen, P = {facts['lora']:,} LoRA parameters of the adapted layers)\n"
    )
    rows = [_row(names[key], some, work, peak) for key, some in samples.items()]
    columns = ["median (least–most) of rounds", "texts/s", "tokens/s, no padding", "padding", "tokens/text", "share of peak", "memory MiB"]
    print(markdown(columns, rows) + "\n")
    ours = [key for key in ("veneer", "veneer*") if key in samples]
    others = [key for key in WAYS if key in samples]
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
        Spread.of([speed * work / peak for speed in _speeds(samples, "tokens")]).show(".1%"),
        f"{max(sample['peak_bytes'] for sample in samples) / 2**20:,.0f}",
    ]


def _ratio(ours: Sequence[Sample], theirs: Sequence[Sample]) -> str:
    """Ratio of the medians, and the least and most of the rounds' own ratios."""
    medians = Spread.of(_speeds(ours)).median / Spread.of(_speeds(theirs)).median
    rounds = [one / other for one, other in zip(_speeds(ours), _speeds(theirs), strict=True)]
    return f"{medians:.1f}× ({min(rounds):.1f}–{max(rounds):.1f})"


def _speeds(samples: Sequence[Sample], what: str = "texts") -> list[float]:
    return [sample[what] / sample["seconds"] for sample in samples]


if __name__ == "__main__":
    main()
