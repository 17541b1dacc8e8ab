"""The rules that turn findings into advice: at most three suggestions, the largest expected gain first.

Every rule and number is explained in docs/diagnosis.md. Knows the findings; measures nothing on texts itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from veneer.evaluation.calibration import Rule
from veneer.evaluation.diagnosis.evidence import Evidence, Labelwise
from veneer.evaluation.diagnosis.fit import LEARNED, Fit
from veneer.evaluation.diagnosis.limits import Limit, half_width, least_half_width, macro_f1
from veneer.evaluation.diagnosis.margins import Margin
from veneer.evaluation.diagnosis.mistakes import doubtful_labels
from veneer.evaluation.diagnosis.slices import CUT, UNSEEN, Slice, shortfall
from veneer.labels import shorten

MOST_SUGGESTIONS = 3
WORTH = 0.01  # of a score: less gain is not worth a suggestion
WIDE = 0.04  # half of an interval of macro-F1, from which on a dev set is small
LOW = 0.80  # mean F1 below which a ranking is poor
CLEAR_GAP = 0.10  # of macro-F1 between training texts and dev
SMALL_GAP = 0.05
SHORTFALL = 0.10  # of a share of right decisions, for a slice to be worth a word
FEWEST_TEXTS = 20  # of a slice, and beside it
FEWEST_OF_A_LABEL = 10
FEW_TO_LEARN_FROM = 50  # training texts of a label
DOUBTFUL = 0.20  # share of wrong decisions that are as clear as right ones
FEWEST_DOUBTFUL = 10
FEW_STEPS = 100  # of the optimiser, with fewer of which a poor score says nothing about the base
PART_A_BASE_GAINS = 0.10  # assumed: of what is missing
PART_MORE_DATA_GAINS = 0.25  # assumed: of the gap between training texts and dev
NAME_CHARACTERS = 40
CONFIDENCE = 0.95
DROPOUT, R_DROP = "lora.dropout", "training.r_drop"
SIZES = ("lora.rank", "tuning.bottleneck", "tuning.virtual_tokens", "tuning.top_layers")  # a method reads one at most


@dataclass(frozen=True)
class Suggestion:
    """What to change next, why, and what it may add to the score; `gain` is for ranking, not a promise."""

    rule: str
    advice: str
    evidence: str
    gain: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Findings:
    """What was measured, for the rules to read."""

    evidence: Evidence
    labels: Labelwise
    margins: tuple[Margin, ...]
    limits: tuple[Limit, ...]
    fit: Fit
    slices: tuple[Slice, ...]

    @property
    def noise(self) -> float:
        """Half of the 95 % interval of macro-F1; at least what the texts of each label would leave open without an error."""
        _, influence = macro_f1(self.labels.truth, self.labels.decided, self.evidence.multi_label)
        return max(half_width(influence), least_half_width(self.labels.support))


def suggest(findings: Findings) -> tuple[Suggestion, ...]:
    """At most three suggestions, the largest gain first; that dev is too small to tell comes before them."""
    found = [suggestion for rule in RULES if (suggestion := rule(findings)) is not None and suggestion.gain >= WORTH]
    found.sort(key=lambda suggestion: -suggestion.gain)
    return tuple([*_dev_too_small(findings, found), *found][:MOST_SUGGESTIONS])


def _dev_too_small(findings: Findings, others: list[Suggestion]) -> list[Suggestion]:
    noise, n = findings.noise, len(findings.evidence)
    if noise < max([WIDE, *(other.gain for other in others)]):
        return []
    split = findings.evidence.split
    wanted = int(np.ceil(n * (noise / WIDE) ** 2 * 2 / 10) * 10)
    return [
        Suggestion(
            "dev_too_small",
            f"Judge on more labelled texts: some {wanted:,} in {split} would show what a change is worth.",
            f"the {_count(n, 'text')} of {split} give macro F1 to ±{100 * noise:.1f} points (95 %), "
            "which is wider than the gain expected of anything else",
            0.0,
        )
    ]


def _threshold_is_the_limit(findings: Findings) -> Suggestion | None:
    rule = findings.evidence.rule
    if rule is None or rule.kept != "fitted" or findings.evidence.ruled or rule.gain < WORTH:
        return None
    return Suggestion(
        "threshold_is_the_limit",
        "Fit the decision rule: veneer calibrate --target f1. The ranking is better than the decisions.",
        f"{_gained(rule)}: {rule.plain:.3f} to {rule.fitted:.3f}",
        rule.gain,
    )


def _gained(rule: Rule) -> str:
    assert rule.interval is not None, "a gain without one is not told"
    points, low, high = (f"{100 * value:+.1f}" for value in (rule.gain, *rule.interval))
    return f"a decision rule fitted on other texts changes macro F1 by {points} points (95 % interval {low} to {high})"


def _ranking_is_the_limit(findings: Findings) -> Suggestion | None:
    if not _ranks_poorly(findings) or not _trained_enough(findings.fit):
        return None
    known = _known(findings)
    f1, auc = _mean_f1(known), float(np.mean([one.auc for one in known]))
    gain = PART_A_BASE_GAINS * (1.0 - f1)
    advice, of_rule = _beside_the_rule(findings.evidence, gain)
    return Suggestion(
        "ranking_is_the_limit",
        f"Try a larger base, or one trained on texts like these{advice}.",
        f"{_worst_overlap(findings)}{of_rule}F1 {f1:.3f} and AUC {auc:.3f} (means of {_count(len(known), 'label')})",
        gain,
    )


def _beside_the_rule(evidence: Evidence, gain: float) -> tuple[str, str]:
    """What may be said of decision rules beside another base that gains so much: in the advice, and in its evidence."""
    rule = evidence.rule
    if rule is None or rule.interval is None:
        return "", ""
    if evidence.ruled and rule.kept == "fitted":
        return ": the decision rule is fitted already", f"{_gained(rule)}, which the scores have already; "
    if rule.interval[1] < gain:
        return ": that will help more than tuning thresholds", f"{_gained(rule)}; "
    return "", ""  # it may or may not help: nothing is claimed


def _too_few_steps(findings: Findings) -> Suggestion | None:
    fit = findings.fit
    if not _ranks_poorly(findings) or _trained_enough(fit) or fit.state == "over" or (fit.train or 0.0) >= LEARNED:
        return None
    how = "a smaller training.batch_size" if fit.steps < FEW_STEPS else "a smaller training.evaluate_every, which shows the trend"
    trend = f"; {fit.evidence}" if fit.state == "unknown" else ""
    f1 = _mean_f1(_known(findings))
    return Suggestion(
        "too_few_steps",
        f"Train for more steps before anything else is judged: more training.epochs, or {how}.",
        f"F1 {f1:.3f} after {_count(fit.steps, 'optimiser step')}{trend}",
        PART_A_BASE_GAINS * (1.0 - f1),
    )


def _trained_enough(fit: Fit) -> bool:
    """Whether a poor score can be the base's: enough steps, and curves that can be read."""
    return fit.steps >= FEW_STEPS and fit.state != "unknown"


