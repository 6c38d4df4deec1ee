from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hellofmt_kernels import algorithm, config, soft_labels

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def head(n, c, d, dtype=torch.float32, seed=0, rank=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=1)
    w = torch.nn.functional.normalize(torch.randn(c, d, generator=g, dtype=torch.float64), dim=1)
    b = torch.randn(c, generator=g, dtype=torch.float64)
    factors = None
    if rank:
        a = torch.randn(rank, d, generator=g, dtype=torch.float64) / d**0.5
        bb = torch.randn(c, rank, generator=g, dtype=torch.float64) / rank**0.5
        factors = (a.to(dtype), bb.to(dtype), 0.5)
    return x.to(dtype), w.to(dtype), b.to(dtype), factors


def truth(x, w, b, scale, temperature, epilogue="softmax", low_rank=None):
    """Float64 in numpy, so that nothing of torch is trusted."""
    x, w = x.double().numpy(), w.double().numpy()
    if low_rank is not None:
        w = w + low_rank[2] * low_rank[1].double().numpy() @ low_rank[0].double().numpy()
    z = scale * (x @ w.T)
    if b is not None:
        z = z + b.double().numpy()
    if epilogue == "logits":
        return z
    z = z / temperature
    e = np.exp(z - z.max(axis=1, keepdims=True)) if z.size else z
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("n", [0, 1, 7, 33])
@pytest.mark.parametrize("c", [1, 10, 257, 1000])
@pytest.mark.parametrize("epilogue", ["softmax", "logits"])
def test_soft_labels_equal_float64(n, c, epilogue):
    x, w, b, _ = head(n, c, 72)
    got = soft_labels(x, w, b, 100.0, 2.5, epilogue=epilogue)
    want = truth(x, w, b, 100.0, 2.5, epilogue)
    assert got.shape == (n, c)
    assert got.dtype == torch.float32
    # Logits reach 50, so a float32 ulp there is 4e-6, and a probability moves by as much.
    limit = 5e-5 if epilogue == "logits" else 5e-6
    assert np.abs(got.double().numpy() - want).max(initial=0.0) < limit


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("c", "d"), [(10, 40), (130, 1024), (257, 512), (21841, 64)])
@pytest.mark.parametrize("rank", [0, 1, 64])
@pytest.mark.parametrize("epilogue", ["softmax", "logits"])
def test_the_error_is_at_most_twice_that_of_torch(dtype, c, d, rank, epilogue):
    x, w, b, factors = head(7, c, d, dtype, rank=rank)
    want = truth(x, w, b, 100.0, 2.0, epilogue, factors)
    got = soft_labels(x, w, b, 100.0, 2.0, epilogue=epilogue, low_rank=factors)
    if factors is not None:
        w = (w.float() + factors[2] * factors[1].float() @ factors[0].float()).to(dtype)
    z = 100.0 * (x @ w.T) + b
    theirs = torch.softmax(z / 2.0, dim=1) if epilogue == "softmax" else z
    ours, limit = (np.abs(v.double().numpy() - want).max() for v in (got, theirs))
    assert ours <= 2 * limit + 1e-6


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("out_dtype", FLOATS)
def test_every_dtype_rounds_once_at_the_end(dtype, out_dtype):
    x, w, b, _ = head(7, 130, 40, dtype)
    got = soft_labels(x, w, b, 100.0, 1.0, out_dtype=out_dtype)
    want = truth(x, w, b, 100.0, 1.0)
    # 2**-25 is half a step of float16 below its smallest normal number.
    computed = (1e-12 if dtype == torch.float64 else 5e-6) + 2**-25 * (out_dtype == torch.float16)
    ulp = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-24}.get(out_dtype, 0)
    assert got.dtype == out_dtype
    error = np.abs(got.double().numpy() - want)
    assert (error <= computed + ulp * want).all()


def test_half_precision_does_not_round_a_logit():
    # In bfloat16 the logits 99.9 and 100.1 are both 100: rounding them would give 0.5 each.
    x = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    w = torch.tensor([[1.0, 0.0], [1.0, 0.00201416015625]], dtype=torch.bfloat16)
    got = soft_labels(x, w, None, 100.0, 1.0, out_dtype=torch.float32)
    z = 0.201416015625
    assert got[0, 1].item() == pytest.approx(1 / (1 + math.exp(-z)), abs=1e-5)


