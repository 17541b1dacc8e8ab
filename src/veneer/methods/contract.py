"""What a method of fine-tuning is: how it changes a classifier, what it stores, and how that is loaded and merged again.

Knows the shape of the contract; knows no method (one file each beside this one).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from veneer.adaptation import AdapterPlan
from veneer.model import Classifier


@dataclass(frozen=True)
class MethodPlan:
    """What a method is built from; each reads what it needs.

    Attributes:
        lora: of the methods that have ranks and target layers.
        top_layers: how many layers `top_layers` trains.
        bottleneck: width of `adapter`'s narrow layer.
        virtual_tokens: that `prompt` and `prefix` give every text.
    """

    lora: AdapterPlan = field(default_factory=AdapterPlan)
    top_layers: int = 2
    bottleneck: int = 64
    virtual_tokens: int = 10


@dataclass(frozen=True)
class Stored:
    """What a run folder holds of a method, read and checked as far as it can be without the model.

    Attributes:
        fill: brings a fresh classifier to what was trained; raises a LoraError where the tensors do not fit.
        trains_base: whether weights of the base are among the tensors, which a base in low precision cannot hold.
        reads_words: whether it was trained to be read by label words, as the language model that the base is.
    """

    fill: Callable[[Classifier], None]
    trains_base: Callable[[Classifier], bool]
    reads_words: bool = False


class Course(Protocol):
    """What a method does in training beside the optimiser's steps."""

    def penalty(self) -> Tensor:
        """A number that is added to the loss of a step."""

    def after_step(self, step: int) -> None:
        """Called after step `step` (from 1), the gradients still in place."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs to go on as if it had not stopped."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        name: as the configuration calls it.
        trains: what it trains, in a few words; the head is always trained.
        files: that a run folder of it holds.
        apply: changes a fresh classifier and marks what is trained; raises a LoraError where the base does not allow it.
        trains_base: whether weights of the base itself are trained, which needs them in float32.
        save: writes `files` into a folder, given the classifier, the folder and the base's name.
        read: reads them; raises a LoraError where they are missing or damaged.
        merge: leaves the base's own modules with what was learned in their weights; None where that has no meaning.
        unmergeable: why not, where `merge` is None.
        tokens: that it adds to every text.
        course: what it does in training beside the steps, of which there are so many; None for nothing.
    """

    name: str
    trains: str
    files: tuple[str, ...]
    apply: Callable[[Classifier, MethodPlan], None]
    trains_base: Callable[[MethodPlan], bool]
    save: Callable[[Classifier, Path, str], None]
    read: Callable[[Path], Stored]
    merge: Callable[[Classifier], None] | None
    unmergeable: str = ""
    tokens: Callable[[MethodPlan], int] = lambda _: 0
    course: Callable[[Classifier, MethodPlan, int], Course] | None = None
