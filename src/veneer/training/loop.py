"""The training loop. `fit` is the page to read; a step is `batch_size` texts, whatever their length."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from veneer import lora
from veneer.config import TrainingSettings
from veneer.errors import Interrupted, TrainingError
from veneer.evaluation.metrics import point_metrics
from veneer.evaluation.tables import LOWER_IS_BETTER
from veneer.methods import Course
from veneer.model import Classifier
from veneer.packing import plan_training, split_batch
from veneer.packing.plan import Indices
from veneer.tasks import Objective, Task, training_losses
from veneer.training.checkpoint import Checkpoints, Progress
from veneer.training.interrupt import Interrupt
from veneer.training.optim import Trained, build_optimizer, learning_rate_factor, set_learning_rate
from veneer.training.prepare import Split
from veneer.training.tracking import Tracker
from veneer.training.vectors import fits_memory, split_logits, vectors_stay, with_vectors
from veneer.training.weights import averaged, best_copy, load_trained, move_average

STANDSTILL = 1e-10
PROBE_STEPS = 3  # after this many steps the adapter must have moved
MOST_SAMPLED = 1000  # training texts that are evaluated beside dev


Judged = tuple[list[dict[str, Any]], list[str]]  # rows of `metrics.jsonl`, and lines for the person


class Fits(Protocol):
    """What the loop asks a job for; `Job` trains one task, `JointJob` several."""

    @property
    def model(self) -> Trained:
        """What is trained."""

    @property
    def settings(self) -> TrainingSettings:
        """How."""

    @property
    def metric(self) -> str:
        """The score on dev that picks the best step, by name."""

    @property
    def scaler(self) -> torch.amp.GradScaler:
        """fp16's gradient scaler, disabled otherwise."""

    @property
    def course(self) -> Course | None:
        """What the method does beside the steps."""

    @property
    def lengths(self) -> Indices:
        """`[N]` tokens of each training text."""

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""

    def plan(self, epoch: int) -> list[Indices]:
        """The batches of an epoch."""

    def losses(self, part: Indices, batches: list[Indices]) -> Tensor:
        """`[K]`: what the texts of `part` add to the loss of each task in the step over `batches`; mean losses when added up."""

    def row(self, losses: list[float], norms: list[float], batches: list[Indices]) -> dict[str, float]:
        """What a step's row says of its losses and of the norms of its gradients (of `clipped`): `loss` and `gradient_norm`."""

    def clipped(self) -> list[list[nn.Parameter]]:
        """The parameters whose gradients are clipped together."""

    def adapted_layers(self) -> dict[str, lora.LoraLinear]:
        """Path -> adapted layer."""

    def judge(self, progress: Progress) -> Judged:
        """Score dev, and remember what is trained if it is the best so far."""


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and how.

    Attributes:
        metric: the score on dev that picks the best adapter.
        scaler: fp16's gradient scaler, disabled otherwise.
        course: what the method does beside the steps.
        vector_seconds: what it took to compute the vectors of the splits, once they have them.
    """

    model: Classifier
    task: Task
    objective: Objective
    train: Split
    dev: Split
    settings: TrainingSettings
    metric: str
    seed: int
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    course: Course | None = None
    vector_seconds: float = 0.0

    @cached_property
    def train_sample(self) -> Split:
        """The training texts that are evaluated whenever dev is: the same ones each time, and no more than dev has."""
        return self.train.sample(min(len(self.dev), MOST_SAMPLED), self.seed)

    def with_vectors(self, tracker: Tracker) -> Job:
        """The job with the vectors that the head reads, where they stay the same and memory holds them; else as it is."""
        model = self.model
        if not (vectors_stay(model) and fits_memory(model, self.train) and fits_memory(model, self.dev)):
            return self
        start = time.perf_counter()
        with tracker.bar(len(self.train) + len(self.dev), 0, "vectors of the texts"):
            train, dev = (with_vectors(model, split, tracker.move) for split in (self.train, self.dev))
        return replace(self, train=train, dev=dev, vector_seconds=time.perf_counter() - start)

    @property
    def lengths(self) -> Indices:
        """`[N]` tokens of each training text."""
        return self.train.texts.lengths

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return steps_of(self.settings, len(self.train))

    def plan(self, epoch: int) -> list[Indices]:
        """The batches of an epoch."""
        return plan_training(self.lengths, self.settings.batch_size, seed=self.seed, epoch=epoch)

    def losses(self, part: Indices, batches: list[Indices]) -> Tensor:
        """`[1]`: the share of `part` in the mean loss of the texts of `batches`."""
        answered = np.tile(part, self.settings.answers)
        if self.train.vectors is None:
            logits = self.model(self.model.batch(self.train.texts, answered.tolist()))
        else:
            logits = self.model.classify(self.train.vectors[answered].to(self.model.device))
        targets = self.train.targets[part].to(logits.device)
        losses = training_losses(self.task, logits, targets, self.objective, self.settings.r_drop)
        return losses.sum().view(1) / sum(map(len, batches))

    def row(self, losses: list[float], norms: list[float], batches: list[Indices]) -> dict[str, float]:
        """The loss of a step, and its gradient's norm."""
        return {"loss": losses[0], "gradient_norm": norms[0]}

    def clipped(self) -> list[list[nn.Parameter]]:
        """All that is trained."""
        return [self._trained]

    @cached_property
    def _trained(self) -> list[nn.Parameter]:
        """Looked for once: a walk through the modules in every step shows in steps of few texts."""
        return list(self.model.trainable().values())

    def adapted_layers(self) -> dict[str, lora.LoraLinear]:
        """Path -> adapted layer."""
        return lora.lora_layers(self.model.network)

    def judge(self, progress: Progress) -> Judged:
        """Score dev, remember the adapter if it is the best so far; score the sample of training texts, for the curves."""
        return _judge(self, progress)


