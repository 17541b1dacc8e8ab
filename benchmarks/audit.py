"""How well `veneer audit` finds labels that were flipped on purpose, and what correcting them does to the dev score.

A share of the training labels is flipped at random, the file is audited, and the same settings are trained on the flipped
labels, on those corrected by a person who looks, on those corrected unseen, and on the clean ones. Finished parts are kept in
--work; a second start goes on. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _data import Texts, labelled_texts
from _measure import cores, markdown, progress, start

LOOKED_AT = (0.05, 0.1)  # of the rows, the most doubtful first


@dataclass(frozen=True)
class Files:
    """The files of one setting, in a folder that is named after it."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name

    @classmethod
    def of(cls, flags: argparse.Namespace) -> Files:
        base = "".join(c if c.isalnum() else "-" for c in flags.base)
        name = f"{base}-rows-{flags.rows}-flip-{flags.flip:g}-folds-{flags.folds}-epochs-{flags.epochs}-seed-{flags.seed}"
        folder = flags.work / name
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)


def main() -> None:
    flags = _flags()
    start(flags)
    _use_threads(flags.threads)
    files = Files.of(flags)
    train, dev = labelled_texts("train", flags.rows), labelled_texts("dev")
    flipped = flip(train, flags.flip, flags.seed)
    changed = {row for row, (old, new) in enumerate(zip(train.ids, flipped.ids, strict=True), 1) if old != new}
    for name, texts in (("clean", train), ("flipped", flipped), ("dev", dev)):
        write(files.path(f"{name}.csv"), texts)
    print(
        f"{train.source}, {len(changed):,} labels ({flags.flip:.0%}) flipped; {flags.folds} folds, {flags.epochs} epochs\n",
        flush=True,
    )
    found = _audit(flags, files, train.labels)
    _report_audit(found, changed, len(train))
    for share in LOOKED_AT:
        write(files.path(f"{_looker(share)}.csv"), looked_at(train, flipped, found["order"], share))
    scores = {name: _score(flags, files, name, dev) for name in _arms(files, found, len(changed))}
    rows = [_row(name, one, scores["flipped"], dev, flags.seed) for name, one in scores.items()]
    headings = ["trained on", "dev accuracy (95 % interval)", "lead over flipped (paired)", "dev macro-F1", "seconds"]
    print("\n" + markdown(headings, rows))


def _flags() -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    flags.add_argument("--rows", type=int, default=None, help="first rows of the training file; all by default")
    flags.add_argument("--flip", type=float, default=0.05, help="share of the labels to flip")
    flags.add_argument("--folds", type=int, default=5, help="folds of the audit")
    flags.add_argument("--epochs", type=int, default=1, help="epochs of every training")
    flags.add_argument("--base", default="minilm", help="base model")
    flags.add_argument("--seed", type=int, default=0, help="seed of the flips, the folds and the trainings")
    flags.add_argument("--threads", type=int, default=cores(), help="torch's threads")
    flags.add_argument("--work", type=Path, default=Path("audit-benchmark"), help="folder of finished parts to go on with")
    return flags.parse_args()


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def flip(texts: Texts, share: float, seed: int) -> Texts:
    """The texts with `share` of the labels, drawn at random, changed to another one each."""
    rng = random.Random(seed)
    ids = list(texts.ids)
    for i in rng.sample(range(len(ids)), round(share * len(ids))):
        ids[i] = rng.choice([other for other in range(len(texts.labels)) if other != ids[i]])
    return replace(texts, ids=tuple(ids))


def looked_at(clean: Texts, flipped: Texts, order: Sequence[int], share: float) -> Texts:
    """The flipped texts as a person leaves them who looks at this share of the rows, the most doubtful first, and is never wrong.

    Labels that were flipped are put right; all others stay, also where the audit would have them otherwise.

    Args:
        order: the 1-based rows, the most doubtful first.
    """
    ids = list(flipped.ids)
    for row in order[: round(share * len(ids))]:
        ids[row - 1] = clean.ids[row - 1]
    return replace(flipped, ids=tuple(ids))


def _looker(share: float) -> str:
    return f"looked at the first {share:.0%}"


def write(path: Path, texts: Texts) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, texts.labels[i]) for text, i in zip(texts.texts, texts.ids, strict=True))


def _settings(flags: argparse.Namespace, files: Files, **more: Any) -> Any:
    from veneer.config_file import load_config

    settings = {
        "base": flags.base,
        "task": "single_label",
        "data.train": str(files.path("flipped.csv")),
        "data.dev": str(files.path("dev.csv")),
        "training.epochs": flags.epochs,
        "evaluation.metric": "accuracy",
        "evaluation.calibrate": False,  # the trainings are compared by the plain rule
        "evaluation.baseline": False,
        "seed": flags.seed,
    }
    return load_config(None, settings | {key.replace("__", "."): value for key, value in more.items()})


