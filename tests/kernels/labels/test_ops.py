from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hellofmt_kernels import LabelOptions, algorithm, config, soft_labels

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def head(n, c, d, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=1)
    w = torch.nn.functional.normalize(torch.randn(c, d, generator=g, dtype=torch.float64), dim=1)
    b = torch.randn(c, generator=g, dtype=torch.float64)
    return x.to(dtype), w.to(dtype), b.to(dtype)


def labels(x, w, b, scale, temperature=1.0, dtype=torch.float32, is_softmax=True):
    return soft_labels(x, w, b, LabelOptions(scale, temperature, dtype, is_softmax))


def truth(x, w, b, scale, temperature=1.0, is_softmax=True):
    """Float64 in numpy, so that nothing of torch is trusted."""
    z = scale * (x.double().numpy() @ w.double().numpy().T)
    if b is not None:
        z = z + b.double().numpy()
    if not is_softmax:
        return z
    z = z / temperature
    e = np.exp(z - z.max(axis=1, keepdims=True)) if z.size else z
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("n", [0, 1, 33])
@pytest.mark.parametrize("c", [1, 10, 257])
@pytest.mark.parametrize("is_softmax", [True, False])
def test_soft_labels_equal_float64(n, c, is_softmax):
    x, w, b = head(n, c, 72)
    got = labels(x, w, b, 100.0, 2.5, is_softmax=is_softmax)
    want = truth(x, w, b, 100.0, 2.5, is_softmax)
    assert got.shape == (n, c)
    assert got.dtype == torch.float32
    # Logits reach 50, so a float32 ulp there is 4e-6, and a probability moves by as much.
    limit = 5e-6 if is_softmax else 5e-5
    assert np.abs(got.double().numpy() - want).max(initial=0.0) < limit


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("c", "d"), [(10, 40), (257, 512), (21841, 64)])
@pytest.mark.parametrize("is_softmax", [True, False])
def test_the_error_is_at_most_twice_that_of_torch(dtype, c, d, is_softmax):
    x, w, b = head(7, c, d, dtype)
    want = truth(x, w, b, 100.0, 2.0, is_softmax)
    got = labels(x, w, b, 100.0, 2.0, dtype, is_softmax)
    z = 100.0 * (x @ w.T) + b
    theirs = torch.softmax(z / 2.0, dim=1) if is_softmax else z
    ours, limit = (np.abs(v.double().numpy() - want).max() for v in (got, theirs))
    assert ours <= 2 * limit + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("out_dtype", FLOATS)
def test_every_other_dtype_rounds_once_at_the_end(dtype, out_dtype):
    x, w, b = head(7, 130, 40, dtype)
    got = labels(x, w, b, 100.0, dtype=out_dtype)
    want = truth(x, w, b, 100.0)
    # 2**-25 is half a step of float16 below its smallest normal number.
    computed = (1e-12 if dtype == torch.float64 else 5e-6) + 2**-25 * (out_dtype == torch.float16)
    ulp = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-24}.get(out_dtype, 0)
    assert got.dtype == out_dtype
    error = np.abs(got.double().numpy() - want)
    assert (error <= computed + ulp * want).all()


