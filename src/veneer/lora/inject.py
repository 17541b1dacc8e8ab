"""Finding the layers to adapt, and putting `LoraLinear` in their place.

Knows how layers are named and matched; does not know model families (`families.py`), nor which parameters are trained
(`freeze.py`). transformers' Conv1D is recognised by its class name and its `nf`, so that torch is all this needs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Literal

from torch import nn

from veneer.errors import LoraError
from veneer.lora.frozen import FrozenLinear
from veneer.lora.layer import LoraLinear, Scaling

Layers = Literal["all"] | Sequence[int]
ALL_LINEAR = "all-linear"
OUTPUT_HEADS = frozenset({"classifier", "pre_classifier", "score", "lm_head", "qa_outputs"})

# Sibling layers that read one input tensor. The same names inside cross-attention do not: keys and values read the encoder.
_SHARED_INPUT = (
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
)
_CROSS_ATTENTION = frozenset({"crossattention", "cross_attn", "encoder_attn", "EncDecAttention"})


def apply_lora(
    model: nn.Module,
    target_modules: str | Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    scaling: Scaling = "standard",
    layers: Layers = "all",
    exclude: Collection[str] = (),
    ranks: Mapping[str, int] | None = None,
    alphas: Mapping[str, float] | None = None,
) -> list[str]:
    """Replace the targeted linear layers (`nn.Linear`, Conv1D) of `model` by `LoraLinear`; the weights are shared, not copied.

    Args:
        target_modules: name endings (`["query", "value"]`: whole path components), a regular expression that must match a
            layer's whole path, or "all-linear": every linear layer outside an output head.
        layers: "all", or the indices of the transformer layers to adapt, from 0: the first number in a layer's path.
        exclude: paths of modules inside which nothing is adapted, such as those trained in full.
        ranks: path -> rank of the layers that have another one than `rank`.
        alphas: path -> alpha, likewise.

    Returns:
        The paths of the replaced layers, in the model's order.

    Raises:
        LoraError: a target, a layer index or an excluded path matches nothing, a number is out of range, or the model has
            LoRA layers already.
    """
    ranks, alphas = ranks or {}, alphas or {}
    for one_rank in {rank, *ranks.values()}:
        for one_alpha in {alpha, *alphas.values()}:
            _check_numbers(one_rank, one_alpha, dropout, scaling)
    if lora_layers(model):
        raise LoraError("the model has LoRA layers already. Fix: remove_lora(model) first")
    linear = linear_layers(model)
    names = target_layers(model, target_modules, layers=layers, exclude=exclude)
    for name in names:
        module = linear[name]
        adapted = LoraLinear(
            module.weight,  # type: ignore[arg-type]
            module.bias,  # type: ignore[arg-type]
            rank=ranks.get(name, rank),
            alpha=alphas.get(name, alpha),
            dropout=dropout,
            scaling=scaling,
            transposed=module.transposed if isinstance(module, FrozenLinear) else is_conv1d(module),
        )
        adapted.plain_type = module.plain_type if isinstance(module, FrozenLinear) else type(module)
        adapted.train(module.training)
        replace_module(model, name, adapted)
    return names


def target_layers(
    model: nn.Module, target_modules: str | Sequence[str], *, layers: Layers = "all", exclude: Collection[str] = ()
) -> list[str]:
    """The paths of the layers that `apply_lora` would replace for these arguments; it raises the same errors."""
    modules = dict(model.named_modules())
    if unknown := [name for name in exclude if name not in modules]:
        raise LoraError(f"nothing to exclude: the model has no module {', '.join(map(repr, unknown))}")
    names = _in_layers(_match(list(linear_layers(model)), target_modules), layers)
    names = [name for name in names if not is_inside(name, exclude)]
    if not names:
        raise LoraError(f"no layer is left to adapt: all that {_show(target_modules)} matches is excluded ({', '.join(exclude)})")
    return names


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Path -> adapted layer, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> layer that LoRA can adapt, in the model's order.

    Subclasses of `nn.Linear` are left out: their forward is their own.
    """
    return {name: module for name, module in model.named_modules() if name and _is_linear(module)}


