"""Checkpoints from which a run goes on as if it had never stopped.

A checkpoint is a folder `checkpoints/step-000200` with `state.safetensors` (trained parameters, the optimiser's moments, the
random generators' states, the best adapter so far) and `state.json` (where in the run it is, and what run it belongs to). It is
written beside and renamed, so that it is there whole or not at all. Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from veneer.durable import sha256, sync_files, sync_folder
from veneer.errors import ResumeError
from veneer.training.optim import Trained, moments, restore_moments

FORMAT_VERSION = 2
_KEPT = 2
_PLAN = "batch plan"


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: optimiser steps done.
        epoch: epochs done.
        batch: batches of the current epoch done.
        best_score: the best score on dev so far (higher is better), or None before the first evaluation.
        best_loss: the loss on dev beside it, which decides between equal scores.
        best_step: its step.
        stale: evaluations since then.
        seconds: time spent in training steps, and at the end what their vectors took; evaluations and checkpoints are not
            counted.
        texts: texts trained on.
        loss_scale: the state of fp16's gradient scaler, or None.
        best_tensors: what was trained, as it was at the best step, in the processor's memory; empty before the first evaluation.
        course_tensors: what the method's course remembers; empty for a method without one.
        average_tensors: the running average of what is trained; empty before the first step, and where none is kept.
        tasks: of several tasks trained together, the best of each by itself; its names are those of the task's own model.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_score: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    texts: int = 0
    loss_scale: dict[str, float] | None = None
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    course_tensors: dict[str, Tensor] = field(default_factory=dict)
    average_tensors: dict[str, Tensor] = field(default_factory=dict)
    tasks: dict[str, Progress] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All but the tensors."""
        plain = {key: value for key, value in vars(self).items() if key != "tasks" and not key.endswith("_tensors")}
        return plain | ({"tasks": {task: one.to_json() for task, one in self.tasks.items()}} if self.tasks else {})

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Progress:
        """The inverse of `to_json`."""
        return cls(**{**tree, "tasks": {task: cls.from_json(one) for task, one in tree.get("tasks", {}).items()}})


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: of the run.
        identity: what must be the same for a checkpoint to belong to the run; JSON values by a readable name. `data` has of
            each split its file, its number of rows and their fingerprint.

    Attributes:
        drift: what the last bits depend on and is not as it was when the restored checkpoint was written; else empty.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.drift = ""
        self._folder = folder / "checkpoints"
        self._identity = json.loads(json.dumps(identity))

    def save(self, model: Trained, optimizer: torch.optim.Optimizer, progress: Progress) -> Path:
        """Write a checkpoint; older ones but one are removed after it is there."""
        name = f"step-{progress.step:08d}"
        target, writing = self._folder / name, self._folder / f".{name}.writing"
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        tensors = _state_tensors(model, optimizer, progress)
        save_file(tensors, writing / "state.safetensors")
        state = {
            "format_version": FORMAT_VERSION,
            "identity": self._identity,
            "arithmetic": _arithmetic(),
            "progress": progress.to_json(),
            "sha256": sha256(writing / "state.safetensors"),
        }
        (writing / "state.json").write_text(json.dumps(state, indent=2, ensure_ascii=False), encoding="utf-8")
        sync_files(writing.iterdir())
        shutil.rmtree(target, ignore_errors=True)
        writing.rename(target)
        sync_folder(self._folder)
        for old in self._all()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def restore(self, model: Trained, optimizer: torch.optim.Optimizer) -> Progress:
        """Bring model, optimiser and random generators to the newest whole checkpoint.

        Raises:
            ResumeError: there is none, it belongs to another run (every difference is named), or it lacks tensors of the model.
        """
        state, tensors = self._own()
        progress = Progress.from_json(state["progress"])
        now = _arithmetic()
        then = now | state.get("arithmetic", {})
        self.drift = ", ".join(f"{name} {value}, not {then[name]}" for name, value in now.items() if value != then[name])
        _load_tensors(model, optimizer, progress, tensors)
        return progress

    def check(self) -> None:
        """Raise a ResumeError as `restore` would, and change nothing."""
        self._own()

    def _own(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        state, tensors = self._newest()
        if differences := _run_differences(state["identity"], self._identity):
            raise ResumeError(
                f"{self._folder.parent} holds a checkpoint of another run, so it cannot be resumed\n  "
                + "\n  ".join(differences)
                + "\n  Fix: resume with what it was started with, or train into another --out"
            )
        return state, tensors

    def remove(self) -> None:
        """Remove all checkpoints, once the run folder is whole."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"))

    def _newest(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        problems = []
        for folder in reversed(self._all()):
            try:
                state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                if state["format_version"] != FORMAT_VERSION:
                    raise ResumeError(
                        f"{folder}: checkpoint format {state['format_version']}, this veneer reads {FORMAT_VERSION}. "
                        "Fix: train again into another --out"
                    )
                if sha256(folder / "state.safetensors") != state["sha256"]:
                    raise ValueError("its checksum is not the one saved")
                return state, load_file(folder / "state.safetensors")
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                problems.append(f"{folder.name} is damaged: {error}")
        why = "; ".join(problems) if problems else "there is none yet"
        raise ResumeError(f"no checkpoint in {self._folder} to resume from ({why}). Fix: train again into another --out")


def has_checkpoint(folder: Path) -> bool:
    """Whether a run folder holds a checkpoint."""
    return any((folder / "checkpoints").glob("step-*"))


def _arithmetic() -> dict[str, Any]:
    """What the order of sums follows from, and with it the last bits of a run: JSON values by a readable name."""
    return {"threads": torch.get_num_threads(), "torch": torch.__version__}


def _state_tensors(model: Trained, optimizer: torch.optim.Optimizer, progress: Progress) -> dict[str, Tensor]:
    tensors = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.trainable().items():
        tensors[f"parameter/{name}"] = parameter.detach()
        tensors |= {f"{key}/{name}": value for key, value in moments(optimizer, parameter).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in progress.best_tensors.items()}
    for task, one in progress.tasks.items():
        tensors |= {f"best/{task}.{name}": tensor for name, tensor in one.best_tensors.items()}
    tensors |= {f"course/{name}": tensor for name, tensor in progress.course_tensors.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in progress.average_tensors.items()}
    return {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}


def _load_tensors(model: Trained, optimizer: torch.optim.Optimizer, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    shapes = {name: parameter.shape for name, parameter in model.trainable().items()}
    lacking = [name for name, shape in shapes.items() if getattr(tensors.get(f"parameter/{name}"), "shape", None) != shape]
    if lacking:
        raise ResumeError(
            f"the checkpoint does not fit the model: {len(lacking)} of its tensors are missing or of another shape, "
            f"{lacking[0]} first. Fix: give the same base, 1_Pooling/config.json included, "
            "or train again into another --out"
        )
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            parameter.copy_(tensors[f"parameter/{name}"])
        restore_moments(optimizer, _moments_of(model.trainable(), tensors))
    for task, one in progress.tasks.items():
        one.best_tensors = _under(f"best/{task}.", tensors)
    progress.best_tensors = {} if progress.tasks else _under("best/", tensors)
    progress.course_tensors = _under("course/", tensors)
    # moved on by the weights in every step, and so where these are
    progress.average_tensors = {name: one.to(model.device) for name, one in _under("average/", tensors).items()}
    torch.set_rng_state(tensors["rng/cpu"])
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])


def _moments_of(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> dict[nn.Parameter, dict[str, Tensor]]:
    """What `_state_tensors` took from the optimiser, by parameter."""
    found: dict[nn.Parameter, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        key, _, name = full.partition("/")
        if key not in ("rng", "parameter", "best", "course", "average"):
            found.setdefault(parameters[name], {})[key] = tensor
    return found


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _run_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What differs, a line each; the batch plan follows from the rest, and is told where it alone differs."""
    before, now = saved.get("data", {}), current.get("data", {})
    names = sorted(before.keys() | now.keys())
    data = [line for name in names if (line := _data_difference(name, before.get(name), now.get(name))) is not None]
    others = [{key: value for key, value in one.items() if key not in ("data", _PLAN)} for one in (saved, current)]
    plan = [{_PLAN: one.get(_PLAN)} for one in (saved, current)]
    return [*_differences(*others), *data] or _differences(*plan)


def _data_difference(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str | None:
    """How one split's file differs in its rows; where it lies does not count."""
    if before is None or now is None:
        return f"{name}: " + (f"no file now, it was {before['file']}" if before is not None else "a file now, there was none")
    if before["fingerprint"] == now["fingerprint"]:
        return None
    if before["rows"] == now["rows"]:
        return f"{name}: {now['file']} has {now['rows']:,} rows as before, but with other texts or labels"
    return f"{name}: {now['file']} has {now['rows']:,} rows now, it had {before['rows']:,}"


def _differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in sorted(saved.keys() | current.keys()):
        before, now = saved.get(key), current.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += [f"{key}.{line}" for line in _differences(before, now)]
        elif before != now:
            lines.append(f"{key}: was {_shown(before)}, is {_shown(now)}")
    return lines


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
