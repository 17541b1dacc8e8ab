"""Rows that are no words: `P` virtual tokens in every text, for `prompt` and `prefix`.

They have ids beyond the vocabulary, so that a pack (or a padded batch) with them is like any other: each has a position, and
attention sees it as a token of its text. The embedding here knows their ids, and tells the layers that replace something at
their rows where they are. The classifier leaves their hidden states out before it pools.

Knows embeddings and rows; does not know what is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from veneer.errors import LoraError
from veneer.model import Classifier


@dataclass
class Rows:
    """Where virtual tokens lie in the batch that is computed.

    Attributes:
        places: bool, of the shape of the batch's ids.
        numbers: `[n·P]`, which of the P virtual tokens each is.
    """

    places: Tensor | None = None
    numbers: Tensor | None = None


class VirtualEmbedding(nn.Module):
    """The base's word embedding, which also takes ids beyond its vocabulary.

    Attributes:
        inner: the base's own.
        prompt: `[P, H]` float32, trained; None where virtual tokens are given the embedding of word 0.
        rows: told of every batch.
    """

    def __init__(self, inner: nn.Embedding, prompt: nn.Parameter | None, rows: Rows) -> None:
        super().__init__()
        self.inner = inner
        self.prompt: nn.Parameter | None
        self.register_parameter("prompt", prompt)
        self.rows = rows

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of any shape -> `[..., H]`."""
        places = ids >= self.inner.num_embeddings
        self.rows.places, self.rows.numbers = places, ids[places] - self.inner.num_embeddings
        words: Tensor = self.inner(ids.masked_fill(places, 0))
        if self.prompt is None:
            return words
        return words.index_put((places,), self.prompt[self.rows.numbers].to(words.dtype))


def put_virtual(model: Classifier, count: int, prompt: nn.Parameter | None) -> Rows:
    """Let every text have `count` virtual tokens: behind its first token, or before it where the last token is pooled.

    Raises:
        LoraError: the base's embedding of words is of a kind that is not known here.
    """
    encoder: Any = model.encoder
    inner = encoder.get_input_embeddings()
    if not isinstance(inner, nn.Embedding):
        raise LoraError(f"virtual tokens want an embedding of words, and this base has a {type(inner).__name__}")
    rows = Rows()
    encoder.set_input_embeddings(VirtualEmbedding(inner, prompt, rows))
    model.virtual_tokens = tuple(range(inner.num_embeddings, inner.num_embeddings + count))
    return rows


def random_words(model: Classifier, count: int) -> Tensor:
    """`[count]` ids of words, by torch's generator."""
    embedding: Any = model.encoder.get_input_embeddings()
    return torch.randint(embedding.num_embeddings, (count,), device="cpu").to(embedding.weight.device)
