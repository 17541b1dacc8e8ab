"""The configuration's verbaliser section to the prompt that texts stand in.

Knows the configuration, labels and tokenizers; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from veneer.config import RunConfig, VerbaliserConfig
from veneer.data import Prompt, make_prompt
from veneer.data.label_words import chat_prompt
from veneer.data.types import EncodedTexts
from veneer.errors import ConfigError
from veneer.labels import LabelSet
from veneer.tasks import Task

CHAT = "chat"


def prompt_of(
    config: RunConfig, tokenizer: PreTrainedTokenizerFast, task: Task, labels: LabelSet, *, pair: bool
) -> Prompt | None:
    """The prompt of a run that reads label words; None for one with a head.

    Raises:
        ConfigError: a setting does not go with the others, or template and words do not fit the tokenizer.
    """
    settings = config.verbaliser
    if settings.template is None:
        if settings != VerbaliserConfig():
            raise ConfigError("verbaliser.template is missing, without which the other keys of verbaliser say nothing")
        return None
    check_settings(config)
    _check_none(settings, task)
    words = settings.words if settings.words is not None else {label: label for label in labels}
    if set(words) != set(labels):
        raise ConfigError(f"verbaliser.words must give every label a word: {', '.join(labels)}; given: {', '.join(words)}")
    ordered = {label: words[label] for label in labels}
    return make_prompt(
        tokenizer,
        _template(settings, tokenizer, [*ordered.values(), *filter(None, [settings.none])], pair),
        ordered,
        none=settings.none,
        length_normalised=settings.length_normalised,
        pair=pair,
        max_length=config.data.max_length,
    )


def _check_none(settings: VerbaliserConfig, task: Task) -> None:
    if task.name == "multi_label" and settings.none is None:
        raise ConfigError(
            "verbaliser.none is missing: these texts have any number of labels, and a label is given where its word is likelier "
            "than one that stands for no label. Fix: --set verbaliser.none=none, or another such word of one token; or no "
            "verbaliser.template, for a head"
        )
    if task.name == "single_label" and settings.none is not None:
        raise ConfigError(
            "verbaliser.none: these texts have one label each, whose words are compared with each other. Fix: leave it out"
        )


def check_settings(config: RunConfig) -> None:
    """Raise a ConfigError where a setting does not go with label words, whatever the texts and labels are."""
    if config.method == "head":
        raise ConfigError(
            "method: head trains the head alone, and label words are read without one. "
            "Fix: another method, such as lora, or no verbaliser.template, for a head"
        )
    if config.pooling not in ("auto", "last"):
        raise ConfigError(f"pooling: label words are read at the last token, not by {config.pooling}. Fix: --pooling auto")


def resolved(config: RunConfig, prompt: Prompt | None) -> RunConfig:
    """The configuration with the template as it came to be: a chat template may hold today's date."""
    if prompt is None:
        return config
    settings = config.verbaliser.model_copy(update={"template": prompt.template, "instruction": None})
    return config.model_copy(update={"verbaliser": settings})


def describe(prompt: Prompt, labels: LabelSet, tokenizer: PreTrainedTokenizerFast, first: EncodedTexts) -> list[str]:
    """Lines that show the first text as the model will see it, and the words that may follow."""
    one = int(prompt.prompt_lengths(first.lengths[:1])[0])
    shown = tokenizer.decode(first.ids[:one].tolist())
    names = [*labels, *(["none of them"] if prompt.none is not None else [])]
    words = (f"{name}: {_shown(tokenizer, tokens)}" for name, tokens in zip(names, prompt.tokens, strict=True))
    lines = [f"label words after a prompt of {one} tokens, here of the first text:\n{shown}", f"  then {'; '.join(words)}"]
    if prompt.reserve:
        times = len(prompt.continuations)
        lines.append(f"words are scored by the mean log-probability of their tokens: each text is read {times} times")
    return lines


def _shown(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> str:
    return " + ".join(f"{tokenizer.decode([token])!r} ({token})" for token in tokens)


def _template(settings: VerbaliserConfig, tokenizer: PreTrainedTokenizerFast, words: Sequence[str], pair: bool) -> str:
    if settings.template == CHAT:
        return chat_prompt(tokenizer, settings.instruction or _question(words, pair))
    if settings.instruction is not None:
        raise ConfigError("verbaliser.instruction goes with verbaliser.template: chat alone. Fix: say it in the template")
    return str(settings.template)


def _question(words: Sequence[str], pair: bool) -> str:
    texts = "First text: {text}\nSecond text: {pair}" if pair else "{text}"
    return f"{texts}\n\nAnswer with one of: {', '.join(words)}"
