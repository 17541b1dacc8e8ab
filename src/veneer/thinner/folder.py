"""A new run folder, written whole or not at all, beside those it was made from.

Knows the run folder's files; knows nothing of how its adapter came to be.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from veneer import lora
from veneer.artifact import Loaded, save_artifact
from veneer.config import RunConfig
from veneer.config_file import config_text
from veneer.durable import sync_folder
from veneer.errors import InputError, VerificationError
from veneer.predictor import Predictor, load
from veneer.run_files import CONFIG_FILE, REPORT_FILE
from veneer.run_info import ArtifactInfo
from veneer.training.finish import write_report

HEADING = f"# What the run that this was made from was trained with, the first of several; {REPORT_FILE} says how it was made."
TOLERANCE = 1e-5  # of the logits of the probe texts, relative to the largest where that is above 1
PROBES = (
    "a quiet triumph",
    "It was dull from beginning to end, and I want my money back.",
    "Could you move my appointment from Friday to next Tuesday, please?",
    "我的订单什么时候能到？",
    "404 :-( https://example.org/?q=1 #help",
    "ok",
)


def check_free(out: Path) -> None:
    """Raise an InputError if there is something at `out`."""
    if out.exists():
        raise InputError(f"{out} exists, and nothing is overwritten. Fix: another --out")


def plain_lora(folder: Path, info: ArtifactInfo) -> lora.AdapterFile:
    """The updates of a run, which must be sums of A and B alone.

    Raises:
        InputError: the run was trained by another method, or with DoRA's lengths.
    """
    wrong = f"the method {info.method}" if info.method != "lora" else ""
    if not wrong:
        adapter = lora.read_adapter(folder)
        if not adapter.settings.dora:
            return adapter
        wrong = "DoRA, whose lengths are no part of the sum"
    raise InputError(f"{folder} was trained by {wrong}: only LoRA's updates can be cut or added. Fix: a run of method: lora")


def write_run(out: Path, loaded: Loaded, config: RunConfig, report: Callable[[Path], Mapping[str, Any]]) -> None:
    """The run in `loaded`, whose `info` says of it what the new folder shall, at `out`.

    Args:
        report: as `write_folder`.

    Raises:
        InputError: there is something at `out`, or it cannot be written.
        VerificationError: the folder, loaded again, gives other logits than the model in memory; it is not kept.
    """
    write_folder(
        out,
        lambda folder: save_artifact(folder, loaded.model, loaded.tokenizer, loaded.info),
        config,
        report,
        Predictor(loaded),
        lambda folder: load(folder, base=str(loaded.base.path), precision=loaded.precision.name),
    )


def write_folder(
    out: Path,
    save: Callable[[Path], None],
    config: RunConfig,
    report: Callable[[Path], Mapping[str, Any]],
    predictor: Predictor,
    again: Callable[[Path], Predictor],
) -> None:
    """What `save` writes, the configuration and the report, at `out`; loaded `again` and compared with `predictor`.

    Args:
        report: the content of `report.json`, from the folder with all else in it.

    Raises:
        InputError, VerificationError: as `write_run`.
    """
    check_free(out)
    writing = out.parent / f".{out.name}.writing"
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}. Fix: another --out") from None
    try:
        text = config_text(config.model_copy(update={"out": str(out)}))
        (writing / CONFIG_FILE).write_text(f"{HEADING}\n{text}", encoding="utf-8")
        save(writing)
        write_report(writing, report(writing))
        _verify(writing, out, predictor, again)
        writing.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def _verify(writing: Path, out: Path, predictor: Predictor, again: Callable[[Path], Predictor]) -> None:
    pairs = PROBES[::-1] if predictor.info.pair else None
    memory = predictor.logits(PROBES, pairs)
    try:
        disk = again(writing).logits(PROBES, pairs)
    except InputError as error:
        raise VerificationError(f"{out} was not written: it cannot be loaded again ({error}). Please report this") from None
    difference = float((memory - disk).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(memory.abs().max())):  # nor is it where it is not a number
        raise VerificationError(
            f"{out} was not written: loaded again it gives other logits than in memory (by {difference:.2g}). Please report this"
        )
