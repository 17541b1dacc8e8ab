"""Every rule on a case made to trigger it, and on one that looks alike and must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from diagnosis_cases import binary, curves, leads, many, multi, ruled, spoil
from test_fit import OVER, UNDER

from veneer.config import METHOD_SETTINGS, MethodName
from veneer.config_file import known_keys
from veneer.evaluation.calibration import Rule
from veneer.evaluation.diagnosis import Evidence, Suggestion, diagnose
from veneer.evaluation.diagnosis.limits import Z95
from veneer.evaluation.diagnosis.slices import shortfall
from veneer.evaluation.diagnosis.suggestions import DROPOUT, R_DROP, RULES, SIZES


def rules(given: Evidence) -> dict[str, Suggestion]:
    return {one.rule: one for one in diagnose(given).suggestions}


@pytest.mark.parametrize("given", [binary(), many(), multi()])
def test_nothing_stands_out_of_a_healthy_run(given):
    assert rules(given) == {}


@pytest.mark.parametrize("make", [binary, multi])
def test_a_threshold_far_off_is_the_limit(make):
    found = rules(ruled(make(shift=1.5)))
    assert set(found) == {"threshold_is_the_limit"}
    assert found["threshold_is_the_limit"].gain > 0.05
    assert "veneer calibrate" in found["threshold_is_the_limit"].advice


REFUSED = Rule("plain", "macro_f1", 0.5, 0.52, 0.02, (-0.05, 0.09), "the interval of the gain includes zero: it may be chance")


@pytest.mark.parametrize("make", [binary, many, multi])
def test_nothing_is_said_of_thresholds_where_fitting_them_gained_nothing_sure(make):
    found = rules(replace(make(separation=0.5), rule=REFUSED))  # they may gain more than another base, or nothing
    assert set(found) == {"ranking_is_the_limit"}
    assert not {"thresholds", "rule"} & set(" ".join(one.advice + one.evidence for one in found.values()).split())
    assert "threshold_is_the_limit" not in rules(ruled(make(60)))


def test_nothing_is_said_of_thresholds_that_nobody_fitted_or_that_decide_already():
    fitted = ruled(binary(shift=1.5))
    for given in (replace(fitted, rule=None), replace(fitted, ruled=True)):
        assert "threshold_is_the_limit" not in rules(given)
    unknown = rules(replace(many(separation=1.0), rule=None))["ranking_is_the_limit"]
    assert "threshold" not in unknown.advice + unknown.evidence
    assert "rule" not in unknown.advice + unknown.evidence


@pytest.mark.parametrize("make", [binary, multi, lambda separation: many(separation=separation + 0.5)])
def test_overlapping_margins_are_the_limit(make):
    found = rules(make(separation=0.5))
    assert set(found) == {"ranking_is_the_limit"}
    assert "overlap by" in found["ranking_is_the_limit"].evidence


@pytest.mark.parametrize("make", [lambda: binary(separation=0.5), lambda: many(separation=1.0)])
def test_that_another_base_helps_more_than_thresholds_is_measured(make):
    ranking = rules(ruled(make()))["ranking_is_the_limit"]
    assert ranking.advice.endswith("that will help more than tuning thresholds.")
    assert "a decision rule fitted on other texts changes macro F1 by " in ranking.evidence
    assert "points (95 % interval -" in ranking.evidence


def test_a_poor_ranking_under_a_fitted_rule_is_told_as_such():
    moved = ruled(binary(separation=0.5, shift=1.5))
    decided = (moved.logits[:, 1] - moved.logits[:, 0] > 1.5).astype(np.int64)
    ranking = rules(replace(moved, decisions=decided, ruled=True))["ranking_is_the_limit"]
    assert ranking.advice.endswith(": the decision rule is fitted already.")
    assert "which the scores have already" in ranking.evidence


def test_the_evidence_of_a_poor_ranking_is_in_numbers():
    assert rules(binary(separation=0.5))["ranking_is_the_limit"].evidence.startswith("margins of 'yes' and 'no' overlap by 6")
    assert "logits of texts with and without 'c" in rules(multi(separation=0.5))["ranking_is_the_limit"].evidence


def test_a_ranking_is_not_the_limit_while_the_threshold_or_the_training_is():
    assert "ranking_is_the_limit" not in rules(ruled(binary(separation=0.5, shift=1.5)))
    assert "ranking_is_the_limit" not in rules(replace(binary(separation=0.5), history=UNDER))
    assert "ranking_is_the_limit" not in rules(binary(separation=1.1))  # 86 % right
    assert binary(100, separation=0.75, seed=2).right.mean() < 0.8
    assert "ranking_is_the_limit" not in rules(binary(100, separation=0.75, seed=2))  # might as well be above 80 %


def after(steps: int, history: list[dict[str, object]]) -> list[dict[str, object]]:
    """The history of a training of so many steps."""
    last = max(row["step"] for row in history)
    return [{**row, "step": row["step"] * steps // last} for row in history]


def test_a_poor_score_after_a_few_steps_is_not_the_bases():
    short = curves(train=(0.5, 0.6, 0.65, 0.66), dev=(0.5, 0.6, 0.65, 0.66))
    found = rules(replace(binary(separation=0.5), history=after(96, short)))
    assert set(found) == {"too_few_steps"}
    assert "training.epochs" in found["too_few_steps"].advice
    assert found["too_few_steps"].evidence.endswith("after 96 optimiser steps")
    assert set(rules(replace(binary(separation=0.5), history=after(100, short)))) == {"ranking_is_the_limit"}
    assert rules(replace(binary(), history=after(8, short))) == {}  # a good score needs no more steps


def test_a_poor_score_with_curves_that_cannot_be_read_is_not_the_bases():
    found = rules(replace(binary(separation=0.5), history=curves()[:3]))
    assert set(found) == {"too_few_steps"}
    assert "training.evaluate_every" in found["too_few_steps"].advice
    assert "after 100 optimiser steps; 1 evaluation of dev" in found["too_few_steps"].evidence


def test_more_steps_are_not_advised_where_they_are_known_not_to_help():
    poor = binary(separation=0.5)
    assert set(rules(replace(poor, history=after(40, OVER)))) == {"overfitting"}
    assert set(rules(replace(poor, history=after(40, UNDER)))) == {"underfitting"}  # which advises them too
    learned = curves(train=(0.8, 0.95, 1.0, 1.0), dev=(0.6, 0.7, 0.68, 0.69))
    assert set(rules(replace(poor, history=after(40, learned)))) == {"generalisation_gap"}


def test_overfitting():
    found = rules(replace(binary(), history=OVER))
    assert set(found) == {"overfitting"}
    assert "rose from 0.400" in found["overfitting"].evidence
    assert found["overfitting"].gain == pytest.approx(0.25 * 0.11)


def test_a_rising_loss_that_costs_no_score_is_no_overfitting():
    harmless = curves((0.5, 0.3, 0.1, 0.02), (0.5, 0.4, 0.45, 0.5), (0.8, 0.9, 0.97, 0.98), (0.8, 0.85, 0.95, 0.96))
    assert rules(replace(binary(), history=harmless)) == {}
    still_better = curves((0.5, 0.3, 0.1, 0.02), (0.5, 0.4, 0.45, 0.5), (0.8, 0.9, 0.97, 0.98), (0.8, 0.85, 0.88, 0.9))
    assert rules(replace(binary(), history=still_better)) == {}  # holding it back would cost


def test_a_gap_between_training_and_dev():
    learned = curves(train=(0.8, 0.95, 1.0, 1.0), dev=(0.6, 0.7, 0.78, 0.79))
    found = rules(replace(binary(), history=learned))
    assert set(found) == {"generalisation_gap"}
    assert "1.000 on training texts and 0.790 on dev" in found["generalisation_gap"].evidence
    assert "(2,000 labels given)" in found["generalisation_gap"].evidence


def test_a_gap_within_the_noise_or_below_a_tenth_is_none():
    assert rules(replace(binary(), history=curves(train=(0.8, 0.9, 0.97, 0.98), dev=(0.8, 0.85, 0.90, 0.89)))) == {}
    narrow = replace(binary(60, separation=1.0), history=curves(train=(0.8, 0.9, 0.95, 0.99), dev=(0.8, 0.82, 0.84, 0.84)))
    assert "generalisation_gap" not in rules(narrow)


def test_underfitting():
    found = rules(replace(binary(separation=0.5), history=UNDER))
    assert set(found) == {"underfitting"}
    assert "training.epochs" in found["underfitting"].advice


def test_a_training_that_came_to_rest_is_no_underfitting():
    flat = curves((0.6, 0.55, 0.55, 0.55), (0.6, 0.56, 0.56, 0.56), (0.6, 0.7, 0.7, 0.7), (0.6, 0.7, 0.7, 0.7))
    assert rules(replace(binary(), history=flat)) == {}


TENTH = np.arange(2000) % 10 == 0


def test_truncation_hurts():
    given = replace(spoil(binary(separation=3), TENTH, 0.3), cut=TENTH)
    found = rules(given)
    assert set(found) == {"truncation_hurts"}
    assert "of 200 are decided right" in found["truncation_hurts"].evidence
    assert found["truncation_hurts"].gain == pytest.approx(0.03, abs=0.01)
    assert "data.max_length" in found["truncation_hurts"].advice


def test_cut_texts_that_fare_like_others_or_are_few_are_no_matter():
    assert rules(replace(binary(separation=3), cut=TENTH)) == {}
    few = np.arange(400) < 15
    assert rules(replace(spoil(binary(400, separation=3), few, 0.9), cut=few)) == {}


def test_cut_texts_are_not_said_again_to_be_long():
    quarter = np.arange(2000) % 4 == 0
    given = spoil(binary(separation=3), quarter, 0.3)
    lengths = np.where(quarter, 128, 20 + np.arange(2000) % 50)
    assert set(rules(replace(given, cut=quarter, lengths=lengths))) == {"truncation_hurts"}
    assert set(rules(replace(given, lengths=lengths))) == {"weak_slice"}


def test_unseen_vocabulary():
    given = spoil(binary(separation=3), TENTH, 0.3)
    texts = ["quaggas bray" if new else text for new, text in zip(TENTH, given.texts, strict=True)]
    found = rules(replace(given, texts=texts))
    assert set(found) == {"unseen_vocabulary"}
    assert "more than a quarter of the words unseen" in found["unseen_vocabulary"].evidence
    assert rules(replace(binary(separation=3), texts=texts)) == {}
    assert rules(replace(given, texts=texts, train_texts=["quaggas bray", *given.train_texts])) == {}


def source(members):
    return {"source": ["forum" if member else "mail" for member in members]}


def test_a_source_far_below_the_rest():
    found = rules(replace(spoil(binary(separation=3), TENTH, 0.3), columns=source(TENTH)))
    assert set(found) == {"weak_slice"}
    assert found["weak_slice"].evidence.startswith("texts of 'source: forum': ")


def test_a_source_that_is_a_little_below_or_small_is_no_matter():
    half = np.arange(2000) % 2 == 0
    assert rules(replace(spoil(binary(separation=3), half, 0.07), columns=source(half))) == {}
    small = np.arange(2000) < 30
    assert rules(replace(spoil(binary(separation=3), small, 0.3), columns=source(small))) == {}  # a gain of 0.5 %


def test_the_worst_of_many_groups_of_noise_is_no_finding():
    for seed in range(10):
        chance = np.random.default_rng(seed).integers(0, 40, 2000)
        given = replace(binary(separation=1.0, seed=seed), columns={"source": [f"s{i}" for i in chance]})
        assert "weak_slice" not in rules(given)


def test_a_shortfall_that_one_of_so_many_groups_has_by_chance_is_no_finding():
    given = binary(400, separation=0.95)
    members = np.zeros(400, dtype=bool)
    members[np.flatnonzero(given.right)[:28]] = members[np.flatnonzero(~given.right)[:12]] = True
    found = {one.value: one for one in diagnose(replace(given, columns=source(members))).slices}
    forum, mail = found["source: forum"], found["source: mail"]
    assert mail.score - forum.score > 0.14
    assert shortfall(forum, 400, int(given.right.sum()), Z95)[1] > 0  # it would be one by itself
    assert "weak_slice" not in rules(replace(given, columns=source(members)))


def test_a_class_far_below_the_rest_of_more_than_two():
    given = many(separation=6)
    assert set(rules(spoil(given, given.targets == 3, 0.3))) == {"weak_slice"}
    two = binary(separation=3)
    assert "weak_slice" not in rules(spoil(two, two.targets == 1, 0.15))


def rare(spoiled: float, counts: list[int]) -> Evidence:
    given = many(separation=6)
    keep = (given.targets != 4) | (np.arange(2000) % 10 == 4)  # a tenth of the last class's texts
    given = replace(spoil(given, (given.targets == 4) & keep, spoiled), train_counts=np.array(counts))
    per_text = ("logits", "probabilities", "targets", "decisions", "lengths", "cut")
    kept = {name: getattr(given, name)[keep] for name in per_text}
    lists = {name: [x for x, k in zip(getattr(given, name), keep, strict=True) if k] for name in ("texts", "rows")}
    return replace(given, **kept, **lists)


def test_rare_labels():
    found = rules(rare(0.5, [800, 900, 700, 850, 20]))
    assert "rare_labels" in found
    assert "'c4' 20" in found["rare_labels"].advice
    assert "1 label with fewer than 50 training texts" in found["rare_labels"].evidence


def test_rare_labels_that_are_found_and_labels_that_are_all_rare_are_no_matter():
    assert rules(rare(0.0, [800, 900, 700, 850, 20])) == {}
    assert "rare_labels" not in rules(rare(0.5, [60, 60, 60, 60, 20]))
    assert "rare_labels" not in rules(rare(0.5, [800, 900, 700, 850, 600]))


@pytest.mark.parametrize("make", [binary, many, multi])
def test_wrong_labels_are_suspected(make):
    given = make(separation=5)
    flip = np.random.default_rng(5).random(given.targets.shape) < 0.04
    targets = (
        given.targets ^ flip if given.multi_label else np.where(flip, (given.targets + 1) % len(given.labels), given.targets)
    )
    found = rules(replace(given, targets=targets))
    assert next(iter(found)) == "label_noise_suspected"
    assert "veneer audit" in found["label_noise_suspected"].advice
    expected = flip.sum() / (targets.sum() if given.multi_label else len(targets))
    assert found["label_noise_suspected"].gain == pytest.approx(expected, rel=0.25)


def test_as_many_hard_texts_make_no_suspicion():
    assert rules(binary(separation=1.6)) == {}  # 5 % wrong
    assert rules(binary(4000, separation=1.1)) == {}  # 14 % wrong, dozens of them clear
    assert "label_noise_suspected" not in rules(binary(separation=0.3))


def test_a_small_dev_set():
    found = rules(binary(60, separation=1.2))
    assert set(found) == {"dev_too_small"}
    assert "the 60 texts of dev" in found["dev_too_small"].evidence
    assert rules(binary(600)) == {}


@pytest.mark.parametrize("found", [False, True])
def test_one_text_of_a_label_says_little_however_many_others_there_are(found):
    targets = (np.arange(400) == 7).astype(np.int64)
    given = leads(targets, np.where(targets == 1, 2.0 if found else -2.0, -3.0))
    assert "the 400 texts of dev give macro F1 to ±19.8 points" in rules(given)["dev_too_small"].evidence


def test_many_labels_of_a_few_texts_are_not_too_few():
    assert "dev_too_small" not in rules(many(2000, classes=100, separation=9))


def test_a_small_dev_set_is_large_enough_for_a_large_gain():
    found = rules(ruled(binary(60, shift=2.5)))
    assert "threshold_is_the_limit" in found
    assert "dev_too_small" not in found


def test_that_dev_is_too_small_comes_before_what_it_cannot_show():
    small = diagnose(replace(binary(60, separation=1.2), history=OVER)).suggestions
    assert [one.rule for one in small] == ["dev_too_small", "overfitting"]


def test_at_most_three_the_largest_gain_first():
    given = spoil(binary(separation=3, shift=3.0), TENTH, 0.5)
    texts = ["quaggas bray" if new else text for new, text in zip(TENTH, given.texts, strict=True)]
    thirds = np.arange(2000) % 20 == 0
    found = diagnose(ruled(replace(given, texts=texts, columns=source(TENTH), cut=thirds, history=OVER))).suggestions
    assert len(found) == 3
    assert [one.gain for one in found] == sorted((one.gain for one in found), reverse=True)


@pytest.mark.parametrize("method", get_args(MethodName))
def test_advice_names_only_settings_that_the_method_reads(method):
    gap = curves(train=(0.8, 0.95, 1.0, 1.0), dev=(0.6, 0.7, 0.78, 0.79))
    cases = [(binary(), OVER), (binary(separation=0.5), UNDER), (binary(), gap)]
    found = [rules(replace(given, history=history, settings=METHOD_SETTINGS[method])) for given, history in cases]
    assert [list(one) for one in found] == [["overfitting"], ["underfitting"], ["generalisation_gap"]]
    advice = " ".join(suggestion.advice for one in found for suggestion in one.values())
    named = {key for key in known_keys() if key.startswith(("lora.", "tuning.")) and key in advice}
    assert named == METHOD_SETTINGS[method] & {*SIZES, DROPOUT}
    assert R_DROP not in advice


def test_over_fitting_names_r_drop_where_it_can_be_turned_on():
    given = replace(binary(), history=OVER, settings={DROPOUT, R_DROP})
    assert "a higher lora.dropout, training.r_drop (1, for twice the time), a lower " in rules(given)["overfitting"].advice


def test_every_rule_is_written_down_with_its_name():
    page = (Path(__file__).parents[3] / "docs" / "diagnosis.md").read_text(encoding="utf-8")
    for rule in ["dev_too_small", *(rule.__name__.removeprefix("_") for rule in RULES)]:
        assert f"`{rule}`" in page
