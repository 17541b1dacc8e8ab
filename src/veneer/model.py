"""The classifier: a frozen base, LoRA on its layers, and a head. `forward(batch)` gives `[N, C]` logits.

Knows how the parts go together; knows nothing of files, configurations, training or decisions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from veneer import lora, packing
from veneer.bases import (
    BaseLocation,
    encoder_options,
    load_config,
    load_encoder,
    load_sequence_classifier,
    pooling_of,
    weight_files,
)
from veneer.data import EncodedTexts
from veneer.errors import BaseError
from veneer.families import first_position, is_causal, packing_support
from veneer.heads import OUTPUT_LAYERS, HeadPlan, head_modules, narrow_last_layer, own_head, plan_head, pool
from veneer.packing import Batch, PackedBatch, Segments
from veneer.quantise import quantise
from veneer.word_head import WordHead

# Where new shapes cost time, packs have a multiple of so many rows (1 % more of them, and few shapes) from so many rows on.
ROWS_MULTIPLE = 32
LEAST_ROWS = 256


@dataclass
class VirtualTokens:
    """P tokens that a method adds to every text.

    Attributes:
        ids: theirs, beyond the vocabulary; none with most methods.
        rows: `[N·P]`, where they lie in the flattened ids of the batch that is computed, text by text. The host finds them from
            the texts' lengths, so that no device has to be waited for.
    """

    ids: tuple[int, ...] = ()
    rows: Tensor | None = None


class Classifier(nn.Module):
    """Base, LoRA and head.

    The base's own dropout stays off, as the adapter has its own, but where `base_dropout` names its layers. That of the family's
    head is on in training.

    Attributes:
        network: transformers' sequence classifier where the head is the family's own, its language model where label words are
            read, else its bare encoder.
        head: our linear head `[H] -> [C]`, or None where the family's own is used.
        words: what reads label words instead of a head, or None.
        plan: which vector of a text is classified, and by what.
        padding_reason: why texts are padded, or None where they are packed.
        narrowed_query: path of the last layer's query, where that layer computes the pooled tokens alone; else None.
        base_dropout: the base's dropout layers that are on in training; none unless asked for.
        virtual: tokens that every text is given, and that pooling leaves out; none with most methods.
        trained_heads: modules of the family's head that are trained in full, by name: its output layer, which a checkpoint made
            for other classes may hold too, and what the base's checkpoint did not hold.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: HeadPlan,
        num_labels: int,
        missing: Sequence[str],
        padding_reason: str | None,
        words: WordHead | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.words = words
        self.plan = plan
        self.padding_reason = padding_reason
        self.narrowed_query = narrow_last_layer(network, plan.pooling) if padding_reason is None else None
        config: PreTrainedConfig = network.config  # type: ignore[assignment]
        self.head = None if plan.own else nn.Linear(config.get_text_config().hidden_size, num_labels)
        self._heads = head_modules(network) if plan.own and words is None else {}
        self.trained_heads = tuple(
            name for name in self._heads if name in OUTPUT_LAYERS or any(key.startswith(f"{name}.") for key in missing)
        )
        for module in self._heads.values():
            module.float()
            # BERT's encoder calls its pooler by itself too, with hidden states in the base's precision
            module.register_forward_pre_hook(_in_float32)
        self.base_dropout: tuple[nn.Dropout, ...] = ()
        self.virtual = VirtualTokens()
        self._first_position = first_position(config)
        self._pad_id = getattr(config.get_text_config(), "pad_token_id", None) or 0
        takes = inspect.signature(self.encoder.forward).parameters
        self._takes_types = "token_type_ids" in takes and not is_causal(config)  # GPT-2 would add the embedding of word 0
        self._takes_cache = "use_cache" in takes
        self.train(False)

    @property
    def encoder(self) -> Any:
        """The base without its head."""
        return self.network.base_model

    @property
    def config(self) -> PreTrainedConfig:
        """The base's configuration."""
        return self.network.config  # type: ignore[return-value]

    @property
    def _prepares_products(self) -> bool:
        """Whether each new shape of a product costs time: oneDNN writes code for it, and keeps that of the last thousand."""
        parameter = next(self.network.parameters())
        return parameter.device.type == "cpu" and parameter.dtype != torch.float32

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.network.parameters()).device

    def forward(self, batch: Batch) -> Tensor:
        """`[N, C]` float32 logits."""
        if self.words is not None:
            word_logits: Tensor = self.words(self._hidden(batch), batch.segments)
            return word_logits
        return self.classify(self.pooled(batch))

    def classify(self, pooled: Tensor) -> Tensor:
        """`[N, H]` float32 vectors of `pooled` -> `[N, C]` float32 logits by the head."""
        logits: Tensor = own_head(self.network, pooled) if self.head is None else self.head(pooled)
        return logits.float()

    def pooled(self, batch: Batch) -> Tensor:
        """`[N, H]` float32, the vector that stands for each text."""
        hidden = self._hidden(batch)
        if self.narrowed_query:
            return hidden.float()
        segments = batch.segments
        if self.virtual.ids:
            hidden, segments = self._without_virtual(hidden, segments)
        return pool(hidden, segments, self.plan.pooling)

    def _without_virtual(self, hidden: Tensor, segments: Segments) -> tuple[Tensor, Segments]:
        """The hidden states of the texts' own tokens, and where these then lie."""
        added = len(self.virtual.ids)
        own = np.delete(np.arange(sum(segments.lengths)), self._virtual_rows(np.cumsum((0, *segments.lengths[:-1]))))
        lengths = [length - added for length in segments.lengths]
        return hidden[torch.from_numpy(own).to(hidden.device)], Segments.of(lengths, hidden.device)

    def _virtual_rows(self, starts: NDArray[Any]) -> NDArray[Any]:
        """`[N·P]` rows of the virtual tokens of texts that begin at these rows."""
        return (starts[:, None] + self._virtual_place + np.arange(len(self.virtual.ids))).reshape(-1)

    @property
    def _virtual_place(self) -> int:
        """How many of a text's own tokens its virtual ones lie behind: the one that stands for the text, if that is its first."""
        return 0 if self.plan.pooling == "last" else 1

    def _hidden(self, batch: Batch) -> Tensor:
        """`[T, H]` hidden states, texts end to end, whichever way the base ran; `[N, H]` where the last layer is narrowed."""
        if self.virtual.ids:
            lengths = batch.segments.lengths
            packed = isinstance(batch, PackedBatch)
            starts = np.cumsum((0, *lengths[:-1])) if packed else np.arange(len(lengths)) * batch.ids.shape[1]
            self.virtual.rows = torch.from_numpy(self._virtual_rows(starts)).to(batch.ids.device)
        # Without it a causal base keeps every layer's keys and values for words to come.
        arguments: dict[str, Any] = {"use_cache": False} if self._takes_cache else {}
        if self._takes_types:
            arguments["token_type_ids"] = batch.type_ids.view(-1, batch.ids.shape[-1])  # [1, T] or [N, L]
        if isinstance(batch, PackedBatch):
            arguments |= {"input_ids": batch.ids[None], "position_ids": batch.positions[None], "segments": batch.segments}
            hidden: Tensor = self.encoder(**arguments).last_hidden_state
            return hidden[0]
        padded: Tensor = self.encoder(input_ids=batch.ids, attention_mask=batch.mask, **arguments).last_hidden_state
        return padded.flatten(0, 1)[batch.rows]

    def batch(self, texts: EncodedTexts, indices: Sequence[int]) -> Batch:
        """The texts of these `indices` as this model takes them, on its device."""
        spans = [slice(texts.offsets[i], texts.offsets[i + 1]) for i in indices]
        ids, types = [texts.ids[span] for span in spans], [texts.type_ids[span] for span in spans]
        if self.words is not None:
            ids, types = self.words.split(ids), self.words.split(types)
        if self.virtual.ids:
            at = self._virtual_place
            ids = [np.insert(text, at, self.virtual.ids) for text in ids]
            types = [np.insert(text, at, [text[0]] * len(self.virtual.ids)) for text in types]
        if self.padding_reason is None:
            rows = sum(len(text) for text in ids)
            multiple = ROWS_MULTIPLE if rows >= LEAST_ROWS and self._prepares_products else 1
            batch = packing.pack(ids, types, self._first_position, multiple=multiple, filler=self._pad_id)
            return batch.to(self.device)
        return packing.pad(ids, types, self._pad_id).to(self.device)

    def train(self, mode: bool = True) -> Classifier:
        """Turn the adapter's and the head's dropout on or off; the base itself stays in evaluation mode."""
        super().train(False)
        self.training = mode
        for module in self.network.modules():
            # transformers checkpoints a layer only while the layer itself is in training mode
            if isinstance(module, lora.LoraLinear | GradientCheckpointingLayer):
                module.training = mode
        for module in (*self._heads.values(), *self.base_dropout):
            module.train(mode)
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter that is trained, in a fixed order."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @property
    def head_names(self) -> tuple[str, ...]:
        """Paths in `network` of the family's head's modules, trained or not, all in float32; none where the head is ours."""
        return tuple(self._heads)

    def head_parameters(self) -> set[str]:
        """Names of the head's trained parameters, a subset of `trainable`."""
        prefixes = ("head.", *(f"network.{name}." for name in self._heads))
        return {name for name in self.trainable() if name.startswith(prefixes) and "lora_" not in name}


