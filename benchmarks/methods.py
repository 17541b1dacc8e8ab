"""The methods of fine-tuning side by side: score with interval, trained parameters, stored bytes, time, and peak memory.

Each method is trained by `veneer.training.train` in a process of its own, on the demo's messages and on SST-2. What is done is
kept in `--out`, a file a method: a second start goes on where the first one stopped, inside a method too. docs/methods.md is
written from these tables. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from _data import shared_folder
from _measure import Contestant, Sample, Work, Worker, cores, describe_machine, markdown, peak_bytes, progress, start

# A row of the table -> what is set for it. All else is as for whoever writes that and no more: `auto` epochs, batch and rate.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, rslora": {"lora.scaling": "rslora"},
    "lora, dora": {"lora.dora": True},
    "lora, pissa": {"lora.init": "pissa"},
    "lora, lora+": {"training.lora_plus_ratio": 4.0},
    "adalora": {},
    "ia3": {},
    "adapter": {},
    "prefix": {},
    "prompt": {},
    "bitfit": {},
    "head": {},
    "top_layers": {},
    "full": {},
}
EPOCHS: dict[str, int | str] = {"demo": "auto", "sst2": 1}
SST2_ROWS = 20_000


def main() -> None:
    flags = _flags()
    start(flags)
    flags.out.mkdir(parents=True, exist_ok=True)
    for data in flags.data:
        done = {}
        for number, name in enumerate(flags.methods, 1):
            path = flags.out / f"{data}-{name.replace(', ', '-')}.json"
            if not path.exists():
                progress(f"{data} {number}/{len(flags.methods)}: {name}")
                path.write_text(json.dumps(_measure(flags, data, name, path.with_suffix(""))) + "\n", encoding="utf-8")
            done[name] = json.loads(path.read_text(encoding="utf-8"))
        _report(data, done)


def _flags() -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    flags.add_argument("--data", nargs="+", choices=list(EPOCHS), default=list(EPOCHS), help="data sets")
    flags.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME", help="of them")
    flags.add_argument("--rows", type=int, default=None, help=f"first rows of the training file; all, and {SST2_ROWS:,} of SST-2")
    flags.add_argument("--epochs", type=int, default=None, help="epochs; auto on the demo, 1 on SST-2")
    flags.add_argument("--base", default="minilm", help="base model")
    flags.add_argument("--threads", type=int, default=cores(), help="torch's threads")
    flags.add_argument("--out", type=Path, default=Path("methods"), help="folder of what is done")
    return flags.parse_args()


def _measure(flags: argparse.Namespace, data: str, name: str, folder: Path) -> dict[str, Any]:
    """Train one method in a process of its own, and what it came to."""
    setting = {"rows": flags.rows, "base": flags.base, "epochs": flags.epochs or EPOCHS[data]}
    arguments = {"data": data, "method": name, "setting": setting, "folder": str(folder)}
    machine = describe_machine(flags.threads)
    with Worker(Contestant(name, build_method, arguments), flags.threads) as worker:
        return {**worker.run(), "setting": setting, "machine": machine.show()}


def build_method(data: str, method: str, setting: dict[str, Any], folder: str) -> tuple[Work, dict[str, Any]]:
    """The training of one method; its sample holds the decisions beside the numbers."""
    from rich.console import Console

    import veneer.training.run as training_run
    from veneer.config_file import load_config
    from veneer.training.checkpoint import has_checkpoint

    place = Path(folder)
    config = load_config(
        None,
        {
            **_data_keys(data, setting["rows"], place),
            **METHODS[method],
            "base": setting["base"],
            "method": method.partition(",")[0],
            "training.epochs": setting["epochs"],
            "evaluation.baseline": False,
            "out": str(place / "run"),
        },
    )

    def work() -> Sample:
        begin = time.perf_counter()
        peaks: list[int] = []
        finish = training_run.finish

        def noting(*given: Any) -> Any:
            peaks.append(peak_bytes())  # before the run folder is loaded again, which holds a second base
            return finish(*given)

        training_run.finish = noting
        result = training_run.train(config, resume=has_checkpoint(place / "run"), console=Console(quiet=True))
        wall = time.perf_counter() - begin
        return {**_outcome(result), "wall_seconds": wall, "training_peak_bytes": peaks[0]}

    return work, {}


def _outcome(result: Any) -> dict[str, Any]:
    from veneer.cli.compared_run import open_run
    from veneer.evaluation.comparison import compared_metric
    from veneer.training.baselines import judged_split, target_array

    run = open_run(result.folder)
    material, training = run.material, result.report["training"]
    split = judged_split(material)
    return {
        "split": split,
        "metric": compared_metric(run.config.evaluation.metric),
        "labels": len(material.labels),
        "targets": target_array(material.examples[split], material.labels, material.task).tolist(),
        "decisions": run.decide(split, run.config.base).tolist(),
        "parameters": result.report["parameters"]["trainable"],
        "stored_bytes": sum(path.stat().st_size for path in result.folder.glob("*.safetensors")),
        "seconds": training["seconds"],
        "best_step": training["best_step"],
        "dev_score": result.evaluations["dev"].metrics[run.config.evaluation.metric].value,
        "epochs": run.config.training.epochs,
        "learning_rate": run.config.training.learning_rate,
        "precision": run.config.training.precision,
    }


def _data_keys(data: str, rows: int | None, folder: Path) -> dict[str, Any]:
    """The configuration's data keys; the first rows of a training file as a file of their own in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if data == "demo":
        from veneer.demo.quickstart import demo_config

        of_demo = demo_config(folder).data
        keys = {f"data.{name}": getattr(of_demo, name) for name in ("train", "dev", "test", "text", "label", "label_separator")}
    else:
        source = shared_folder("sst2")
        if not source.is_dir():
            raise SystemExit(f"{source} is not there. Set VENEER_SHARED_DATA to the folder that holds 'sst2'")
        keys = {"data.train": str(source / "train.tsv"), "data.dev": str(source / "dev.tsv")}
        keys |= {"data.text": "sentence", "data.label": "label", "evaluation.metric": "accuracy"}
        rows = rows or SST2_ROWS
    if rows is not None:
        train = Path(keys["data.train"])
        some = folder / f"train{train.suffix}"
        lines = train.read_text(encoding="utf-8").split("\n")[: rows + 1]  # no cell of these sets holds a line break
        some.write_text("\n".join(lines) + "\n", encoding="utf-8")
        keys["data.train"] = str(some)
    return keys


