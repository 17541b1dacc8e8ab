"""Flipped labels are found by models that never saw them; an audit that was stopped goes on; corrections reach training."""

from __future__ import annotations

import io
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from toy_runs import FILLERS, SIGNALS, Rows, run, toy_config, toy_rows, write_csv
from veneer.bases import find_base
from veneer.config import RunConfig
from veneer.data import Example, read_examples
from veneer.data.corrections import Suspect, suspects_table
from veneer.data.folds import assign_folds
from veneer.errors import ConfigError, DataError, Interrupted, ResumeError
from veneer.labels import LabelSet
from veneer.tasks import TASKS
from veneer.training import audit as audit_module
from veneer.training import folds as folds_module
from veneer.training.audit import Audit, audit, quick_audit
from veneer.training.folds import FoldedTraining, out_of_fold_logits
from veneer.training.loop import Job
from veneer.training.prepare import columns_of, read_material
from veneer.training.tracking import Tracker

Base = Callable[..., Path]
ROWS = 150
FLIPPED = (3, 20, 37, 58)


def easy_rows() -> Rows:
    """`ROWS` different texts with three words of their label."""
    rng = random.Random(0)
    rows: dict[str, str] = {}
    while len(rows) < ROWS:
        label = ("good", "bad")[len(rows) % 2]
        rows.setdefault(" ".join([*rng.choices(SIGNALS[label], k=3), rng.choice(FILLERS)]), label)
    return [{"text": text, "label": label} for text, label in rows.items()]


def flipped_config(folder: Path, base: Path | str, **changes: Any) -> RunConfig:
    """`ROWS` rows, each with a word of its label, the labels of `FLIPPED` changed."""
    rows = easy_rows()
    for row in FLIPPED:
        rows[row - 1]["label"] = "bad" if rows[row - 1]["label"] == "good" else "good"
    write_csv(folder / "train.csv", rows)
    write_csv(folder / "dev.csv", toy_rows(12, seed=1))
    settings: dict[str, Any] = {"training__epochs": 4, "training__batch_size": 8, "training__learning_rate": 5e-3}
    return toy_config(folder, base, **settings | changes)


def start(config: RunConfig, folder: Path, *, labels: tuple[str, ...] = ("bad", "good"), task: Any = "single_label") -> Audit:
    kept = folder / "s.csv.folds"
    quiet = Console(file=io.StringIO())
    return audit(config, TASKS[task], LabelSet(labels), find_base(config.base), folds=3, kept=kept, console=quiet)


def folded(config: RunConfig, folds: int = 3) -> FoldedTraining:
    examples = read_examples(config.data.train or "", columns_of(config.data)).examples
    return FoldedTraining(config, examples, TASKS["single_label"], LabelSet(("bad", "good")), find_base(config.base), folds)


def test_flipped_labels_are_the_most_doubtful(tiny_base: Base, tmp_path: Path) -> None:
    found = start(flipped_config(tmp_path, tiny_base(), pooling="mean"), tmp_path)
    lowest = [found.examples[i].row for i in found.scores.argsort()[: len(FLIPPED)]]
    assert len(set(lowest) & set(FLIPPED)) >= 3  # of 150 rows
    assert {one.row for one in found.suspects[:3]} <= set(FLIPPED)
    first = found.suspects[0]
    assert {*first.given, *first.suggested} == {"good", "bad"}
    assert (first.text, first.given) == (found.examples[first.row - 1].text, found.examples[first.row - 1].labels)
    assert first.score == found.scores.min() < 0.5 < first.probability
    assert found.metrics["accuracy"] > 0.85


