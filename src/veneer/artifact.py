"""The run folder: its files, writing and reading them.

    adapter_config.json, adapter_model.safetensors   the adapter, in PEFT's format; or, of a method that PEFT does not know,
    trained.safetensors                              the tensors that were trained
    head.safetensors                                 our own head, where the family's is not used
    tokenizer.json, tokenizer_config.json, …         the tokenizer
    veneer.json                                      everything else, and a checksum of every file above

An ensemble has no adapter, but whole runs in `members/1`, `members/2` and so on, and a `veneer.json` of what they are together.

`veneer.json` is written last and replaced at once: a folder that holds it is whole. Nothing is pickled.

Knows files and the model; what `veneer.json` says is read and checked in `veneer.run_info`. Knows nothing of training, and does
not judge.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from veneer.bases import BaseLocation, fingerprint, load_tokenizer
from veneer.data import EncodedTexts, Prompt, encode, make_prompt
from veneer.durable import sha256, sync_files, sync_folder, write_text
from veneer.errors import ArtifactError, ConfigError, LoraError
from veneer.heads import HeadPlan
from veneer.methods import METHODS, Stored
from veneer.model import Classifier, build_classifier
from veneer.precision import Precision, choose_precision, pick_device
from veneer.run_files import CONFIG_FILE, INFO_FILE, MEMBERS, PAGE_FILE, REPORT_FILE
from veneer.run_info import (
    COPY_AGAIN,
    HEAD_FILE,
    ArtifactInfo,
    check_single,
    find_own_base,
    info_text,
    read_info,
    read_tree,
)
from veneer.word_model import build_word_classifier


@dataclass(frozen=True)
class Loaded:
    """A run folder brought back to life."""

    info: ArtifactInfo
    model: Classifier
    tokenizer: PreTrainedTokenizerFast
    base: BaseLocation
    precision: Precision
    prompt: Prompt | None

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> EncodedTexts:
        """Texts as the run's model takes them: cut to its length, and in its prompt where it has one."""
        return encode(self.tokenizer, texts, pairs, self.info.max_length, self.prompt)


def save_artifact(folder: Path, model: Classifier, tokenizer: PreTrainedTokenizerFast, info: ArtifactInfo) -> None:
    """Write what was trained of `model`, its head, the tokenizer and `info` into `folder`; whole or not at all.

    Raises:
        LoraError: the method's format cannot hold what was trained.
    """
    writing = folder / ".writing"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    METHODS[info.method].save(model, writing, info.base_id)
    if model.head is not None:
        save_file({name: tensor.cpu().contiguous() for name, tensor in model.head.state_dict().items()}, writing / HEAD_FILE)
    tokenizer.save_pretrained(writing)
    for extra in [path for path in writing.iterdir() if path.is_dir()]:  # second chat templates, which no classifier reads
        shutil.rmtree(extra)
    names = sorted(path.name for path in writing.iterdir())
    text = info_text(info, {name: sha256(writing / name) for name in names})
    (writing / INFO_FILE).write_text(text, encoding="utf-8")
    _commit(writing, folder, names)


def save_ensemble(folder: Path, members: Sequence[Path], info: ArtifactInfo) -> None:
    """Write an ensemble into `folder`: copies of its runs, and `info`, whose `members` is how many there are.

    Raises:
        ArtifactError: a run folder that is damaged.
    """
    for number, member in enumerate(members, start=1):
        read_info(member)
        target = folder / MEMBERS / str(number)
        target.mkdir(parents=True)
        for name in (*read_tree(member)["files"], CONFIG_FILE, REPORT_FILE, PAGE_FILE, INFO_FILE):
            if (member / name).is_file():  # not every run has kept its configuration and its report
                shutil.copyfile(member / name, target / name)
        sync_files(target.iterdir())
        sync_folder(target)
    write_text(folder / INFO_FILE, info_text(replace(info, members=len(members)), {}))