def _in_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.float() if isinstance(one, Tensor) else one for one in inputs)


def build_classifier(
    base: BaseLocation,
    num_labels: int,
    *,
    pooling: str = "auto",
    dtype: torch.dtype = torch.float32,
    base_precision: str = "auto",
    pack: bool = True,
) -> Classifier:
    """A classifier over `base`, its head freshly initialised by torch's generator, not yet adapted.

    Args:
        pooling: auto | cls | mean | last.
        dtype: that the frozen base computes in; the head is float32.
        base_precision: auto | nf4 | int8: fewer bits for the base's linear layers.
        pack: False to pad although the base could pack.

    Raises:
        BaseError: the base cannot be loaded, or cannot be pooled that way.
        ConfigError: bitsandbytes is wanted and not there.
    """
    config, plan = _plan(base, pooling)
    padding_reason = packing_support(config) if pack else "padding was asked for"
    if padding_reason is None:
        packing.enable()
    attention = packing.PACKED_ATTENTION if padding_reason is None else None
    if plan.own:
        network, missing = load_sequence_classifier(base, num_labels, dtype=dtype, attention=attention)
    else:
        network, missing = load_encoder(base, dtype=dtype, attention=attention), ()
    network.requires_grad_(False)
    quantise(network, base_precision, skip=head_modules(network) if plan.own else ())
    return Classifier(network, plan, num_labels, missing, padding_reason)


