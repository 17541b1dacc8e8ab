"""The vectors that a head reads, computed once for a training in which nothing before the head changes.

Then a step is a product of `[N, H]` with `[H, C]` instead of a pass of the whole base, and all epochs together take about as long
as one pass did. Knows the classifier and splits; does not know which method it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from veneer.inference import classify, compute_logits, compute_pooled
from veneer.model import Classifier
from veneer.training.prepare import Split

MOST_BYTES = 2**30  # of the vectors of one split; beyond, each step runs the base


def vectors_stay(model: Classifier) -> bool:
    """Whether a text has the same vector in every step: the head alone is trained, and the base drops nothing."""
    return model.words is None and not model.base_dropout and set(model.trainable()) == model.head_parameters()


def with_vectors(model: Classifier, split: Split, progress: Callable[[int], None] | None = None) -> Split:
    """The split with the vectors that the head reads of its texts, as the base gives them without dropout.

    Args:
        progress: called with the number of texts of each batch that is done.
    """
    return split if split.vectors is not None else replace(split, vectors=compute_pooled(model, split.texts, progress=progress))


def fits_memory(model: Classifier, split: Split) -> bool:
    """Whether the vectors of a split are few enough to be kept for a training."""
    width: int = model.config.get_text_config().hidden_size
    return 4 * len(split) * width <= MOST_BYTES


def split_logits(model: Classifier, split: Split) -> Tensor:
    """`[N, C]` float32 logits of a split, on the CPU, from its vectors where it has them."""
    return compute_logits(model, split.texts) if split.vectors is None else classify(model, split.vectors)
