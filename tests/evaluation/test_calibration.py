"""What a calibration is kept for: gains that chance does not explain, honest figures, and no surprise on odd texts."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score

from veneer.errors import DataError
from veneer.evaluation import calibration as module
from veneer.evaluation.calibration import fit_calibration
from veneer.evaluation.goals import Goal
from veneer.evaluation.metrics import score
from veneer.evaluation.scaling import Sample
from veneer.tasks import PLAIN, TASKS, Calibration

SINGLE, MULTI = TASKS["single_label"], TASKS["multi_label"]


def biased(n: int, seed: int = 0) -> Sample:
    """Two classes, 31 % of the second, whose logit is too low."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, generator=generator) < 0.31).long()
    margin = 3 * targets - 3.5 + torch.randn(n, generator=generator)
    return Sample(SINGLE, torch.stack([torch.zeros(n), margin], dim=1), targets)


def labels(n: int, shares: list[float], shift: float, seed: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, len(shares), generator=generator) < torch.tensor(shares)).float()
    return Sample(MULTI, torch.randn(n, len(shares), generator=generator) + 2 * targets + shift, targets)


def fit(sample: Sample, **options: Any) -> module.Fitted:
    return fit_calibration(sample.logits, sample.targets, sample.task, **options)


def test_a_real_gain_is_kept_and_holds_on_new_texts() -> None:
    fitted, new = fit(biased(500)), biased(4000, seed=1)
    assert (fitted.rule.kept, fitted.rule.metric, fitted.method) == ("fitted", "macro_f1", "temperature")
    assert fitted.rule.interval is not None
    assert 0 < fitted.rule.interval[0] < fitted.rule.gain < fitted.rule.interval[1]
    assert "above zero" in fitted.rule.reason

    def macro(calibration: Calibration) -> float:
        return float(f1_score(new.targets, SINGLE.decide(new.logits, calibration), average="macro"))

    assert macro(fitted.calibration) - macro(PLAIN) == pytest.approx(fitted.rule.gain, abs=0.04)


def test_a_gain_that_may_be_chance_is_not_kept() -> None:
    sample = biased(60)
    centred = Sample(SINGLE, sample.logits + torch.tensor([0.0, 2.0]), sample.targets)
    fitted = fit(centred)
    assert fitted.rule.kept == "plain"
    assert fitted.rule.interval is not None
    assert fitted.rule.interval[0] <= 0
    assert fitted.calibration.offsets == ()
    assert torch.equal(SINGLE.decide(centred.logits, fitted.calibration), SINGLE.decide(centred.logits))
    assert fit(biased(500), bootstrap=0).rule.kept == "plain"


def test_noise_keeps_the_plain_rule() -> None:
    """Random logits: what a fitted rule gains on its own texts it does not gain on others."""
    kept = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(80, 3, generator=generator)
        kept += fit_calibration(logits, torch.randint(0, 3, (80,), generator=generator), SINGLE, seed=seed).rule.kept == "fitted"
    assert kept <= 3


def test_a_kept_plain_rule_decides_as_the_logits_do_even_with_platt() -> None:
    sample = labels(400, [0.5, 0.4], 0.0)
    shifted = Sample(MULTI, sample.logits * 3 - torch.tensor([4.0, 2.0]), sample.targets)
    fitted = fit(shifted, bootstrap=0)
    assert (fitted.method, fitted.rule.kept) == ("platt", "plain")
    assert not torch.equal(
        MULTI.decide(shifted.logits, Calibration(fitted.calibration.slopes, fitted.calibration.shifts)),
        MULTI.decide(shifted.logits),
    )
    assert torch.equal(MULTI.decide(shifted.logits, fitted.calibration), MULTI.decide(shifted.logits))