def skeleton(
    base: BaseLocation,
    num_labels: int,
    *,
    pooling: str = "auto",
    dtype: torch.dtype = torch.float32,
    base_precision: str = "auto",
    attention: str = packing.PACKED_ATTENTION,
) -> Classifier:
    """What `build_classifier` gives, without its weights: on the meta device, from the base's configuration alone.

    What the checkpoint lacks of the family's head is read from the weights' names and shapes; where there are no weights, it is
    taken to hold all but the classifier.

    Args:
        attention: registered name of the attention, where the base can pack.

    Raises:
        BaseError: the configuration cannot be used, or the base cannot be pooled that way.
    """
    config, plan = _plan(base, pooling)
    options: dict[str, Any] = {"dtype": dtype}
    if (padding_reason := packing_support(config)) is None:
        packing.enable()
        options["attn_implementation"] = attention
    with torch.device("meta"):
        if plan.own:
            config.num_labels = num_labels
            network = AutoModelForSequenceClassification.from_config(config, **options)  # type: ignore[no-untyped-call]
        else:
            network = AutoModel.from_config(config, **options, **encoder_options(config))  # type: ignore[no-untyped-call]
        network.requires_grad_(False)
        missing = _missing_head(network, base) if plan.own else ()
    quantise(network, base_precision, skip=head_modules(network) if plan.own else ())
    with torch.device("meta"):
        return Classifier(network, plan, num_labels, missing, padding_reason)


def _plan(base: BaseLocation, pooling: str) -> tuple[PreTrainedConfig, HeadPlan]:
    config = load_config(base)
    try:
        # also where the pooling is given: `auto` and the name it came to must be one head, or no run could be read back
        advised = pooling_of(base)
    except BaseError:
        if pooling == "auto":
            raise
        advised = None
    return config, plan_head(config, pooling, advised, is_causal(config))


def _missing_head(network: Any, base: BaseLocation) -> tuple[str, ...]:
    """Names of the head's tensors that the checkpoint lacks."""
    shapes = {
        f"{module}.{name}": list(parameter.shape)
        for module, inside in head_modules(network).items()
        for name, parameter in inside.named_parameters()
    }
    files = weight_files(base.path)
    if not files:
        return tuple(name for name in shapes if name.split(".")[0].endswith(tuple(OUTPUT_LAYERS)))  # pre_classifier too
    stored: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                stored |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise BaseError(f"the weights of {base.name} cannot be used: {error}") from None
    prefix = f"{network.base_model_prefix}."  # a checkpoint of the encoder alone has its names without it
    return tuple(name for name, shape in shapes.items() if shape not in (stored.get(name), stored.get(name.removeprefix(prefix))))
