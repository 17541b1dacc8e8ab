"""Logits of every row by a model that was not fitted on it, without training: logistic regression on the vectors of the base.

The base reads each text once, whatever the number of folds. A fold's penalty is picked on a part of the *other* folds, as the
best step of a trained fold is. Knows folds and vectors; does not know what the logits are for.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from veneer.data.folds import assign_folds
from veneer.errors import DataError
from veneer.training.baselines import Judged, fit_linear, standardised
from veneer.training.folds import FoldedTraining, inner_split, progress_bar
from veneer.training.prepare import Material
from veneer.training.rivals import Ground


def out_of_fold_logits_of_frozen(work: FoldedTraining, console: Console) -> Tensor:
    """`[N, C]` float32 logits, each row's by the logistic regression of the fold that it was held out of.

    Args:
        work: what would be trained; of its configuration only the base, the pooling and the splits play a part.
        console: where progress is shown.

    Raises:
        DataError: there are too few rows, or so many rows and labels that one regression would take minutes.
        BaseError: the base cannot be loaded.
    """
    assigned = assign_folds(work.examples, work.folds, work.config.seed)
    vectors = _vectors(work, console)
    logits = torch.empty(len(assigned), len(work.labels))
    with progress_bar(console, f"{work.folds} folds", work.folds) as move:
        for fold in range(work.folds):
            held_out = assigned == fold
            logits[torch.from_numpy(np.flatnonzero(held_out))] = _fit_fold(work, vectors, held_out)
            move(1.0)
    return logits


def _vectors(work: FoldedTraining, console: Console) -> NDArray[np.float32]:
    """`[N, H]` of the rows, by the base as it is."""
    material = Material(work.task, work.labels, {"rows": work.examples}, {}, {}, ())
    with progress_bar(console, "vectors of the texts", len(work.examples)) as move:
        rows = Ground.of(work.config, material, work.base).with_vectors(move).splits["rows"]
    assert rows.vectors is not None
    found: NDArray[np.float32] = rows.vectors.numpy()
    return found


def _fit_fold(work: FoldedTraining, vectors: NDArray[np.float32], held_out: NDArray[np.bool_]) -> Tensor:
    """Logits of the rows held out, in their order."""
    config, rest = work.config, [work.examples[i] for i in np.flatnonzero(~held_out)]
    train, dev = inner_split(rest, config, work.folds, work.task.name == "multi_label")
    place = {example.row: i for i, example in enumerate(work.examples)}
    parts = [vectors[[place[example.row] for example in part]] for part in (train, dev)]
    features = [standardised(part, parts[0]) for part in (*parts, vectors[held_out])]
    judged = Judged.of(train, dev, work.labels, work.task, config.evaluation.metric)
    found = fit_linear(features[0], features[1], judged)
    if found is None:
        raise DataError(
            f"{len(work.examples):,} rows with {len(work.labels):,} labels are too many for --quick: a single regression would "
            "take minutes. Fix: leave out --quick, or audit a part of the file"
        )
    return found[1].logits(features[2])
