"""The first run anyone makes: the built-in messages to a clinic, next to a classical baseline on the same splits.

Knows the demo's data and configuration; what training does is the training room's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline

from veneer.config import RunConfig, load_config
from veneer.data import Example, read_examples
from veneer.evaluation.metrics import Evaluation, point_metrics, score
from veneer.labels import LabelSet
from veneer.training import columns_of

CLINIC = Path(__file__).parent / "clinic"
FEATURES: tuple[dict[str, Any], ...] = (
    {"analyzer": "word"},
    {"analyzer": "char_wb", "ngram_range": (2, 5), "sublinear_tf": True},
)
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # scikit-learn's C, chosen on dev

MESSAGES = (
    "Can I come in sometime next week about my knee, and could you also renew my inhaler?",
    "I was charged twice for the same visit and nobody at the desk could be bothered to explain why.",
    "did the lab send my cholesterol numbers yet, and do they mean I should stop eating eggs",
)


def demo_config(out: Path) -> RunConfig:
    """The configuration of the demo's run."""
    return load_config(
        None,
        {
            "base": "minilm",
            "data.train": str(CLINIC / "train.csv"),
            "data.dev": str(CLINIC / "dev.csv"),
            "data.test": str(CLINIC / "test.csv"),
            "data.text": "text",
            "data.label": ["primary", "secondary"],
            "data.label_separator": ";",
            "training.epochs": 12,
            "training.batch_size": 16,
            "training.learning_rate": 2e-3,
            "out": str(out),
        },
    )


def evaluate_baseline(config: RunConfig) -> Evaluation:
    """TF-IDF and one logistic regression a label, scored on the test file.

    Labels are weighted as they are rare. Words or pieces of words, and the penalty, are chosen by macro F1 on dev.
    """
    columns = columns_of(config.data)
    splits = {name: read_examples(CLINIC / f"{name}.csv", columns).examples for name in ("train", "dev", "test")}
    labels = LabelSet.from_labels(label for example in splits["train"] for label in example.labels)
    texts = {name: [example.text for example in examples] for name, examples in splits.items()}
    targets = {name: _targets(examples, labels) for name, examples in splits.items()}
    candidates = [_fit(features, penalty, texts["train"], targets["train"]) for features in FEATURES for penalty in PENALTIES]

    def dev_score(model: Pipeline) -> float:
        return point_metrics(targets["dev"], model.predict(texts["dev"]), len(labels), True)["macro_f1"]

    decisions = max(candidates, key=dev_score).predict(texts["test"])
    bootstrap = config.evaluation.bootstrap
    return score(targets["test"], decisions, labels.names, multi_label=True, bootstrap=bootstrap, seed=config.seed)


def _fit(features: Mapping[str, Any], penalty: float, texts: list[str], targets: NDArray[np.int64]) -> Pipeline:
    regression = LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000)
    return make_pipeline(TfidfVectorizer(**features), OneVsRestClassifier(regression)).fit(texts, targets)


def _targets(examples: tuple[Example, ...], labels: LabelSet) -> NDArray[np.int64]:
    """`[N, C]` of 0 and 1."""
    targets = np.zeros((len(examples), len(labels)), np.int64)
    for row, example in enumerate(examples):
        targets[row, [labels.id(label) for label in example.labels]] = 1
    return targets