def load_artifact(folder: Path, *, base: str | None = None, precision: str = "auto", base_precision: str | None = None) -> Loaded:
    """The model of a run folder, in evaluation mode, on the GPU if there is one.

    Args:
        base: where the base is, if not where it was found in training.
        precision: auto | fp32 | bf16 | fp16.
        base_precision: auto | nf4 | int8, if not the one of training.

    Raises:
        ArtifactError: as `read_info`, or the base is not the one the adapter was trained on, or tensors do not fit, or the folder
            is an ensemble, which has no model of its own.
        BaseError: the base cannot be found.
        ConfigError: this machine does not have the precision, or its library.
    """
    info = read_info(folder)
    check_single(folder, info)
    location = find_own_base(folder, info, base)
    found = fingerprint(location)
    if found != info.base_fingerprint:
        raise ArtifactError(
            f"{folder} was trained on another base than {location.description}: fingerprint {info.base_fingerprint[:19]}…, "
            f"here {found[:19]}…. Fix: give the base '{info.base_id}' it was trained on"
        )
    device = pick_device()
    chosen = choose_precision(precision, device)
    stored = _read_stored(folder, info.method)
    bits = base_precision or info.base_precision
    tokenizer = load_tokenizer(BaseLocation(str(folder), "folder", folder, str(folder), f"folder {folder}"))
    prompt = _prompt(folder, info, tokenizer)
    if (prompt is not None) != stored.reads_words:
        raise ArtifactError(f"{folder / INFO_FILE} is damaged: verbaliser is not that of the adapter, which says how it is read")
    model = _build(info, location, chosen, bits, prompt)
    if precision == "auto" and chosen.name != "fp32" and stored.trains_base(model):
        chosen = Precision("fp32", "weights of the base were trained")
        model = _build(info, location, chosen, bits, prompt)
    _fill(folder, model, stored, f"{len(info.labels)} labels")
    model.to(device)
    return Loaded(info, model.eval(), tokenizer, location, chosen, prompt)


def _commit(writing: Path, folder: Path, names: list[str]) -> None:
    """Move the files up, `veneer.json` last: without it the folder is not taken for whole."""
    sync_files(writing / name for name in [*names, INFO_FILE])
    for name in names:
        shutil.copymode(writing / INFO_FILE, writing / name)  # safetensors writes files that nobody else can read
    (folder / INFO_FILE).unlink(missing_ok=True)
    for name in names:
        (writing / name).replace(folder / name)
    sync_folder(folder)
    (writing / INFO_FILE).replace(folder / INFO_FILE)
    writing.rmdir()
    sync_folder(folder)


def _read_stored(folder: Path, method: str) -> Stored:
    try:
        return METHODS[method].read(folder)
    except LoraError as error:
        raise ArtifactError(f"{folder}: {error}") from None


def _prompt(folder: Path, info: ArtifactInfo, tokenizer: PreTrainedTokenizerFast) -> Prompt | None:
    """The prompt of a run that reads label words."""
    if info.verbaliser is None:
        return None
    words = dict(zip(info.labels, info.verbaliser["words"], strict=True))
    given = {key: info.verbaliser[key] for key in ("length_normalised", "none") if key in info.verbaliser}
    try:
        return make_prompt(tokenizer, info.verbaliser["template"], words, pair=info.pair, max_length=info.max_length, **given)
    except ConfigError as error:
        raise ArtifactError(f"{folder / INFO_FILE} is damaged: {error}") from None


def _build(
    info: ArtifactInfo, location: BaseLocation, precision: Precision, base_precision: str, prompt: Prompt | None
) -> Classifier:
    """A classifier with the head or the label words of the run, its weights still those of the base."""
    if prompt is not None:
        return build_word_classifier(location, prompt, dtype=precision.dtype, base_precision=base_precision)
    wanted = HeadPlan(info.pooling, info.own_head)  # type: ignore[arg-type]
    model = build_classifier(
        location, len(info.labels), pooling=info.pooling, dtype=precision.dtype, base_precision=base_precision
    )
    if model.plan == wanted:
        return model
    head = "its family's own head" if info.own_head else "a linear head"
    raise ArtifactError(
        f"{location.description} does not give {info.pooling} pooling with {head}, as it did in training. "
        f"Fix: give the base '{info.base_id}' with the same 1_Pooling/config.json"
    )


def _fill(folder: Path, model: Classifier, stored: Stored, labels: str) -> None:
    try:
        stored.fill(model)
    except LoraError as error:
        fix = "" if "Fix:" in str(error) else f". {COPY_AGAIN}"  # of a base in other bits than those of training
        raise ArtifactError(f"{folder}, {labels}: {error}{fix}") from None
    if model.head is not None:
        _fill_head(model.head, folder / HEAD_FILE, labels)


def _fill_head(head: nn.Linear, path: Path, labels: str) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} does not fit {labels}: {' '.join(str(error).split())}. {COPY_AGAIN}") from None
    wanted = {name: list(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        shapes = ["; ".join(f"{name} {shape}" for name, shape in sorted(those.items())) for those in (found, wanted)]
        raise ArtifactError(f"{path} does not fit {labels}: it holds {shapes[0]}, but needed are {shapes[1]}. {COPY_AGAIN}")
    head.load_state_dict(tensors)
