"""Several tasks as one job of the loop: one pass of the base a step, for the texts of all of them.

The tasks share nothing that is trained. Each has the mean loss of its own texts in a step, and its gradients are clipped by
themselves, so that a step does to a task what a step over its texts alone would. A task without texts in a step is left alone.

Knows jobs and how they are put together; knows no files and no configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from veneer import lora
from veneer.config import TrainingSettings
from veneer.data import EncodedTexts
from veneer.joint import JointClassifier
from veneer.packing import plan_mixture, task_quotas
from veneer.packing.plan import Indices
from veneer.tasks import training_losses
from veneer.training.checkpoint import Progress
from veneer.training.loop import Job, Judged, steps_of


@dataclass(frozen=True)
class JointJob:
    """What is trained together, and how.

    Attributes:
        model: the tasks' classifiers as one pass.
        jobs: name of a task -> its job, whose model is the task's classifier; the order is the model's.
        temperature: of sampling; see `veneer.packing.mixture`.
        seed: of the run.
        scaler: fp16's gradient scaler, disabled otherwise.
        course: none, as LoRA has none.
    """

    model: JointClassifier
    jobs: Mapping[str, Job]
    settings: TrainingSettings
    temperature: float
    seed: int
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    course: None = None

    @cached_property
    def texts(self) -> EncodedTexts:
        """The training texts of all tasks end to end, in the tasks' order."""
        every = [job.train.texts for job in self.jobs.values()]
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        ids, types = (np.concatenate([getattr(texts, name) for texts in every]) for name in ("ids", "type_ids"))
        return EncodedTexts(ids, types, offsets, sum(texts.cut for texts in every))

    @cached_property
    def lengths(self) -> Indices:
        """`[N]` tokens of each training text of all tasks."""
        return np.concatenate([job.lengths for job in self.jobs.values()])

    @property
    def metric(self) -> str:
        """The scores that pick the best step, each its task's."""
        return ", ".join(dict.fromkeys(job.metric for job in self.jobs.values()))

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return steps_of(self.settings, len(self.lengths))

    @property
    def quotas(self) -> dict[str, int]:
        """Texts of each task in an epoch."""
        counts = [len(job.train) for job in self.jobs.values()]
        return dict(zip(self.jobs, task_quotas(counts, self.temperature), strict=True))

    def plan(self, epoch: int) -> list[Indices]:
        """The batches of an epoch, as indices into `texts`; the texts of a batch are in the order of their tasks."""
        lengths = [job.lengths for job in self.jobs.values()]
        return plan_mixture(lengths, self.settings.batch_size, self.temperature, seed=self.seed, epoch=epoch)

    def losses(self, part: Indices, batches: list[Indices]) -> Tensor:
        """`[K]`: the share of `part` in the mean loss of each task's texts of `batches`; 0 for a task without texts in it."""
        bounds, whole, answers = self._bounds(part), self._counts(batches), self.settings.answers
        answered = np.concatenate([np.tile(part[start:stop], answers) for start, stop in pairwise(bounds)])
        counts = [answers * (stop - start) for start, stop in pairwise(bounds)]
        logits = self.model(self.model.batch(self.texts, answered.tolist()), counts)
        losses = []
        for number, (name, job) in enumerate(self.jobs.items()):
            if name not in logits:
                losses.append(torch.zeros((), device=self.model.device))
                continue
            texts = part[bounds[number] : bounds[number + 1]] - self._starts[number]
            targets = job.train.targets[texts].to(self.model.device)
            own = training_losses(job.task, logits[name], targets, job.objective, self.settings.r_drop)
            losses.append(own.sum() / whole[number])
        return torch.stack(losses)

    def row(self, losses: list[float], norms: list[float], batches: list[Indices]) -> dict[str, float]:
        """The mean loss and the norm of all gradients; and both of each task that has texts in the step."""
        there = list(compress(zip(self.jobs, losses, norms, strict=True), self._counts(batches)))
        row = {"loss": sum(loss for _, loss, _ in there) / len(there), "gradient_norm": math.hypot(*norms)}
        for name, loss, norm in there:
            row |= {f"loss/{name}": loss, f"gradient_norm/{name}": norm}
        return row

    def clipped(self) -> list[list[nn.Parameter]]:
        """Each task by itself."""
        return [together for job in self.jobs.values() for together in job.clipped()]

    def adapted_layers(self) -> dict[str, lora.LoraLinear]:
        """Task and path -> adapted layer."""
        return {f"{name}: {path}": layer for name, job in self.jobs.items() for path, layer in job.adapted_layers().items()}

    def judge(self, progress: Progress) -> Judged:
        """Score every task, each keeping its own best; the run is stale once all tasks are."""
        rows: list[dict[str, Any]] = []
        lines = []
        for name, job in self.jobs.items():
            own = progress.tasks[name] = self.progress_of(name, progress)
            found, said = job.judge(own)
            rows += [{**row, "task": name} for row in found]
            lines += [f"{name}: {line}" for line in said]
        progress.stale = min(own.stale for own in progress.tasks.values())
        return rows, lines

    def progress_of(self, name: str, progress: Progress) -> Progress:
        """Where a task is by itself: its own best, and of the texts its share."""
        own = progress.tasks.get(name, Progress())
        texts = round(progress.texts * self.quotas[name] / len(self.lengths))
        return replace(own, step=progress.step, epoch=progress.epoch, batch=progress.batch, seconds=progress.seconds, texts=texts)

    def history_of(self, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of the run that are a task's, as its own run would have them; epochs count its own texts."""
        own = []
        quota, texts, every = self.quotas[name], len(self.jobs[name].train), len(self.lengths)
        for row in rows:
            if row["kind"] == "evaluation" and row["task"] == name:
                own.append({key: value for key, value in row.items() if key != "task"})
            elif row["kind"] == "step" and f"loss/{name}" in row:
                changed = {
                    "epoch": round(row["epoch"] * quota / texts, 4),
                    "loss": row[f"loss/{name}"],
                    "gradient_norm": row[f"gradient_norm/{name}"],
                    "texts_per_second": round(row["texts_per_second"] * quota / every, 1),
                }
                own.append({key: changed.get(key, value) for key, value in row.items() if "/" not in key})
        return own

    @cached_property
    def _starts(self) -> list[int]:
        """Where each task's texts begin in `texts`, and where the last one's end."""
        return [0, *np.cumsum([len(job.train) for job in self.jobs.values()]).tolist()]

    def _bounds(self, part: Indices) -> list[int]:
        """Where each task's texts begin in a part of a batch, and where the last one's end."""
        bounds: list[int] = np.searchsorted(part, self._starts).tolist()
        return bounds

    def _counts(self, batches: list[Indices]) -> list[int]:
        """Texts of each task in a step."""
        bounds = [self._bounds(batch) for batch in batches]
        return [sum(one[k + 1] - one[k] for one in bounds) for k in range(len(self.jobs))]
