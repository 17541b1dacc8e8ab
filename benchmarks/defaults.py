"""The development score of a grid of settings: learning rate × batch size × rank × dropout, over seeds.

Every run's figures go to a file of JSON lines as soon as it is done; a second start with the same file goes on where the
first one stopped. docs/defaults.md is written from these tables. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _data import shared_folder
from _measure import Spread, cores, markdown, progress, start

AXES = ("learning_rate", "batch_size", "rank", "dropout")  # beside the seeds
SETS: dict[str, dict[str, Any]] = {
    "sst2": {"data.text": "sentence", "data.label": "label", "evaluation.metric": "accuracy"},
    "goemotions": {"data.text": 0, "data.label": 1, "data.label_separator": ",", "task": "multi_label"},
    "clinic": {"data.text": "text", "data.label": ["primary", "secondary"], "data.label_separator": ";", "task": "multi_label"},
}


def main() -> None:
    flags = _flags()
    start(flags)
    _use_threads(flags.threads)
    done = _read(flags.out)
    with tempfile.TemporaryDirectory() as name:
        keys = _data_keys(flags.data, flags.rows, Path(name))
        settings = list(_grid(flags))
        for number, setting in enumerate(settings, 1):
            if _name(setting) in done:
                continue
            progress(f"{number}/{len(settings)}  {setting}")
            row = _run(setting, keys, Path(name) / "run" / str(number))
            done[_name(setting)] = row
            with flags.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    _report(flags, [done[_name(setting)] for setting in settings])


def _flags() -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    flags.add_argument("--data", choices=list(SETS), default="clinic", help="data set")
    flags.add_argument("--rows", type=int, default=None, help="first rows of the training file; all by default")
    flags.add_argument("--learning-rates", type=float, nargs="+", default=[2e-4, 5e-4, 1e-3, 2e-3], help="peak learning rates")
    flags.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32, 64], help="texts a step")
    flags.add_argument("--ranks", type=int, nargs="+", default=[8], help="ranks; alpha is twice the rank")
    flags.add_argument("--dropouts", type=float, nargs="+", default=[0.1], help="dropout on the input of A")
    flags.add_argument("--seeds", type=int, nargs="+", default=[42], help="seeds each setting is run with")
    flags.add_argument("--epochs", type=int, default=3, help="epochs of each run")
    flags.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other keys, such as lora.init=pissa, for all")
    flags.add_argument("--pooling", default="auto", help="auto | cls | mean")
    flags.add_argument("--threads", type=int, default=cores(), help="torch's threads")
    flags.add_argument("--out", type=Path, default=Path("defaults.jsonl"), help="file of JSON lines to go on with")
    return flags.parse_args()


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _grid(flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every setting, complete: it names a run wherever its line is read again."""
    fixed = {"data": flags.data, "rows": flags.rows, "epochs": flags.epochs, "pooling": flags.pooling}
    fixed |= {"set": flags.set} if flags.set else {}
    axes = {name: getattr(flags, f"{name}s") for name in AXES} | {"seed": flags.seeds}
    for values in itertools.product(*axes.values()):
        yield fixed | dict(zip(axes, values, strict=True))


def _name(setting: dict[str, Any]) -> str:
    return json.dumps(setting, sort_keys=True)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The runs done already, by their settings."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return {_name(row["setting"]): row for row in rows}


def _data_keys(data: str, rows: int | None, folder: Path) -> dict[str, Any]:
    """The configuration's data keys; the first rows of the training file as a file of their own in `folder`."""
    keys = dict(SETS[data])
    if data == "clinic":
        import veneer

        source, suffix = Path(veneer.__file__).parent / "demo" / "clinic", "csv"
    else:
        source, suffix = shared_folder(data), "tsv"
        if not source.is_dir():
            raise SystemExit(f"{source} is not there. Set VENEER_SHARED_DATA to the folder that holds '{data}'")
    train = source / f"train.{suffix}"
    if rows is not None:
        header = 0 if data == "goemotions" else 1
        lines = train.read_text(encoding="utf-8").split("\n")[: rows + header]  # no cell of these sets holds a line break
        train = folder / train.name
        train.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if data == "goemotions":
        keys["data.label_names"] = str(source / "labels.txt")
    return {**keys, "data.train": str(train), "data.dev": str(source / f"dev.{suffix}")}


def _run(setting: dict[str, Any], keys: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train once; the best adapter's scores on dev."""
    from rich.console import Console

    from veneer.config_file import load_config, parse_assignments
    from veneer.training import train

    config = {
        **keys,
        "pooling": setting["pooling"],
        "training.epochs": setting["epochs"],
        "training.learning_rate": setting["learning_rate"],
        "training.batch_size": setting["batch_size"],
        "lora.rank": setting["rank"],
        "lora.alpha": 2.0 * setting["rank"],
        "lora.dropout": setting["dropout"],
        "evaluation.bootstrap": 0,
        "evaluation.calibrate": False,  # a rule fitted on dev would flatter its scores
        "evaluation.baseline": False,
        "seed": setting["seed"],
        "out": str(out),
        **parse_assignments(setting.get("set", [])),
    }
    begin = time.perf_counter()
    result = train(load_config(None, config), console=Console(quiet=True))
    metrics = {name: interval.value for name, interval in result.evaluations["dev"].metrics.items()}
    return {"setting": setting, "dev": metrics, "seconds": round(time.perf_counter() - begin, 1)}


def _report(flags: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """A row a setting, its scores' median and spread over the seeds, the best macro-F1 first."""
    groups: dict[tuple[float, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row["setting"][axis] for axis in AXES), []).append(row)
    metrics = [name for name in ("macro_f1", "micro_f1", "accuracy") if name in rows[0]["dev"]]
    lines = []
    for values, some in sorted(groups.items(), key=lambda item: -_of(item[1], metrics[0]).median):
        scores = [_of(some, name).show(".4f") for name in metrics]
        lines.append([*(f"{value:g}" for value in values), *scores, f"{sum(row['seconds'] for row in some) / len(some):.0f}"])
    count = "all" if flags.rows is None else f"first {flags.rows:,}"
    others = ", ".join(["", *flags.set])
    print(f"{flags.data}, {count} training rows, {flags.epochs} epochs{others}, best epoch on dev; {len(flags.seeds)} seeds\n")
    print(markdown([*(axis.replace("_", " ") for axis in AXES), *(f"dev {name}" for name in metrics), "seconds a run"], lines))


def _of(rows: list[dict[str, Any]], metric: str) -> Spread:
    return Spread.of([row["dev"][metric] for row in rows])


if __name__ == "__main__":
    main()
