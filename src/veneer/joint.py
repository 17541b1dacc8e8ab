"""Several classifiers over one base as one pass: every frozen product once, each text by its own classifier's adapter and head.

The classifiers stay what they are, and evaluate, save and load as any other; their frozen parameters become one. The pass runs
a copy of the first one's modules that shares all parameters, with a bank of the classifiers' own adapted layers in the place of
each adapted layer, and gives each head the vectors of its texts.

Knows classifiers and banks; knows nothing of files, configurations or training.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import compress

import torch
from torch import Tensor, nn

from veneer import lora
from veneer.adaptation import share_frozen
from veneer.data import EncodedTexts
from veneer.errors import BaseError
from veneer.lora.inject import is_inside
from veneer.model import Classifier
from veneer.packing import Batch


class JointClassifier:
    """K classifiers that were made alike over one base, but for their labels.

    Attributes:
        models: name -> classifier; their order is that of the texts in a batch.
    """

    def __init__(self, models: Mapping[str, Classifier]) -> None:
        """
        Raises:
            BaseError: the base cannot pack, so that rows of different texts do not lie apart in its layers.
        """
        self.models = dict(models)
        first, *others = self.models.values()
        if first.padding_reason is not None:
            raise BaseError(
                f"several tasks in one pass need packed texts, and this base's are padded: {first.padding_reason}. "
                "Fix: another base, or one run a task"
            )
        for other in others:
            share_frozen(other, first)
        self._routing = lora.Routing()
        self._pass = _with_banks(list(self.models.values()), self._routing)

    def __call__(self, batch: Batch, counts: Sequence[int]) -> dict[str, Tensor]:
        """Logits of a batch whose texts are ordered by classifier: name -> `[N_k, C_k]` float32, of those that have texts.

        Args:
            batch: as `batch` makes it.
            counts: N_k, the number of each classifier's texts.
        """
        self._routing.set(counts, batch.segments.lengths, batch.ids.numel())
        pooled = torch.split(self._pass.pooled(batch), list(counts))
        return {name: self.models[name].classify(rows) for name, rows in compress(zip(self.models, pooled, strict=True), counts)}

    def batch(self, texts: EncodedTexts, indices: Sequence[int]) -> Batch:
        """The texts of these `indices` as the pass takes them, on its device."""
        return self._pass.batch(texts, indices)

    def train(self, mode: bool = True) -> None:
        """Turn the dropout of all adapters and heads on or off."""
        for model in (*self.models.values(), self._pass):
            model.train(mode)

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self._pass.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """`NAME.` and name -> parameter that is trained, in a fixed order."""
        return {f"{task}.{name}": one for task, model in self.models.items() for name, one in model.trainable().items()}

    def head_parameters(self) -> set[str]:
        """Names of the heads' trained parameters, a subset of `trainable`."""
        return {f"{task}.{name}" for task, model in self.models.items() for name in model.head_parameters()}


def _with_banks(models: Sequence[Classifier], routing: lora.Routing) -> Classifier:
    """A copy of the first model that shares its parameters, with banks of all models' adapted layers outside the heads."""
    first = models[0]
    layers = [lora.lora_layers(model.network) for model in models]
    banks = {
        name: lora.BankLinear([mine[name] for mine in layers], routing)
        for name in layers[0]
        if not is_inside(name, first.head_names)
    }
    shared: dict[int, list[lora.BankLinear]] = {}
    for name, bank in banks.items():
        if (group := layers[0][name].shared_input) is not None:
            shared.setdefault(id(group), []).append(bank)
    for alike in shared.values():
        lora.BankGroup(alike, routing)
    tensors = [*first.parameters(), *first.buffers()]
    known = {id(tensor): tensor for tensor in tensors} | {id(layers[0][name]): bank for name, bank in banks.items()}
    return copy.deepcopy(first, known)
