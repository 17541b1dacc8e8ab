"""What dropout masks cost on a processor beside the matrix products they serve.

Backs the claim in `veneer/lora/dropout.py`; README.md beside this file says how to read the table.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _measure import Spread, interleave_here, markdown, parser, start, write_json

from veneer.lora.dropout import dropout_mask, fresh_mask


def main() -> None:
    flags = parser(__doc__, rounds=15)
    flags.add_argument("--tokens", type=int, default=448, help="T, tokens a step: 32 texts of SST-2 have about 430")
    flags.add_argument("--widths", type=int, nargs="+", default=[384, 1536], help="widths H of a layer's input; it gives 384")
    flags.add_argument("--p", type=float, default=0.1, help="share that is dropped")
    options = flags.parse_args()
    machine = start(options)
    torch.set_num_threads(options.threads)
    tables = {}
    for dtype in (torch.bfloat16, torch.float32):
        for width in options.widths:
            tasks = _tasks(options.tokens, width, options.p, dtype)
            tables[f"{str(dtype).removeprefix('torch.')}, [{options.tokens}, {width}] input"] = interleave_here(
                tasks, options.rounds, repeats=20
            )
    for title, seconds in tables.items():
        product = Spread.of(seconds["product with a [384, H] weight"]).median
        rows = [[name, _microseconds(some), f"{Spread.of(some).median / product:.2f}"] for name, some in seconds.items()]
        print(markdown([title, "µs, median (least–most)", "times the product"], rows) + "\n")
    write_json(options.json, machine, options, seconds=tables)


def _tasks(tokens: int, width: int, p: float, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    x, weight = torch.randn(tokens, width).to(dtype), torch.randn(384, width).to(dtype)
    cpu = torch.device("cpu")
    return {
        "product with a [384, H] weight": lambda: torch.nn.functional.linear(x, weight),
        "torch.nn.functional.dropout": lambda: torch.nn.functional.dropout(x, p),
        "x * Bernoulli mask": lambda: x * torch.empty_like(x).bernoulli_(1 - p).div_(1 - p),
        "x * veneer's fresh_mask": lambda: x * fresh_mask(x.numel(), p, dtype).view(x.shape),
        "x * veneer's dropout_mask": lambda: x * dropout_mask(tokens, width, p, device=cpu, dtype=dtype),
        "x * a mask that is there already": _times(x),
    }


def _times(x: torch.Tensor) -> Callable[[], object]:
    mask = torch.ones_like(x)
    return lambda: x * mask


def _microseconds(seconds: list[float]) -> str:
    return Spread.of([one * 1e6 for one in seconds]).show()


if __name__ == "__main__":
    main()
