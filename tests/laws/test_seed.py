"""Law: the same seed gives the same run, bit for bit on a CPU, whatever happened before in the process; another seed another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from toy_runs import adapter, outcome, run, toy_config, toy_rows, write_csv


def test_same_seed_same_run(tmp_path: Path, tiny_base: Callable[..., Path]) -> None:
    """The split, the order, the initial adapter and head, and dropout: all of them hang on the seed alone."""
    write_csv(tmp_path / "all.csv", toy_rows(40))
    changes = {"data__train": str(tmp_path / "all.csv"), "data__dev": None, "data__dev_fraction": 0.2, "lora__dropout": 0.3}
    changes |= {"training__base_dropout": 0.2}
    outcomes = []
    for number, seed in enumerate((5, 5, 6)):
        torch.manual_seed(number)
        config = toy_config(tmp_path, tiny_base("distilbert"), out=str(tmp_path / f"{number}"), seed=seed, **changes)
        outcomes.append(outcome(run(config).folder))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["metrics"] != outcomes[2]["metrics"]
    first, other = adapter(tmp_path / "0"), adapter(tmp_path / "2")
    assert not [name for name in first if torch.equal(first[name], other[name])]
