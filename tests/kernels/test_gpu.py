"""The kernels on a device: the same comparisons as in the interpreter, and what only a GPU has."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hellofmt_kernels import LabelOptions, ViewForm, algorithm, soft_labels, view_pair, views
from hellofmt_kernels.labels import reference as label_reference
from hellofmt_kernels.views import reference

pytestmark = pytest.mark.gpu


def head(n, c, d, dtype):
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)
    w = torch.nn.functional.normalize(torch.randn(c, d, generator=g), dim=1)
    return x.to(dtype).cuda(), w.to(dtype).cuda(), torch.randn(c, generator=g).cuda()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n", [1, 7, 33, 1024])
@pytest.mark.parametrize(("c", "d"), [(10, 40), (130, 72), (257, 96), (1000, 768), (21841, 512)])
@pytest.mark.parametrize("is_softmax", [True, False])
def test_labels_equal_float64(dtype, n, c, d, is_softmax):
    x, w, bias = head(n, c, d, dtype)
    assert algorithm(n, d, c, x.device, dtype) == ("row" if c <= 256 else "stats")
    options = LabelOptions(100.0, 2.0, dtype, is_softmax)
    exact = dataclasses.replace(options, dtype=torch.float64)
    want = label_reference.soft_labels(x.double(), w.double(), bias, exact)
    got = soft_labels(x, w, bias, options)
    z = 100.0 * (x @ w.T) + bias.to(dtype)
    theirs = torch.softmax(z / 2.0, dim=1) if is_softmax else z
    limit = 2 * (theirs.double() - want).abs().max() + 1e-6
    assert (got.double() - want).abs().max() <= limit


@pytest.mark.parametrize(("stored", "size"), [(32, 32), (40, 33), (64, 24)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_views_equal_float64(stored, size, channels_last, make_random_rows):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, stored, stored, 3), generator=g, dtype=torch.uint8)
    rows = make_random_rows(64, 5, stored, stored, size)
    (want,) = reference.views(images, rows, size, True, [ViewForm(dtype=torch.float64)])
    for where in (rows, rows.cuda()):
        got = views(images.cuda(), where, size, channels_last=channels_last).cpu()
        assert (got - want).abs().max() < 2e-6


@pytest.mark.parametrize(("stored", "size"), [(32, 32), (40, 33), (64, 24)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("formats", [(False, False), (False, True), (True, False), (True, True)])
def test_pairs_of_views_equal_float64(stored, size, dtype, formats, make_random_rows):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, stored, stored, 3), generator=g, dtype=torch.uint8)
    rows = make_random_rows(64, 5, stored, stored, size)
    forms = (
        ViewForm((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), is_channels_last=formats[0]),
        ViewForm((0.481, 0.458, 0.408), (0.269, 0.261, 0.276), dtype, formats[1]),
    )
    exact = [dataclasses.replace(form, dtype=torch.float64) for form in forms]
    wanted = reference.views(images, rows, size, True, exact)
    found = view_pair(images.cuda(), rows, size, *forms)
    # Values reach 2.7, where half a step is 2**-10 in float16 and 2**-7 in bfloat16.
    step = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 0}[dtype]
    for got, want, form, limit in zip(found, wanted, forms, (0, step), strict=True):
        assert got.dtype == form.dtype
        assert got.is_contiguous(memory_format=torch.channels_last) is form.is_channels_last
        assert (got.cpu().double() - want).abs().max() < 1e-5 + limit
        alone = views(
            images.cuda(),
            rows,
            size,
            mean=form.mean,
            std=form.std,
            out_dtype=form.dtype,
            channels_last=form.is_channels_last,
        )
        # Compiled apart: the compiler may round elsewhere.
        assert (got - alone).abs().max() <= 1e-5 + 2 * limit


def test_a_pair_of_views_is_one_launch(make_plain_rows):
    images, rows = torch.zeros(1, 8, 8, 3, dtype=torch.uint8).cuda(), make_plain_rows(2, 8, 8)
    rows = rows.cuda()
    forms = ViewForm(), ViewForm(dtype=torch.float16, is_channels_last=True)
    view_pair(images, rows, 8, *forms)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        view_pair(images, rows, 8, *forms)
        torch.cuda.synchronize()
    names = [event.key for event in profile.key_averages() if event.device_time_total]
    assert [name for name in names if "_kernel" in name] == ["_views_kernel"]


def test_an_identity_crop_is_bit_equal_to_the_pixels(make_plain_rows):
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    got = views(images.cuda(), make_plain_rows(1, 16, 16), 16).cpu()
    assert got.equal(images.permute(0, 3, 1, 2) / 255)


def test_the_named_kernels_run(make_plain_rows):
    x, w, bias = head(64, 1000, 512, torch.float16)
    images, rows = torch.zeros(1, 8, 8, 3, dtype=torch.uint8).cuda(), make_plain_rows(2, 8, 8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        soft_labels(x, w, bias, LabelOptions(100.0))
        views(images, rows, 8)
    names = " ".join(event.key for event in profile.key_averages())
    assert "_labels_fwd_kernel" in names
    assert "_views_kernel" in names


def test_labels_replay_in_a_graph():
    x, w, bias = head(64, 1000, 512, torch.float16)
    want = soft_labels(x, w, bias, LabelOptions(100.0))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = soft_labels(x, w, bias, LabelOptions(100.0))
    graph.replay()
    assert got.equal(want)
