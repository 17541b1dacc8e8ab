"""Breaks the subject of each law and sees its test fail: python scripts/mutations.py [WORD ...]

Words choose the laws whose names hold one of them. Works on a temporary copy; the repository itself is not touched. Ends with 1
where a break is not seen, where the text to break is no longer there, or where a test fails without any break.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PARTS = ("src", "tests", "pyproject.toml")


class Break(NamedTuple):
    """One line of the source made wrong.

    Attributes:
        law: what no longer holds.
        file: below `src/veneer`.
        text: what stands there, once.
        wrong: what is put in its place.
        test: below `tests`; it must fail.
    """

    law: str
    file: str
    text: str
    wrong: str
    test: str


BREAKS = (
    Break(
        "vectors computed once = the base in every step",
        "training/loop.py",
        "self.train.vectors[answered]",
        "self.train.vectors[: len(part)]",
        "laws/test_vectors.py::test_it_is_the_training_over_the_base",
    ),
    Break(
        "vectors that change are not computed once",
        "training/vectors.py",
        "not model.base_dropout and ",
        "",
        "laws/test_vectors.py::test_where_vectors_change_the_base_runs_in_every_step",
    ),
    Break(
        "full fine-tuning reads no vectors of the frozen base",
        "training/rivals.py",
        "split if given else replace(split, vectors=None)",
        "split",
        "training/test_rivals.py::test_the_head_alone_leaves_the_base_as_it_is",
    ),
    Break(
        "every number of a fresh mask is drawn for itself",
        "lora/dropout.py",
        "random_raw(-(-size // 4))",
        "random_raw(-(-size // 8)).repeat(2)",
        "lora/test_dropout.py::test_every_number_of_a_fresh_mask_is_drawn_for_itself",
    ),
    Break(
        "the running average is what is evaluated",
        "training/loop.py",
        "with averaged(job.model, progress.average_tensors):",
        "with averaged(job.model, {}):",
        "training/test_loop.py::test_the_running_average_is_its_formula_and_what_is_evaluated_and_kept",
    ),
    Break(
        "the running average is its formula",
        "training/weights.py",
        "share = 1 - min(decay, (1 + step) / (10 + step))",
        "share = 1 - decay",
        "training/test_loop.py::test_the_running_average_is_its_formula_and_what_is_evaluated_and_kept",
    ),
    Break(
        "resumed = uninterrupted, running average included",
        "training/checkpoint.py",
        'tensors |= {f"average/{name}": tensor for name, tensor in progress.average_tensors.items()}',
        "pass",
        "laws/test_resume.py::test_a_run_stopped_by_ctrl_c_ends_as_if_it_had_not_been",
    ),
    Break(
        "packed = padded = alone",
        "packing/batch.py",
        "positions = np.arange(first_position, first_position + len(starts)) - starts",
        "positions = np.arange(first_position, first_position + len(starts)) % 100",
        "laws/test_packing.py::test_logits_are_those_of_padded_and_of_alone",
    ),
    Break(
        "padded = alone, by the texts' lengths",
        "packing/batch.py",
        "jumps = np.arange(len(self)) * self.ids.shape[1] - starts",
        "jumps = np.arange(len(self)) * self.segments.lengths[0] - starts",
        "laws/test_packing.py::test_logits_are_those_of_padded_and_of_alone",
    ),
    Break(
        "texts do not see each other",
        "packing/gather.py",
        "tokens = starts[texts, None] + np.where(is_real, place, 0)",
        "tokens = np.maximum(starts[texts, None] + np.where(is_real, place, 0) - 1, 0)",
        "laws/test_packing.py::test_texts_do_not_see_each_other",
    ),
    Break(
        "narrowed last layer = whole",
        "packing/gather.py",
        "_places(one, one, groups, heads",
        "_places(one, one, [texts[::-1] for texts in groups], heads",
        "laws/test_packing.py::test_the_last_layer_computes_the_pooled_tokens_alone",
    ),
    Break(
        "R-Drop: the answers of several tasks are each task's own",
        "training/joint_job.py",
        "np.tile(part[start:stop], answers)",
        "np.repeat(part[start:stop], answers)",
        "laws/test_joint.py::test_a_step_is_every_task_s_own_step",
    ),
    Break(
        "R-Drop: several tasks' answers are held together",
        "training/joint_job.py",
        "job.objective, self.settings.r_drop)",
        "job.objective, 0.0)",
        "laws/test_joint.py::test_two_answers_of_several_tasks_are_held_together_task_by_task",
    ),
    Break(
        "R-Drop: the divergence is the paper's",
        "tasks.py",
        "* (one - other) / 2",
        "* (one - other)",
        "training/test_loop.py::test_r_drop_adds_what_two_answers_differ_by",
    ),
    Break(
        "fused = plain autograd",
        "lora/fused.py",
        "grad_x.addcmul_(grad_low @ down, mask)",
        "grad_x.add_(grad_low @ down)",
        "laws/test_fused.py::test_a_group_is_plain_autograd_in_float32",
    ),
    Break(
        "fused = PEFT's layer",
        "lora/fused.py",
        "down = joined(a).mul(shape.scale).to(x.dtype)",
        "down = joined(a).mul(shape.scale**2).to(x.dtype)",
        "laws/test_fused.py::test_a_layer_is_that_of_peft",
    ),
    Break(
        "the first layer's input has no gradient",
        "lora/fused.py",
        "            if wants_x:\n",
        "            if True:\n",
        "laws/test_fused.py::test_the_backward_pass_makes_the_products_of_its_formulas_and_no_other",
    ),
    Break(
        "a frozen weight has no gradient",
        "lora/fused.py",
        "            if wanted[place + 1]:\n",
        "            _ = grad.t() @ dropped\n            if wanted[place + 1]:\n",
        "laws/test_fused.py::test_the_backward_pass_makes_the_products_of_its_formulas_and_no_other",
    ),
    Break(
        "micro-batches add up",
        "training/loop.py",
        "return losses.sum().view(1) / sum(map(len, batches))",
        "return losses.mean().view(1)",
        "training/test_loop.py::test_a_batch_cut_for_memory_has_the_same_gradient",
    ),
    Break(
        "merged = unmerged",
        "lora/merge.py",
        "merged = (whole.T if layer.transposed else whole)",
        "merged = (whole.T if layer.transposed else 2 * dense(original) - whole)",
        "laws/test_merge.py::test_merged_is_unmerged",
    ),
    Break(
        "unmerge restores exactly",
        "lora/merge.py",
        "original, trained = layer.original_weight, layer",
        "original, trained = layer.original_weight * (1 + 2**-7), layer",
        "laws/test_merge.py::test_unmerge_restores_exactly",
    ),
    Break(
        "ours in PEFT",
        "lora/peft_format.py",
        '"use_rslora": settings.scaling == "rslora",',
        '"use_rslora": False,',
        "laws/test_peft.py::test_scaling_and_chosen_layers",
    ),
    Break(
        "PEFT's in ours",
        "lora/peft_format.py",
        'alpha=float(fields["lora_alpha"]),',
        'alpha=float(fields["r"]),',
        "laws/test_peft.py::test_peft_adapter_in_ours",
    ),
    Break(
        "reloaded = before",
        "artifact.py",
        "    head.load_state_dict(tensors)\n",
        "    del tensors\n",
        "laws/test_reload.py::test_a_fresh_process_gives_the_logits_of_memory",
    ),
    Break(
        "resumed = uninterrupted",
        "training/checkpoint.py",
        '    torch.set_rng_state(tensors["rng/cpu"])\n',
        "",
        "laws/test_resume.py::test_a_run_stopped_by_ctrl_c_ends_as_if_it_had_not_been",
    ),
    Break(
        "same seed, same run",
        "training/setup.py",
        "    torch.manual_seed(config.seed)\n",
        "",
        "laws/test_seed.py",
    ),
    Break(
        "the training file calibrates nothing",
        "cli/trained_texts.py",
        "if reading.fingerprint == info.data_fingerprint:",
        "if False:",
        "cli/test_calibrate_command.py::test_training_texts_that_are_gone_are_told",
    ),
    Break(
        "nor does a file of mostly trained texts",
        "cli/trained_texts.py",
        "if count > MOST_TRAINED * total:",
        "if count > total:",
        "cli/test_calibrate_command.py::test_the_training_file_is_refused",
    ),
    Break(
        "rivals are calibrated as the adapter is",
        "training/baselines.py",
        "return decide_judged(fitted, task, logits)",
        "return decide_judged(None, task, logits)",
        "training/test_baselines.py::test_the_text_baseline_is_calibrated_where_the_adapter_is",
    ),
    Break(
        "a judged dev text is decided without it",
        "training/decisions.py",
        "decisions = fitted.held_out",
        "decisions = task.decide(logits[split], fitted.calibration)",
        "training/test_decisions.py::test_dev_texts_are_decided_without_them",
    ),
    Break(
        "a promise's texts are drawn at random",
        "evaluation/calibration.py",
        "np.random.default_rng(seed).permutation(len(everything))",
        "np.arange(len(everything))",
        "evaluation/test_conformal.py::test_the_texts_of_a_promise_are_drawn_at_random",
    ),
    Break(
        "shrinkage is chosen on held-out texts",
        "evaluation/rules.py",
        "thresholds = _thresholds(rest, scaling, goal, SHRINKAGES)",
        "thresholds = _thresholds(held, scaling, goal, SHRINKAGES)",
        "evaluation/test_rules.py::test_how_far_probabilities_are_trusted_is_chosen_by_texts_held_out",
    ),
    Break(
        "labels without a text have no error",
        "evaluation/reliability.py",
        "labels = np.flatnonzero(truth.any(0))",
        "labels = np.arange(truth.shape[1])",
        "evaluation/test_calibration.py::test_labels_have_calibration_errors_of_their_own",
    ),
    Break(
        "labels' errors at once = one by one",
        "evaluation/reliability.py",
        "np.where(begins, np.arange(n), 0)",
        "np.where(begins, np.arange(n), np.arange(n))",
        "evaluation/test_reliability.py::test_the_errors_of_labels_are_those_of_each_alone",
    ),
    Break(
        "Newton in blocks = a library's minimum",
        "evaluation/scaling.py",
        "shift_step = torch.where(at_bound, by_shift / twice_shift,",
        "shift_step = torch.where(at_bound, 0 * twice_shift,",
        "evaluation/test_scaling.py::test_newton_finds_what_a_library_finds_for_each_label",
    ),
    Break(
        "thresholds at once = every cut of a label",
        "evaluation/rules.py",
        "expected = (np.concatenate([none, values.cumsum(1)], axis=1) for values in (true, ordered))",
        "expected = (np.concatenate([none, values.cumsum(1)], axis=1) for values in (true, true))",
        "evaluation/test_rules.py::test_thresholds_of_all_labels_at_once_are_those_of_trying_each_cut",
    ),
    Break(
        "no gain in never deciding on a class without texts",
        "evaluation/rules.py",
        "(total + own) / (support > 0).sum()",
        "(total + own) / np.unique(np.concatenate([true, rival, [label]])).size",
        "evaluation/test_rules.py::test_a_class_without_texts_is_never_in_the_mean",
    ),
    Break(
        "the guard's mean is over classes with texts",
        "evaluation/calibration.py",
        "counts = replace(outcomes.count(drawn), averaged=supported)",
        "counts = outcomes.count(drawn)",
        "evaluation/test_calibration.py::test_a_class_that_the_texts_have_not_is_not_unlearned",
    ),
    Break(
        "a class without texts keeps its texts",
        "tasks.py",
        "return torch.where(torch.isin(plain, left), plain, ",
        "return torch.where(torch.isin(plain, left[:0]), plain, ",
        "evaluation/test_rules.py::test_a_class_that_no_text_has_keeps_its_texts_and_gets_no_others",
    ),
    Break(
        "a text counts once",
        "evaluation/calibration.py",
        "rows, place = _one_a_text(",
        "rows, place = (np.arange(len(logits)),) * 2 or _one_a_text(",
        "evaluation/test_calibration.py::test_a_text_counts_once_however_many_rows_it_has",
    ),
    Break(
        "any row of a text may stand for it",
        "evaluation/calibration.py",
        "order = np.random.default_rng(seed).permutation(len(place))",
        "order = np.arange(len(place))",
        "evaluation/test_calibration.py::test_of_a_text_with_several_labels_any_may_be_the_one_that_counts",
    ),
    Break(
        "every resample averages the same classes",
        "evaluation/metrics.py",
        "np.broadcast_to(True if multi_label else counts.averaged, f1.shape)",
        "np.ones_like(f1) if multi_label else counts.decided + counts.true > 0",
        "evaluation/test_metrics.py::test_a_class_of_one_text_stays_in_the_mean_of_every_resample",
    ),
    Break(
        "one text of a label says little",
        "evaluation/diagnosis/suggestions.py",
        "return max(half_width(influence), least_half_width(self.labels.support))",
        "return half_width(influence)",
        "evaluation/diagnosis/test_suggestions.py::test_one_text_of_a_label_says_little_however_many_others_there_are",
    ),
    Break(
        "equal decisions are not equally good",
        "evaluation/comparison.py",
        "if difference.low == difference.high == 0.0:",
        "if False:",
        "evaluation/test_comparison.py::test_equal_decisions_are_not_called_equally_good",
    ),
    Break(
        "resamples are paired",
        "evaluation/calibration.py",
        "return np.stack([_values(side, drawn, goal, sample.multi_label) for side in sides])",
        "return np.stack([_values(side, np.roll(drawn, i, 1), goal, sample.multi_label) for i, side in enumerate(sides)])",
        "evaluation/test_calibration.py::test_the_guards_interval_is_that_of_texts_drawn_one_by_one",
    ),
    Break(
        "conflicts across splits are no leaks",
        "data/survey_duplicates.py",
        "for one in found if frozenset(one.labels) in said[text_key(one)]]",
        "for one in found]",
        "data/test_survey_duplicates.py::test_a_text_of_dev_with_other_labels_than_in_train_is_no_leak_but_a_conflict",
    ),
    Break(
        "near conflicts across splits are told",
        "data/survey_duplicates.py",
        "        if other:\n            yield _conflict(",
        "        if False:\n            yield _conflict(",
        "data/test_survey_duplicates.py::test_so_are_nearly_equal_ones",
    ),
    Break(
        "a few steps say nothing of the base",
        "evaluation/diagnosis/suggestions.py",
        'return fit.steps >= FEW_STEPS and fit.state != "unknown"',
        'return fit.state != "unknown"',
        "evaluation/diagnosis/test_suggestions.py::test_a_poor_score_after_a_few_steps_is_not_the_bases",
    ),
    Break(
        "threshold or ranking, not both",
        "evaluation/diagnosis/suggestions.py",
        'or findings.fit.state == "under" or _threshold_is_the_limit(findings) is not None:',
        'or findings.fit.state == "under":',
        "evaluation/diagnosis/test_suggestions.py::test_a_ranking_is_not_the_limit_while_the_threshold_or_the_training_is",
    ),
    Break(
        "calibrate scores dev again",
        "cli/calibrate.py",
        '        if dev is not None:\n            report["evaluations"]',
        '        if False:\n            report["evaluations"]',
        "cli/test_calibrate_command.py::test_the_report_scores_the_runs_own_dev_texts_by_the_new_calibration",
    ),
    Break(
        "so does calibrate --clear",
        "cli/calibrate.py",
        "    _store(folder, None, dev)\n",
        "    _store(folder, None, None)\n",
        "cli/test_calibrate_command.py::test_clear_brings_the_plain_rule_back_and_scores_dev_by_it",
    ),
    Break(
        "labels like numbers head their own columns",
        "evaluation/tables.py",
        "for heads in (names, None) if are_short(names) else (None,):",
        "for heads in (None,):",
        "evaluation/test_tables.py::test_a_column_of_a_label_that_is_a_number_has_that_number",
    ),
)


def main(words: list[str]) -> int:
    """Try the breaks and tell of each; the exit code."""
    chosen = [one for one in BREAKS if not words or any(word in one.law for word in words)]
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / part)
        if _run(copy, sorted({one.test for one in chosen})) != 0:
            print("the laws do not hold as they are. Fix: scripts/test tests/laws")
            return 1
        missed = 0
        for one in chosen:
            said = _try(copy, one)
            missed += said != "seen"
            print(f"{said:<24} {one.law:<42} {one.file} -> {one.test}", flush=True)
    return int(missed > 0)


def _try(copy: Path, one: Break) -> str:
    path = copy / "src" / "veneer" / one.file
    before = path.read_text(encoding="utf-8")
    if before.count(one.text) != 1:
        return "STALE: not there once"
    path.write_text(before.replace(one.text, one.wrong), encoding="utf-8")
    try:
        code = _run(copy, [one.test])
    finally:
        path.write_text(before, encoding="utf-8")
    # 1: tests failed; what cannot be imported or found at all is another code
    return "seen" if code == 1 else f"NOT SEEN (pytest: {code})"


def _run(copy: Path, tests: list[str]) -> int:
    """Run tests of the copy, on its source; pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=copy, env=environment, stdout=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
