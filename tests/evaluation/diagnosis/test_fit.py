"""Histories made to be over-, under- and well fitted, and those that only look so."""

from __future__ import annotations

import pytest
from diagnosis_cases import curves

from veneer.evaluation.diagnosis.fit import judge_fit

OVER = curves((0.5, 0.3, 0.1, 0.02), (0.5, 0.4, 0.45, 0.5), (0.8, 0.9, 0.97, 1.0), (0.8, 0.85, 0.86, 0.85))
UNDER = curves((0.65, 0.6, 0.55, 0.5), (0.66, 0.61, 0.56, 0.52), (0.6, 0.65, 0.68, 0.71), (0.6, 0.64, 0.67, 0.7))


def test_a_dev_loss_that_rises_while_that_of_training_falls_is_over():
    fit = judge_fit(OVER)
    assert fit.state == "over"
    assert "0.400 (step 200) to 0.500" in fit.evidence
    assert (fit.train, fit.dev) == (0.97, 0.86)  # where dev was best
    assert fit.gap == pytest.approx(0.11)


@pytest.mark.parametrize(
    ("train_loss", "dev_loss"),
    [
        ((0.5, 0.3, 0.1, 0.02), (0.5, 0.4, 0.42, 0.43)),  # by less than a tenth
        ((0.5, 0.3, 0.32, 0.35), (0.5, 0.4, 0.45, 0.5)),  # the training's rises as well
        ((0.01, 0.004, 0.002, 0.001), (0.01, 0.005, 0.006, 0.008)),  # by nothing that counts
    ],
)
def test_a_rise_that_is_small_or_shared_is_not_over(train_loss, dev_loss):
    assert judge_fit(curves(train_loss, dev_loss)).state == "fine"


def test_losses_that_still_fall_on_texts_that_are_not_learned_are_under():
    fit = judge_fit(UNDER)
    assert fit.state == "under"
    assert fit.last_gain == pytest.approx(0.03)


@pytest.mark.parametrize(
    "history",
    [
        curves((0.65, 0.6, 0.55, 0.5), (0.66, 0.61, 0.56, 0.52), (0.9, 0.93, 0.95, 0.97), (0.8, 0.82, 0.83, 0.84)),  # learned
        curves((0.65, 0.6, 0.55, 0.5), (0.66, 0.61, 0.56, 0.558), (0.6, 0.65, 0.68, 0.71), (0.6, 0.64, 0.67, 0.7)),  # dev is flat
        curves((0.65, 0.6, 0.55, 0.548), (0.66, 0.61, 0.56, 0.52), (0.6, 0.65, 0.68, 0.71), (0.6, 0.64, 0.67, 0.7)),
    ],
)
def test_what_is_learned_or_falls_no_more_is_not_under(history):
    assert judge_fit(history).state == "fine"


def test_two_evaluations_are_too_few():
    fit = judge_fit(OVER[:5])
    assert (fit.state, fit.gap) == ("unknown", 0.0)
    assert fit.evidence.startswith("2 evaluations")
    assert (fit.steps, judge_fit(OVER).steps) == (200, 400)
    assert judge_fit([]).state == "unknown"


def test_dev_alone_is_not_enough():
    assert judge_fit([row for row in OVER if row.get("split") != "train"]).state == "unknown"


def test_of_a_step_written_again_the_later_row_counts():
    again = [{**row, "loss": 0.3} for row in OVER if row.get("split") == "dev" and row["step"] == 400]
    assert judge_fit([*OVER, *again]).state == "fine"


def test_an_evaluation_that_is_not_a_number_is_left_out():
    broken = [{**row, "loss": float("nan")} if row["step"] == 400 else row for row in OVER]
    assert "(step 300)" in judge_fit(broken).evidence or judge_fit(broken).state != "unknown"
    assert "nan" not in judge_fit(broken).evidence