def _ranks_poorly(findings: Findings) -> bool:
    """Whether F1 is clearly low, though neither another decision rule nor training on is known to mend it."""
    known = _known(findings)
    if not known or findings.fit.state == "under" or _threshold_is_the_limit(findings) is not None:
        return False
    return _mean_f1(known) + findings.noise < LOW


def _known(findings: Findings) -> list[Limit]:
    """The labels that enough texts have, and enough have not."""
    n = len(findings.evidence)
    return [one for one in findings.limits if FEWEST_OF_A_LABEL <= one.support <= n - FEWEST_OF_A_LABEL]


def _mean_f1(known: list[Limit]) -> float:
    return float(np.mean([one.f1 for one in known]))


def _worst_overlap(findings: Findings) -> str:
    known = [(one.overlap, one) for one in findings.margins if one.overlap is not None and one.fewest >= FEWEST_OF_A_LABEL]
    if not known:
        return ""
    share, margin = max(known, key=lambda pair: pair[0])
    names = " and ".join(map(_name, margin.labels))
    whose = f"margins of {names}" if len(margin.labels) > 1 else f"logits of texts with and without {names}"
    return f"{whose} overlap by {share:.0%}; "


def _overfitting(findings: Findings) -> Suggestion | None:
    fit = findings.fit
    if fit.state != "over" or not fit.peaked or fit.gap < SMALL_GAP:
        return None
    return Suggestion(
        "overfitting",
        f"Hold the training back: fewer training.epochs (or training.patience), {_calmer(findings)}; or label more texts.",
        fit.evidence,
        PART_MORE_DATA_GAINS * fit.gap,
    )


