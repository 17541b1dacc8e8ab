"""The run folder: its files, their format version, writing and reading it.

    adapter_config.json, adapter_model.safetensors   the adapter, in PEFT's format
    head.safetensors                                 our own head, where the family's is not used
    tokenizer.json, tokenizer_config.json, …         the tokenizer
    veneer.json                                      everything else, and a checksum of every file above

`veneer.json` is written last and replaced at once: a folder that holds it is whole. Nothing is pickled.

Knows files and the model; knows nothing of training, and does not judge.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from veneer import lora
from veneer.bases import BaseLocation, find_base, fingerprint, load_tokenizer
from veneer.data import EncodedTexts, Prompt, encode, make_prompt
from veneer.errors import ArtifactError, ConfigError, DataError, LoraError
from veneer.heads import HeadPlan
from veneer.labels import LabelSet
from veneer.model import Classifier, build_classifier, share_inputs
from veneer.packing import Pooling
from veneer.precision import Precision, choose_precision, pick_device
from veneer.run_files import INFO_FILE
from veneer.tasks import TASKS, Calibration
from veneer.word_model import build_word_classifier

FORMAT_VERSION = 1
HEAD_FILE = "head.safetensors"
LANGUAGE_MODEL = "CAUSAL_LM"  # PEFT's task type of a run that reads label words
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
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
        precision: of the base in training, and so in the scores.
        scores: metric -> value on the development texts.
        calibration: how logits become decisions; null for the plain rule.
        versions: package -> version.
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
    calibration: dict[str, Any] | None = None
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
    """Write the adapter in `model`, its head, the tokenizer and `info` into `folder`; whole or not at all.

    Raises:
        LoraError: PEFT's format cannot hold the adapter.
    """
    writing = folder / ".writing"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    bias = "none"
    trained = {name for name in model.trainable() if name.startswith("network.") and name.endswith(".bias")}
    if trained:
        bias = _bias_mode(model, trained)
    task_type = "SEQ_CLS" if model.head is None else "FEATURE_EXTRACTION"
    if model.words is not None:
        task_type = LANGUAGE_MODEL
    settings = lora.adapter_settings(model.network, bias=bias, base=info.base_id, task_type=task_type)  # type: ignore[arg-type]
    tensors = lora.lora_state_dict(model.network, bias, settings.saved_modules)  # type: ignore[arg-type]
    lora.write_adapter(writing, tensors, settings)
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
    if found != FORMAT_VERSION:
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


def update_info(folder: Path, info: ArtifactInfo) -> None:
    """Replace what `veneer.json` says of a run; its files and their checksums stay as they are.

    Raises:
        ArtifactError: as `read_info`.
    """
    read_info(folder)
    files = _read_tree(folder)["files"]
    write_text(folder / INFO_FILE, _info_text(info, files))


def load_artifact(folder: Path, *, base: str | None = None, precision: str = "auto") -> Loaded:
    """The model of a run folder, in evaluation mode, on the GPU if there is one.

    Args:
        base: where the base is, if not where it was found in training.
        precision: auto | fp32 | bf16 | fp16.

    Raises:
        ArtifactError: as `read_info`, or the base is not the one the adapter was trained on, or tensors do not fit.
        BaseError: the base cannot be found.
    """
    info = read_info(folder)
    location = find_base(base or info.base)
    found = fingerprint(location)
    if found != info.base_fingerprint:
        raise ArtifactError(
            f"{folder} was trained on another base than {location.description}: fingerprint {info.base_fingerprint[:19]}…, "
            f"here {found[:19]}…. Fix: give the base '{info.base_id}' it was trained on"
        )
    device = pick_device()
    chosen = choose_precision(precision, device)
    adapter = _read_adapter(folder)
    tokenizer = load_tokenizer(BaseLocation(str(folder), "folder", folder, str(folder), f"folder {folder}"))
    prompt = _prompt(folder, info, tokenizer)
    if (prompt is None) == (adapter.settings.task_type == LANGUAGE_MODEL):
        raise ArtifactError(f"{folder / INFO_FILE} is damaged: verbaliser is not that of the adapter, which says how it is read")
    model = _build(info, location, chosen, prompt)
    trains_base = adapter.settings.bias != "none" or not set(adapter.settings.saved_modules) <= set(model.trained_heads)
    if precision == "auto" and chosen.name != "fp32" and trains_base:
        chosen = Precision("fp32", "weights of the base were trained")
        model = _build(info, location, chosen, prompt)
    _fill(folder, model, adapter, f"{len(info.labels)} labels")
    model.to(device)
    return Loaded(info, model.eval(), tokenizer, location, chosen, prompt)


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


def _bias_mode(model: Classifier, trained: set[str]) -> str:
    modules = lora.trained_modules(model.network)
    loose = {name.removeprefix("network.") for name in trained}
    loose = {name for name in loose if not any(name.startswith(f"{module}.") for module in modules)}
    if not loose:
        return "none"
    adapted = {f"{name}.bias" for name in lora.lora_layers(model.network)}
    return "lora_only" if loose <= adapted else "all"


def _read_adapter(folder: Path) -> lora.AdapterFile:
    try:
        return lora.read_adapter(folder)
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


def _build(info: ArtifactInfo, location: BaseLocation, precision: Precision, prompt: Prompt | None) -> Classifier:
    """A classifier with the head or the label words of the run, its weights still those of the base."""
    if prompt is not None:
        return build_word_classifier(location, prompt, dtype=precision.dtype)
    wanted = HeadPlan(info.pooling, info.own_head)  # type: ignore[arg-type]
    model = build_classifier(location, len(info.labels), pooling=info.pooling, dtype=precision.dtype)
    if model.plan == wanted:
        return model
    head = "its family's own head" if info.own_head else "a linear head"
    raise ArtifactError(
        f"{location.description} does not give {info.pooling} pooling with {head}, as it did in training. "
        f"Fix: give the base '{info.base_id}' with the same 1_Pooling/config.json"
    )


def _fill(folder: Path, model: Classifier, adapter: lora.AdapterFile, labels: str) -> None:
    try:
        lora.apply_adapter(model.network, adapter)
        share_inputs(model)
        if model.head is not None:
            model.head.load_state_dict(load_file(folder / HEAD_FILE))
    except LoraError as error:
        raise ArtifactError(f"{folder}, {labels}: {error}") from None
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{folder / HEAD_FILE} does not fit {labels}: {' '.join(str(error).split())}") from None


def _read_tree(folder: Path) -> dict[str, Any]:
    path = folder / INFO_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{folder} {_why_none(folder)}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path}: {error}. {_COPY}") from None
    if not isinstance(tree, dict):
        raise ArtifactError(f"{path} holds a {type(tree).__name__}, not an object")
    known = {field.name for field in fields(ArtifactInfo)} | {"format_version", "files"}
    if tree.get("format_version") == FORMAT_VERSION and (unknown := tree.keys() - known):
        raise ArtifactError(f"{path} is damaged: unknown keys {', '.join(sorted(unknown))}")
    return tree


def _unsound(tree: dict[str, Any], files: Any, labels: int) -> list[str]:
    """The keys of `veneer.json` whose values are not what veneer writes."""
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
        "verbaliser": tree.get("verbaliser") is None or _is_verbaliser(tree["verbaliser"], labels),
        "max_length": type(tree["max_length"]) is int and tree["max_length"] > 0,
        "files": isinstance(files, dict) and set(ADAPTER_FILES) <= files.keys(),
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
        return f"holds an unfinished run. Fix: veneer train --out {folder} --resume"
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
