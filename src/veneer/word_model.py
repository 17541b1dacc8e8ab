"""A classifier that reads label words: a causal base with its output matrix, and no head.

Knows how prompt, base and word head go together; knows nothing of files, configurations or training. Its adapter is put in by
`model.adapt`, as every other one.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from veneer import packing
from veneer.bases import BaseLocation, load_causal_lm, load_config
from veneer.data import Prompt
from veneer.families import packing_support
from veneer.heads import HeadPlan, output_layers, word_softcap
from veneer.model import Classifier
from veneer.quantise import quantise
from veneer.word_head import WordHead


def build_word_classifier(
    base: BaseLocation,
    prompt: Prompt,
    *,
    dtype: torch.dtype = torch.float32,
    base_precision: str = "auto",
    pack: bool = True,
) -> Classifier:
    """A classifier that reads how `base` goes on behind a prompt: by its label words, with no head to train; not yet adapted.

    Args:
        dtype: of the frozen base; logits are float32.
        base_precision: auto | nf4 | int8: fewer bits for the base's linear layers, its output matrix apart.
        pack: False to pad although the base could pack.

    Raises:
        BaseError: the base cannot be loaded, is not causal, or its checkpoint has no output matrix.
        ConfigError: bitsandbytes is wanted and not there.
    """
    config = load_config(base)
    softcap = word_softcap(config)
    padding_reason = packing_support(config) if pack else "padding was asked for"
    if padding_reason is None:
        packing.enable()
    attention = packing.PACKED_ATTENTION if padding_reason is None else None
    network = load_causal_lm(base, dtype=dtype, attention=attention)
    network.requires_grad_(False)
    quantise(network, base_precision, skip=output_layers(network))
    return _word_classifier(network, prompt, softcap, padding_reason)


def word_skeleton(
    base: BaseLocation,
    num_labels: int,
    *,
    dtype: torch.dtype = torch.float32,
    base_precision: str = "auto",
    attention: str = packing.PACKED_ATTENTION,
) -> Classifier:
    """What `build_word_classifier` gives for any label words of one token, without its weights, as `skeleton`.

    Raises:
        BaseError: the configuration cannot be used, or the base is not causal.
    """
    config = load_config(base)
    softcap = word_softcap(config)
    tokens = tuple((label,) for label in range(num_labels))
    options: dict[str, Any] = {"dtype": dtype}
    if (padding_reason := packing_support(config)) is None:
        packing.enable()
        options["attn_implementation"] = attention
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, **options)  # type: ignore[no-untyped-call]
    network.requires_grad_(False)
    quantise(network, base_precision, skip=output_layers(network))
    with torch.device("meta"):
        return _word_classifier(network, Prompt("", (), False, tokens, ()), softcap, padding_reason)


def _word_classifier(network: Any, prompt: Prompt, softcap: float | None, padding_reason: str | None) -> Classifier:
    words = WordHead(
        prompt.tokens,
        prompt.continuations,
        lambda: network.get_output_embeddings().weight,
        normalised=prompt.reserve > 0,  # else log-probabilities are the logits but for one number a text
        against_last=prompt.none is not None,
        softcap=softcap,
    )
    classes = len(prompt.tokens) - (prompt.none is not None)
    return Classifier(network, HeadPlan("last", own=True), classes, (), padding_reason, words)
