"""What calibration does to a finished run, on texts that it was not fitted on: python benchmarks/calibration.py RUN --data FILE

Prints, for the file as it is and (two classes) cut down to a smaller share of positives: whether the rule found by the sweep is
the best of all rules, calibration error and loss before and after on held-out parts, and how often conformal sets hold the right
labels over many random splits. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from _measure import cores, markdown
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from veneer.cli.labelled import config_for, read_labelled
from veneer.evaluation.calibration import fit_calibration
from veneer.evaluation.conformal import candidate_sets, find_coverage
from veneer.evaluation.goals import Goal
from veneer.evaluation.metrics import point_metrics
from veneer.evaluation.rules import fit_rule
from veneer.evaluation.scaling import Sample
from veneer.predictor import load
from veneer.tasks import Calibration, Task

COVERAGE = 0.9

Floats = NDArray[np.float64]


def main() -> None:
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    flags.add_argument("run", type=Path, help="run folder")
    flags.add_argument("--data", required=True, help="labelled file that took no part in training")
    flags.add_argument("--positives", type=float, default=0.31, help="share of the second label to cut two classes down to")
    flags.add_argument("--splits", type=int, default=200, help="random splits for the coverage of conformal sets")
    flags.add_argument("--threads", type=int, default=cores(), help="torch's threads")
    options = flags.parse_args()
    torch.set_num_threads(options.threads)
    predictor = load(options.run)
    columns = ("text", "pair", "label", "label_separator", "label_names", "encoding")
    labelled = read_labelled(predictor, config_for(predictor, options.run, dict.fromkeys(columns)), options.data, "reading")
    rows = torch.arange(len(labelled.targets))
    samples = {"as it is": rows}
    if labelled.task.name == "single_label" and labelled.logits.shape[1] == 2:
        samples[f"cut to {options.positives:.0%} positive"] = _cut(labelled.targets, options.positives)
    for name, kept in samples.items():
        _report(f"{options.data}, {name}", labelled.task, labelled.logits[kept], labelled.targets[kept], options.splits)


def _cut(targets: Tensor, share: float) -> Tensor:
    """Rows with all of the first label and so many of the second, seeded, that those are the share."""
    first, second = (targets == 0).nonzero().flatten(), (targets == 1).nonzero().flatten()
    count = min(len(second), round(len(first) * share / (1 - share)))
    chosen = second[torch.randperm(len(second), generator=torch.Generator().manual_seed(0))[:count]]
    return torch.cat([first, chosen]).sort().values


def _report(name: str, task: Task, logits: Tensor, targets: Tensor, splits: int) -> None:
    print(f"{name}: {len(targets):,} texts\n")
    if task.name == "single_label" and logits.shape[1] == 2:
        swept, brute = _both_ways(task, logits, targets)
        print(f"best macro F1 on these texts: {swept:.6f} by the sweep, {brute:.6f} of all {len(logits) + 1:,} rules there are")
    fitted = fit_calibration(logits, targets, task).to_json()
    rule, before, after = fitted["rule"], fitted["before"], fitted["after"]
    print(f"{fitted['measured_on']}; rule kept: {rule['kept']} ({rule['reason']})\n")
    rows = [
        [name, f"{before[key]:.4f}", f"{after[key]:.4f}"] for name, key in {"ECE": "ece", "Brier": "brier", "NLL": "nll"}.items()
    ]
    rows.append(["macro F1, plain and fitted rule", f"{rule['plain']:.4f}", f"{rule['fitted']:.4f}"])
    print(markdown(["on held-out parts", "before", "after"], rows))
    by_level, by_set, low, high = _coverage(task, logits, targets, splits)
    print(
        f"\nright labels of {COVERAGE:.0%} of texts promised, over {splits} random halvings: at or above the level are those of "
        f"{by_level.mean():.2%} on average (theory: {low:.2%}–{high:.2%}; each {by_level.min():.1%}–{by_level.max():.1%}); "
        f"in the set, which always has the decided label, those of {by_set.mean():.2%}\n"
    )


def _both_ways(task: Task, logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """The macro-F1 of the rule that the sweep finds, and the largest of every rule "difference of logits above x"."""
    rule, _ = fit_rule(Sample(task, logits, targets), Calibration(), Goal())
    swept = _macro_f1(targets, task.decide(logits, rule))
    difference = (logits[:, 1] - logits[:, 0]).double()
    edges = torch.cat([difference.unique(), torch.tensor([math.inf], dtype=torch.float64)])
    return swept, max(_macro_f1(targets, (difference >= edge).long()) for edge in edges)


def _macro_f1(targets: Tensor, decisions: Tensor) -> float:
    return point_metrics(targets.numpy(), decisions.numpy(), 2, False)["macro_f1"]


def _coverage(task: Task, logits: Tensor, targets: Tensor, splits: int) -> tuple[Floats, Floats, float, float]:
    """The shares of texts covered in each split, by the level and by the set, and the band for the mean of the former.

    With n texts on the side that sets the level, the coverage of a split is Beta(k, n+1-k) distributed, k = ceil((n+1)·share)
    (Vovk 2012), so that its mean is k/(n+1); judging it on m texts adds its own variance. The band is three standard errors wide.
    """
    by_level, by_set, n, m = [], [], 0, 0
    for seed in range(splits):
        order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        promise = find_coverage(logits[first], targets[first], task, Calibration(), COVERAGE).promise
        right = targets[second].bool() if task.name == "multi_label" else one_hot(targets[second], logits.shape[1]).bool()
        some = right.any(1)
        for shares, sets in (
            (by_level, task.probabilities(logits[second]) >= promise.level),
            (by_set, candidate_sets(task, logits[second], Calibration(coverage=promise))),
        ):
            shares.append(float((sets | ~right)[some].all(1).float().mean()))
        n, m = promise.texts, int(some.sum())
    mean = math.ceil((n + 1) * COVERAGE - 1e-9) / (n + 1)
    band = 3 * math.sqrt(mean * (1 - mean) * (1 / (n + 2) + 1 / m) / splits)
    return np.array(by_level), np.array(by_set), mean - band, mean + band


if __name__ == "__main__":
    main()
