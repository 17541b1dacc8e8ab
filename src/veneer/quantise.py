"""A frozen base's linear layers in four or eight bits, and the optional library behind the four.

`nf4` is QLoRA's 4-bit NormalFloat with double quantisation (arXiv:2305.14314), by bitsandbytes: blocks of 64 numbers with a
scale each, and 256 of those scales in eight bits with a scale of their own: 0.516 bytes a number. `int8` keeps a row as whole
numbers to ±127 with one scale, by torch alone. bitsandbytes' own eight bits are another thing: they round the activations,
too, and split outliers off, in kernels that processors lack.

The only file that imports bitsandbytes. Knows layers and numbers; knows nothing of heads, bases' files or training.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from veneer.errors import ConfigError
from veneer.lora import FrozenLinear, FrozenWeight, linear_layers
from veneer.lora.inject import is_conv1d, is_inside, replace_module
from veneer.precision import pick_device

BasePrecision = Literal["auto", "nf4", "int8"]

_BLOCK = 64


def load_bitsandbytes(wanted_by: str) -> Any:
    """The package bitsandbytes.

    Args:
        wanted_by: the setting that needs it, for the message.

    Raises:
        ConfigError: it is not installed, or cannot be loaded.
    """
    with quiet_bitsandbytes():
        try:
            return importlib.import_module("bitsandbytes")
        except ImportError as error:
            raise ConfigError(f"{wanted_by} needs bitsandbytes ({error}). Fix: pip install 'veneer[qlora]'") from None


@contextmanager
def quiet_bitsandbytes() -> Iterator[None]:
    """No word of bitsandbytes while it is imported, by peft too.

    It looks for a kernel of the hub then that nothing here uses, and warns where there is none.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class NF4Weight(FrozenWeight):
    """A weight in NF4 with double quantisation.

    The blocks run over the flattened weight, filled up with zeros, so that widths need not divide by 64. (bitsandbytes' kernel
    for processors takes each row to begin a block, and gives wrong numbers where it does not.)

    Attributes:
        codes: uint8, two numbers a byte.
        scales: uint8, one a block; with `scale_scales`, `scale_table` and `scale_offset` they give the blocks' scales.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape, self.dtype = weight.shape, weight.dtype
        blocks = nn.functional.pad(weight.reshape(-1), (0, -weight.numel() % _BLOCK)).view(-1, _BLOCK)
        functional = load_bitsandbytes("base_precision: nf4").functional
        if weight.is_meta:  # the library keeps a table of codes, which for good would be one without numbers
            functional.quantize_blockwise(torch.zeros(1))
        codes, state = functional.quantize_4bit(blocks, blocksize=_BLOCK, quant_type="nf4", compress_statistics=True)
        self._blocks, self._scale_block = blocks.shape, int(state.state2.blocksize)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", state.absmax)
        self.register_buffer("scale_scales", state.state2.absmax)
        self.register_buffer("scale_table", state.state2.code)
        self.register_buffer("scale_offset", state.offset)

    def dense(self) -> Tensor:
        """The weight, in the precision it was made from."""
        operators = torch.ops.bitsandbytes  # what `functional.dequantize_4bit` calls, without an object of its state a call
        scales = operators.dequantize_blockwise(
            self.scales, self.scale_scales, self.scale_table, self._scale_block, torch.float32
        )
        scales += self.scale_offset
        flat: Tensor = operators.dequantize_4bit(self.codes, scales, _BLOCK, "nf4", self._blocks, self.dtype).view(-1)
        return flat[: self.shape.numel()].view(self.shape)


class Int8Weight(FrozenWeight):
    """A weight as whole numbers to ±127 and one scale an output.

    Attributes:
        codes: int8, of the weight's shape.
        scales: `[out, 1]`, or `[1, out]` where the weight is `[in, out]`; in the precision of the weight, so that making it dense
            rounds once.
    """

    def __init__(self, weight: Tensor, *, transposed: bool = False) -> None:
        super().__init__()
        self.shape, self.dtype = weight.shape, weight.dtype
        largest = weight.abs().amax(0 if transposed else 1, keepdim=True)
        scales = torch.where(largest > 0, largest.float() / 127, 1.0).to(weight.dtype)
        codes = (weight.float() / scales.float()).round().clamp(-127, 127).to(torch.int8)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    def dense(self) -> Tensor:
        """The weight, in the precision it was made from."""
        scales = self.get_buffer("scales")
        return self.get_buffer("codes").to(scales.dtype).mul_(scales)


def quantise(network: nn.Module, base_precision: str, *, skip: Collection[str]) -> None:
    """Keep the linear layers of `network` outside the modules `skip` in fewer bits; `auto` leaves all as they are.

    Embeddings, norms and biases stay as they are. A weight is quantised on the GPU where there is one, which is far faster, and
    comes back: the GPU never holds more than one dense layer of it.

    Raises:
        ConfigError: another name, or bitsandbytes is wanted and not there.
    """
    if base_precision not in get_args(BasePrecision):
        known = ", ".join(get_args(BasePrecision))
        raise ConfigError(f"there is no base precision {base_precision!r}. Fix: one of {known}")
    if base_precision == "auto":
        return
    device = pick_device()
    for name, module in linear_layers(network).items():
        if is_inside(name, skip):
            continue
        transposed = is_conv1d(module)
        weight = module.get_parameter("weight").detach()
        there = weight if weight.is_meta else weight.to(device)
        frozen = NF4Weight(there) if base_precision == "nf4" else Int8Weight(there, transposed=transposed)
        layer = FrozenLinear(frozen.to(weight.device), module.bias, transposed=transposed, plain_type=type(module))  # type: ignore[arg-type]
        replace_module(network, name, layer.train(module.training))
