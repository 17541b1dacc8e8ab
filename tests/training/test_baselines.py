"""Baselines: honest on data that words decide, chosen on dev, and quiet on data that is hardly any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from toy_runs import toy_config, toy_rows, write_csv
from veneer.data import Example
from veneer.evaluation.metrics import point_metrics
from veneer.labels import LabelSet
from veneer.tasks import TASKS
from veneer.training import baselines
from veneer.training.baselines import (
    Judged,
    LinearModel,
    compared_on,
    decide_like_ours,
    describe_choice,
    fit_linear,
    fit_text_baseline,
    judge_against_text,
    majority,
    target_array,
)
from veneer.training.prepare import read_material

SINGLE, MULTI = TASKS["single_label"], TASKS["multi_label"]


def examples(rows: list[tuple[str, str]], pair: str | None = None) -> list[Example]:
    """Rows of a text and its labels, separated by `|`."""
    return [Example(text, pair, tuple(labels.split("|")) if labels else (), row) for row, (text, labels) in enumerate(rows, 1)]


def toys(count: int, *labels: str, multi: bool = False, seed: int = 0) -> list[Example]:
    return examples([(row["text"], row["label"]) for row in toy_rows(count, labels=labels, multi=multi, seed=seed)])


@pytest.mark.parametrize("labels", [("good", "bad"), ("good", "bad", "odd")])
def test_single_labels_are_learned(labels: tuple[str, ...]) -> None:
    train, dev, test = (toys(count, *labels, seed=seed) for count, seed in ((90, 0), (30, 1), (60, 2)))
    names = LabelSet.from_labels(labels)
    found = fit_text_baseline(train, dev, names, SINGLE, "accuracy")
    assert found is not None
    decisions = found.decide(test)
    assert decisions.shape == (60,)
    assert point_metrics(target_array(test, names, SINGLE), decisions, len(names), False)["accuracy"] > 0.9
    assert found.model.parameters == len(names) * (found.model.weights.shape[1] + 1)
    assert "C = " in found.description


def test_several_labels_are_learned() -> None:
    train, dev, test = (toys(count, "good", "bad", "odd", multi=True, seed=seed) for count, seed in ((90, 0), (30, 1), (60, 2)))
    names = LabelSet.from_labels(["good", "bad", "odd"])
    found = fit_text_baseline(train, dev, names, MULTI, "loss")
    assert found is not None
    decisions = found.decide(test)
    assert (decisions.shape, decisions.dtype) == ((60, 3), np.dtype(bool))
    assert point_metrics(target_array(test, names, MULTI), decisions, 3, True)["macro_f1"] > 0.9


def test_pairs_are_told_apart_by_what_they_share() -> None:
    """Neither text alone says whether both are the same."""
    rng = np.random.default_rng(0)
    words = ["nurse", "bill", "knee", "film", "story", "night", "river", "stone"]

    def pairs(count: int) -> list[Example]:
        rows = []
        for row in range(count):
            first, second = rng.choice(words, 2, replace=False)
            same = row % 2 == 0
            rows.append(Example(f"the {first}", f"a {first if same else second}", ("same" if same else "other",), row + 1))
        return rows

    names = LabelSet(("other", "same"))
    test = pairs(80)
    found = fit_text_baseline(pairs(200), pairs(60), names, SINGLE, "accuracy")
    assert found is not None
    assert point_metrics(target_array(test, names, SINGLE), found.decide(test), 2, False)["accuracy"] > 0.95


def test_languages_without_spaces_are_read_by_characters() -> None:
    rows = [("头痛怎么办好" * 2, "ill"), ("今天多少钱啊" * 2, "bill"), ("我头痛得很啊", "ill"), ("要付多少钱呢", "bill")] * 4
    names = LabelSet(("bill", "ill"))
    found = fit_text_baseline(examples(rows), examples(rows), names, SINGLE, "accuracy")
    assert found is not None
    assert found.description.startswith("characters")
    assert found.decide(examples([("他头痛", "ill"), ("多少钱", "bill")])).tolist() == [1, 0]


def test_the_choice_is_made_on_dev(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny penalty's constant gives every rare label up, unless rare labels are weighted."""
    rows = [("good film", "a")] * 30 + [("dull film", "b")] * 3
    names = LabelSet(("a", "b"))
    strong, weighted = (1e-6, False), (1e-6, True)
    for choices in ((strong, weighted), (weighted, strong)):
        monkeypatch.setattr(baselines, "CHOICES", choices)
        found = fit_text_baseline(examples(rows), examples(rows), names, SINGLE, "macro_f1")
        assert found is not None
        assert found.model.choice == weighted
        assert describe_choice(found.model) == "C = 1e-06, rare labels weighted"


