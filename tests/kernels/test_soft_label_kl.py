from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hellofmt_kernels import soft_label_kl


def problem(n, c, d=24, dtype=torch.float32, seed=0, rank=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x = torch.nn.functional.normalize(normal(n, d), dim=1).to(dtype)
    w = torch.nn.functional.normalize(normal(c, d), dim=1).to(dtype)
    low_rank = None
    if rank:
        low_rank = ((normal(rank, d) / d**0.5).to(dtype), normal(c, rank).to(dtype), 0.5)
    return x, w, normal(c).to(dtype), (2 * normal(n, c)).to(dtype), low_rank


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def truth(x, w, b, scale, t, student, t_s, low_rank=None):
    x, w, b, student = (v.detach().double().numpy() for v in (x, w, b, student))
    if low_rank is not None:
        w = w + low_rank[2] * low_rank[1].double().numpy() @ low_rank[0].double().numpy()
    log_p, log_q = log_softmax((scale * x @ w.T + b) / t), log_softmax(student / t_s)
    p = np.exp(log_p)
    return (p * (log_p - log_q)).sum(axis=1), (np.exp(log_q) - p) / t_s


@pytest.mark.parametrize("n", [0, 1, 7, 33])
@pytest.mark.parametrize("c", [1, 10, 257])
@pytest.mark.parametrize("rank", [0, 2])
def test_loss_and_gradient_equal_float64(n, c, rank):
    x, w, b, student, low_rank = problem(n, c, rank=rank)
    student.requires_grad_()
    loss = soft_label_kl(x, w, b, 50.0, 2.0, student, 3.0, low_rank)
    want_loss, want_gradient = (
        truth(x, w, b, 50.0, 2.0, student, 3.0, low_rank) if n else (np.zeros(0), np.zeros((0, c)))
    )
    assert loss.dtype == torch.float32
    assert np.abs(loss.detach().double().numpy() - want_loss).max(initial=0) < 2e-5
    share = torch.arange(1, n + 1, dtype=torch.float32)
    (gradient,) = torch.autograd.grad(loss, student, share)
    error = gradient.double().numpy() - share[:, None].double().numpy() * want_gradient
    assert np.abs(error).max(initial=0) < 2e-6 * max(n, 1)


def test_float64_is_exact_and_matches_torch():
    x, w, b, student, _ = problem(5, 12, dtype=torch.float64)
    student.requires_grad_()
    loss = soft_label_kl(x, w, b, 30.0, 1.5, student, 2.0)
    p = torch.softmax((30.0 * x @ w.T + b) / 1.5, dim=1)
    want = torch.nn.functional.kl_div(
        torch.log_softmax(student / 2.0, dim=1), p, reduction="none"
    ).sum(dim=1)
    assert torch.allclose(loss, want, rtol=1e-12, atol=1e-12)
    got_gradient, want_gradient = (
        torch.autograd.grad(value.mean(), student, retain_graph=True)[0] for value in (loss, want)
    )
    assert torch.allclose(got_gradient, want_gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradient_is_rounded_once(dtype):
    x, w, b, student, _ = problem(7, 130, dtype=dtype)
    student.requires_grad_()
    loss = soft_label_kl(x, w, b, 50.0, 1.0, student, 1.0)
    want_loss, want_gradient = truth(x, w, b, 50.0, 1.0, student, 1.0)
    assert loss.dtype == torch.float32
    assert np.abs(loss.detach().double().numpy() - want_loss).max() < 2e-5
    loss.sum().backward()
    assert student.grad.dtype == dtype
    ulp = 2**-11 if dtype == torch.float16 else 2**-8
    error = np.abs(student.grad.double().numpy() - want_gradient)
    assert (error <= 2e-6 + ulp * np.abs(want_gradient)).all()


def test_a_student_that_agrees_has_no_loss_and_no_gradient():
    x, w, b, _, _ = problem(4, 10, dtype=torch.float64)
    student = (20.0 * x @ w.T + b).requires_grad_()
    loss = soft_label_kl(x, w, b, 20.0, 2.0, student, 2.0)
    assert loss.abs().max() < 1e-13
    loss.sum().backward()
    assert student.grad.abs().max() < 1e-13


def test_a_class_without_probability_adds_nothing():
    # The bias makes p exactly (1, 0); the student is certain of the same.
    x, w, b = torch.zeros(1, 2), torch.ones(2, 2), torch.tensor([0.0, -torch.inf])
    student = torch.tensor([[0.0, -1e30]], requires_grad=True)
    loss = soft_label_kl(x, w, b, 1.0, 1.0, student)
    assert loss.item() == 0.0
    loss.backward()
    assert student.grad.tolist() == [[0.0, 0.0]]


def test_no_labels_are_kept_for_the_backward_pass():
    x, w, b, student, _ = problem(7, 130)
    student.requires_grad_()
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = soft_label_kl(x, w, b, 50.0, 2.0, student, 3.0)
    (matrix,) = (tensor for tensor in kept if tensor.numel() >= 7 * 130)
    # The one matrix is the gradient with respect to the student.
    want = truth(x, w, b, 50.0, 2.0, student, 3.0)[1]
    assert np.abs(matrix.detach().double().numpy() - want).max() < 2e-6
    assert loss.shape == (7,)


def test_without_gradient_none_is_made():
    x, w, b, student, _ = problem(3, 5)
    op = torch.ops.hellofmt_kernels.soft_label_kl.default
    _, gradient = op(x, w, b, None, None, 0.0, 1.0, 1.0, student, 1.0, False)
    assert gradient.numel() == 0
    student.requires_grad_()
    with torch.no_grad():
        assert not soft_label_kl(x, w, b, 1.0, 1.0, student).requires_grad


# opcheck itself reads .grad of non-leaf tensors while it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck():
    x, w, b, student, (a, bb, s) = problem(3, 6, 4, torch.float64, rank=2)
    op = torch.ops.hellofmt_kernels.soft_label_kl.default
    args = (x, w, b, a, bb, s, 10.0, 1.0, student.requires_grad_(), 2.0, True)
    # The gradient is an output only so that the backward pass can keep it: it has none itself.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op, args, test_utils=tests)


REFUSED = {
    "student_shape": (
        {"student": torch.zeros(2, 4)},
        ValueError,
        "`student`: shape (2, 4); expected (N, C) = (2, 3)",
    ),
    "student_dtype": (
        {"student": torch.zeros(2, 3, dtype=torch.int64)},
        TypeError,
        "`student`: dtype torch.int64; expected float16, bfloat16, float32 or float64",
    ),
    "student_device": (
        {"student": torch.zeros(2, 3, device="meta")},
        ValueError,
        "`student`: on meta; expected cpu, where `x` is",
    ),
    "student_temperature": (
        {"student_temperature": -1.0},
        ValueError,
        "`student_temperature`: -1.0; expected a finite number > 0",
    ),
    "temperature": (
        {"temperature": math.inf},
        ValueError,
        "`temperature`: inf; expected a finite number > 0",
    ),
    "x_grad": (
        {"x": torch.zeros(2, 4, requires_grad=True)},
        ValueError,
        "`x`: requires a gradient, which this operator does not give; expected a detached tensor",
    ),
    "bias_grad": (
        {"bias": torch.zeros(3, requires_grad=True)},
        ValueError,
        "`bias`: requires a gradient, which",
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
        "student": torch.zeros(2, 3),
    }
    with pytest.raises(error) as caught:
        soft_label_kl(**(arguments | change))
    assert str(caught.value).startswith(message)
