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
from veneer.data import make_prompt
from veneer.model import build_classifier
from veneer.run_info import ArtifactInfo, package_versions
from veneer.word_model import build_word_classifier

TEXTS = ["a great film", "why, oh why?", "a dull story with bad people in it", "now"]


def random_run(
    folder: Path,
    base: Path,
    *,
    seed: int = 0,
    labels: Sequence[str] = ("bad", "good"),
    pooling: str = "auto",
    base_precision: str = "auto",
    verbaliser: dict[str, Any] | None = None,
    **lora: Any,
) -> Path:
    """A run folder at `folder`; `lora` are fields of the adapter's plan, `verbaliser` is that of `veneer.json`."""
    location = find_base(str(base))
    tokenizer = load_tokenizer(location)
    torch.manual_seed(seed)
    if verbaliser is None:
        model = build_classifier(location, len(labels), pooling=pooling, base_precision=base_precision)
    else:
        given = verbaliser | {"words": dict(zip(labels, verbaliser["words"], strict=True))}
        prompt = make_prompt(tokenizer, **given, pair=False, max_length=24)
        model = build_word_classifier(location, prompt, base_precision=base_precision)
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
        verbaliser=verbaliser,
        scores={"accuracy": 0.5},
        versions=package_versions(),
    )
    folder.mkdir(parents=True)
    config = load_config(None, {"base": str(base), "task": "single_label", "data.train": str(folder / "gone.csv")})
    (folder / "config.yaml").write_text(config_text(config), encoding="utf-8")
    save_artifact(folder, model, tokenizer, info)
    return folder
