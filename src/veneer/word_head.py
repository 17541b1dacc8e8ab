"""Logits by label words: how likely a causal base is to go on with each label's word.

The vocabulary is never multiplied out for words of one token: the output matrix's rows of those tokens are gathered first.
Words of several tokens are scored by the mean log-probability of their tokens, which needs the sum over the vocabulary at their
few positions; it is added up in blocks of the output matrix and computed again in the backward pass, so that memory stays that
of one block.

Knows torch and token ids; knows nothing of tokenizers, templates or model families.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from veneer.packing import Segments

BLOCK = 8192  # rows of the output matrix that are multiplied at a time

Tokens = tuple[int, ...]


class WordHead(nn.Module):
    """`[T, H]` hidden states of N·K readings -> `[N, C]` float32 logits; it has no parameters of its own.

    Each text is read K times, once behind every continuation (K = 1 and no continuation for words of one token).

    Args:
        words: the C words' tokens; with `against_last` those of C + 1, the last of which stands for no label.
        continuations: what each reading adds to the prompt; each word without its last token begins one of them.
        output: gives the base's output matrix `[V, H]`, which may be its embeddings.
        normalised: False for the words' logits, all of one token; True for the mean log-probability of their tokens.
        against_last: whether the logits are how far the words' scores lie above that of the last one.
        softcap: what the base bounds its logits by (c·tanh(x/c)), or None.
    """

    _readings: Tensor
    _from_end: Tensor
    _node: Tensor
    _token: Tensor
    _share: Tensor

    def __init__(
        self,
        words: Sequence[Tokens],
        continuations: Sequence[Tokens],
        output: Callable[[], Tensor],
        *,
        normalised: bool,
        against_last: bool = False,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self._continuations = tuple(continuations)
        self._output = output
        self._normalised = normalised
        self._against_last = against_last
        self._softcap = softcap
        # A node is a place where a next token is predicted: behind the prompt and some first tokens of a word.
        nodes = {prefix: i for i, prefix in enumerate(dict.fromkeys(word[:i] for word in words for i in range(len(word))))}
        readings = [next(k for k, one in enumerate(continuations) if one[: len(prefix)] == prefix) for prefix in nodes]
        from_end = [len(continuations[k]) - len(prefix) for k, prefix in zip(readings, nodes, strict=True)]
        steps = [(label, nodes[word[:i]], word[i]) for label, word in enumerate(words) for i in range(len(word))]
        share = torch.zeros(len(steps), len(words))
        for step, (label, _, _) in enumerate(steps):
            share[step, label] = 1.0 / len(words[label])
        tables = {
            "_readings": torch.tensor(readings),
            "_from_end": torch.tensor(from_end),
            "_node": torch.tensor([node for _, node, _ in steps]),
            "_token": torch.tensor([token for _, _, token in steps]),
            "_share": share,
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def split(self, ids: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The K readings of each text, one after the other, from texts that hold theirs end to end."""
        lengths = [len(continuation) for continuation in self._continuations]
        pieces = []
        for text in ids:
            prompt = (len(text) - sum(lengths)) // len(lengths)
            ends = [0]
            for length in lengths:
                ends.append(ends[-1] + prompt + length)
            pieces += [text[first:last] for first, last in pairwise(ends)]
        return pieces

    def forward(self, hidden: Tensor, segments: Segments) -> Tensor:
        """`[N, C]` float32 logits; `segments` tells where each of the N·K readings lies in the T hidden states."""
        ends = segments.cu_seqlens[1:].long().view(-1, len(self._continuations)) - 1  # [N, K]
        places = ends[:, self._readings] - self._from_end  # [N, M] for M nodes
        rows = hidden[places].float()  # [N, M, H]
        matrix = self._output()
        scores = self._capped(linear(rows, matrix[self._token].float()))  # [N, M, S] for S tokens of all words
        steps = scores.gather(1, self._node.expand(len(scores), 1, -1))[:, 0]  # [N, S], each token at its node
        if self._normalised:
            steps = steps - self._log_sums(rows.flatten(0, 1), matrix).view(len(rows), -1)[:, self._node]
            steps = steps @ self._share
        return steps[:, :-1] - steps[:, -1:] if self._against_last else steps

    def _log_sums(self, rows: Tensor, matrix: Tensor) -> Tensor:
        """`[R]`: log Σ exp of the logits of the whole vocabulary at each of R positions `[R, H]`."""
        sums: list[Tensor] = []
        for block in torch.split(matrix, BLOCK):
            sums.append(checkpoint(self._log_sum, rows, block, use_reentrant=False, preserve_rng_state=False))
        return torch.stack(sums).logsumexp(0)

    def _log_sum(self, rows: Tensor, block: Tensor) -> Tensor:
        return self._capped(linear(rows, block.float())).logsumexp(-1)

    def _capped(self, logits: Tensor) -> Tensor:
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)