@pytest.mark.parametrize("task", [SINGLE, MULTI])
def test_degenerate_data_gives_a_defined_result(task: object) -> None:
    """A label of one text, one that no text has, one that all have: decisions are made, and no library complains."""
    kind = MULTI if task is MULTI else SINGLE
    names = LabelSet(("all", "none", "once"))
    one = "all|once" if kind is MULTI else "once"
    train = examples([("good film", "all"), ("dull film", "all"), ("odd story", one)])
    dev = examples([("good story", "all"), ("strange", "none")])
    found = fit_text_baseline(train, dev, names, kind, "macro_f1")
    assert found is not None
    decisions = found.decide(dev)
    assert decisions.shape == ((2, 3) if kind is MULTI else (2,))
    if kind is MULTI:
        assert decisions[:, 0].all()
        assert not decisions[:, 1].any()
    else:
        assert 1 not in decisions.tolist()


def test_one_class_alone() -> None:
    names = LabelSet(("only", "other"))
    rows = examples([("good film", "only"), ("dull film", "only")])
    found = fit_text_baseline(rows, rows, names, SINGLE, "accuracy")
    assert found is not None
    assert found.decide(rows).tolist() == [0, 0]
    assert found.model.parameters == 0


def test_texts_without_a_letter_have_no_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    names = LabelSet(("a", "b"))
    rows = examples([("! ?", "a"), ("? ! ?", "b")])
    monkeypatch.setattr(baselines, "MOST_FOR_PIECES", 0)
    assert fit_text_baseline(rows, rows, names, SINGLE, "accuracy") is None


def test_what_would_take_minutes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    train, dev = toys(30, "good", "bad"), toys(10, "good", "bad", seed=1)
    names = LabelSet(("bad", "good"))
    monkeypatch.setattr(baselines, "WORK_OF_ONE", 10)
    assert fit_text_baseline(train, dev, names, SINGLE, "accuracy") is None


def test_the_work_in_all_bounds_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense features count for less; with three labels each is fitted."""
    judged = Judged(np.array([0, 1, 2] * 4), np.array([0, 1, 2]), 3, False, "accuracy")
    tried: list[tuple[float, bool]] = []
    fit = baselines._fit

    def counted(features: object, judged: Judged, choice: tuple[float, bool]) -> LinearModel:
        tried.append(choice)
        return fit(features, judged, choice)

    monkeypatch.setattr(baselines, "_fit", counted)
    dense = np.tile(np.eye(3, 10), (4, 1))  # 120 values: 36 units of work a fit
    monkeypatch.setattr(baselines, "WORK_IN_ALL", 72)
    assert fit_linear(dense, np.eye(3, 10), judged) is not None
    assert len(tried) == 2
    tried.clear()
    assert fit_linear(sparse.csr_matrix(dense), sparse.csr_matrix(np.eye(3, 10)), judged) is not None
    assert len(tried) == 2  # 12 values that are not zero: as many units


CHANCE = {30.0: 0.60, 10.0: 0.60, 3.0: 0.59, 1.0: 0.62, 0.3: 0.61, 0.1: 0.63}  # ups and downs of a few dev texts
FALLING = {30.0: 0.40, 10.0: 0.60, 3.0: 0.59, 1.0: 0.50, 0.3: 0.9, 0.1: 0.9}


@pytest.mark.parametrize(
    ("by_weight", "tried"),
    [
        ({True: CHANCE, False: CHANCE}, {(c, w) for c in CHANCE for w in (True, False)}),
        ({True: CHANCE, False: dict.fromkeys(CHANCE, 0.54)}, {*((c, True) for c in CHANCE), (10.0, False)}),
        ({True: dict.fromkeys(CHANCE, 0.54), False: CHANCE}, {*((c, False) for c in CHANCE), (10.0, True)}),
        ({True: CHANCE, False: FALLING}, {*((c, True) for c in CHANCE), *((c, False) for c in (10.0, 1.0, 30.0, 3.0))}),
    ],
    ids=["all are near", "rare labels need weight", "weight spoils it", "too small a penalty"],
)
def test_what_is_clearly_behind_is_not_tried_further(
    monkeypatch: pytest.MonkeyPatch, by_weight: dict[bool, dict[float, float]], tried: set[tuple[float, bool]]
) -> None:
    """And no more than that: a lead that may be chance, or a dip on the way, leaves out nothing."""
    asked: list[tuple[float, bool]] = []

    class Scripted(Judged):
        def score(self, decisions: Any) -> float:
            return by_weight[asked[-1][1]][asked[-1][0]]

    def fit(features: object, judged: Judged, choice: tuple[float, bool]) -> LinearModel:
        asked.append(choice)
        return LinearModel(np.eye(2), np.zeros(2), choice, False)

    monkeypatch.setattr(baselines, "_fit", fit)
    found = fit_linear(np.eye(2), np.eye(2), Scripted(np.arange(2), np.arange(2), 2, False, "accuracy"))
    assert found is not None
    assert (set(asked), len(asked)) == (tried, len(tried))
    assert found[0] == 0.63


def test_both_kinds_of_features_decide_alike() -> None:
    """Sparse and dense features go to different solvers."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 4))
    targets = (features @ rng.normal(size=(4, 3))).argmax(axis=1)
    judged = Judged(targets[:100], targets[100:], 3, False, "accuracy")
    results = [fit_linear(kind(features[:100]), kind(features[100:]), judged) for kind in (np.asarray, sparse.csr_matrix)]
    scores = [found[0] for found in results if found is not None]
    assert scores[0] == pytest.approx(scores[1], abs=0.051)  # one of twenty
    assert min(scores) > 0.7  # where chance gives a third


