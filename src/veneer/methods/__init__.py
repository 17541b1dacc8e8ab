"""The ways to fine-tune, one file each; `METHODS` is the table of them.

Knows classifiers and what each method changes in them; knows nothing of configurations, training or run folders' other files.
"""

from __future__ import annotations

from veneer.methods.adalora import ADALORA
from veneer.methods.adapter import ADAPTER
from veneer.methods.bitfit import BITFIT
from veneer.methods.contract import Course, Method, MethodPlan, Stored
from veneer.methods.full import FULL
from veneer.methods.head import HEAD
from veneer.methods.ia3 import IA3
from veneer.methods.lora import LORA
from veneer.methods.prefix import PREFIX
from veneer.methods.prompt import PROMPT
from veneer.methods.top_layers import TOP_LAYERS

METHODS: dict[str, Method] = {
    method.name: method for method in (LORA, ADALORA, IA3, ADAPTER, PREFIX, PROMPT, BITFIT, HEAD, TOP_LAYERS, FULL)
}

__all__ = ["METHODS", "Course", "Method", "MethodPlan", "Stored"]
