"""Reports as a run writes them, made up."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from veneer.evaluation.metrics import score
from veneer.evaluation.report import FORMAT_VERSION

MOODS = ["amusement", "anger", "curiosity", "disappointment", "gratitude", "joy", "neutral", "remorse"]
TEXTS = [
    "I did not expect to like this, and I still do not.",
    "Thank you so much, this made my whole week better!",
    "Well, that is one way to ruin a perfectly good evening.",
    "هذا رائع جدا، شكرا لكم على كل شيء",
    "这个应用每次打开都会崩溃，请尽快修复。",
    "Why would anyone do that to a poor defenceless spreadsheet?",
]


def single_label(classes: int = 5, texts: int = 400) -> dict[str, Any]:
    """A report of a single-label run with every part."""
    names = ["negative", "rather negative", "neutral", "rather positive", "positive", *(f"class {i}" for i in range(5, 200))][
        :classes
    ]
    return _report("single_label", names, texts)


def multi_label(labels: int = 8, texts: int = 300) -> dict[str, Any]:
    """A report of a multi-label run with every part."""
    return _report("multi_label", [*MOODS, *(f"label {i}" for i in range(8, 100))][:labels], texts)


def made(how: str = "combine", not_scored: str = "") -> dict[str, Any]:
    """A report of a run that was made from others, one of which was made itself; without scores where `not_scored` says why."""
    report = single_label() | {"training": None, "history": [], "verdict": None, "diagnosis": None}
    if not_scored:
        report |= {"evaluations": {}, "calibration": None, "splits": {}, "data": {"fingerprints": {}}}
    ranks = {f"encoder.layer.{i}.query": 8 for i in range(3)}
    first = {
        "folder": "runs/a",
        "weight": 0.7,
        "score": [0.81, 0.75, 0.86],
        "stored_bytes": 1_234_567,
        "lora_parameters": 2_048,
        "ranks": ranks,
        "made_from": None,
    }
    of_second = made_from("shrink", [first | {"folder": "runs/b-large"}], ranks)
    second = first | {"folder": "runs/b", "weight": 0.3, "score": None, "made_from": of_second}
    sources = [first] if how == "shrink" else [first, second]
    now = dict(zip(ranks, (5, 2, 0), strict=True)) if how != "ensemble" else {}
    return report | {"made_from": made_from(how, sources, now) | {"not_scored": not_scored}}


def made_from(how: str, runs: list[dict[str, Any]], ranks: dict[str, int]) -> dict[str, Any]:
    """How a run was made."""
    told = {"least score asked for": 0.75, "calibration": "fitted again on dev"} if how == "shrink" else {}
    sizes = {"stored_bytes": 654_321, "lora_parameters": 1_024}
    return {"how": how, "runs": runs, "metric": "macro_f1", "ranks": ranks, "not_scored": "", "told": told, **sizes}


def minimal() -> dict[str, Any]:
    """A report in which every part that may be null is."""
    nulls = ("splits training parameters evaluations versions configuration data history verdict calibration diagnosis").split()
    return {"format_version": FORMAT_VERSION, "task": "single_label", "base": "toy", "labels": ["a", "b"], **dict.fromkeys(nulls)}


def of_one_text() -> dict[str, Any]:
    """A run that was scored on a single text, with a diagnosis that found nothing."""
    report = minimal()
    scored = score([0], [1], ["a", "b"], multi_label=False, bootstrap=20).to_json()
    lists = ("suggestions", "margins", "limits", "curves", "slices", "confused", "mistakes")
    diagnosis = {"split": "dev", **{name: [] for name in lists}, "fit": {"state": "unknown", "evidence": ""}}
    return report | {
        "evaluations": {"dev": scored},
        "diagnosis": diagnosis,
        "history": [{"kind": "step", "step": 1, "loss": 0.7}],
    }


def many_labels(multi: bool, labels: int = 10_000) -> dict[str, Any]:
    """A run with so many labels that most of them cannot be shown; there is no matrix of a single-label task of that size."""
    names = [f"label number {i}" for i in range(labels)]
    report = multi_label() if multi else single_label()
    rng = np.random.default_rng(0)
    support = rng.integers(0, 9, labels)
    per_class = [
        {"label": name, "precision": 0.5, "recall": 0.5, "f1": float(f1), "support": int(n), "predicted": int(n)}
        for name, f1, n in zip(names, rng.random(labels), support, strict=True)
    ]
    matrix = [[[90, 3], [2, int(n)]] for n in support] if multi else None
    for one in report["evaluations"].values():
        one |= {"per_class": per_class, "confusion": {"labels": names, "matrix": matrix}}
    diagnosis = report["diagnosis"]
    diagnosis["limits"] = [
        {"label": name, "f1": 0.5, "best_f1": 0.6, "threshold": 0.4, "auc": 0.8, "support": 3} for name in names
    ]
    diagnosis["slices"] = [{"by": "label", "value": name, "texts": 3, "score": 0.5, "interval": None} for name in names]
    report["calibration"]["parameters"] |= {"thresholds": [0.3] * labels}
    return report | {"labels": names}


def _report(task: str, names: list[str], texts: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    multi = task == "multi_label"
    return {
        "format_version": FORMAT_VERSION,
        "task": task,
        "base": "sentence-transformers/all-MiniLM-L6-v2",
        "labels": names,
        "splits": {"train": {"texts": 43_410}, "dev": {"texts": texts}, "test": {"texts": texts}},
        "training": {
            "metric": "macro_f1",
            "best_step": 900,
            "steps": 1200,
            "epochs": 4.0,
            "seconds": 312.4,
            "texts_per_second": 487.1,
        },
        "parameters": {"lora": 331_776, "trainable": 334_856, "total": 22_900_232},
        "evaluations": {split: _evaluation(rng, names, multi, texts) for split in ("dev", "test")},
        "versions": {"python": "3.11.7", "veneer": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
        "configuration": {
            "base": "minilm",
            "data": {"train": "train.csv", "text": "text", "label": ["primary", "secondary"], "pair": None},
            "lora": {"rank": 8, "alpha": 16.0},
            "seed": 42,
        },
        "data": {"fingerprints": {"train": "sha256:" + "0a1b2c3d" * 8, "dev": "sha256:" + "4e5f6071" * 8}},
        "warnings": [{"message": "labels seen once: 2", "value": "joy, anger", "source": "train.csv", "row": 7}],
        "history": _history(rng),
        "verdict": verdict("effective"),
        "calibration": _calibration(len(names), multi, texts),
        "diagnosis": _diagnosis(rng, names, multi),
    }


def verdict(kind: str) -> dict[str, Any]:
    """A verdict of each kind."""
    gain, interval, text = {
        "effective": (0.436, [0.15, 0.30], "The adapter is clearly better: the difference of 0.24 is far outside the noise."),
        "limited": (0.027, [0.004, 0.026], "The adapter is a little better. Where speed counts, the baseline may do."),
        "not_worth_it": (-0.012, [-0.031, -0.002], "Plain logistic regression does as well, and trains in a second."),
        "within_noise": (0.021, [-0.012, 0.035], "The texts are too few to tell: more test texts would."),
    }[kind]
    baseline = 0.55
    return {
        "kind": kind,
        "metric": "macro_f1",
        "split": "test",
        "against": "TF-IDF + logistic regression",
        "score": baseline * (1 + gain),
        "baseline": baseline,
        "relative_gain": gain,
        "gain_interval": interval,
        "text": text,
    }


def _evaluation(rng: np.random.Generator, names: list[str], multi: bool, texts: int) -> dict[str, Any]:
    if multi:
        targets = rng.random((texts, len(names))) < 0.15
        return score(targets, targets ^ (rng.random(targets.shape) < 0.06), names, multi_label=True, bootstrap=50).to_json()
    classes = rng.integers(0, len(names), texts)
    near = np.clip(classes + rng.integers(-1, 2, texts), 0, len(names) - 1)
    return score(classes, np.where(rng.random(texts) < 0.4, near, classes), names, multi_label=False, bootstrap=50).to_json()


def _history(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(4, 1201, 4):
        loss = 0.15 + 0.6 * math.exp(-step / 250) + float(rng.normal(0, 0.03))
        rows.append(
            {"kind": "step", "step": step, "epoch": step / 300, "loss": loss, "learning_rate": 1e-3, "gradient_norm": 0.4}
        )
        if step % 100 == 0:
            for split, gap in (("dev", 0.00012), ("train", 0.0)):
                fall = 0.14 + 0.5 * math.exp(-step / 250) + gap * step
                rows.append(
                    {
                        "kind": "evaluation",
                        "split": split,
                        "step": step,
                        "epoch": step / 300,
                        "loss": fall,
                        "macro_f1": 0.9 - fall,
                    }
                )
    return rows


def _calibration(labels: int, multi: bool, texts: int) -> dict[str, Any]:
    own = {"slopes": [0.8] * labels, "shifts": [0.1] * labels, "thresholds": [0.31] * labels, "offsets": []}
    shared = {"slopes": [0.55], "shifts": [], "thresholds": [], "offsets": []}
    bins = [i / 10 + 0.05 for i in range(10)]
    return {
        "target": "f1",
        "texts": texts,
        "split": "dev",
        "parameters": (own if multi else shared)
        | {"coverage": {"target": 0.95, "level": 0.08, "texts": texts}, "precision": None},
        "method": "platt" if multi else "temperature",
        "rule": {
            "kept": "plain",
            "metric": "macro_f1",
            "plain": 0.901,
            "fitted": 0.903,
            "gain": 0.002,
            "interval": [-0.003, 0.006],
            "reason": "the gain's interval includes zero",
        },
        "measured_on": "dev, cross-fitted in 5 parts",
        "before": {"ece": 0.081, **({"ece_label_mean": 0.0937} if multi else {}), "brier": 0.142, "nll": 0.41},
        "after": {"ece": 0.019, **({"ece_label_mean": 0.0254} if multi else {}), "brier": 0.131, "nll": 0.35},
        "reliability": {
            "before": [{"confidence": x, "accuracy": x - 0.4 * x * (1 - x), "texts": 30} for x in bins],
            "after": [{"confidence": x, "accuracy": x + 0.03 * math.sin(9 * x), "texts": 30} for x in bins],
        },
    }


def _diagnosis(rng: np.random.Generator, names: list[str], multi: bool) -> dict[str, Any]:
    limits = [
        {"label": name, "f1": f1, "best_f1": min(1.0, f1 + 0.03), "threshold": 0.3, "auc": 0.9, "support": 5 + 9 * i}
        for i, (name, f1) in enumerate(zip(names, (rng.random(len(names)) * 0.6 + 0.3).tolist(), strict=True))
    ]
    pairs = list(pairwise(names))
    return {
        "split": "dev",
        "suggestions": [
            {
                "rule": "ranking_is_the_limit",
                "advice": "Try another base: the ranking is the limit, not the threshold.",
                "evidence": f"Margins of {names[0]} and {names[1]} overlap by 71 %; the best threshold gains 0.2 points.",
            },
            {"rule": "over_fitting", "advice": "Train for fewer epochs.", "evidence": "The loss on dev rises from step 600 on."},
        ],
        "margins": [_margin(rng, name if multi else " against ".join(pair)) for name, pair in zip(names, pairs, strict=False)][
            :40
        ],
        "limits": limits,
        "curves": [_curve(name, 0.5 + 0.4 * i / len(names)) for i, name in enumerate(names)][:30],
        "fit": {"state": "over", "evidence": "the loss on dev is lowest at step 600 and 12 % higher at the end."},
        "slices": [
            {
                "by": by,
                "value": value,
                "texts": 100 + 7 * i,
                "score": 0.9 - 0.04 * i,
                "interval": [0.8 - 0.04 * i, 0.95 - 0.04 * i],
            }
            for by, values in {
                "length": ["1–8 tokens", "9–16 tokens", "17–32 tokens", "33–128 tokens"],
                "label": names[:6],
                "truncated": ["whole", "cut"],
                "vocabulary": ["all words seen", "some unseen"],
            }.items()
            for i, value in enumerate(values)
        ],
        "confused": [
            {"target": a, "decided": b, "texts": 12 - i, "examples": [{"row": 7 + i, "text": TEXTS[i % 6], "pair": None}]}
            for i, (a, b) in enumerate(pairs[:8])
        ],
        "mistakes": [
            {
                "row": 3 + i,
                "text": TEXTS[i % 6],
                "pair": None,
                "given": [names[i % 2]],
                "decided": [names[(1 + i) % 2]],
                "confidence": 0.99 - i / 50,
            }
            for i in range(12)
        ],
    }


def _margin(rng: np.random.Generator, name: str) -> dict[str, Any]:
    edges = np.linspace(-6, 6, 31)
    inside, outside = (np.histogram(rng.normal(mean, 1.6, size), edges)[0].tolist() for mean, size in ((1.2, 60), (-2.5, 900)))
    return {"name": name, "overlap": 0.24, "edges": edges.tolist(), "inside": inside, "outside": outside}


def _curve(label: str, quality: float) -> dict[str, Any]:
    thresholds = [i / 100 for i in range(101)]
    precision: list[float | None] = [0.1 + 0.9 * t**quality for t in thresholds]
    recall = [1 - t ** (2 * quality) for t in thresholds]
    precision[-1] = None  # nothing is decided there
    f1 = [None if p is None else 2 * p * r / (p + r) if p + r else 0.0 for p, r in zip(precision, recall, strict=True)]
    return {"label": label, "thresholds": thresholds, "precision": precision, "recall": recall, "f1": f1}
