"""Rows that are no words: `P` virtual tokens in every text, for `prompt` and `prefix`.

They have ids beyond the vocabulary, so that a pack (or a padded batch) with them is like any other: each has a position, and
attention sees it as a token of its text. The classifier tells where they lie in a batch (`VirtualTokens`), and leaves their
hidden states out before it pools.

Knows embeddings and rows; does not know what is trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from veneer.errors import LoraError
from veneer.model import Classifier, VirtualTokens


class VirtualEmbedding(nn.Module):
    """The base's word embedding, which also takes ids beyond its vocabulary.

    Attributes:
        inner: the base's own.
        prompt: `[P, H]` float32, trained; None where virtual tokens are given the embedding of word 0.
        virtual: of the model.
    """

    def __init__(self, inner: nn.Embedding, prompt: nn.Parameter | None, virtual: VirtualTokens) -> None:
        super().__init__()
        self.inner = inner
        self.prompt: nn.Parameter | None
        self.register_parameter("prompt", prompt)
        self.virtual = virtual

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of any shape -> `[..., H]`."""
        words: Tensor = self.inner(ids.masked_fill(ids >= self.inner.num_embeddings, 0))
        return words if self.prompt is None else put_rows(words, self.prompt, self.virtual)


def put_rows(x: Tensor, trained: Tensor, virtual: VirtualTokens) -> Tensor:
    """`[..., H]` with `trained` `[P, H]` at the rows of every text's virtual tokens, the same for all texts."""
    rows = virtual.rows
    assert rows is not None  # the classifier found them
    flat = x.reshape(-1, x.shape[-1])
    return flat.index_put((rows,), trained.to(x.dtype).repeat(len(rows) // len(trained), 1)).view(x.shape)


def put_virtual(model: Classifier, count: int, prompt: nn.Parameter | None) -> None:
    """Let every text have `count` virtual tokens: behind its first token, or before it where the last token is pooled.

    Raises:
        LoraError: the base's embedding of words is of a kind that is not known here.
    """
    encoder: Any = model.encoder
    inner = encoder.get_input_embeddings()
    if not isinstance(inner, nn.Embedding):
        raise LoraError(f"virtual tokens want an embedding of words, and this base has a {type(inner).__name__}")
    encoder.set_input_embeddings(VirtualEmbedding(inner, prompt, model.virtual))
    model.virtual.ids = tuple(range(inner.num_embeddings, inner.num_embeddings + count))


def random_words(model: Classifier, count: int) -> Tensor:
    """`[count]` ids of words, by torch's generator."""
    embedding: Any = model.encoder.get_input_embeddings()
    return torch.randint(embedding.num_embeddings, (count,), device="cpu").to(embedding.weight.device)