def _report(data: str, done: dict[str, dict[str, Any]]) -> None:
    """The table, the best score first, and what LoRA lacks of full fine-tuning."""
    import numpy as np

    from veneer.evaluation.comparison import Compared, compare_decisions, score_interval

    first = next(iter(done.values()))
    targets = np.array(first["targets"])
    compared = Compared(targets, first["labels"], targets.ndim == 2, first["metric"], 42)
    decided = {name: np.array(row["decisions"]) for name, row in done.items()}
    lines = []
    for name in sorted(done, key=lambda name: -compared.score(decided[name])):
        row, score = done[name], score_interval(compared, decided[name])
        lead = ""
        if "lora" in done and name != "lora":
            gap = compare_decisions(compared, decided[name], decided["lora"])
            lead = f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"
        cells = [f"{score.value:.4f} ({score.low:.4f}–{score.high:.4f})", lead, f"{row['parameters']:,}"]
        cells += [f"{row['stored_bytes']:,}", f"{row['seconds']:.0f}", f"{row['training_peak_bytes'] / 2**20:,.0f}"]
        lines.append([name, *cells, f"{row['learning_rate']:g}", row["precision"]])
    epochs = f"{first['epochs']} epoch{'s' if first['epochs'] > 1 else ''}"
    print(f"{data}: {len(targets):,} {first['split']} texts, {epochs}, base {first['setting']['base']}\n")
    heads = [first["metric"], "lead over lora", "trained", "bytes stored", "seconds", "peak MiB", "learning rate", "base in"]
    print(markdown(["method", *heads], lines))
    if {"lora", "full"} <= done.keys():
        gap = compare_decisions(compared, decided["lora"], decided["full"])
        print(f"\nlora less full: {gap.value:+.4f}, paired 95 % interval {gap.low:+.4f} to {gap.high:+.4f}, p = {gap.p:.3g}")
    print(flush=True)


if __name__ == "__main__":
    main()