def _audit(flags: argparse.Namespace, files: Files, labels: Sequence[str]) -> dict[str, Any]:
    """Rows in the order of their scores, the most doubtful first, and the suspects' CSV written; read back where it is there."""
    from rich.console import Console

    from veneer.bases import find_base
    from veneer.data.corrections import suspects_table
    from veneer.durable import write_text
    from veneer.labels import LabelSet
    from veneer.tasks import TASKS
    from veneer.training.audit import audit

    path = files.path("audit.json")
    if path.exists():
        progress(f"{path} is there: no audit is made")
        return dict(json.loads(path.read_text(encoding="utf-8")))
    begin = time.perf_counter()
    config, kept = _settings(flags, files), files.path("folds.safetensors")
    task, names = TASKS["single_label"], LabelSet(tuple(labels))
    found = audit(config, task, names, find_base(flags.base), folds=flags.folds, kept=kept, console=Console(stderr=True))
    order = [found.examples[i].row for i in found.scores.argsort(kind="stable")]
    tree = {
        "order": order,
        "suspects": [one.row for one in found.suspects],
        "metrics": found.metrics,
        "seconds": time.perf_counter() - begin,
    }
    write_text(files.path("suspects.csv"), suspects_table(found.suspects, labels, accept=0.0))
    path.write_text(json.dumps(tree), encoding="utf-8")
    kept.unlink(missing_ok=True)
    return tree


def _report_audit(found: dict[str, Any], changed: set[int], texts: int) -> None:
    """How many of the rows an audit would show first, and of those it flags, were flipped."""
    rows = []
    for name, some in (
        (f"top {len(changed) / texts:.0%} by score", found["order"][: len(changed)]),
        (f"top {2 * len(changed) / texts:.0%} by score", found["order"][: 2 * len(changed)]),
        ("flagged as suspects", found["suspects"]),
    ):
        hits = len(changed.intersection(some))
        precision = f"{hits / len(some):.1%}" if some else "–"
        rows.append([name, f"{len(some):,}", f"{hits:,}", precision, f"{hits / max(len(changed), 1):.1%}"])
    print(f"out-of-fold accuracy against the flipped labels {found['metrics']['accuracy']:.4f}; audit {found['seconds']:.0f} s\n")
    print(markdown(["rows", "number", "flipped among them", "precision", "recall"], rows), flush=True)


def _arms(files: Files, found: dict[str, Any], most: int) -> list[str]:
    """The trainings, by name; the file of the most doubtful suspects alone is written for one of them."""
    with files.path("suspects.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.reader(file))
    with files.path("suspects-top.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(table[: 1 + most])
    if not found["suspects"]:
        return ["flipped", *map(_looker, LOOKED_AT), "clean"]
    return ["flipped", *map(_looker, LOOKED_AT), "all suspects corrected", "top suspects corrected", "clean"]


def _score(flags: argparse.Namespace, files: Files, name: str, dev: Texts) -> dict[str, Any]:
    """The dev scores and decisions of one training, made anew where its folder is not there."""
    from rich.console import Console

    from veneer.predictor import load
    from veneer.training import train
    from veneer.training.checkpoint import has_checkpoint

    changes: dict[str, dict[str, str]] = {
        **{_looker(share): {"data__train": str(files.path(f"{_looker(share)}.csv"))} for share in LOOKED_AT},
        "clean": {"data__train": str(files.path("clean.csv"))},
        "all suspects corrected": {"data__corrections": str(files.path("suspects.csv"))},
        "top suspects corrected": {"data__corrections": str(files.path("suspects-top.csv"))},
    }
    out = files.path(f"run-{name.replace(' ', '-').replace('%', '')}")
    path = out.with_suffix(".json")
    if not path.exists():
        progress(f"training on: {name}")
        begin = time.perf_counter()
        config = _settings(flags, files, out=str(out), **changes.get(name, {}))
        result = train(config, resume=has_checkpoint(out), console=Console(quiet=True))
        metrics = {key: [one.value, one.low, one.high] for key, one in result.evaluations["dev"].metrics.items()}
        path.write_text(json.dumps({"metrics": metrics, "seconds": time.perf_counter() - begin}), encoding="utf-8")
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "decisions" not in tree:
        run = load(out)
        place = [dev.labels.index(label) for label in run.info.labels]
        tree["decisions"] = [place[i] for i in run.logits(list(dev.texts)).argmax(1).tolist()]
        path.write_text(json.dumps(tree), encoding="utf-8")
    return tree


def _row(name: str, one: dict[str, Any], flipped: dict[str, Any], dev: Texts, seed: int) -> list[str]:
    import numpy as np

    from veneer.evaluation.comparison import Compared, compare_decisions

    value, low, high = one["metrics"]["accuracy"]
    compared = Compared(np.array(dev.ids), len(dev.labels), False, "accuracy", seed)
    found = compare_decisions(compared, np.array(one["decisions"]), np.array(flipped["decisions"]))
    lead = "" if name == "flipped" else f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
    macro_f1 = f"{one['metrics']['macro_f1'][0]:.4f}"
    return [name, f"{value:.4f} ({low:.4f}–{high:.4f})", lead, macro_f1, f"{one['seconds']:.0f}"]


if __name__ == "__main__":
    main()
