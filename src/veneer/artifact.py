"""The run folder: its files, their format version, writing and reading it.

    adapter_config.json, adapter_model.safetensors   the adapter, in PEFT's format; or, of a method that PEFT does not know,
    trained.safetensors                              the tensors that were trained
    head.safetensors                                 our own head, where the family's is not used
    tokenizer.json, tokenizer_config.json, …         the tokenizer
    veneer.json                                      everything else, and a checksum of every file above

An ensemble has no adapter, but whole runs in `members/1`, `members/2` and so on, and a `veneer.json` of what they are together.

`veneer.json` is written last and replaced at once: a folder that holds it is whole. Nothing is pickled.

Knows files and the model; knows nothing of training, and does not judge.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from veneer.bases import BaseLocation, find_base, fingerprint, load_tokenizer
from veneer.data import EncodedTexts, Prompt, encode, make_prompt
from veneer.errors import ArtifactError, ConfigError, DataError, LoraError
from veneer.heads import HeadPlan
from veneer.labels import LabelSet
from veneer.methods import METHODS, Stored
from veneer.model import Classifier, build_classifier
from veneer.packing import Pooling
from veneer.precision import Precision, choose_precision, pick_device
from veneer.quantise import BasePrecision
from veneer.run_files import CONFIG_FILE, INFO_FILE
from veneer.tasks import TASKS, Calibration
from veneer.word_model import build_word_classifier

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, FORMAT_VERSION)  # of 1 is a folder from before there was `method`: LoRA
HEAD_FILE = "head.safetensors"
MEMBERS = "members"  # of an ensemble: its runs lie in members/1, members/2, …
_COPY = "Fix: copy the whole folder again, or train again"


@dataclass(frozen=True)
class ArtifactInfo:
    """What `veneer.json` says of a run, beside the files' checksums.

    Attributes:
        task: single_label | multi_label.
        labels: the C label names, by id.
        pooling: cls | mean | last.
        own_head: True where the head is the base family's own, or its output matrix.
        base: the name the base was asked for by.
        base_id: the name others know it by.
        base_fingerprint: of the base's configuration and weights.
        data_fingerprint: of the training texts and labels.
        max_length: tokens a text is cut to.
        pair: True where a text comes with a second one.
        precision: that the base computed in in training, and so in the scores.
        base_precision: auto | nf4 | int8, bits of the base's linear layers; likewise.
        scores: metric -> value on the development texts.
        method: of fine-tuning, a name in `veneer.methods.METHODS`.
        calibration: how logits become decisions; null for the plain rule.
        versions: package -> version.
        members: how many runs an ensemble averages; 0 for a run with an adapter of its own.
        verbaliser: the prompt's template and the label words (`Prompt.to_json`); null for a head.
    """

    task: str
    labels: tuple[str, ...]
    pooling: str
    own_head: bool
    base: str
    base_id: str
    base_fingerprint: str
    data_fingerprint: str
    max_length: int
    pair: bool
    precision: str
    scores: dict[str, float]
    versions: dict[str, str]
    method: str = "lora"
    calibration: dict[str, Any] | None = None
    base_precision: str = "auto"
    members: int = 0
    verbaliser: dict[str, Any] | None = None

    @property
    def label_set(self) -> LabelSet:
        """The labels by name and id."""
        return LabelSet(self.labels)


_REQUIRED = frozenset(field.name for field in fields(ArtifactInfo) if field.default is MISSING)


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


def package_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    packages = ("veneer", "torch", "transformers", "tokenizers", "safetensors")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


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
    text = _info_text(info, {name: sha256(writing / name) for name in names})
    (writing / INFO_FILE).write_text(text, encoding="utf-8")
    _commit(writing, folder, names)


def read_info(folder: Path) -> ArtifactInfo:
    """`veneer.json` of a run folder, every file checked against its checksum.

    Raises:
        ArtifactError: no run folder, an unfinished or damaged one, or of another format version.
    """
    tree = _read_tree(folder)
    found = tree.pop("format_version", None)
    if found not in READABLE_VERSIONS:
        raise ArtifactError(f"{folder}: format version {found!r}; this veneer reads version {FORMAT_VERSION}. Fix: update veneer")
    files = tree.pop("files", None)
    if lacking := _REQUIRED - tree.keys():
        raise ArtifactError(f"{folder / INFO_FILE} is damaged: it lacks {', '.join(sorted(lacking))}. {_COPY}")
    try:
        info = ArtifactInfo(**{**tree, "labels": tuple(tree["labels"])})
        labels = info.label_set
    except (TypeError, DataError) as error:
        raise ArtifactError(f"{folder / INFO_FILE} is damaged: {error}") from None
    if wrong := _unsound(tree, files, len(labels)):
        raise ArtifactError(f"{folder / INFO_FILE} is damaged: not what veneer writes: {', '.join(wrong)}")
    _check_calibration(folder, info)
    _check_files(folder, files)
    return info


def save_ensemble(folder: Path, members: Sequence[Path], info: ArtifactInfo) -> None:
    """Write an ensemble into `folder`: copies of its runs, and `info`, whose `members` is how many there are.

    Raises:
        ArtifactError: a run folder that is damaged.
    """
    for number, member in enumerate(members, start=1):
        read_info(member)
        target = folder / MEMBERS / str(number)
        target.mkdir(parents=True)
        for name in (*_read_tree(member)["files"], CONFIG_FILE, INFO_FILE):
            if (member / name).is_file():  # not every run has kept its configuration
                shutil.copyfile(member / name, target / name)
        sync_files(target.iterdir())
        sync_folder(target)
    write_text(folder / INFO_FILE, _info_text(replace(info, members=len(members)), {}))


def update_info(folder: Path, info: ArtifactInfo) -> None:
    """Replace what `veneer.json` says of a run; its files and their checksums stay as they are.

    Raises:
        ArtifactError: as `read_info`.
    """
    read_info(folder)
    files = _read_tree(folder)["files"]
    write_text(folder / INFO_FILE, _info_text(info, files))


def check_single(folder: Path, info: ArtifactInfo) -> None:
    """Raise an ArtifactError of an ensemble, where one adapter is wanted."""
    if info.members:
        raise ArtifactError(
            f"{folder} is an ensemble of {info.members} runs, without an adapter of its own. "
            f"Fix: one of its runs, such as {folder / MEMBERS / '1'}"
        )


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
    location = find_base(base or info.base)
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


def resume_command(folder: Path) -> str:
    """The command that goes on with the unfinished run in a folder, quoted so that it can be copied."""
    return f"veneer train --out {shlex.quote(str(folder))} --resume"


def write_text(path: Path, text: str) -> None:
    """Replace a small file at once: readers see the old or the new one."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable, where the system knows how to."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_files(paths: Iterable[Path]) -> None:
    """Make the contents of files durable."""
    for path in paths:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _info_text(info: ArtifactInfo, files: dict[str, str]) -> str:
    tree = {"format_version": FORMAT_VERSION, **asdict(info), "files": files}
    if not info.members:
        del tree["members"]  # an older veneer does not know it
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
    template, normalised = info.verbaliser["template"], info.verbaliser["length_normalised"]
    try:
        return make_prompt(tokenizer, template, words, length_normalised=normalised, pair=info.pair, max_length=info.max_length)
    except ConfigError as error:
        raise ArtifactError(f"{folder / INFO_FILE} is damaged: {error}") from None


