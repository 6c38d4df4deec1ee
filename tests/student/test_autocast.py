from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from hellofmt.student.autocast import autocast_on, bfloat16_units

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def capable(monkeypatch):
    def make(**known):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)

    return make


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel as well")
def test_this_cpu_has_the_units_that_its_kernel_lists():
    if not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("this torch does not tell")
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    has_units = "amx_bf16" in flags
    assert bool(bfloat16_units(CPU)) == (has_units and torch.backends.mkldnn.is_available())


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ({}, "float32: this CPU has no bfloat16 units that gain"),
        (
            {"avx512_f": True, "avx512_bf16": False},
            "float32: this CPU has no bfloat16 units that gain",
        ),
        ({"bf16": True, "sve_bf16": True}, "float32: this CPU has no bfloat16 units that gain"),
        ({"avx512_bf16": True}, "float32: this CPU has no bfloat16 units that gain"),
        ({"amx_bf16": True, "avx512_bf16": True}, "bfloat16: this CPU has AMX"),
    ],
)
def test_a_cpu_decides_by_its_units(capable, monkeypatch, known, text):
    capable(**known)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert str(autocast_on(CPU, None)) == text
    # What is asked for is obeyed, and no capability is looked at.
    assert str(autocast_on(CPU, True)) == "bfloat16: as asked for"
    assert str(autocast_on(CPU, False)) == "float32: as asked for"
    # Torch multiplies bfloat16 through oneDNN.
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not autocast_on(CPU, None).is_mixed


def test_a_torch_that_does_not_tell_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not autocast_on(CPU, None).is_mixed


@pytest.mark.parametrize("has_units", [True, False])
def test_a_gpu_is_asked_without_emulation(monkeypatch, has_units):
    def supported(including_emulation=True):
        return including_emulation or has_units

    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    wanted = "tensor cores" if has_units else "no bfloat16 units that gain"
    got = autocast_on(CUDA, None)
    assert (got.is_mixed, got.why) == (has_units, f"this cuda device has {wanted}")
