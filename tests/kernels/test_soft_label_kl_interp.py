"""The loss kernel in Triton's interpreter, against float64."""

from __future__ import annotations

import pytest
import torch

from hellofmt_kernels import config, reference

soft_label_kl_triton = pytest.importorskip("hellofmt_kernels.soft_label_kl_triton")

pytestmark = pytest.mark.interp

HOW = (50.0, 2.0)


def problem(n, c, d, dtype, rank=0):
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1).to(dtype)
    w = torch.nn.functional.normalize(torch.randn(c, d, generator=g), dim=1).to(dtype)
    student = (2 * torch.randn(n, c, generator=g)).to(dtype)
    low_rank = None
    if rank:
        a = (torch.randn(rank, d, generator=g) / d**0.5).to(dtype)
        low_rank = (a, torch.randn(c, rank, generator=g).to(dtype), 0.1)
    return x, w, torch.randn(c, generator=g), student, low_rank


def truth(x, w, bias, student, low_rank=None):
    factors = (
        None if low_rank is None else (low_rank[0].double(), low_rank[1].double(), low_rank[2])
    )
    return reference.soft_label_kl(
        x.double(), w.double(), bias, *HOW, student.double(), 3.0, factors
    )


@pytest.mark.parametrize("n", [1, 7, 33])
@pytest.mark.parametrize(("c", "d"), [(10, 40), (130, 72), (1000, 96)])
@pytest.mark.parametrize("rank", [0, 4])
def test_loss_and_gradient_equal_float64(n, c, d, rank):
    x, w, bias, student, low_rank = problem(n, c, d, torch.float32, rank)
    loss, gradient = soft_label_kl_triton.launch(x, w, bias, *HOW, student, 3.0, True, low_rank)
    want_loss, want_gradient = truth(x, w, bias, student, low_rank)
    assert (loss - want_loss).abs().max() < 1e-5
    assert (gradient - want_gradient).abs().max() < 2e-6


@pytest.mark.parametrize("c", [130, 1000])
def test_half_precision_beats_torch_in_half_precision(c):
    x, w, bias, student, _ = problem(33, c, 96, torch.float16)
    loss, gradient = soft_label_kl_triton.launch(x, w, bias, *HOW, student, 3.0, True)
    want_loss, want_gradient = truth(x, w, bias, student)
    z = HOW[0] * (x @ w.T) + bias.half()
    log_p, log_q = torch.log_softmax(z / HOW[1], dim=1), torch.log_softmax(student / 3.0, dim=1)
    theirs = (log_p.exp() * (log_p - log_q)).sum(dim=1).double()
    their_gradient = ((log_q.exp() - log_p.exp()) / 3.0).double()
    assert gradient.dtype == torch.float16
    ours, limit = (
        (got - want).abs().max() for got, want in ((loss, want_loss), (theirs, want_loss))
    )
    assert ours <= limit
    ours = (gradient.double() - want_gradient).abs().max()
    assert ours <= (their_gradient - want_gradient).abs().max() + 1e-6


@pytest.mark.parametrize("block", [64, 1024])
def test_a_row_in_several_steps(block, monkeypatch):
    monkeypatch.setattr(config, "choose_kl_block", lambda _: (block, 4))
    x, w, bias, student, _ = problem(5, 300, 40, torch.float32)
    student[0, 100:] = -torch.inf
    student[1] -= 1e4
    loss, gradient = soft_label_kl_triton.launch(x, w, bias, *HOW, student, 3.0, True)
    want_loss, want_gradient = truth(x, w, bias, student)
    assert loss[0].item() == want_loss[0].item() == torch.inf
    # The second row's logits are near -1e4, where a float32 step is 1e-3.
    assert (loss - want_loss)[2:].abs().max() < 1e-5
    assert (loss - want_loss)[1].abs() < 2e-4
    assert (gradient - want_gradient)[[0, 2, 3, 4]].abs().max() < 2e-6
    assert (gradient - want_gradient)[1].abs().max() < 2e-4


def test_rows_in_several_chunks_share_their_scratch():
    x, w, bias, student, low_rank = problem(33, 130, 40, torch.float32, rank=2)
    arguments = (x, w, bias, *HOW, student, 3.0, True, low_rank)
    tile = config.LabelTile(block_n=16, block_c=256, block_d=32, num_warps=8, num_stages=2)
    want = soft_label_kl_triton.launch(*arguments, tile=tile)
    got = soft_label_kl_triton.launch(*arguments, tile=tile, rows=16)
    assert got[0].equal(want[0])
    assert got[1].equal(want[1])
    # Chunks that cut tiles move rows within them, and there a CPU's matrix product may round
    # otherwise.
    got = soft_label_kl_triton.launch(*arguments, tile=tile, rows=8)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_a_class_without_probability_adds_nothing():
    x, w, bias = torch.zeros(1, 16), torch.ones(2, 16), torch.tensor([0.0, -torch.inf])
    student = torch.tensor([[0.0, -1e30]])
    loss, gradient = soft_label_kl_triton.launch(x, w, bias, 1.0, 1.0, student, 1.0, True)
    assert loss.tolist() == [0.0]
    assert gradient.tolist() == [[0.0, 0.0]]


def test_without_gradient_none_is_written():
    x, w, bias, student, _ = problem(7, 130, 40, torch.float32)
    want, _ = soft_label_kl_triton.launch(x, w, bias, *HOW, student, 3.0, True)
    loss, gradient = soft_label_kl_triton.launch(x, w, bias, *HOW, student, 3.0, False)
    assert loss.equal(want)
    assert gradient.shape == (0, 0)


def test_nothing_beside_the_operands_is_read_or_left_unwritten(monkeypatch):
    x, w, bias, student, _ = problem(7, 130, 40, torch.float32)
    wide = torch.full((7, 150), torch.nan)
    wide[:, :130] = student
    want = soft_label_kl_triton.launch(x, w, bias, *HOW, student, 3.0, True)

    empty = torch.Tensor.new_empty

    def poisoned(tensor, shape, **arguments):
        return empty(tensor, shape, **arguments).fill_(torch.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    got = soft_label_kl_triton.launch(x, w, bias, *HOW, wide[:, :130], 3.0, True)
    assert got[0].equal(want[0])
    assert got[1].equal(want[1])
    assert not got[1].isnan().any()


@pytest.mark.slow
def test_the_classes_of_imagenet_22k():
    x, w, bias, student, _ = problem(5, 21841, 40, torch.float32)
    loss, gradient = soft_label_kl_triton.launch(x, w, bias, *HOW, student, 3.0, True)
    want_loss, want_gradient = truth(x, w, bias, student)
    assert (loss - want_loss).abs().max() < 2e-5
    assert (gradient - want_gradient).abs().max() < 1e-6
