"""`veneer.json`: what a run folder says of itself, and whether the folder is whole.

Knows the keys, the format version and the checksums; loads no model. A folder may come from anybody: every value of `veneer.json`
is checked here.
"""

from __future__ import annotations

import json
import platform
import shlex
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from veneer.bases import BaseLocation, find_base
from veneer.durable import sha256, write_text
from veneer.errors import ArtifactError, BaseError, DataError
from veneer.labels import LabelSet
from veneer.methods import METHODS
from veneer.packing import Pooling
from veneer.quantise import BasePrecision
from veneer.run_files import CONFIG_FILE, INFO_FILE, MEMBERS
from veneer.tasks import TASKS, Calibration

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, FORMAT_VERSION)  # of 1 is a folder from before there was `method`: LoRA
HEAD_FILE = "head.safetensors"
COPY_AGAIN = "Fix: copy the whole folder again, or train again"


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


def package_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    packages = ("veneer", "torch", "transformers", "tokenizers", "safetensors")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def find_own_base(folder: Path, info: ArtifactInfo, base: str | None, *, weights: bool = True) -> BaseLocation:
    """The base of a run: where `base` says it is now, else where training found it.

    Raises:
        BaseError: it is not there; a folder may have moved, or have been named from another directory.
    """
    try:
        return find_base(base or info.base, weights=weights)
    except BaseError as error:
        if base is not None:
            raise
        raise BaseError(
            f"{folder} was trained over the base '{info.base}'. Fix: --base with the folder it is in now\n{error}"
        ) from None


def read_info(folder: Path) -> ArtifactInfo:
    """`veneer.json` of a run folder, every file checked against its checksum.

    Raises:
        ArtifactError: no run folder, an unfinished or damaged one, or of another format version.
    """
    tree = read_tree(folder)
    found = tree.pop("format_version", None)
    if found not in READABLE_VERSIONS:
        fix = "update veneer" if isinstance(found, int) and found > FORMAT_VERSION else COPY_AGAIN.removeprefix("Fix: ")
        reads = " and ".join(map(str, READABLE_VERSIONS))
        raise ArtifactError(f"{folder}: format version {found!r}; this veneer reads versions {reads}. Fix: {fix}")
    files = tree.pop("files", None)
    if lacking := _REQUIRED - tree.keys():
        raise ArtifactError(f"{folder / INFO_FILE} is damaged: it lacks {', '.join(sorted(lacking))}. {COPY_AGAIN}")
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
    files = read_tree(folder)["files"]
    write_text(folder / INFO_FILE, info_text(info, files))


def check_single(folder: Path, info: ArtifactInfo) -> None:
    """Raise an ArtifactError of an ensemble, where one adapter is wanted."""
    if info.members:
        raise ArtifactError(
            f"{folder} is an ensemble of {info.members} runs, without an adapter of its own. "
            f"Fix: one of its runs, such as {folder / MEMBERS / '1'}"
        )


def resume_command(folder: Path) -> str:
    """The command that goes on with the unfinished run in a folder, quoted so that it can be copied."""
    return f"veneer train --out {shlex.quote(str(folder))} --resume"


def info_text(info: ArtifactInfo, files: dict[str, str]) -> str:
    """`veneer.json`: what the run says of itself, and the checksums of its files."""
    tree = {"format_version": FORMAT_VERSION, **asdict(info), "files": files}
    if not info.members:
        del tree["members"]  # an older veneer does not know it
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_tree(folder: Path) -> dict[str, Any]:
    """`veneer.json` as it is, with no key that veneer does not know; its values are not checked.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    path = folder / INFO_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{folder} {why_none(folder)}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path}: {error}. {COPY_AGAIN}") from None
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
        "verbaliser": tree.get("verbaliser") is None or (not members and _is_verbaliser(tree, labels)),
        "max_length": type(tree["max_length"]) is int and tree["max_length"] > 0,
        "method": method is not None,
        "members": type(members) is int and members >= 0,
        "files": isinstance(files, dict) and (bool(members) or method is None or set(method.files) <= files.keys()),
    }
    return [key for key, is_sound in sound.items() if not is_sound]


def _is_verbaliser(tree: dict[str, Any], labels: int) -> bool:
    found = tree["verbaliser"]
    none = {"none"} if tree["task"] == "multi_label" else set()
    return (
        isinstance(found, dict)
        and found.keys() == {"template", "words", "length_normalised"} | none
        and all(isinstance(found[key], str) for key in none)
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


def why_none(folder: Path) -> str:
    """What a folder without `veneer.json` is instead, and what to do."""
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
    return why_several(folder) or f"is no run folder: it holds no {INFO_FILE}"


def why_several(folder: Path) -> str:
    """Of the folder of several tasks, that it is one and what to do; else empty."""
    tasks = sorted(path.parent for path in folder.glob(f"*/{INFO_FILE}")) if (folder / CONFIG_FILE).is_file() else []
    if not tasks:
        return ""
    return f"holds the runs of {len(tasks)} tasks trained together. Fix: one of them: {', '.join(map(str, tasks))}"


def _check_files(folder: Path, files: dict[str, Any]) -> None:
    for name, expected in files.items():
        if Path(name).name != name or name in (".", ".."):
            raise ArtifactError(f"{folder / INFO_FILE} is damaged: it names a file outside the folder ({name!r})")
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{folder} is damaged: {name} is missing. {COPY_AGAIN}")
        if sha256(path) != expected:
            raise ArtifactError(f"{path} is damaged: its checksum is not the one saved. Fix: copy it again, or train again")