def _generalisation_gap(findings: Findings) -> Suggestion | None:
    fit = findings.fit
    if fit.train is None or fit.dev is None or fit.gap < max(CLEAR_GAP, 2 * findings.noise):
        return None
    if _overfitting(findings) is not None:
        return None
    n = int(findings.evidence.train_counts.sum())
    return Suggestion(
        "generalisation_gap",
        f"Label more training texts, of the kinds that are decided wrong; next best {_or_another_base(findings)}.",
        f"macro F1 is {fit.train:.3f} on training texts and {fit.dev:.3f} on dev: what there is to learn from "
        f"({_count(n, 'label')} given) is learned",
        PART_MORE_DATA_GAINS * fit.gap,
    )


def _calmer(findings: Findings) -> str:
    """Which settings hold training back, of those that the method reads."""
    dropout = f"a higher {DROPOUT}, " if DROPOUT in findings.evidence.settings else ""
    answers = f"{R_DROP} (1, for twice the time), " if R_DROP in findings.evidence.settings else ""
    return f"{dropout}{answers}a lower {' or '.join([*_size(findings), 'training.learning_rate'])}"


def _or_another_base(findings: Findings) -> str:
    return f"are a higher {DROPOUT} or another base" if DROPOUT in findings.evidence.settings else "is another base"


def _size(findings: Findings) -> list[str]:
    """The setting, if the method has one, of how much is trained."""
    return [key for key in SIZES if key in findings.evidence.settings]


def _underfitting(findings: Findings) -> Suggestion | None:
    fit = findings.fit
    if fit.state != "under" or fit.train is None or fit.last_gain is None:
        return None
    return Suggestion(
        "underfitting",
        f"Train on: more training.epochs; else a higher {' or '.join(['training.learning_rate', *_size(findings)])}.",
        fit.evidence,
        max(fit.last_gain, PART_A_BASE_GAINS * (1.0 - fit.train)),
    )


def _truncation_hurts(findings: Findings) -> Suggestion | None:
    cut = [one for one in findings.slices if one.by == "truncated" and one.value == CUT]
    return _far_below(
        findings, cut, "truncation_hurts", "Raise data.max_length, so that texts are read to their end.", "texts that were cut"
    )


def _unseen_vocabulary(findings: Findings) -> Suggestion | None:
    unseen = [one for one in findings.slices if one.by == "vocabulary" and one.value in UNSEEN]
    advice = "Add training texts that use the words of the texts to come, or take a base trained on such texts."
    return _far_below(findings, unseen, "unseen_vocabulary", advice, "texts with {value}")


def _weak_slice(findings: Findings) -> Suggestion | None:
    kinds = {"column", "length", "label"}
    if _truncation_hurts(findings) is not None:
        kinds.discard("length")  # cut texts are the long ones: it would be said twice
    if len(findings.evidence.labels) <= 2:
        kinds.discard("label")  # one class pays for the other: a matter of the threshold
    weak = [one for one in findings.slices if one.by in kinds]
    advice = "Add training texts of that kind, and read its wrong decisions."
    return _far_below(findings, weak, "weak_slice", advice, "texts of {by} {value}")


