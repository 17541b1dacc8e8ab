"""`trained.safetensors`: the tensors that were trained, by the model's own names, and nothing else.

The file of the methods whose format nobody else reads. Names and shapes say all there is to say of the method's settings. Our
own head is not in it: it has its file in every run folder (`artifact.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from veneer import lora
from veneer.errors import LoraError
from veneer.lora.files import read_tensors
from veneer.lora.state import shorten
from veneer.methods.contract import Stored
from veneer.model import Classifier

TRAINED_FILE = "trained.safetensors"
LANGUAGE_MODEL = "CAUSAL_LM"  # PEFT's task type of a run that reads label words
_PREFIX = "network."


def trained_in_network(model: Classifier) -> dict[str, Tensor]:
    """Name inside `model.network` -> tensor that is trained."""
    return {name.removeprefix(_PREFIX): one for name, one in model.trainable().items() if name.startswith(_PREFIX)}


def save_trained(model: Classifier, folder: Path, _base: str) -> None:
    """Write `trained.safetensors`; copies, since safetensors refuses tensors that share memory."""
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in trained_in_network(model).items()}
    metadata = {} if model.words is None else {"task_type": LANGUAGE_MODEL}
    save_file(tensors, folder / TRAINED_FILE, metadata={"format": "pt"} | metadata)


def task_type(model: Classifier) -> str:
    """PEFT's name for what is done with the base."""
    if model.words is not None:
        return LANGUAGE_MODEL
    return "SEQ_CLS" if model.head is None else "FEATURE_EXTRACTION"


def read_trained(folder: Path) -> dict[str, Tensor]:
    """The tensors of `trained.safetensors`.

    Raises:
        LoraError: the file is missing or damaged, or holds values that are not finite numbers.
    """
    tensors = read_tensors(folder / TRAINED_FILE)
    check_finite(tensors)
    return tensors


def reads_words(folder: Path) -> bool:
    """Whether the `trained.safetensors` that `read_trained` reads is of a run that reads label words."""
    with safe_open(folder / TRAINED_FILE, "pt") as file:
        return (file.metadata() or {}).get("task_type") == LANGUAGE_MODEL


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise a LoraError unless all values are finite floating point numbers."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise LoraError(f"{name} holds values that are not finite numbers")


def load_trained(model: Classifier, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the parameters of those names and mark them as trained, all of them or nothing.

    Raises:
        LoraError: the model has no such parameter, or one of another shape or of a lower precision; or one of the head, which is
            always trained, is not among the tensors.
    """
    parameters = dict(model.network.named_parameters(remove_duplicate=False))
    problems = []
    if unknown := [name for name in tensors if name not in parameters]:
        problems.append(f"unexpected: {shorten(unknown)}")
    heads = tuple(f"{module}." for module in model.trained_heads)
    if missing := [name for name in parameters if heads and name.startswith(heads) and name not in tensors]:
        problems.append(f"missing: {shorten(missing)}")
    common = [name for name in tensors if name in parameters]
    if shapes := [name for name in common if parameters[name].shape != tensors[name].shape]:
        problems.append(f"other shape: {shorten(shapes)}")
    lossy = [
        name for name in common if torch.promote_types(parameters[name].dtype, tensors[name].dtype) != parameters[name].dtype
    ]
    if lossy:
        problems.append(f"held by the model in a lower precision than saved: {shorten(lossy)}")
    if problems:
        raise LoraError("what was trained does not fit the model\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
            parameters[name].requires_grad_(True)


def holds_base(model: Classifier, tensors: Mapping[str, Tensor]) -> bool:
    """Whether one of the tensors is a weight of the base, outside the head's modules, which are float32 in any case."""
    heads = tuple(f"{name}." for name in model.head_names)
    parameters = {name for name, _ in model.network.named_parameters(remove_duplicate=False)}
    return any(name in parameters and not (heads and name.startswith(heads)) for name in tensors)


def leave(_model: Classifier) -> None:
    """Merging where the base's own weights were trained: there is nothing to do."""


def read_tuned(folder: Path) -> Stored:
    """What `save_trained` wrote of a model whose modules are the base's own; errors as `read_trained`."""
    tensors = read_trained(folder)
    fill = partial(load_trained, tensors=tensors)
    return Stored(fill, lambda model: holds_base(model, tensors), reads_words(folder))


def require_float32(model: Classifier) -> None:
    """Raise a LoraError unless the base is in float32: steps of training are lost in the rounding of less."""
    if lora.frozen_elements(model.network):
        raise LoraError("weights of a base in fewer bits cannot be trained. Fix: base_precision: auto")
    if next(model.encoder.parameters()).dtype != torch.float32:
        raise LoraError("training weights of the base needs them in float32. Fix: training.precision: fp32")
