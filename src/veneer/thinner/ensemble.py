"""Several runs over one base side by side: the mean of their calibrated probabilities, as a folder that loads like a run.

Knows run folders; how probabilities are averaged is `veneer.predictor`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from veneer.artifact import save_ensemble
from veneer.config import RunConfig
from veneer.evaluation.report import MadeFrom
from veneer.predictor import load, load_members, together
from veneer.run_info import read_info
from veneer.thinner.combine import Combined, check_alike, joint_info, judge
from veneer.thinner.dev import Dev
from veneer.thinner.folder import check_free, write_folder
from veneer.thinner.made import count_together, made_report, member_of, score_of, stored_bytes


def make_ensemble(
    folders: Sequence[Path],
    out: Path,
    config: RunConfig,
    dev: Dev | str,
    *,
    base: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Combined:
    """Write copies of the runs in `folders` and what they are together to `out`.

    Args:
        config, dev: of the first run, as in `combine_runs`.

    Raises:
        ArtifactError: the runs do not go together; what differs is named.
        InputError: `out` exists, or a run cannot be loaded.
        VerificationError: the new folder does not give the logits it gave in memory.
    """
    check_free(out)
    infos = [read_info(folder) for folder in folders]
    check_alike(folders, infos)
    members = load_members(folders, base=base)
    info = replace(joint_info(infos, members[0], dev), members=len(members), verbaliser=None)  # each run has its own
    judged = judge(dev, together(info, members), config, progress)
    info = judged.told(info)
    predictor = together(info, members)
    parameters = count_together([member.model for member in members])
    sources = [
        member_of(folder, score_of(one, config), member.model)
        for folder, one, member in zip(folders, infos, members, strict=True)
    ]

    def report(writing: Path) -> dict[str, Any]:
        made = MadeFrom("ensemble", sources, judged.metric, stored_bytes(writing), parameters["lora"], {}, judged.why)
        return made_report(info, config, judged.dev, parameters, judged.evaluations, judged.fitted, made)

    write_folder(
        out,
        lambda folder: save_ensemble(folder, folders, info),
        config,
        report,
        predictor,
        lambda folder: load(folder, base=str(members[0].base.path)),  # a run that trained weights of the base is in float32
    )
    return judged.combined(out, {})
