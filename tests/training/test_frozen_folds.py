"""Out-of-fold logistic regressions on the vectors of a base as it is."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from toy_runs import toy_config, toy_rows, write_csv
from veneer.bases import find_base
from veneer.data import read_examples
from veneer.data.folds import assign_folds
from veneer.errors import DataError
from veneer.inference import compute_pooled
from veneer.labels import LabelSet
from veneer.tasks import TASKS
from veneer.training import frozen_folds, vectors
from veneer.training.baselines import Judged, LinearModel
from veneer.training.folds import FoldedTraining
from veneer.training.prepare import columns_of

Base = Callable[..., Path]


def folded(folder: Path, base: Path, *, multi: bool = False) -> FoldedTraining:
    """60 rows, the first ten of them twice."""
    names = ("bad", "good", "odd") if multi else ("bad", "good")
    rows = toy_rows(50, labels=names, multi=multi, seed=3)
    write_csv(folder / "train.csv", [*rows, *rows[:10]])
    config = toy_config(folder, base, pooling="mean", **({"data__label_separator": "|"} if multi else {}))
    examples = read_examples(config.data.train or "", columns_of(config.data)).examples
    task: Any = "multi_label" if multi else "single_label"
    return FoldedTraining(config, examples, TASKS[task], LabelSet(names), find_base(config.base), 3)


def logits_of(work: FoldedTraining) -> Any:
    return frozen_folds.out_of_fold_logits_of_frozen(work, Console(file=io.StringIO()))


@pytest.mark.parametrize("multi", [False, True])
def test_the_base_reads_each_text_once(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, multi: bool) -> None:
    read: list[int] = []

    def watched(model: Any, texts: Any, **more: Any) -> Any:
        read.append(len(texts))
        return compute_pooled(model, texts, **more)

    monkeypatch.setattr(vectors, "compute_pooled", watched)
    work = folded(tmp_path, tiny_base(), multi=multi)
    logits = logits_of(work)
    assert (read, tuple(logits.shape)) == ([60], (60, 3 if multi else 2))
    assert logits.isfinite().all()


def test_a_row_has_no_part_in_the_model_that_scores_it(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fitted on, and what picks the penalty, are vectors of other texts; each row gets the logits of its own vector."""
    work, known = folded(tmp_path, tiny_base()), np.arange(60, dtype=np.float32)[:, None].repeat(2, 1)
    seen: list[set[int]] = []

    def remember(train: Any, dev: Any, judged: Judged) -> tuple[float, LinearModel]:
        assert (len(train), len(dev)) == (len(judged.train), len(judged.dev))
        seen.append({*train[:, 0].astype(int), *dev[:, 0].astype(int)})
        return 1.0, LinearModel(np.eye(2), np.zeros(2), (1.0, False), False)

    monkeypatch.setattr(frozen_folds, "_vectors", lambda *_: known)
    monkeypatch.setattr(frozen_folds, "standardised", lambda features, train: features)
    monkeypatch.setattr(frozen_folds, "fit_linear", remember)
    assert logits_of(work)[:, 0].tolist() == list(range(60))
    assigned = assign_folds(work.examples, 3, work.config.seed)
    for fold, used in enumerate(seen):
        assert used == set(np.flatnonzero(assigned != fold))
        held = {work.examples[i].text for i in np.flatnonzero(assigned == fold)}
        assert not held & {work.examples[i].text for i in used}


def test_too_much_work_is_refused_with_the_way_out(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veneer.training.baselines.WORK_OF_ONE", 1)
    with pytest.raises(DataError, match=r"60 rows with 2 labels are too many for --quick.*leave out --quick"):
        logits_of(folded(tmp_path, tiny_base()))