def test_logits_are_finite_and_decide_as_the_model_does() -> None:
    """Of a label that no training text has, and of one that all have, too."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 4))
    targets = np.stack([features[:, 0] > 0, np.zeros(60, bool), np.ones(60, bool)], axis=1)
    found = fit_linear(features[:40], features[40:], Judged(targets[:40], targets[40:], 3, True, "macro_f1"))
    assert found is not None
    logits = found[1].logits(features[40:])
    assert logits.isfinite().all()
    assert np.array_equal((logits > 0).numpy(), found[1].decide(features[40:]))


def test_the_text_baseline_is_calibrated_where_the_adapter_is(tmp_path: Path) -> None:
    """The verdict's baseline gets the decisions that its own logits on dev lead to."""
    write_csv(tmp_path / "train.csv", toy_rows(60, labels=("good", "bad", "odd"), multi=True))
    write_csv(tmp_path / "dev.csv", toy_rows(60, labels=("good", "bad", "odd"), multi=True, seed=1))
    config = toy_config(tmp_path, "nowhere", data__label_separator="|", evaluation__bootstrap=100)
    material = read_material(config)
    targets = target_array(material.examples["dev"], material.labels, material.task)
    low = torch.from_numpy(np.where(targets, -1.0, -3.0) + 0.1 * np.random.default_rng(0).normal(size=targets.shape)).float()
    assert not (low > 0).any()  # by the plain rule nothing is right
    assert np.array_equal(decide_like_ours(config, material, {"dev": low}), targets)
    config.evaluation.calibrate = False
    assert not decide_like_ours(config, material, {"dev": low}).any()


def test_what_is_compared_follows_the_configuration(tmp_path: Path) -> None:
    """A verdict needs resamples, though: without any there are as many as by default."""
    config = toy_config(tmp_path, "nowhere", evaluation__bootstrap=70, evaluation__metric="loss", seed=3)
    material = read_material(config)
    compared = compared_on(material, config)
    assert (compared.resamples, compared.metric, compared.seed, len(compared.targets)) == (70, "macro_f1", 3, 12)
    assert len(compared_on(material, config, "train").targets) == 42
    config.evaluation.bootstrap = 0
    assert compared_on(material, config).resamples == 1000


def test_the_majority() -> None:
    assert majority(np.array([2, 1, 2, 0])) == 2
    several = np.array([[True, False], [True, True], [True, True], [False, True]])
    assert majority(several).tolist() == [True, True]


def test_the_verdict_against_text(tmp_path: Path) -> None:
    """Words decide these labels, so that nothing beats counting them; test is judged where there is one."""
    write_csv(tmp_path / "test.csv", toy_rows(30, seed=2))
    config = toy_config(tmp_path, "nowhere", data__test=str(tmp_path / "test.csv"))
    material = read_material(config)
    truth = target_array(material.examples["test"], material.labels, material.task)
    verdict = judge_against_text(material, 1 - truth, config)
    assert verdict is not None
    assert (verdict.kind, verdict.split, verdict.score) == ("not_worth_it", "test", 0.0)
    assert verdict.against == "TF-IDF + logistic regression"
    assert verdict.baseline > 0.9
    del material.examples["test"]
    truth = target_array(material.examples["dev"], material.labels, material.task)
    dev = judge_against_text(material, truth, config)
    assert dev is not None
    assert (dev.split, dev.score) == ("dev", 1.0)
