"""The only batch loop without gradients: texts in, logits out, or the vectors that the head reads.

Evaluation, prediction and verification all run it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from veneer.data import EncodedTexts
from veneer.model import Classifier
from veneer.packing import Batch, plan_inference

TOKEN_BUDGET = 4096


def compute_logits(
    model: Classifier,
    texts: EncodedTexts,
    *,
    token_budget: int = TOKEN_BUDGET,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """`[N, C]` float32 logits of N texts, on the CPU, in the order of the texts.

    Args:
        token_budget: tokens of one forward pass.
        progress: called with the number of texts of each batch that is done.
    """
    return _each(model, model, texts, token_budget, progress)


def compute_pooled(model: Classifier, texts: EncodedTexts, *, progress: Callable[[int], None] | None = None) -> Tensor:
    """`[N, H]` float32 vectors that the head reads, on the CPU, in the order of the texts; `progress` as above."""
    return _each(model, model.pooled, texts, TOKEN_BUDGET, progress)


@torch.no_grad()
def classify(model: Classifier, vectors: Tensor) -> Tensor:
    """`[N, C]` float32 logits, on the CPU, of the `[N, H]` vectors that `compute_pooled` gave."""
    was_training = model.training
    model.eval()
    logits = model.classify(vectors.to(model.device)).cpu()
    model.train(was_training)
    return logits


@torch.no_grad()
def _each(
    model: Classifier,
    forward: Callable[[Batch], Tensor],
    texts: EncodedTexts,
    token_budget: int,
    progress: Callable[[int], None] | None,
) -> Tensor:
    """`[N, …]`: what `forward` gives for each text."""
    was_training = model.training
    model.eval()
    rows: list[Tensor] = []
    plan = plan_inference(texts.lengths, token_budget)
    for indices in plan:
        rows.append(forward(model.batch(texts, indices.tolist())).cpu())
        if progress is not None:
            progress(len(indices))
    model.train(was_training)
    if not rows:
        raise ValueError("no texts")
    order = torch.cat([torch.from_numpy(indices) for indices in plan])
    results = torch.cat(rows)
    return torch.empty_like(results).index_copy_(0, order, results)
