"""How much memory a training step takes, and how much work it is, without a number being computed.

The step itself runs, forward and backward, on the meta device: the model's own code, whose tensors have shapes and no contents.
Whatever it would allocate is counted when it appears and taken off when the last reference to it is gone. So the figures follow
from the code that trains, whatever the family, and no factor is guessed.

Knows torch and tensors; does not know bases, configurations or how a model is built.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from veneer.lora.dropout import BANK

DeviceType = Literal["cpu", "cuda"]

KERNEL_ATTENTION = "veneer_kernel_shapes"
_PRODUCTS = {"mm": 0, "addmm": 1, "addmm_": 1, "bmm": 0}  # which argument of an operation is its first matrix
MOMENTS = 2  # of AdamW, each as large as what is trained
FEWEST_OF_8_BITS, BLOCK_OF_8_BITS = 4096, 256  # bitsandbytes': fewer numbers stay float32, so many have a float32 scale together


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step, by part.

    Attributes:
        weights: of the base, frozen.
        trained: what is trained: the adapter and the head, or everything.
        copies: of what is trained, that are kept beside it through the steps.
        gradients: of what is trained.
        optimizer: its states, and what a method remembers from step to step.
        activations: what the forward pass leaves behind for the backward pass.
        workspace: what comes on top of these while the two passes run.
        total: the most that is held at once. Where much is trained it is less than the sum of the parts: the last gradients come
            when the activations are gone.
        flops: floating-point operations of the matrix products of one step.
    """

    weights: int
    trained: int
    copies: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    total: int
    flops: int

    def to_json(self) -> dict[str, int]:
        """Plain JSON values."""
        return asdict(self)


def estimate_step(
    model: nn.Module,
    loss: Callable[[], Tensor],
    device: DeviceType,
    *,
    optimizer: str = "adamw",
    copies: int = 0,
    remembered: Callable[[], Iterable[Tensor]] = tuple,
) -> Memory:
    """The memory of one step of AdamW on what `model` trains.

    Args:
        model: on the meta device, in training mode.
        loss: runs the model on a batch on the meta device, and gives a scalar. It runs once beforehand, so that what is made once
            for all steps (a causal mask, say) does not count.
        device: where the step would run.
        optimizer: adamw | adamw_8bit | paged_adamw_8bit.
        copies: how many of what is trained are kept there beside it.
        remembered: called with the gradients in place; what the method keeps for the next step.

    Raises:
        RuntimeError, NotImplementedError: the model's code looks at numbers, which are not there.
    """
    weights, trained = stored_bytes(model)
    gradients = sum(parameter.numel() * 4 for parameter in model.parameters() if parameter.requires_grad)
    tracker = _Allocations(device)
    with torch.no_grad(), _Allocations(device):
        loss()
    with tracker:
        result = loss()
        activations = tracker.live
        torch.autograd.backward(result)
    states = optimizer_bytes(model, optimizer) + sum(map(weight_bytes, remembered()))
    model.zero_grad(set_to_none=True)
    step = max(tracker.peak, gradients)
    workspace = max(0, tracker.peak - activations - gradients)
    total = weights + trained * (1 + copies) + states + step
    return Memory(weights, trained, trained * copies, gradients, states, activations, workspace, total, tracker.flops)


def stored_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of the frozen and of the trained parameters, a shared one once. Buffers count as frozen."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    trained = sum(weight_bytes(parameter) for parameter in model.parameters() if parameter.requires_grad)
    return sum(map(weight_bytes, [*frozen, *model.buffers()])), trained


def optimizer_bytes(model: nn.Module, name: str) -> int:
    """Bytes of the moments of what `model` trains: float32, or with `adamw_8bit` a byte a number and a scale a block."""
    total = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            numbers = parameter.numel()
            small = name == "adamw" or numbers < FEWEST_OF_8_BITS
            total += MOMENTS * (4 * numbers if small else numbers + 4 * -(-numbers // BLOCK_OF_8_BITS))
    return total


def weight_bytes(tensor: Tensor) -> int:
    """Bytes of one stored tensor. Formats whose numbers have no whole number of bytes are told apart here."""
    return tensor.numel() * tensor.element_size()


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations make, from making to the last reference, and the work done."""

    def __init__(self, device: DeviceType) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.flops = 0
        self._device = device
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0  # "is every position its text's first?", "is the mask all ones?": what such questions decide is small
        known = {tensor.untyped_storage()._cdata for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in known | self._sizes.keys():
                self._add(tensor)
        if func is torch.ops.aten.bernoulli_.float and self._device == "cpu" and 2 * args[0].numel() <= BANK:
            self._free(args[0].untyped_storage()._cdata)  # there a mask is a view of the bank of masks
        self.peak = max(self.peak, self.live)
        if (place := _PRODUCTS.get(func._overloadpacket.__name__)) is not None:
            self.flops += 2 * result.numel() * args[place].shape[-1]
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._sizes[storage._cdata] = storage.nbytes()
        self.live += storage.nbytes()
        weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def kernel_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What a GPU's variable-length kernel allocates, in place of packed attention: no weights, but a number a query and head.

    Args:
        query: `[1, h, T, d]`.
        key: `[1, h_kv, T, d]`.
        value: `[1, h_kv, T, d]`.

    Returns:
        `[1, T, h, d]`, and None.
    """
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    out: Tensor = _Kernel.apply(q.contiguous(), k.contiguous(), v.contiguous())  # type: ignore[no-untyped-call]
    return out.unsqueeze(0), None


class _Kernel(torch.autograd.Function):
    """`[T, h, d]` queries, keys and values -> `[T, h, d]`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:2], dtype=torch.float32))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        accumulated = q.new_empty(q.shape, dtype=torch.float32)  # dQ is summed in float32
        grads = tuple(torch.empty_like(one) for one in (q, k, v))
        del accumulated
        return grads


def texts_a_pass(batch_size: int, max_length: int, tokens_per_pass: int) -> int:
    """How many texts of full length one forward pass takes."""
    return max(1, min(batch_size, tokens_per_pass // max_length))
