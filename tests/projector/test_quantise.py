from __future__ import annotations

import numpy as np
import pytest
import torch

from hellofmt.errors import UserInputError
from hellofmt.projector.quantise import (
    balance,
    dequantise,
    quantise,
    read_matrix,
    write_factors,
    write_matrix,
)

STORAGES = ("float32", "float16", "bfloat16", "int8", "int4")


def matrix(rows=7, columns=9, seed=0):
    """Rows of very different sizes, one of zeros."""
    values = np.random.default_rng(seed).normal(size=(rows, columns))
    values *= 10.0 ** np.linspace(-6, 2, rows)[:, None]
    values[rows // 2] = 0
    return values.astype(np.float32)


@pytest.mark.parametrize(("storage", "levels"), [("int8", 127), ("int4", 7)])
def test_every_entry_is_within_half_a_step_of_its_row(storage, levels):
    m = matrix()
    q, scale = quantise(m, storage)
    back = dequantise(q, scale, m.shape[1], storage).astype(np.float64)
    step = np.abs(m.astype(np.float64)).max(axis=1) / levels
    error = np.abs(back - m).max(axis=1)
    assert (error <= step / 2 * (1 + 1e-5)).all()
    # And not absurdly better, which would mean that nothing was quantised.
    assert (error[step > 0] > step[step > 0] / 50).all()
    assert (scale > 0).all()
    assert (back[3] == 0).all()


def test_int4_bytes_are_low_nibble_first_and_padded():
    q, scale = quantise(np.array([[7.0, -7.0, 3.0]], np.float32), "int4")
    # 7 + 8 = 15, -7 + 8 = 1; 3 + 8 = 11, padding 0 + 8 = 8.
    assert q.tolist() == [[0x1F, 0x8B]]
    assert scale.tolist() == [1.0]
    assert dequantise(q, scale, 3, "int4").tolist() == [[7.0, -7.0, 3.0]]


def test_int8_never_uses_minus_128():
    q, _ = quantise(np.array([[-1.0, 1.0, 0.3]], np.float32), "int8")
    assert q.tolist() == [[-127, 127, 38]]


def test_a_row_of_denormals_keeps_a_positive_scale():
    _, scale = quantise(np.full((1, 4), 1e-42, np.float32), "int8")
    assert scale.tolist() == [1.0]


@pytest.mark.parametrize(("rows", "inner", "columns"), [(12, 3, 8), (96, 24, 9), (5, 8, 6)])
def test_balance_keeps_the_product_and_shares_its_singular_values(rows, inner, columns):
    generator = torch.Generator().manual_seed(1)
    b = torch.randn(rows, inner, generator=generator) * 1e-3
    a = torch.randn(inner, columns, generator=generator) * 50
    new_b, new_a = balance(b, a)
    assert new_b.shape == b.shape
    assert new_a.shape == a.shape
    product = b.double() @ a.double()
    torch.testing.assert_close(new_b.double() @ new_a.double(), product, rtol=0, atol=1e-6)
    s = torch.linalg.svdvals(product)[:inner]
    rank = min(rows, inner, columns)
    for gram in (new_b.double().T @ new_b.double(), new_a.double() @ new_a.double().T):
        expected = torch.zeros(inner, dtype=torch.float64)
        expected[:rank] = s[:rank]
        torch.testing.assert_close(gram, torch.diag(expected), rtol=0, atol=2e-6)


def test_balance_keeps_a_delta_of_zero_trainable():
    a = torch.randn(3, 5)
    b, same = balance(torch.zeros(4, 3), a)
    assert not b.any()
    assert torch.equal(same, a)


def test_balancing_lowers_the_error_of_the_product():
    generator = torch.Generator().manual_seed(2)
    b = torch.randn(64, 8, generator=generator) * 10.0 ** torch.linspace(-3, 0, 8)
    a = torch.randn(8, 48, generator=generator)
    product = b @ a

    def error(b, a):
        q_b, q_a = (dequantise(*quantise(m.numpy(), "int4"), m.shape[1], "int4") for m in (b, a))
        return float(np.linalg.norm(q_b @ q_a - product.numpy()) / product.norm())

    assert error(*balance(b, a)) < error(b, a)


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_written_is_read_back_within_the_storage(storage):
    m = matrix()
    bound = {
        "float32": 0 * m,
        "float16": np.maximum(np.abs(m) * 2.0**-11, 2.0**-25),
        "bfloat16": np.abs(m) * 2.0**-8,
        "int8": np.abs(m).max(axis=1, keepdims=True) / 254 * 1.00001,
        "int4": np.abs(m).max(axis=1, keepdims=True) / 14 * 1.00001,
    }[storage]
    stored = write_matrix("w", torch.from_numpy(m), storage)
    back = read_matrix({k: t.numpy() for k, t in stored.items()}, "w", m.shape[1], storage)
    assert back.dtype == torch.float32
    assert (np.abs(back.numpy() - m) <= bound).all()


def test_stored_dtypes_and_bytes():
    m = torch.from_numpy(matrix(4, 5))
    kinds = {s: write_matrix("w", m, s) for s in STORAGES}
    assert {s: (t["w"].dtype, len(t["w"].data)) for s, t in kinds.items()} == {
        "float32": ("F32", 80),
        "float16": ("F16", 40),
        "bfloat16": ("BF16", 40),
        "int8": ("I8", 20),
        "int4": ("U8", 12),
    }
    assert set(kinds["int8"]) == {"w", "w_scale"}
    assert set(kinds["bfloat16"]) == {"w"}


def test_factors_are_balanced_only_when_quantised():
    b, a = torch.randn(6, 2) * 100, torch.randn(2, 5)
    exact = write_factors("p", b, a, "float32")
    assert np.array_equal(exact["p::A"].numpy(), a.numpy())
    assert np.array_equal(exact["p::B"].numpy(), b.numpy())
    quantised = write_factors("p", b, a, "int8")
    tops = [
        np.abs(quantised[f"p::{s}"].numpy() * quantised[f"p::{s}_scale"].numpy()[:, None]).max()
        for s in "AB"
    ]
    assert max(tops) / min(tops) < 5


@pytest.mark.parametrize(
    ("value", "storage"), [(1e30, "float16"), (float("nan"), "int8"), (float("inf"), "float32")]
)
def test_values_that_a_storage_cannot_hold_are_refused(value, storage):
    with pytest.raises(UserInputError, match=f"`w` has values that {storage} cannot hold") as info:
        write_matrix("w", torch.tensor([[value]]), storage)
    assert info.value.code == "E_OPTION"


def test_a_diverged_factor_is_refused_before_it_is_balanced():
    with pytest.raises(UserInputError, match="`p::A` has values that int8 cannot hold"):
        write_factors("p", torch.ones(2, 1), torch.tensor([[float("nan"), 1.0]]), "int8")
