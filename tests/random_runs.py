"""Run folders over tiny bases whose adapters and heads are random numbers: quick to make, and far from their initial values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from veneer.adaptation import AdapterPlan, adapt
from veneer.artifact import save_artifact
from veneer.bases import find_base, fingerprint, load_tokenizer
from veneer.config_file import config_text, load_config
from veneer.model import build_classifier
from veneer.run_info import ArtifactInfo, package_versions

TEXTS = ["a great film", "why, oh why?", "a dull story with bad people in it", "now"]


def random_run(
    folder: Path,
    base: Path,
    *,
    seed: int = 0,
    labels: Sequence[str] = ("bad", "good"),
    pooling: str = "auto",
    base_precision: str = "auto",
    **lora: Any,
) -> Path:
    """A run folder at `folder`; `lora` are fields of the adapter's plan."""
    location = find_base(str(base))
    torch.manual_seed(seed)
    model = build_classifier(location, len(labels), pooling=pooling, base_precision=base_precision)
    adapt(model, AdapterPlan(**({"rank": 4, "alpha": 6.0} | lora)))
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    info = ArtifactInfo(
        task="single_label",
        labels=tuple(labels),
        pooling=model.plan.pooling,
        own_head=model.plan.own,
        base=str(base),
        base_id=location.model_id,
        base_fingerprint=fingerprint(location),
        data_fingerprint=f"{seed:064d}",
        max_length=24,
        pair=False,
        precision="fp32",
        base_precision=base_precision,
        scores={"accuracy": 0.5},
        versions=package_versions(),
    )
    folder.mkdir(parents=True)
    config = load_config(None, {"base": str(base), "task": "single_label", "data.train": str(folder / "gone.csv")})
    (folder / "config.yaml").write_text(config_text(config), encoding="utf-8")
    save_artifact(folder, model, load_tokenizer(location), info)
    return folder
