from __future__ import annotations

import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hellofmt_kernels import LabelOptions, ViewForm, soft_labels, view_pair, views

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)


def test_fake_tensors_of_a_gpu_have_padded_rows():
    with FakeTensorMode():
        x = torch.empty(7, 16, dtype=torch.float16, device="cuda")
        weight = torch.empty(1000, 16, dtype=torch.float16, device="cuda")
        labels = soft_labels(x, weight, None, LabelOptions(100.0, dtype=torch.bfloat16))
        assert labels.shape == (7, 1000)
        assert labels.stride() == (1008, 1)
        assert labels.dtype == torch.bfloat16
        images = torch.empty(3, 8, 8, 3, dtype=torch.uint8, device="cuda")
        rows = torch.empty(5, 20, dtype=torch.int32, device="cuda")
        batch = views(images, rows, 32, out_dtype=torch.float16, channels_last=True)
        assert batch.shape == (5, 3, 32, 32)
        assert batch.stride() == (3072, 1, 96, 3)
        assert batch.device.type == "cuda"
        half = ViewForm(dtype=torch.float16, is_channels_last=True)
        first, second = view_pair(images, rows, 32, ViewForm(), half)
        assert (first.dtype, first.stride()) == (torch.float32, (3072, 1024, 32, 1))
        assert (second.dtype, second.stride()) == (torch.float16, (3072, 1, 96, 3))
        assert second.shape == (5, 3, 32, 32)
        assert second.device.type == "cuda"


@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=[needs_compiler, pytest.mark.slow])],
)
# Inductor's own imports warn of things that are not ours.
@pytest.mark.filterwarnings("ignore")
def test_labels_and_views_compile_without_a_graph_break(
    backend, make_random_rows, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    g = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(12, 8 * 8 * 3, generator=g), torch.randn(12, generator=g)
    images = torch.randint(0, 256, (2, 8, 8, 3), generator=g, dtype=torch.uint8)
    rows = make_random_rows(4, 2, 8, 8, 8)

    def entropy(images, rows):
        batch = views(images, rows, 8, mean=(0.5,) * 3, channels_last=True)
        labels = soft_labels(batch.flatten(1).tanh(), weight, bias, LabelOptions(0.2, 1.5))
        return -(labels * labels.log()).sum(dim=1)

    got = torch.compile(entropy, fullgraph=True, backend=backend)(images, rows)
    want = entropy(images, rows)
    assert torch.allclose(got, want, rtol=1e-5)
    assert want.min() > 0.1


@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=[needs_compiler, pytest.mark.slow])],
)
@pytest.mark.filterwarnings("ignore")
def test_a_pair_of_views_compiles_without_a_graph_break(
    backend, make_random_rows, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 8, 8, 3), generator=g, dtype=torch.uint8)
    rows = make_random_rows(4, 2, 8, 8, 8)
    mean, std = (0.5,) * 3, (0.25,) * 3

    def step(images, rows):
        # Made inside, as a caller would.
        form = ViewForm(mean, std, torch.float16, is_channels_last=True)
        student, encoder = view_pair(images, rows, 8, ViewForm(), form)
        return student.square().sum(dim=1), encoder.float() * 2

    for n in (4, 3):
        got = torch.compile(step, fullgraph=True, backend=backend)(images, rows[:n])
        want = step(images, rows[:n])
        for ours, theirs in zip(got, want, strict=True):
            assert torch.allclose(ours, theirs)
        assert want[1].abs().max() > 1