def shared_input_groups(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Adapted layers that read the same input tensor: `(…query, …key, …value)`, `(…gate_proj, …up_proj)` and their like.

    Only siblings count, in pairs at least; a layer is in one group at most. DeBERTa may call a member once more with another
    input (its relative positions), so that a group must not be relied upon to be called as one.
    """
    siblings: dict[str, set[str]] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        if _CROSS_ATTENTION.isdisjoint(parent.split(".")):
            siblings.setdefault(parent, set()).add(last)
    groups = []
    for parent, present in siblings.items():
        for known in _SHARED_INPUT:
            members = tuple(f"{parent}.{last}" if parent else last for last in known if last in present)
            if len(members) > 1:
                groups.append(members)
    return groups


def layer_index(name: str) -> int | None:
    """The number of the transformer layer in a path: its first component that is a number."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def is_inside(name: str, modules: Iterable[str]) -> bool:
    """Whether the path `name` is one of `modules` or lies inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the path `name` of `model`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def describe_layers(names: Iterable[str]) -> str:
    """`"query ×12, key ×12"`: the last components of paths and how often each occurs."""
    counts = Counter(name.rpartition(".")[2] for name in names)
    return ", ".join(f"{name} ×{count}" for name, count in counts.items()) or "none"


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or isinstance(module, FrozenLinear) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a layer is transformers' Conv1D, whose weight is `[in, out]`."""
    return type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int)


def _check_numbers(rank: int, alpha: float, dropout: float, scaling: str) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise LoraError(f"rank must be a whole number of at least 1, not {rank!r}")
    if not math.isfinite(alpha) or alpha <= 0:
        raise LoraError(f"alpha must be a finite number above 0, not {alpha!r}")
    if not 0.0 <= dropout < 1.0:
        raise LoraError(f"dropout must be at least 0 and below 1, not {dropout!r}")
    if scaling not in ("standard", "rslora"):
        raise LoraError(f"scaling must be 'standard' or 'rslora', not {scaling!r}")


def _match(names: list[str], target_modules: str | Sequence[str]) -> list[str]:
    if isinstance(target_modules, str):
        matched = _by_pattern(target_modules)
        chosen = [name for name in names if matched(name)]
        if not chosen:
            raise _matches_nothing([target_modules], names)
        return chosen
    missing = [target for target in target_modules if not any(_ends_with(name, target) for name in names)]
    if missing or not target_modules:
        raise _matches_nothing(missing, names)
    return [name for name in names if any(_ends_with(name, target) for target in target_modules)]


def _by_pattern(target: str) -> Callable[[str], object]:
    if target == ALL_LINEAR:
        return lambda name: OUTPUT_HEADS.isdisjoint(name.split("."))
    try:
        return re.compile(target).fullmatch
    except re.error as error:
        raise LoraError(f"target_modules: '{target}' is not a regular expression ({error})") from None


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _in_layers(names: list[str], layers: Layers) -> list[str]:
    if isinstance(layers, str):
        if layers != "all":
            raise LoraError(f"layers must be 'all' or a list of layer numbers, not '{layers}'")
        return names
    there = sorted({index for name in names if (index := layer_index(name)) is not None})
    unknown = sorted(set(layers) - set(there))
    if unknown or not layers:
        span = f"{there[0]} to {there[-1]}" if there else "none"
        raise LoraError(f"layers {unknown} are not among the layers that can be adapted ({span})")
    return [name for name in names if layer_index(name) in set(layers)]


def _matches_nothing(targets: Sequence[str], names: list[str]) -> LoraError:
    endings = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    near = [match for target in targets for match in get_close_matches(target.rpartition(".")[2], endings, n=1)]
    hint = f" Did you mean {' and '.join(map(repr, dict.fromkeys(near)))}?" if near else ""
    given = _show(targets) if targets else "an empty list"
    return LoraError(f"target_modules: {given} matches no linear layer.{hint} Linear layers there are: {describe_layers(names)}")


def _show(targets: str | Sequence[str]) -> str:
    return repr(targets) if isinstance(targets, str) else ", ".join(map(repr, targets))