def steps_of(settings: TrainingSettings, texts: int) -> int:
    """Optimiser steps of a run over so many texts an epoch."""
    return math.ceil(math.ceil(texts / settings.batch_size) / settings.gradient_accumulation) * settings.epochs


def fit(job: Fits, checkpoints: Checkpoints, tracker: Tracker, *, resume: bool = False) -> Progress:
    """Train to the end, or until no better score comes; the best adapter's tensors are in the result's `best_tensors`.

    The model is left as it was evaluated last: with the running average of its weights, where one is kept.

    Raises:
        TrainingError: a loss or a gradient that is not finite, an adapter that does not move, or a step that the GPU's memory
            does not hold.
        Interrupted: stopped from outside, after saving a checkpoint.
        ResumeError: `resume`, and there is no checkpoint of this run.
    """
    optimizer = start_optimizer(job)
    progress = checkpoints.restore(job.model, optimizer) if resume else Progress()
    if progress.loss_scale is not None:
        job.scaler.load_state_dict(progress.loss_scale)
    if job.course is not None:
        job.course.load(progress.course_tensors)
    tracker.rewind(progress.step)
    if resume:
        tracker.say(f"going on from step {progress.step} of {job.steps}")
        if checkpoints.drift:
            tracker.note(f"{checkpoints.drift}: the run does not end with the very bits it would have had")
    else:
        checkpoints.save(job.model, optimizer, progress)  # so that a run can be resumed from its first step on
    job.model.train()
    with Interrupt() as interrupt, tracker.bar(job.steps, progress.step):
        for batches in _remaining(job, progress):
            try:
                row = run_step(job, optimizer, progress, batches)
            except torch.OutOfMemoryError as error:
                raise TrainingError(_too_large(job, progress)) from error
            tracker.advance(row)
            _check(job, row, tracker)
            if _evaluation_is_due(job, progress):
                with averaged(job.model, progress.average_tensors):
                    _evaluate(job, progress, tracker)
            if interrupt.asked or progress.step % job.settings.checkpoint_every == 0:
                tracker.flush()
                checkpoints.save(job.model, optimizer, progress)
            if interrupt.asked:
                raise Interrupted(f"stopped at step {progress.step} of {job.steps}; a checkpoint is saved")
    if progress.step < job.steps:
        tracker.say(f"no better {job.metric} in {progress.stale} evaluations: stopped early at step {progress.step}")
    checkpoints.save(job.model, optimizer, progress)
    if progress.average_tensors:
        load_trained(job.model, progress.average_tensors)
    return progress