def test_labels_have_calibration_errors_of_their_own() -> None:
    """One label too sure and one too unsure, and 18 that are easy: together they look fine, each alone does not."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(2000, generator=generator) * 0.6 + 0.2
    targets = torch.cat([(torch.rand(2000, 2, generator=generator) < p[:, None]).float(), torch.zeros(2000, 18)], dim=1)
    targets[0, 2] = 1.0
    given = torch.stack([p + 0.15, p - 0.15], dim=1)
    logits = torch.cat([given.logit(), torch.full((2000, 18), -9.0)], dim=1)
    scores = fit(Sample(MULTI, logits, targets), bootstrap=0).before.scores()
    assert scores["ece_label_mean"] == pytest.approx(0.1, abs=0.02)  # of the three labels that a text has: (0.15 + 0.15 + 0) / 3
    assert scores["ece"] < 0.02
    assert "ece_label_mean" not in fit(biased(100), bootstrap=0).before.scores()


def test_thresholds_help_rare_labels() -> None:
    fitted, new = fit(labels(800, [0.3, 0.05, 0.02], -2.5)), labels(6000, [0.3, 0.05, 0.02], -2.5, seed=1)
    assert fitted.rule.kept == "fitted"
    assert len(fitted.calibration.thresholds) == 3
    plain, calibrated = (
        f1_score(new.targets, MULTI.decide(new.logits, calibration), average="macro")
        for calibration in (PLAIN, fitted.calibration)
    )
    assert calibrated > plain + 0.05


def test_figures_are_of_texts_that_took_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text is judged by what was fitted without it."""
    sample, seen = biased(100), []
    original = module.choose_scaling

    def record(part: Sample, seed: int) -> Any:
        seen.append({tuple(row) for row in part.logits.tolist()})
        return original(part, seed)

    monkeypatch.setattr(module, "choose_scaling", record)
    fit(sample)
    everything = {tuple(row) for row in sample.logits.tolist()}
    assert len(everything) == 100
    assert [len(part) for part in seen] == [80] * 5 + [100]
    assert set().union(*(everything - part for part in seen[:5])) == everything


def test_probabilities_are_better_on_texts_held_out() -> None:
    sample = biased(600)
    sure = fit(Sample(SINGLE, sample.logits * 4, sample.targets))
    before, after = sure.before.scores(), sure.after.scores()
    assert all(after[name] < before[name] for name in ("ece", "brier", "nll"))
    new = biased(4000, seed=1)
    loss = torch.nn.functional.cross_entropy(sure.calibration.calibrated(new.logits * 4), new.targets)
    assert float(loss) == pytest.approx(after["nll"], abs=0.05)


@pytest.mark.parametrize("goal", [Goal(), Goal("accuracy")])
@pytest.mark.parametrize("sample", [biased(200), labels(200, [0.3, 0.1], -1.0)], ids=["single", "multi"])
def test_the_scores_of_the_guard_are_those_of_the_evaluation(sample: Sample, goal: Goal) -> None:
    decided = sample.task.decide(sample.logits)
    truth = sample.targets.bool() if sample.multi_label else sample.targets
    evaluation = score(truth.numpy(), decided.numpy(), ["a", "b"], multi_label=sample.multi_label, bootstrap=0)
    expected = evaluation.metrics["macro_f1" if goal.name == "f1" else "accuracy"].value
    if goal.name == "accuracy" and sample.multi_label:
        expected = 1 - evaluation.metrics["hamming_loss"].value
    assert fit(sample, goal=goal).rule.plain == pytest.approx(expected)


