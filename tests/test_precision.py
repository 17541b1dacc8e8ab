"""The base's precision follows from what the machine can do and from one timed product."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import veneer.precision
from veneer.errors import ConfigError
from veneer.precision import DTYPES, bf16_gain, choose_precision, pick_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine whose abilities a test sets."""
    able = SimpleNamespace(cpu_bf16=True, gpu_bf16=True, gain=4.0, timed=0)

    def gain() -> float:
        able.timed += 1
        return able.gain

    class Mkldnn:
        def _is_mkldnn_bf16_supported(self) -> bool:
            return able.cpu_bf16

    monkeypatch.setattr(torch.ops, "mkldnn", Mkldnn())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or able.gpu_bf16)
    monkeypatch.setattr(veneer.precision, "bf16_gain", gain)
    return able


@pytest.mark.parametrize(
    ("cpu_bf16", "gain", "expected", "reason"),
    [
        (True, 4.0, "bf16", "runs 4.0x as fast"),
        (True, 1.3, "bf16", "runs 1.3x as fast"),
        (True, 1.2, "fp32", "only 1.2x as fast"),
        (True, 0.1, "fp32", "only 0.1x as fast"),
        (False, 4.0, "fp32", "no bf16 instructions"),
    ],
)
def test_on_a_cpu(machine: SimpleNamespace, cpu_bf16: bool, gain: float, expected: str, reason: str) -> None:
    machine.cpu_bf16, machine.gain = cpu_bf16, gain
    chosen = choose_precision("auto", CPU)
    assert chosen.name == expected
    assert reason in chosen.reason
    assert machine.timed == cpu_bf16  # nothing is timed that could be far slower than float32


@pytest.mark.parametrize(("gpu_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_on_a_gpu(machine: SimpleNamespace, gpu_bf16: bool, expected: str) -> None:
    machine.gpu_bf16 = gpu_bf16  # a GPU that only emulates bf16 counts as one without
    assert choose_precision("auto", CUDA).name == expected
    assert machine.timed == 0


@pytest.mark.parametrize(("requested", "device"), [("fp32", CPU), ("bf16", CPU), ("fp32", CUDA), ("bf16", CUDA), ("fp16", CUDA)])
def test_what_is_configured_is_used(machine: SimpleNamespace, requested: str, device: torch.device) -> None:
    machine.cpu_bf16 = machine.gpu_bf16 = False
    chosen = choose_precision(requested, device)
    assert (chosen.name, chosen.reason, chosen.dtype) == (requested, "as configured", DTYPES[requested])  # type: ignore[index]


@pytest.mark.parametrize("how", ["no operator", "not available"])
def test_a_torch_built_without_onednn_computes_in_float32(
    how: str, machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "no operator":  # torch's own namespace of operators that this build lacks
        monkeypatch.setattr(torch.ops, "mkldnn", torch._ops._OpNamespace("mkldnn_of_another_build"))
    else:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_precision("auto", CPU).name == "fp32"
    assert machine.timed == 0


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("requested", ["fp8", "BF16", ""])
def test_an_unknown_precision_is_refused(machine: SimpleNamespace, requested: str, device: torch.device) -> None:
    with pytest.raises(ConfigError, match=f"no precision '{requested}'. Fix: one of auto, fp32, bf16, fp16"):
        choose_precision(requested, device)


def test_fp16_on_a_cpu_is_refused(machine: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match=r"fp16 needs a GPU. Fix: training\.precision: auto"):
        choose_precision("fp16", CPU)


def test_the_timed_gain_is_a_ratio_of_times() -> None:
    bf16_gain.cache_clear()
    gain = bf16_gain()
    assert 0.0 < gain < 1000.0
    assert bf16_gain() == gain  # timed once a process


@pytest.mark.parametrize("available", [True, False])
def test_a_gpu_is_used_where_there_is_one(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert pick_device().type == ("cuda" if available else "cpu")
