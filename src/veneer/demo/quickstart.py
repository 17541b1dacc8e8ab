"""The first run anyone makes: the built-in messages to a clinic, next to a classical baseline on the same splits.

Knows the demo's data and configuration; what training does is the training room's.
"""

from __future__ import annotations

from pathlib import Path

from veneer.config import RunConfig
from veneer.config_file import load_config
from veneer.evaluation.metrics import Evaluation, score
from veneer.training.baselines import decide_like_ours, fit_text_baseline, target_array
from veneer.training.prepare import read_material

CLINIC = Path(__file__).parent / "clinic"

MESSAGES = (
    "Can I come in sometime next week about my knee, and could you also renew my inhaler?",
    "I was charged twice for the same visit and nobody at the desk could be bothered to explain why.",
    "did the lab send my cholesterol numbers yet, and do they mean I should stop eating eggs",
)


def demo_config(out: Path) -> RunConfig:
    """The configuration of the demo's run: where the data is, and the defaults for the rest."""
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
            "out": str(out),
        },
    )


def evaluate_baseline(config: RunConfig) -> Evaluation:
    """TF-IDF and one logistic regression a label, chosen and calibrated on dev as the adapter is, and scored on the test file."""
    material = read_material(config)
    labels, task, examples = material.labels, material.task, material.examples
    baseline = fit_text_baseline(examples["train"], examples["dev"], labels, task, config.evaluation.metric)
    assert baseline is not None, "the built-in messages have words and few labels"
    return score(
        target_array(examples["test"], labels, task),
        decide_like_ours(config, material, {name: baseline.logits(examples[name]) for name in ("dev", "test")}),
        labels.names,
        multi_label=True,
        bootstrap=config.evaluation.bootstrap,
        seed=config.seed,
    )