def test_default_dtype_is_that_of_the_embeddings():
    x, w, b, _ = head(3, 5, 8, torch.bfloat16)
    assert soft_labels(x, w, b, 10.0, 1.0).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_rank_equals_the_merged_weight(dtype):
    x, w, b, factors = head(7, 130, 72, dtype, rank=4)
    a, bb, s = factors
    got = soft_labels(x, w, b, 100.0, 2.0, low_rank=factors)
    merged = soft_labels(x, w + s * bb @ a, b, 100.0, 2.0)
    limit = 1e-12 if dtype == torch.float64 else 2e-5
    assert (got - merged).abs().max() < limit
    want = truth(x, w, b, 100.0, 2.0, low_rank=factors)
    assert np.abs(got.double().numpy() - want).max() < limit
    assert (got - soft_labels(x, w, b, 100.0, 2.0)).abs().max() > 0.01


def test_bias_stands_outside_the_scale_and_the_temperature_outside_both():
    x, w = torch.zeros(1, 2), torch.ones(2, 2)
    b = torch.tensor([0.0, 3.0])
    assert soft_labels(x, w, b, 100.0, 7.0, epilogue="logits").tolist() == [[0.0, 3.0]]
    got = soft_labels(x, w, b, 100.0, 3.0)[0, 1].item()
    assert got == pytest.approx(1 / (1 + math.exp(-1.0)), abs=1e-6)


def test_bias_may_be_wider_than_the_embeddings():
    x, w, _, _ = head(3, 10, 8, torch.float16)
    b = torch.full((10,), 0.1, dtype=torch.float64)
    got = soft_labels(x, w, b, 1.0, 1.0, out_dtype=torch.float64, epilogue="logits")
    # The sum is float32, so the bias arrives as float32 and not as float16 (0.09998).
    assert np.abs(got.numpy() - truth(x, w, b, 1.0, 1.0, "logits")).max() < 1e-6


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_adding_a_constant_to_every_logit_changes_nothing(shift):
    x, w, b, _ = head(5, 20, 16, torch.float64)
    got = soft_labels(x, w, b + shift, 100.0, 1.0)
    assert (got - soft_labels(x, w, b, 100.0, 1.0)).abs().max() < 1e-10


def test_equal_logits_and_extremes():
    x, w = torch.zeros(2, 4), torch.ones(10, 4)
    assert soft_labels(x, w, None, 100.0, 1.0).flatten().tolist() == pytest.approx([0.1] * 20)
    b = torch.zeros(10)
    b[3] = 1e30
    got = soft_labels(x, w, b, 100.0, 1.0)
    assert got[0].tolist() == [0.0] * 3 + [1.0] + [0.0] * 6


def test_strided_inputs():
    x, w, b, _ = head(6, 20, 16)
    padded_x, padded_w = torch.full((6, 24), torch.nan), torch.full((20, 17), torch.nan)
    padded_x[:, :16], padded_w[:, :16] = x, w
    wide = b.repeat_interleave(2)
    got = soft_labels(padded_x[:, :16], padded_w[:, :16], wide[::2], 10.0, 1.0)
    assert torch.equal(got, soft_labels(x, w, b, 10.0, 1.0))
    # Transposed operands take another GEMM, so equal only to rounding.
    got = soft_labels(x.T.contiguous().T, w.T.contiguous().T, b, 10.0, 1.0)
    assert (got - soft_labels(x, w, b, 10.0, 1.0)).abs().max() < 1e-6


@pytest.mark.parametrize("epilogue", ["softmax", "logits"])
@pytest.mark.parametrize("rank", [0, 3])
def test_gradients_equal_torch(epilogue, rank):
    x, w, b, factors = head(5, 12, 8, torch.float64, rank=rank)
    g = torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x.requires_grad_()
    b.requires_grad_()
    got = soft_labels(x, w, b, 20.0, 1.5, epilogue=epilogue, low_rank=factors)
    got_x, got_b = torch.autograd.grad(got, (x, b), g)
    merged = w if factors is None else w + factors[2] * factors[1] @ factors[0]
    z = 20.0 * x @ merged.T + b
    want = torch.softmax(z / 1.5, dim=1) if epilogue == "softmax" else z
    want_x, want_b = torch.autograd.grad(want, (x, b), g)
    assert torch.allclose(got_x, want_x, rtol=1e-11, atol=1e-11)
    assert torch.allclose(got_b, want_b, rtol=1e-11, atol=1e-11)


def test_gradient_keeps_the_dtype_of_its_input():
    x, w, b, _ = head(5, 12, 8, torch.float16)
    b = b.double().requires_grad_()
    x.requires_grad_()
    soft_labels(x, w, b, 20.0, 1.0)[:, 0].sum().backward()
    assert x.grad.dtype == torch.float16
    assert b.grad.dtype == torch.float64
    assert x.grad.abs().max() > 0