@pytest.mark.parametrize(("n", "c"), [(0, 10), (7, 10), (7, 130), (9, 21841)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_bfloat16_on_a_cpu_rounds_a_cosine_and_nothing_after_it(n, c, has_bias):
    x, w, b = head(n, c, 40, torch.bfloat16)
    b = b if has_bias else None
    got = labels(x, w, b, 100.0, 2.0, is_softmax=False).double().numpy()
    cosines = np.abs(truth(x, w, None, 1.0, is_softmax=False))
    error = np.abs(got - truth(x, w, b, 100.0, is_softmax=False))
    assert (error <= 100 * (2**-8 * cosines + 1e-6)).all()
    # Rows of many classes are finished block by block; what is left is float32.
    z = torch.from_numpy(got) / 2.0
    label = labels(x, w, b, 100.0, 2.0)
    assert label.dtype == torch.float32
    assert (label - torch.softmax(z, dim=1)).abs().numpy().max(initial=0.0) < 2e-6


def test_float16_does_not_round_a_logit():
    # In float16 the logits 100 and 100.03 are both 100: rounding them would give 0.5 each.
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float16)
    w = torch.tensor([[1.0, 0.0], [1.0, 0.0003]], dtype=torch.float16)
    got = labels(x, w, None, 100.0)
    z = 100.0 * w[1, 1].item()
    assert got[0, 1].item() == pytest.approx(1 / (1 + math.exp(-z)), abs=1e-5)


def test_the_bias_is_added_after_the_scale_and_the_temperature_divides_both():
    x, w = torch.zeros(1, 2), torch.ones(2, 2)
    b = torch.tensor([0.0, 3.0])
    assert labels(x, w, b, 100.0, 7.0, is_softmax=False).tolist() == [[0.0, 3.0]]
    got = labels(x, w, b, 100.0, 3.0)[0, 1].item()
    assert got == pytest.approx(1 / (1 + math.exp(-1.0)), abs=1e-6)


def test_the_bias_may_be_wider_than_the_embeddings():
    x, w, _ = head(3, 10, 8, torch.float16)
    b = torch.full((10,), 0.1, dtype=torch.float64)
    got = labels(x, w, b, 1.0, dtype=torch.float64, is_softmax=False)
    # The sum is float32, so the bias arrives as float32 and not as float16 (0.09998).
    assert np.abs(got.numpy() - truth(x, w, b, 1.0, is_softmax=False)).max() < 1e-6


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_adding_a_constant_to_every_logit_changes_nothing(shift):
    x, w, b = head(5, 20, 16, torch.float64)
    got = labels(x, w, b + shift, 100.0, dtype=torch.float64)
    assert (got - labels(x, w, b, 100.0, dtype=torch.float64)).abs().max() < 1e-10


def test_equal_logits_and_extremes():
    x, w = torch.zeros(2, 4), torch.ones(10, 4)
    assert labels(x, w, None, 100.0).flatten().tolist() == pytest.approx([0.1] * 20)
    b = torch.zeros(10)
    b[3] = 1e30
    assert labels(x, w, b, 100.0)[0].tolist() == [0.0] * 3 + [1.0] + [0.0] * 6


def test_strided_inputs():
    x, w, b = head(6, 20, 16)
    padded_x, padded_w = torch.full((6, 24), torch.nan), torch.full((20, 17), torch.nan)
    padded_x[:, :16], padded_w[:, :16] = x, w
    wide = b.repeat_interleave(2)
    got = labels(padded_x[:, :16], padded_w[:, :16], wide[::2], 10.0)
    assert torch.equal(got, labels(x, w, b, 10.0))
    # Transposed operands take another GEMM, so equal only to rounding.
    got = labels(x.T.contiguous().T, w.T.contiguous().T, b, 10.0)
    assert (got - labels(x, w, b, 10.0)).abs().max() < 1e-6


@pytest.mark.parametrize("is_softmax", [True, False])
def test_opcheck(is_softmax):
    x, w, b = head(3, 6, 4, torch.float64)
    op = torch.ops.hellofmt_kernels.soft_labels.default
    torch.library.opcheck(op, (x, w, b, 10.0, 1.0, torch.float64, is_softmax))


REFUSED = {
    "x_rank": ({"x": torch.zeros(4)}, ValueError, "`x`: shape (4,); expected (N, D) with D > 0"),
    "x_empty": ({"x": torch.zeros(2, 0)}, ValueError, "`x`: shape (2, 0); expected (N, D) with"),
    "x_dtype": (
        {"x": torch.zeros(2, 4, dtype=torch.int32)},
        TypeError,
        "`x`: dtype torch.int32; expected float16, bfloat16, float32 or float64",
    ),
    "x_grad": (
        {"x": torch.zeros(2, 4, requires_grad=True)},
        ValueError,
        "`x`: requires a gradient, which this operator does not give; expected a detached",
    ),
    "w_rank": (
        {"w": torch.zeros(4)},
        ValueError,
        "`weight`: shape (4,); expected (C, D) with C > 0, D = 4 as in `x`",
    ),
    "w_inner": (
        {"w": torch.zeros(3, 5)},
        ValueError,
        "`weight`: shape (3, 5); expected (C, D) with C > 0, D = 4 as in `x`",
    ),
    "w_dtype": (
        {"w": torch.zeros(3, 4, dtype=torch.float16)},
        TypeError,
        "`weight`: dtype torch.float16; expected torch.float32, as `x`",
    ),
    "w_device": (
        {"w": torch.zeros(3, 4, device="meta")},
        ValueError,
        "`weight`: on meta; expected cpu, where `x` is",
    ),
    "w_grad": (
        {"w": torch.zeros(3, 4, requires_grad=True)},
        ValueError,
        "`weight`: requires a gradient",
    ),
    "bias_shape": ({"b": torch.zeros(4)}, ValueError, "`bias`: shape (4,); expected (C,) = (3,)"),
    "bias_dtype": (
        {"b": torch.zeros(3, dtype=torch.int64)},
        TypeError,
        "`bias`: dtype torch.int64; expected float16",
    ),
    "bias_device": (
        {"b": torch.zeros(3, device="meta")},
        ValueError,
        "`bias`: on meta; expected cpu, where `x` is",
    ),
    "bias_grad": (
        {"b": torch.zeros(3, requires_grad=True)},
        ValueError,
        "`bias`: requires a gradient",
    ),
    "scale": ({"scale": math.nan}, ValueError, "`scale`: nan; expected a finite number"),
    "temperature": (
        {"temperature": 0.0},
        ValueError,
        "`temperature`: 0.0; expected a finite number > 0",
    ),
    "dtype": (
        {"dtype": torch.int8},
        TypeError,
        "`dtype`: dtype torch.int8; expected float16, bfloat16, float32 or float64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name):
    change, error, message = REFUSED[name]
    arguments = {"x": torch.zeros(2, 4), "w": torch.zeros(3, 4), "b": None, "scale": 1.0}
    with pytest.raises(error) as caught:
        labels(**(arguments | change))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_parameter_is_accepted_without_grad_mode():
    x, w, b = head(2, 3, 4)
    with torch.no_grad():
        got = labels(x, torch.nn.Parameter(w), b, 10.0)
    assert torch.equal(got, labels(x, w, b, 10.0))


def test_a_cpu_takes_the_reference():
    assert algorithm(1024, 768, 1000) == "reference"
    assert algorithm(1024, 768, 100, "cpu", torch.float16) == "reference"


@pytest.mark.parametrize(
    ("n", "c", "dtype", "device", "want"),
    [
        (64, 10, "float16", config.Device("cuda", (9, 0), has_triton=True), "row"),
        (64, 256, "bfloat16", config.Device("cuda", (8, 0), has_triton=True), "row"),
        (64, 257, "float32", config.Device("cuda", (9, 0), has_triton=True), "stats"),
        (64, 21841, "float16", config.Device("cuda", (9, 0), has_triton=True), "stats"),
        (0, 10, "float16", config.Device("cuda", (9, 0), has_triton=True), "reference"),
        (64, 10, "float64", config.Device("cuda", (9, 0), has_triton=True), "reference"),
        (64, 10, "float16", config.Device("cuda", (9, 0), has_triton=False), "reference"),
        (64, 10, "float16", config.Device("cuda", (7, 5), has_triton=True), "reference"),
        (64, 10, "float16", config.Device("mps", has_triton=True), "reference"),
    ],
)
def test_choice_of_algorithm(n, c, dtype, device, want):
    assert config.choose_labels(n, 768, c, dtype, device) == want


def test_rows_are_padded_on_cuda_only():
    assert config.padded_row(1000, "cpu") == 1000
    assert [config.padded_row(c, "cuda") for c in (1, 16, 1000, 1008)] == [16, 16, 1008, 1008]
