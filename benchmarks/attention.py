"""What attention over many short texts costs on a processor: kernels by length, and the softmax by row length.

Backs the two claims in `veneer/packing/attention.py`; README.md beside this file says how to read the tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from _measure import Spread, interleave_here, markdown, parser, start, write_json
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from veneer.packing import Segments
from veneer.packing.attention import packed_attention

HEADS, WIDTH = 12, 32  # MiniLM's
TOKENS = 512  # of all texts together, so that every length is the same linear work
LENGTHS = (4, 8, 13, 16, 24, 32, 64, 128)
SOFTMAX_LENGTHS = (5, 8, 12, 15, 16, 17, 24, 31, 32, 33, 48, 64)


def main() -> None:
    flags = parser(__doc__, rounds=15)
    options = flags.parse_args()
    machine = start(options)
    torch.set_num_threads(options.threads)
    kernels = {length: interleave_here(_kernels(length), options.rounds, repeats=5) for length in LENGTHS}
    softmaxes = {length: interleave_here(_softmaxes(length), options.rounds, repeats=10) for length in SOFTMAX_LENGTHS}
    print(f"Attention forward and backward, bf16, {TOKENS} tokens in texts of one length, {HEADS} heads of {WIDTH}; ms\n")
    names = list(kernels[LENGTHS[0]])
    lines = [[str(length), *_cells(row, 1e3, ".2f")] for length, row in kernels.items()]
    print(markdown(["tokens a text", *names], lines) + "\n")
    print(f"Softmax over rows of L numbers, {HEADS * TOKENS} rows; ns a number\n")
    names = list(softmaxes[SOFTMAX_LENGTHS[0]])
    lines = [[str(length), *_cells(row, 1e9 / (HEADS * TOKENS * length), ".2f")] for length, row in softmaxes.items()]
    print(markdown(["L", *names], lines))
    write_json(options.json, machine, options, kernel_seconds=kernels, softmax_seconds=softmaxes)


def _cells(row: dict[str, list[float]], scale: float, pattern: str) -> list[str]:
    return [Spread.of([seconds * scale for seconds in some]).show(pattern) for some in row.values()]


def _kernels(length: int) -> dict[str, Callable[[], object]]:
    """Forward and backward by each kernel, on texts of one length: the best case for torch's, which then need no padding."""
    texts = TOKENS // length
    segments = Segments.of([length] * texts)
    packed = q, k, v = _inputs(1, HEADS, texts * length, WIDTH)
    batched = _inputs(texts, HEADS, length, WIDTH)
    module = torch.nn.Identity()
    grad_packed = torch.randn(1, texts * length, HEADS, WIDTH, dtype=torch.bfloat16)
    grad_batched = torch.randn(texts, HEADS, length, WIDTH, dtype=torch.bfloat16)

    def ours() -> object:
        out, _ = packed_attention(module, q, k, v, None, segments=segments)
        return torch.autograd.grad(out, packed, grad_packed)

    def theirs(backend: SDPBackend) -> Callable[[], object]:
        def run() -> object:
            with sdpa_kernel(backend):
                out = scaled_dot_product_attention(batched[0], batched[1], batched[2])
            return torch.autograd.grad(out, batched, grad_batched)

        return run

    return {
        "veneer": ours,
        "flash kernel": theirs(SDPBackend.FLASH_ATTENTION),
        "math kernel": theirs(SDPBackend.MATH),
        "plain products": lambda: torch.autograd.grad(_plain(*batched), batched, grad_batched),
    }


def _inputs(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    return q, k, v


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(WIDTH)
    return torch.softmax(scores, dim=-1).to(q.dtype) @ v


def _softmaxes(length: int) -> dict[str, Callable[[], object]]:
    scores = torch.randn(HEADS * TOKENS, length)
    low = scores.to(torch.bfloat16)
    return {"float32": lambda: torch.softmax(scores, -1), "bf16": lambda: torch.softmax(low, -1)}


if __name__ == "__main__":
    main()