MULTI_COSTS = Goal("cost", costs=((5.0, 1.0), (1.0, 3.0)))
SINGLE_COSTS = Goal("cost", costs=((0.0, 2.0), (9.0, 0.0)))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", ["f1", "accuracy", "precision", "recall", "cost"])
def test_the_guards_interval_is_that_of_texts_drawn_one_by_one(name: str, multi_label: bool) -> None:
    """Of fitted − plain; the goal's metric by its definition."""
    sample = labels(90, [0.4, 0.2], -1.0) if multi_label else biased(90)
    goal = (MULTI_COSTS if multi_label else SINGLE_COSTS) if name == "cost" else Goal(name)  # type: ignore[arg-type]
    plain = sample.task.decide(sample.logits)
    fitted = sample.logits > -1.2 if multi_label else (sample.logits[:, 1] > -1.5).long()
    rng, differences = np.random.default_rng(1), []
    for _ in range(3000):
        drawn = torch.from_numpy(rng.integers(0, 90, 90))
        true = sample.targets[drawn].long()
        differences.append(_by_definition(goal, true, fitted[drawn].long()) - _by_definition(goal, true, plain[drawn].long()))
    held = module._HeldOut(sample.logits, fitted, plain, True)
    found = module._gain_interval(sample, held, goal, 3000, 0)
    assert found == pytest.approx(np.quantile(differences, [0.025, 0.975]).tolist(), abs=0.15 * float(np.std(differences)) + 1e-9)
    assert module._point(sample, fitted, goal) == pytest.approx(_by_definition(goal, sample.targets.long(), fitted.long()))


def _by_definition(goal: Goal, true: torch.Tensor, given: torch.Tensor) -> float:
    multi_label = true.ndim == 2
    if goal.costs is not None:
        costs = torch.tensor(goal.costs)
        each = (true * (1 - given) * costs[:, 0] + given * (1 - true) * costs[:, 1]).sum(1) if multi_label else costs[true, given]
        return float(each.double().mean())
    if goal.name == "accuracy":
        return float((true == given).double().mean())
    scorer = {"f1": f1_score, "precision": precision_score, "recall": recall_score}[goal.name]
    average = "macro" if multi_label or goal.name == "f1" else "binary"
    return float(scorer(true, given, average=average, zero_division=0))


def test_a_precision_that_was_asked_for_is_kept_and_measured() -> None:
    sample = biased(800)
    fitted = fit(sample, goal=Goal("precision", 0.8))
    assert (fitted.rule.kept, fitted.rule.metric) == ("fitted", "precision")
    assert fitted.rule.fitted == pytest.approx(0.8, abs=0.06)
    assert "0.8" in fitted.rule.reason
    given = SINGLE.decide(sample.logits, fitted.calibration) == 1
    assert float(sample.targets[given].double().mean()) >= 0.8


def test_a_precision_no_class_reaches_is_told() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(200, 2, generator=generator), (torch.rand(200, generator=generator) < 0.2).long()
    logits[:, 1] -= 10 * targets  # the second class has the lowest logits
    with pytest.raises(DataError, match=r"precision=0\.95 is not reached"):
        fit_calibration(logits, targets, SINGLE, goal=Goal("precision", 0.95))


def test_costs_are_lowered() -> None:
    fitted = fit(biased(800), goal=Goal("cost", costs=((0.0, 1.0), (20.0, 0.0))))
    assert (fitted.rule.kept, fitted.rule.metric) == ("fitted", "mean_cost")
    assert fitted.rule.fitted < fitted.rule.plain
    assert fitted.rule.gain == pytest.approx(fitted.rule.plain - fitted.rule.fitted)
    assert fitted.calibration.offsets[1] > 0


