"""Labelled files to examples, and examples to token ids: read, validate, split, encode.

Knows formats, label shapes and tokenizers; knows no model, no task and no configuration.
"""

from __future__ import annotations

from veneer.data.checks import Key, check_labels, check_splits, count_labels, text_key
from veneer.data.label_words import make_prompt
from veneer.data.problems import Problem, raise_on_errors, render_problems
from veneer.data.prompt import Prompt
from veneer.data.read import Reading, fingerprint, read_examples
from veneer.data.split import split_examples
from veneer.data.tokens import encode
from veneer.data.types import Columns, EncodedTexts, Example

__all__ = [
    "Columns",
    "EncodedTexts",
    "Example",
    "Key",
    "Problem",
    "Prompt",
    "Reading",
    "check_labels",
    "check_splits",
    "count_labels",
    "encode",
    "fingerprint",
    "make_prompt",
    "raise_on_errors",
    "read_examples",
    "render_problems",
    "split_examples",
    "text_key",
]