def _far_below(findings: Findings, of: Iterable[Slice], rule: str, advice: str, whose: str) -> Suggestion | None:
    """The slice through which most texts are lost, among those clearly below the other texts."""
    n, right = len(findings.evidence), int(findings.evidence.right.sum())
    compared = [one for one in findings.slices if FEWEST_TEXTS <= one.texts <= n - FEWEST_TEXTS]
    found = []
    for one in of:
        if one not in compared:
            continue
        difference, least = shortfall(one, n, right, _z(len(compared)))
        if difference >= SHORTFALL and least > 0:
            found.append((difference * one.texts / n, one))
    if not found:
        return None
    gain, worst = max(found, key=lambda pair: pair[0])
    others = (right - worst.right) / (n - worst.texts)
    by = "" if worst.by == "column" else worst.by
    value = _name(worst.value) if worst.by in ("label", "column") else worst.value
    evidence = (
        f"{' '.join(whose.format(by=by, value=value).split())}: {worst.score:.0%} of {worst.texts:,} are decided right, "
        f"of the others {others:.0%}; more than chance among {_count(len(compared), 'group')} compared"
    )
    return Suggestion(rule, advice, evidence, gain)


def _rare_labels(findings: Findings) -> Suggestion | None:
    labels, names = findings.labels, findings.evidence.labels
    counts = findings.evidence.train_counts[labels.ids]
    rare = (counts < FEW_TO_LEARN_FROM) & (counts < np.median(counts) / 4)
    found = (labels.truth & labels.decided).sum(axis=0)
    of_rare = Slice("label", "rare", int(labels.support[rare].sum()), int(found[rare].sum()))
    total = int(labels.support.sum())
    if not FEWEST_OF_A_LABEL <= of_rare.texts <= total - FEWEST_OF_A_LABEL:
        return None
    difference, least = shortfall(of_rare, total, int(found.sum()), _z(1))
    if difference < SHORTFALL or least <= 0:
        return None
    f1 = np.array([one.f1 for one in findings.limits])
    known = labels.support > 0
    lost = float(f1[~rare & known].mean() - f1[rare & known].mean())
    fewest = sorted(np.flatnonzero(rare), key=lambda k: counts[k])
    split = findings.evidence.split
    listed = shorten([f"{_name(names[labels.ids[k]])} {int(counts[k])}" for k in fewest], 5)
    return Suggestion(
        "rare_labels",
        f"Label more texts of the rare labels, or try training.class_weights: balanced. Training texts: {listed}.",
        f"{of_rare.score:.0%} of the {of_rare.texts:,} {split} texts of {_count(int(rare.sum()), 'label')} with fewer than "
        f"{FEW_TO_LEARN_FROM} training texts are found, of the other labels {of_rare.score + difference:.0%}",
        lost * float(rare[known].mean()),
    )


def _label_noise_suspected(findings: Findings) -> Suggestion | None:
    doubtful, wrong = doubtful_labels(findings.evidence, findings.labels)
    if doubtful < FEWEST_DOUBTFUL or doubtful < DOUBTFUL * wrong:
        return None
    given = int(findings.labels.truth.sum()) if findings.evidence.multi_label else len(findings.evidence)
    return Suggestion(
        "label_noise_suspected",
        "Check the labels before anything else: veneer audit lists the rows to look at.",
        f"{doubtful:,} of {wrong:,} wrong decisions are clearer than half of the right ones, which hard texts rarely are "
        "and wrongly labelled ones often",
        min(2 * doubtful, wrong) / max(1, given),
    )


RULES = (
    _threshold_is_the_limit,
    _ranking_is_the_limit,
    _too_few_steps,
    _overfitting,
    _generalisation_gap,
    _underfitting,
    _truncation_hurts,
    _unseen_vocabulary,
    _weak_slice,
    _rare_labels,
    _label_noise_suspected,
)


def _z(comparisons: int) -> float:
    """The quantile of a 95 % interval when the worst of so many comparisons is picked (Bonferroni)."""
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(1, comparisons))


def _name(label: str) -> str:
    return f"'{label}'" if len(label) <= NAME_CHARACTERS else f"'{label[: NAME_CHARACTERS - 1]}…'"


def _count(n: int, of: str) -> str:
    return f"{n:,} {of}" if n == 1 else f"{n:,} {of}s"