def three(n: int, shares: list[float], seed: int) -> Sample:
    """Three classes that are told apart well, the second of which has too high a logit."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(3, size=n, p=shares)
    logits = rng.normal(size=(n, 3)) + 2.5 * np.eye(3)[targets] + [0.0, 1.5, 0.0]
    return Sample(SINGLE, torch.from_numpy(logits).float(), torch.from_numpy(targets))


def test_a_class_that_the_texts_have_not_is_not_unlearned() -> None:
    """Judged by new texts that do have it: to decide on it less often would look like a gain only where it is missing."""
    new = three(4000, [0.4, 0.3, 0.3], 1)

    def macro(calibration: Calibration) -> float:
        return float(f1_score(new.targets, SINGLE.decide(new.logits, calibration), average="macro"))

    fitted = fit(three(400, [0.6, 0.4, 0.0], 0))
    assert (fitted.rule.kept, fitted.left) == ("fitted", (2,))
    assert fitted.rule.gain < 0.1
    assert macro(fitted.calibration) > macro(PLAIN) + 0.02
    plain, decided = SINGLE.decide(new.logits), SINGLE.decide(new.logits, fitted.calibration)
    assert torch.equal(plain == 2, decided == 2)
    centred = three(400, [0.6, 0.4, 0.0], 0)
    centred = Sample(SINGLE, centred.logits - torch.tensor([0.0, 1.5, 0.0]), centred.targets)
    assert fit(centred).rule.kept == "plain"


def test_texts_of_one_class_fit_no_rule() -> None:
    sample = three(60, [1.0, 0.0, 0.0], 0)
    fitted = fit(sample)
    assert (fitted.rule.kept, fitted.calibration) == ("plain", PLAIN)
    assert fitted.rule.fitted == fitted.rule.plain
    assert "the same label" in fitted.rule.reason


def repeated(sample: Sample, times: int) -> Sample:
    return Sample(sample.task, *(one.repeat(times, *[1] * (one.ndim - 1)) for one in (sample.logits, sample.targets)))


def test_a_text_counts_once_however_many_rows_it_has() -> None:
    sample = biased(200)
    once, often = fit(sample), fit(repeated(sample, 3))
    assert often.to_json() == once.to_json()
    assert torch.equal(often.held_out, once.held_out.repeat(3))
    promised, promises = fit(sample, coverage=0.9, precision=0.6), fit(repeated(sample, 3), coverage=0.9, precision=0.6)
    assert promises.to_json() == promised.to_json()
    assert promises.promises[0].promise.texts == 100
    few = fit(repeated(biased(19), 10))
    assert few.rule.reason == "it takes 20 different texts to fit a rule; found 19"
    with pytest.raises(DataError, match=r"needs at least 19 .* there are 10"):
        fit(repeated(biased(20), 10), coverage=0.95)


def test_texts_are_told_apart_by_their_keys_where_there_are_some() -> None:
    """One text's logits may differ in their last digits, and other texts have the same."""
    sample = biased(60)
    noisy = Sample(SINGLE, repeated(sample, 2).logits, repeated(sample, 2).targets)
    noisy.logits[60:] *= 1 + 1e-6
    assert fit(noisy, bootstrap=0).texts == 120
    assert fit(noisy, bootstrap=0, texts=[("a film", i % 60) for i in range(120)]).texts == 60
    assert fit(repeated(sample, 2), bootstrap=0, texts=list(range(120))).texts == 120


def test_of_a_text_with_several_labels_any_may_be_the_one_that_counts() -> None:
    logits = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    targets = torch.tensor([0] * 40 + [1] * 40)
    rows = [module._one_a_text([row.tobytes() for row in logits.numpy()], seed)[0] for seed in range(50)]
    assert {len(one) for one in rows} == {40}
    assert float(np.mean([targets.numpy()[one].mean() for one in rows])) == pytest.approx(0.5, abs=0.05)


def test_copies_do_not_make_chance_a_gain() -> None:
    """Sixty texts, of which the plain rule is the best there is, ten times each."""
    kept = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        targets = rng.integers(0, 2, 60)
        lead = 2 * targets - 1 + rng.normal(size=60)
        sample = Sample(SINGLE, torch.from_numpy(np.stack([-lead, lead], 1)).float(), torch.from_numpy(targets))
        kept += fit(repeated(sample, 10), bootstrap=200, seed=seed).rule.kept == "fitted"
    assert kept <= 3


