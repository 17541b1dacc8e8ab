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
        "the running average is what is evaluated",
        "training/loop.py",
        "with averaged(job.model, progress.average_tensors):",
        "with averaged(job.model, {}):",
        "training/test_loop.py::test_the_running_average_is_its_formula_and_what_is_evaluated_and_kept",
    ),
    Break(
        "the running average is its formula",
        "training/loop.py",
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
        "texts do not see each other",
        "packing/batch.py",
        "runs.append((start, count, length))",
        "runs.append((start, 1, count * length))",
        "laws/test_packing.py::test_texts_do_not_see_each_other",
    ),
    Break(
        "narrowed last layer = whole",
        "packing/attention.py",
        "first_text += run[1]",
        "first_text += 0",
        "laws/test_packing.py::test_the_last_layer_computes_the_pooled_tokens_alone",
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
        "down = _joined(a).mul(shape.scale).to(x.dtype)",
        "down = _joined(a).mul(shape.scale**2).to(x.dtype)",
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
        "job.objective).sum() / count",
        "job.objective).mean()",
        "training/test_loop.py::test_a_batch_cut_for_memory_has_the_same_gradient",
    ),
    Break(
        "merged = unmerged",
        "lora/merge.py",
        "merged = (original + (delta",
        "merged = (original - (delta",
        "laws/test_merge.py::test_merged_is_unmerged",
    ),
    Break(
        "unmerge restores exactly",
        "lora/merge.py",
        'nn.Parameter(layer.get_buffer("original_weight"),',
        "nn.Parameter((layer.weight.detach() - (layer.delta().T if layer.transposed else layer.delta())).to(layer.weight.dtype),",
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