def test_the_rows_held_out_have_no_part_in_the_training_of_their_fold(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in its steps nor in the choice of the best one; every row is held out once, and twins together."""
    config = flipped_config(tmp_path, tiny_base(), training__epochs=1)
    rows = toy_rows(30, seed=5)
    write_csv(tmp_path / "train.csv", [*rows, *rows[:10]])
    jobs: list[Job] = []
    scored: list[int] = []
    fit, compute = folds_module.fit, folds_module.compute_logits

    def watched_fit(job: Job, *rest: Any, **more: Any) -> Any:
        jobs.append(job)
        return fit(job, *rest, **more)

    def watched_compute(model: Any, texts: Any) -> Any:
        scored.append(len(texts))
        return compute(model, texts)

    monkeypatch.setattr(folds_module, "fit", watched_fit)
    monkeypatch.setattr(folds_module, "compute_logits", watched_compute)
    work = folded(config)
    logits = out_of_fold_logits(work, tmp_path / "kept", Console(file=io.StringIO()))
    assert logits.shape == (40, 2)
    assert sum(scored) == 40
    assigned = assign_folds(work.examples, 3, config.seed)
    for fold, job in enumerate(jobs):
        used = [*job.train.examples, *job.dev.examples]
        held = [example for example, its in zip(work.examples, assigned, strict=True) if its == fold]
        assert len(used) + len(held) == 40
        assert not {example.text for example in used} & {example.text for example in held}
        assert not {example.text for example in job.train.examples} & {example.text for example in job.dev.examples}


def test_each_row_has_the_logits_of_its_own_text(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = flipped_config(tmp_path, tiny_base())
    work = folded(config)

    def numbers(work: FoldedTraining, trained_on: Any, move: Any) -> torch.Tensor:
        held = [example.row for example, mine in zip(work.examples, trained_on, strict=True) if not mine]
        return torch.tensor(held, dtype=torch.float32)[:, None].expand(-1, 2)

    monkeypatch.setattr(folds_module, "_train_fold", numbers)
    logits = out_of_fold_logits(work, tmp_path / "kept", Console(file=io.StringIO()))
    assert logits[:, 0].tolist() == [example.row for example in work.examples]


def test_an_audit_that_was_stopped_goes_on_to_the_same_result(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = flipped_config(tmp_path, tiny_base(), training__epochs=1)
    whole = out_of_fold_logits(folded(config), tmp_path / "whole", Console(file=io.StringIO()))
    advance, steps = Tracker.advance, []

    def interrupt(self: Tracker, row: dict[str, Any]) -> None:
        advance(self, row)
        steps.append(row["step"])
        if steps.count(1) == 2:  # in the second fold
            signal.raise_signal(signal.SIGINT)

    kept = tmp_path / "kept"
    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "advance", interrupt)
        with pytest.raises(Interrupted, match=r"stopped in fold 2 of 3; 1 finished fold is kept in .*kept.*the same command"):
            out_of_fold_logits(folded(config), kept, Console(file=io.StringIO()))
    trained: list[int] = []
    fit = folds_module.fit
    monkeypatch.setattr(folds_module, "fit", lambda *rest: trained.append(1) or fit(*rest))
    said = io.StringIO()
    resumed = out_of_fold_logits(folded(config), kept, Console(file=said))
    assert len(trained) == 2
    assert "1 of 3 folds are in" in said.getvalue()
    assert torch.equal(resumed, whole)


@pytest.mark.parametrize("change", ["seed", "training__learning_rate", "data__max_length"])
def test_folds_of_another_audit_are_not_mixed_in(
    change: str, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fold(work: FoldedTraining, trained_on: Any, move: Any) -> torch.Tensor:
        return torch.zeros(int((~trained_on).sum()), 2)

    monkeypatch.setattr(folds_module, "_train_fold", fold)
    kept, quiet = tmp_path / "kept", Console(file=io.StringIO())
    config = flipped_config(tmp_path, tiny_base())
    out_of_fold_logits(folded(config), kept, quiet)
    out_of_fold_logits(folded(config), kept, quiet)
    section, _, key = change.rpartition("__")
    where = getattr(config, section) if section else config
    setattr(where, key, 7)
    with pytest.raises(ResumeError, match="other data, settings or base"):
        out_of_fold_logits(folded(config), kept, quiet)
    kept.write_bytes(b"damaged")
    with pytest.raises(ResumeError, match="remove the file"):
        out_of_fold_logits(folded(config), kept, quiet)


def test_several_labels_a_row(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark too few and one too many; the models are made up, so that only their doubts are looked at."""
    rows = toy_rows(60, labels=("good", "bad", "odd"), multi=True, seed=2)
    config = toy_config(tmp_path, tiny_base(), data__label_separator="|")
    right = [row["label"].split("|") for row in rows]
    few, many = (
        next(i for i, have in enumerate(right) if len(have) == 2),
        next(i for i, have in enumerate(right) if len(have) == 1),
    )
    rows[few]["label"] = right[few][1]
    rows[many]["label"] = "|".join([*right[many], "odd" if "odd" not in right[many] else "bad"])
    write_csv(tmp_path / "train.csv", rows)
    names = ("bad", "good", "odd")

    def knows(work: FoldedTraining, trained_on: Any, move: Any) -> torch.Tensor:
        held = [example.row - 1 for example, mine in zip(work.examples, trained_on, strict=True) if not mine]
        sure = {few: 5.0, many: 5.0}
        return torch.tensor([[sure.get(i, 3.0) * (1 if name in right[i] else -1) for name in names] for i in held])

    monkeypatch.setattr(folds_module, "_train_fold", knows)
    found = start(config, tmp_path, labels=names, task="multi_label")
    suggested = {one.row - 1: (one.given, set(one.suggested)) for one in found.suspects}
    assert suggested == {
        few: ((right[few][1],), set(right[few])),
        many: (tuple(rows[many]["label"].split("|")), set(right[many])),
    }
    assert next(one for one in found.suspects if one.row - 1 == few).suggested[0] == right[few][1]  # what was there stays first


def test_the_quick_way_finds_flipped_labels_without_training(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folds_module, "fit", lambda *_: pytest.fail("trained"))
    config = flipped_config(tmp_path, tiny_base(), pooling="mean")
    quiet = Console(file=io.StringIO())
    found = quick_audit(config, TASKS["single_label"], LabelSet(("bad", "good")), find_base(config.base), folds=3, console=quiet)
    assert found.informed
    assert len({one.row for one in found.suspects[:8]} & set(FLIPPED)) >= 3


def blind(answer: Callable[[int], Any]) -> Callable[..., torch.Tensor]:
    def logits(work: FoldedTraining, trained_on: Any, move: Any) -> torch.Tensor:
        held = [example.row for example, mine in zip(work.examples, trained_on, strict=True) if not mine]
        return torch.stack([torch.as_tensor(answer(row), dtype=torch.float32) for row in held])

    return logits


DRAWN = random.Random(4)
GUESSES = [DRAWN.choice([-1.0, 1.0]) for _ in range(ROWS + 1)]


@pytest.mark.parametrize("answer", [lambda row: [1.0, 0.0], lambda row: [GUESSES[row], 0.0]], ids=["always the same", "guesses"])
def test_models_that_do_not_read_the_text_are_not_informed(
    answer: Callable[[int], Any], tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folds_module, "_train_fold", blind(answer))
    found = start(flipped_config(tmp_path, tiny_base()), tmp_path)
    assert not found.informed
    assert found.lead_metric == "macro_recall"


def test_a_rare_class_that_is_found_counts_however_frequent_the_other_is(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy would not tell: these models are right as often as always the frequent class is."""
    rare, alarms = set(range(1, 16)), set(range(16, 31))
    config = flipped_config(tmp_path, tiny_base())
    write_csv(tmp_path / "train.csv", [row | {"label": "bad" if i in rare else "good"} for i, row in enumerate(easy_rows(), 1)])
    monkeypatch.setattr(folds_module, "_train_fold", blind(lambda row: [1.0 if row in rare | alarms else -1.0, 0.0]))
    found = start(config, tmp_path)
    assert found.metrics["accuracy"] == pytest.approx(1 - 15 / ROWS)
    assert found.informed


@pytest.mark.parametrize(("answer", "informed"), [([-1.0] * 3, False), ([1.0] * 3, False), (None, True)])
def test_with_several_labels_a_row_all_of_them_for_every_row_is_no_knowledge(
    answer: Any, informed: bool, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("bad", "good", "odd")
    config = toy_config(tmp_path, tiny_base(), data__label_separator="|")
    rows = toy_rows(60, labels=names, multi=True, seed=2)
    write_csv(tmp_path / "train.csv", rows)
    right = [[1.0 if name in row["label"].split("|") else -1.0 for name in names] for row in rows]
    monkeypatch.setattr(folds_module, "_train_fold", blind(lambda row: right[row - 1] if answer is None else answer))
    found = start(config, tmp_path, labels=names, task="multi_label")
    assert (found.informed, found.lead_metric) == (informed, "macro_f1")


def test_what_stops_an_audit_before_it_trains(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds_module, "fit", lambda *_: pytest.fail("trained"))
    config = flipped_config(tmp_path, tiny_base())
    with pytest.raises(DataError, match="unknown-label"):
        start(config, tmp_path, labels=("bad", "fine"))
    write_csv(tmp_path / "train.csv", [{"text": "a", "label": "good"}, {"text": "b", "label": "bad"}])
    with pytest.raises(DataError, match="2 different texts cannot be dealt into 3 folds"):
        start(config, tmp_path)
    write_csv(tmp_path / "train.csv", toy_rows(3))
    with pytest.raises(DataError, match="rows outside a fold are too few"):
        start(config, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="veneer\\[audit\\]"):
        start(config, tmp_path)


class TestCorrectionsInTraining:
    def corrections(self, folder: Path, config: RunConfig) -> str:
        """A file that puts the flipped labels right."""
        examples: tuple[Example, ...] = read_examples(config.data.train or "", columns_of(config.data)).examples
        suspects = [
            Suspect(one.row, one.text, one.pair, one.labels, ("bad",) if one.labels == ("good",) else ("good",), 0.1, 0.9)
            for one in examples
            if one.row in FLIPPED
        ]
        path = folder / "suspects.csv"
        path.write_text(suspects_table(suspects, ("good", "bad"), accept=0.0), encoding="utf-8")
        return str(path)

    def test_rows_are_corrected_and_the_fingerprint_is_another(self, tmp_path: Path) -> None:
        config = flipped_config(tmp_path, "no-base")
        before = read_material(config)
        config.data.corrections = self.corrections(tmp_path, config)
        after = read_material(config)
        changed = [old.row for old, new in zip(before.examples["train"], after.examples["train"], strict=True) if old != new]
        assert changed == list(FLIPPED)
        assert after.corrected == 4
        assert before.corrected == 0
        assert before.fingerprints["train"] != after.fingerprints["train"]
        assert before.fingerprints["dev"] == after.fingerprints["dev"]

    def test_a_label_that_is_corrected_away_is_no_class_any_more(self, tmp_path: Path) -> None:
        config = flipped_config(tmp_path, "no-base")
        rows = easy_rows()
        rows[FLIPPED[0] - 1]["label"] = "goood"
        write_csv(tmp_path / "train.csv", rows)
        path = Path(self.corrections(tmp_path, config))
        header, *rest = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([header, *(line for line in rest if '"goood","good"' in line)]), encoding="utf-8")
        config.data.corrections = str(path)
        assert tuple(read_material(config).labels) == ("bad", "good")

    def test_a_run_is_trained_on_them_and_says_so_in_its_configuration(self, tiny_base: Base, tmp_path: Path) -> None:
        config = flipped_config(tmp_path, tiny_base())
        config.data.corrections = self.corrections(tmp_path, config)
        config.training.epochs = 1
        folder = run(config).folder
        info = json.loads((folder / "veneer.json").read_text(encoding="utf-8"))
        assert info["data_fingerprint"] == read_material(config).fingerprints["train"]
        assert "corrections: " in (folder / "config.yaml").read_text(encoding="utf-8")


def test_more_labels_than_memory_holds_are_refused_before_any_training(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "MOST_CELLS", 2 * ROWS - 1)
    monkeypatch.setattr(folds_module, "fit", None)
    with pytest.raises(DataError, match=r"150 rows with 2 labels are too many .* at most 149 rows"):
        start(flipped_config(tmp_path, tiny_base()), tmp_path)