def start_optimizer(job: Fits) -> torch.optim.Optimizer:
    """The optimiser of a job, before its first step."""
    settings = job.settings
    return build_optimizer(
        job.model,
        settings.learning_rate,
        settings.head_learning_rate,
        settings.weight_decay,
        settings.optimizer,
        settings.lora_plus_ratio or 1.0,
    )


def _remaining(job: Fits, progress: Progress) -> Iterator[list[Indices]]:
    """The batches of each step still to do, `progress` moved on by each; none once `patience` is spent."""
    patience = job.settings.patience or math.inf
    group = job.settings.gradient_accumulation
    while progress.epoch < job.settings.epochs and progress.stale < patience:
        epoch = progress.epoch
        plan = job.plan(epoch)
        while progress.epoch == epoch and progress.stale < patience:
            batches = plan[progress.batch : progress.batch + group]
            progress.batch += len(batches)
            progress.step += 1
            if progress.batch == len(plan):
                progress.epoch, progress.batch = epoch + 1, 0
            yield batches


def run_step(job: Fits, optimizer: torch.optim.Optimizer, progress: Progress, batches: list[Indices]) -> dict[str, Any]:
    """One optimiser step over the texts of `batches`; returns its row of `metrics.jsonl`."""
    start = time.perf_counter()
    settings = job.settings
    factor = learning_rate_factor(progress.step - 1, job.steps, settings.warmup_ratio, settings.schedule)
    set_learning_rate(optimizer, factor)
    count = sum(len(batch) for batch in batches)
    losses = torch.zeros(1, device=job.model.device)
    for batch in batches:
        for part in split_batch(batch, job.lengths, settings.tokens_per_pass // settings.answers):
            part_losses = job.losses(part, batches)
            torch.autograd.backward(job.scaler.scale(part_losses.sum()))
            losses = losses + part_losses.detach()
    if job.course is not None:
        torch.autograd.backward(job.scaler.scale(job.course.penalty()))
    job.scaler.unscale_(optimizer)
    limit = settings.gradient_clip if settings.gradient_clip is not None else float("inf")
    norms = [torch.nn.utils.clip_grad_norm_(together, limit) for together in job.clipped()]
    job.scaler.step(optimizer)
    job.scaler.update()
    if job.course is not None:
        job.course.after_step(progress.step)
        progress.course_tensors = job.course.state()
    if settings.ema_decay is not None:
        move_average(job.model, progress.average_tensors, settings.ema_decay, progress.step)
    optimizer.zero_grad(set_to_none=True)
    progress.loss_scale = job.scaler.state_dict() or None
    told = job.row(losses.tolist(), list(map(float, norms)), batches)  # waits for the GPU, whose work is to be timed, too
    seconds = time.perf_counter() - start
    progress.seconds += seconds
    progress.texts += count
    return {
        "kind": "step",
        "step": progress.step,
        "epoch": round(progress.texts / len(job.lengths), 4),
        "learning_rate": settings.learning_rate * factor,
        **told,
        "texts_per_second": round(count / seconds, 1),
    }


def _check(job: Fits, row: dict[str, Any], tracker: Tracker) -> None:
    """Stop a run that cannot succeed: a loss that is not finite, or an adapter that has not moved after the first steps."""
    skipped = job.scaler.is_enabled() and not math.isfinite(row["gradient_norm"])  # the scaler left that step out
    if not math.isfinite(row["loss"]) or not (math.isfinite(row["gradient_norm"]) or skipped):
        raise TrainingError(
            f"step {row['step']}: the loss is {row['loss']}, its gradient's norm {row['gradient_norm']}. {_calmer(job)}"
        )
    if row["step"] != min(PROBE_STEPS, job.steps):
        return
    layers = job.adapted_layers()
    still = [name for name, layer in layers.items() if _stands_still(layer)]
    if layers and len(still) == len(layers) and not skipped:  # a head alone has none
        raise TrainingError(
            f"after {row['step']} steps no LoRA layer has moved from where it began, so nothing is learned. "
            f"Fix: a higher training.learning_rate (now {job.settings.learning_rate:g}), or other lora.target_modules"
        )
    if still:
        tracker.note(f"{len(still)} of {len(layers)} LoRA layers have not moved after {row['step']} steps: {', '.join(still)}")


def _stands_still(layer: lora.LoraLinear) -> bool:
    """Whether no weight changes by as much as float32 rounds it: those of a base are about 0.01."""
    largest = layer.scale * layer.rank * float(layer.lora_A.detach().abs().max()) * float(layer.lora_B.detach().abs().max())
    return largest < STANDSTILL


def _calmer(job: Fits) -> str:
    return f"Fix: a lower training.learning_rate (now {job.settings.learning_rate:g}), or training.precision: fp32"


def _too_large(job: Fits, progress: Progress) -> str:
    settings = job.settings
    return (
        f"step {progress.step}: the memory of the GPU does not hold a forward pass with its gradient. "
        f"Fix: a lower training.tokens_per_pass (now {settings.tokens_per_pass:,}; the result stays the same) or "
        f"training.batch_size (now {settings.batch_size})"
    )


def _evaluation_is_due(job: Fits, progress: Progress) -> bool:
    if job.settings.evaluate_every == "epoch":
        return progress.batch == 0
    return progress.step % job.settings.evaluate_every == 0 or progress.step == job.steps


def _evaluate(job: Fits, progress: Progress, tracker: Tracker) -> None:
    rows, lines = job.judge(progress)
    for row in rows:
        tracker.record(row)
    epoch, speed = progress.texts / len(job.lengths), progress.texts / progress.seconds if progress.seconds else 0.0
    for line in lines:
        tracker.say(f"epoch {epoch:.2f}  step {progress.step}/{job.steps}  {line}  {speed:.0f} texts/s")


def _judge(job: Job, progress: Progress) -> Judged:
    scores = _scores(job, job.dev)
    if not math.isfinite(scores["loss"]):
        raise TrainingError(f"step {progress.step}: the loss on dev is {scores['loss']}. {_calmer(job)}")
    score = -scores[job.metric] if job.metric in LOWER_IS_BETTER else scores[job.metric]
    best = _is_better(score, scores["loss"], progress)
    if best:
        progress.best_score, progress.best_loss = score, scores["loss"]
        progress.best_step, progress.stale = progress.step, 0
        progress.best_tensors = best_copy(job.model)
    else:
        progress.stale += 1
    row = {"kind": "evaluation", "step": progress.step, "epoch": round(progress.texts / len(job.train), 4)}
    rows = [{**row, "split": "dev", **scores}, {**row, "split": "train", **_scores(job, job.train_sample)}]
    return rows, [f"dev loss {scores['loss']:.4f}  {job.metric} {scores[job.metric]:.4f}{' (best)' if best else ''}"]


def _is_better(score: float, loss: float, progress: Progress) -> bool:
    """Of equal scores the one with the lower loss: early on macro F1 may stand still, at 0, while the loss falls."""
    if progress.best_score is None or progress.best_loss is None:
        return True
    return (score, -loss) > (progress.best_score, -progress.best_loss)


def _scores(job: Job, split: Split) -> dict[str, float]:
    """The metrics of a split and its loss: the plain one without class weights or smoothing, and without dropout."""
    logits = split_logits(job.model, split)
    scores = point_metrics(
        split.targets.numpy(), job.task.decide(logits).numpy(), logits.shape[1], job.task.name == "multi_label"
    )
    return {**scores, "loss": float(job.task.losses(logits, split.targets, Objective()).mean())}