def odd_texts() -> dict[str, Sample]:
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(60, 10_000, generator=generator)
    duplicated = biased(30)
    lonely, absent = labels(100, [0.4, 0.0, 0.0], -1.0), labels(100, [0.4, 0.0], -1.0)
    lonely.targets[3, 1] = 1.0
    return {
        "one text": Sample(SINGLE, torch.zeros(1, 3), torch.tensor([2])),
        "one text of many labels": Sample(MULTI, torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 1.0]])),
        "no label at all": Sample(MULTI, torch.randn(50, 3, generator=generator), torch.zeros(50, 3)),
        "equal logits": Sample(SINGLE, torch.zeros(90, 3), torch.arange(90) % 3),
        "equal logits of many labels": Sample(MULTI, torch.zeros(90, 3), torch.eye(3).repeat(30, 1)),
        "one class alone": Sample(SINGLE, torch.randn(50, 2, generator=generator), torch.zeros(50, dtype=torch.int64)),
        "a class that is missing": Sample(SINGLE, torch.randn(60, 3, generator=generator), torch.arange(60) % 2),
        "a single positive text": lonely,
        "a label that is missing": absent,
        "without a mistake": Sample(SINGLE, 9.0 * torch.eye(3)[torch.arange(60) % 3], torch.arange(60) % 3),
        "enormous logits": Sample(MULTI, labels(60, [0.5, 0.5], -1.0).logits * 1e4, labels(60, [0.5, 0.5], -1.0).targets),
        "duplicated rows": Sample(SINGLE, duplicated.logits.repeat(4, 1), duplicated.targets.repeat(4)),
        "10,000 classes": Sample(SINGLE, many, torch.arange(60) * 7),
        "10,000 labels": Sample(MULTI, many, torch.nn.functional.one_hot(torch.arange(60), 10_000).float()),
    }


@pytest.mark.parametrize("case", odd_texts())
def test_odd_texts_have_a_defined_result(case: str) -> None:
    sample = odd_texts()[case]
    fitted = fit(sample, bootstrap=50)
    tree = json.loads(json.dumps(fitted.to_json(), allow_nan=False))
    assert Calibration.from_json(tree["parameters"], sample.task.name, sample.classes) == fitted.calibration
    assert all(math.isfinite(tree[side][name]) for side in ("before", "after") for name in ("ece", "brier", "nll"))
    assert sample.task.probabilities(sample.logits, fitted.calibration).isfinite().all()
    if case in ("one text", "one text of many labels", "equal logits", "equal logits of many labels", "10,000 classes"):
        assert torch.equal(sample.task.decide(sample.logits, fitted.calibration), sample.task.decide(sample.logits))
    if case == "a label that is missing" and fitted.rule.kept == "fitted":
        assert fitted.left == (1,)


def test_what_cannot_be_calibrated_is_told() -> None:
    with pytest.raises(DataError, match="no texts"):
        fit_calibration(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), SINGLE)
    with pytest.raises(DataError, match="not finite"):
        fit_calibration(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]), SINGLE)
    with pytest.raises(DataError, match="from 1 text"):
        fit_calibration(torch.zeros(1, 2), torch.tensor([0]), SINGLE, coverage=0.5)


def test_the_same_seed_gives_the_same_calibration() -> None:
    sample = labels(200, [0.3, 0.1], -1.0)
    assert fit(sample, seed=3).to_json() == fit(sample, seed=3).to_json()
    assert fit(sample, seed=3).to_json() != fit(sample, seed=4).to_json()


def test_the_reports_part_has_what_the_page_shows() -> None:
    fitted = fit(biased(300), source="dev")
    tree = fitted.to_json()
    assert tree.keys() == {
        "target",
        "texts",
        "split",
        "parameters",
        "method",
        "rule",
        "measured_on",
        "before",
        "after",
        "reliability",
        "left",
        "promises",
    }
    assert (tree["target"], tree["texts"], tree["split"]) == ("f1", 300, "dev")
    assert tree["measured_on"] == "dev, cross-fitted in 5 parts"
    assert sum(item["texts"] for item in tree["reliability"]["after"]) == 300
    assert tree["rule"].keys() == {"kept", "metric", "plain", "fitted", "gain", "interval", "reason"}
    promised = fit(biased(300), coverage=0.9, precision=0.8).to_json()
    assert promised["measured_on"] == "half of dev, cross-fitted in 5 parts"
    assert promised["promises"].keys() == {"coverage", "precision"}
    assert promised["parameters"]["coverage"]["target"] == promised["promises"]["coverage"]["target"] == 0.9
    assert promised["promises"]["precision"]["lower_bound"] >= 0.8
