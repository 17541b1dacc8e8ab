"""How fast veneer trains on this processor, against PEFT with transformers' Trainer on the same work.

See README.md beside this file for what is compared and how to read the table.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from typing import Any

from _data import Texts, labelled_texts
from _measure import (
    Contestant,
    Sample,
    Worker,
    build_products,
    interleave,
    parser,
    peak_flops,
    progress,
    start,
    write_json,
)
from _profile import profile
from _training import TrainerWay, best_batch_size, build_trainer, build_veneer, report

PLAIN_BATCH = 32
WAYS = {
    "a": TrainerWay(),
    "b": TrainerWay(autocast=True, grouped=True),
    "b+": TrainerWay(autocast=True, grouped=True, low_precision_base=True, base_dropout=False),
    "c": TrainerWay(full_length=True),
}
KEYS = ("veneer", "veneer*", "veneer-", "veneer mean", *WAYS)
PRODUCTS = "matrix products"


def main() -> None:
    flags = _flags()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # this one is about processors; train_cuda.py is about GPUs
    machine = start(flags)
    texts = labelled_texts("train", flags.rows)
    if flags.profile:
        _profile(flags, texts)
        return
    best, sweeps = _sweep(flags, texts)
    contestants = _contestants(flags, texts, best)
    with ExitStack() as stack:
        workers = {}
        for key, contestant in contestants.items():
            progress(f"starting {contestant.name}")
            workers[key] = stack.enter_context(Worker(contestant, flags.threads))
            if key != PRODUCTS:
                workers[key].run(seed=1000, count=2 * contestant.call["batch_size"])  # warm-up
        facts = next((workers[key].facts for key in KEYS[:4] if key in workers), None) or _facts(flags, texts)
        samples = interleave(workers, flags.rounds)
    peaks = peak_flops(samples.pop(PRODUCTS))
    names = {key: contestants[key].name for key in samples}
    print(f"{texts.source}; veneer: {facts['precision']} base")
    report(names, samples, peaks, facts)
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
    flags.add_argument("--profile", action="store_true", help="say where veneer's own time goes, and end")
    flags.add_argument("--only", nargs="+", choices=KEYS, default=list(KEYS), help="run these contestants alone")
    return flags.parse_args()


def _profile(flags: argparse.Namespace, texts: Texts) -> None:
    for pooling in ("cls", "mean"):
        work, facts = build_veneer(texts, pooling, "cpu")
        print(f"veneer, batch 64, {facts['precision']} base, {pooling} pooling\n\n{profile(work, flags.texts, 64)}\n")


def _veneer(
    flags: argparse.Namespace, texts: Texts, name: str, batch_size: int, pooling: str = "cls", base_dropout: bool = True
) -> Contestant:
    """veneer with the Trainer's own model, BERT's pooler over [CLS], unless `pooling` says otherwise."""
    arguments = {"texts": texts, "pooling": pooling, "device": "cpu", "base_dropout": base_dropout}
    return Contestant(name, build_veneer, arguments, {"count": flags.texts, "batch_size": batch_size})


def _trainer(texts: Texts, name: str, way: TrainerWay, count: int, batch_size: int) -> Contestant:
    arguments = {"texts": texts, "way": way, "device": "cpu"}
    return Contestant(name, build_trainer, arguments, {"count": count, "batch_size": batch_size})


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
    own, grouped, plain = best["veneer*"], best["b"], PLAIN_BATCH
    settings = {
        "a": (f"(a) PEFT + Trainer, fp32, batch {plain}", flags.slow_texts, plain),
        "b": (f"(b) PEFT + Trainer, bf16, by length, batch {grouped} (its best)", flags.texts, grouped),
        "b+": (f"(b+) as (b), base held in bf16, without its dropout, batch {grouped}", flags.texts, grouped),
        "c": (f"(c) as (a), padded to 128, batch {plain}", max(plain, flags.slow_texts // 4), plain),
    }
    all_of_them = {
        "veneer": _veneer(flags, texts, f"veneer, batch {plain}", plain),
        "veneer*": _veneer(flags, texts, f"veneer, batch {own} (its best)", own),
        "veneer-": _veneer(flags, texts, f"veneer, batch {own}, without the base's dropout, as (b+)", own, base_dropout=False),
        "veneer mean": _veneer(flags, texts, f"veneer, batch {own}, mean pooling (its default for this base)", own, "mean"),
        **{key: _trainer(texts, name, WAYS[key], count, batch) for key, (name, count, batch) in settings.items()},
    }
    chosen = {key: contestant for key, contestant in all_of_them.items() if key in flags.only}
    if own == PLAIN_BATCH and "veneer" in chosen:
        chosen.pop("veneer*", None)
    return {PRODUCTS: Contestant(PRODUCTS, build_products), **chosen}


def _facts(flags: argparse.Namespace, texts: Texts) -> dict[str, Any]:
    with Worker(_veneer(flags, texts, "veneer", PLAIN_BATCH), flags.threads) as worker:
        return worker.facts


if __name__ == "__main__":
    main()