# opcheck itself reads .grad of non-leaf tensors while it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("epilogue", ["softmax", "logits"])
def test_opcheck(rank, epilogue):
    x, w, b, factors = head(3, 6, 4, torch.float64, rank=rank)
    a, bb, s = factors or (None, None, 0.0)
    args = (x.requires_grad_(), w, b.requires_grad_(), a, bb, s, 10.0, 1.0)
    op = torch.ops.hellofmt_kernels.soft_labels.default
    torch.library.opcheck(op, (*args, torch.float64, epilogue == "softmax"))


REFUSED = {
    "x_rank": ({"x": torch.zeros(4)}, ValueError, "`x`: shape (4,); expected (N, D) with D > 0"),
    "x_empty": ({"x": torch.zeros(2, 0)}, ValueError, "`x`: shape (2, 0); expected (N, D) with"),
    "x_dtype": (
        {"x": torch.zeros(2, 4, dtype=torch.int32)},
        TypeError,
        "`x`: dtype torch.int32; expected float16, bfloat16, float32 or float64",
    ),
    "w_rank": (
        {"weight": torch.zeros(4)},
        ValueError,
        "`weight`: shape (4,); expected (C, D) with C > 0",
    ),
    "w_inner": (
        {"weight": torch.zeros(3, 5)},
        ValueError,
        "`weight`: shape (3, 5); expected (C, D) = (3, 4)",
    ),
    "w_dtype": (
        {"weight": torch.zeros(3, 4, dtype=torch.float16)},
        TypeError,
        "`weight`: dtype torch.float16; expected torch.float32, as `x`",
    ),
    "w_device": (
        {"weight": torch.zeros(3, 4, device="meta")},
        ValueError,
        "`weight`: on meta; expected cpu, where `x` is",
    ),
    "w_grad": (
        {"weight": torch.zeros(3, 4, requires_grad=True)},
        ValueError,
        "`weight`: requires a gradient, which this operator does not give; expected a detached",
    ),
    "bias_shape": (
        {"bias": torch.zeros(4)},
        ValueError,
        "`bias`: shape (4,); expected (C,) = (3,)",
    ),
    "bias_dtype": (
        {"bias": torch.zeros(3, dtype=torch.int64)},
        TypeError,
        "`bias`: dtype torch.int64; expected float16",
    ),
    "a_shape": (
        {"low_rank": (torch.zeros(4), torch.zeros(3, 1), 1.0)},
        ValueError,
        "`low_rank[0]`: shape (4,); expected (R, D) with R > 0",
    ),
    "b_shape": (
        {"low_rank": (torch.zeros(2, 4), torch.zeros(2, 3), 1.0)},
        ValueError,
        "`low_rank[1]`: shape (2, 3); expected (C, R) = (3, 2)",
    ),
    "a_grad": (
        {"low_rank": (torch.zeros(2, 4, requires_grad=True), torch.zeros(3, 2), 1.0)},
        ValueError,
        "`low_rank[0]`: requires a gradient",
    ),
    "b_grad": (
        {"low_rank": (torch.zeros(2, 4), torch.zeros(3, 2, requires_grad=True), 1.0)},
        ValueError,
        "`low_rank[1]`: requires a gradient",
    ),
    "factor": (
        {"low_rank": (torch.zeros(2, 4), torch.zeros(3, 2), math.inf)},
        ValueError,
        "`low_rank[2]`: inf; expected a finite number",
    ),
    "scale": ({"scale": math.nan}, ValueError, "`scale`: nan; expected a finite number"),
    "temperature": (
        {"temperature": 0.0},
        ValueError,
        "`temperature`: 0.0; expected a finite number > 0",
    ),
    "out_dtype": (
        {"out_dtype": torch.int8},
        TypeError,
        "`out_dtype`: torch.int8; expected float16, bfloat16, float32 or float64",
    ),
    "epilogue": (
        {"epilogue": "hard"},
        ValueError,
        "`epilogue`: 'hard'; expected 'softmax' or 'logits'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name):
    change, error, message = REFUSED[name]
    arguments = {
        "x": torch.zeros(2, 4),
        "weight": torch.zeros(3, 4),
        "bias": None,
        "scale": 1.0,
        "temperature": 1.0,
    }
    with pytest.raises(error) as caught:
        soft_labels(**(arguments | change))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_parameter_is_a_weight_like_any_other_without_grad_mode():
    x, w, b, _ = head(2, 3, 4)
    with torch.no_grad():
        got = soft_labels(x, torch.nn.Parameter(w), b, 10.0, 1.0)
    assert torch.equal(got, soft_labels(x, w, b, 10.0, 1.0))


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