def _build(
    info: ArtifactInfo, location: BaseLocation, precision: Precision, base_precision: str, prompt: Prompt | None
) -> Classifier:
    """A classifier with the head or the label words of the run, its weights still those of the base."""
    if prompt is not None:
        if base_precision != "auto":
            raise ConfigError(
                f"base_precision: label words are read from a base in full precision, not in {base_precision}. "
                "Fix: base_precision: auto"
            )
        return build_word_classifier(location, prompt, dtype=precision.dtype)
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
        raise ArtifactError(f"{folder}, {labels}: {error}. {_COPY}") from None
    if model.head is not None:
        _fill_head(model.head, folder / HEAD_FILE, labels)


def _fill_head(head: nn.Linear, path: Path, labels: str) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} does not fit {labels}: {' '.join(str(error).split())}. {_COPY}") from None
    wanted = {name: list(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        shapes = ["; ".join(f"{name} {shape}" for name, shape in sorted(those.items())) for those in (found, wanted)]
        raise ArtifactError(f"{path} does not fit {labels}: it holds {shapes[0]}, but needed are {shapes[1]}. {_COPY}")
    head.load_state_dict(tensors)


def _read_tree(folder: Path) -> dict[str, Any]:
    path = folder / INFO_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{folder} {_why_none(folder)}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path}: {error}. {_COPY}") from None
    if not isinstance(tree, dict):
        raise ArtifactError(f"{path} holds a {type(tree).__name__}, not an object")
    known = {field.name for field in fields(ArtifactInfo)} | {"format_version", "files"}
    if tree.get("format_version") in READABLE_VERSIONS and (unknown := tree.keys() - known):
        raise ArtifactError(f"{path} is damaged: unknown keys {', '.join(sorted(unknown))}")
    return tree


def _unsound(tree: dict[str, Any], files: Any, labels: int) -> list[str]:
    """The keys of `veneer.json` whose values are not what veneer writes."""
    method = METHODS.get(str(tree.get("method", "lora")))
    members = tree.get("members", 0)
    texts = ("base", "base_id", "base_fingerprint", "data_fingerprint", "precision")
    sound = {key: isinstance(tree[key], str) for key in texts}
    sound |= {
        "task": tree["task"] in list(TASKS),
        "labels": isinstance(tree["labels"], list) and labels > 0 and all(isinstance(name, str) for name in tree["labels"]),
        "pooling": tree["pooling"] in list(get_args(Pooling)),
        "own_head": isinstance(tree["own_head"], bool),
        "pair": isinstance(tree["pair"], bool),
        "scores": isinstance(tree["scores"], dict),
        "calibration": isinstance(tree.get("calibration"), dict | None),
        "base_precision": tree.get("base_precision", "auto") in list(get_args(BasePrecision)),
        "verbaliser": tree.get("verbaliser") is None or (not members and _is_verbaliser(tree["verbaliser"], labels)),
        "max_length": type(tree["max_length"]) is int and tree["max_length"] > 0,
        "method": method is not None,
        "members": type(members) is int and members >= 0,
        "files": isinstance(files, dict) and (bool(members) or method is None or set(method.files) <= files.keys()),
    }
    return [key for key, is_sound in sound.items() if not is_sound]


def _is_verbaliser(found: Any, labels: int) -> bool:
    return (
        isinstance(found, dict)
        and found.keys() == {"template", "words", "length_normalised"}
        and isinstance(found["template"], str)
        and isinstance(found["length_normalised"], bool)
        and isinstance(found["words"], list)
        and len(found["words"]) == labels
        and all(isinstance(word, str) for word in found["words"])
    )


def _check_calibration(folder: Path, info: ArtifactInfo) -> None:
    if info.calibration is not None:
        try:
            Calibration.from_json(info.calibration, info.task, len(info.labels))  # type: ignore[arg-type]
        except ValueError as error:
            raise ArtifactError(f"{folder / INFO_FILE} is damaged: {error}") from None


def _why_none(folder: Path) -> str:
    if not folder.exists():
        return "does not exist. Fix: the folder that training wrote, as its --out or its last lines name it"
    if (folder / "checkpoints").is_dir():
        return f"holds an unfinished run. Fix: {resume_command(folder)}"
    if not folder.is_dir():
        return "is a file, not a run folder. Fix: the folder that training wrote"
    if (folder / "config.json").is_file():
        return (
            f"is no run folder: it holds no {INFO_FILE}, but a plain transformers checkpoint, such as veneer merge writes. "
            "Fix: the folder of the run itself; a merged checkpoint is used with transformers, as its README.md says"
        )
    return f"is no run folder: it holds no {INFO_FILE}"


def _check_files(folder: Path, files: dict[str, Any]) -> None:
    for name, expected in files.items():
        if Path(name).name != name or name in (".", ".."):
            raise ArtifactError(f"{folder / INFO_FILE} is damaged: it names a file outside the folder ({name!r})")
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{folder} is damaged: {name} is missing. {_COPY}")
        if sha256(path) != expected:
            raise ArtifactError(f"{path} is damaged: its checksum is not the one saved. Fix: copy it again, or train again")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
