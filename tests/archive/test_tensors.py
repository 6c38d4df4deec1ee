import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize

from hellofmt.archive.format.tensors import (
    StoredTensor,
    base_tensors_digest,
    parse_tensors,
    serialize_tensors,
    stated_tensors,
    validate_values,
)
from hellofmt.errors import LimitError, SpecError, UserInputError


def section(text, data=b""):
    """A safetensors file with any header."""
    text = text.encode()
    return struct.pack("<Q", len(text)) + text + data


ONE = struct.pack("<f", 1.5)
EXPECTED = {"a": ("F32", (1,))}


@given(
    st.dictionaries(
        st.text("abc.:_", min_size=1, max_size=9),
        st.tuples(
            st.sampled_from(["float32", "float16", "int8", "uint8", "int32", "uint16", "uint64"]),
            st.lists(st.integers(1, 4), min_size=1, max_size=5),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_round_trip(kinds):
    tensors = {
        name: StoredTensor.from_numpy(np.arange(np.prod(shape)).reshape(shape).astype(dtype))
        for name, (dtype, shape) in kinds.items()
    }
    data = serialize_tensors(tensors)
    assert data == serialize_tensors(dict(reversed(tensors.items())))
    # Stock safetensors reads the same.
    assert dict(deserialize(data)) == {
        name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data": tensor.data}
        for name, tensor in tensors.items()
    }
    expected = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    parsed = parse_tensors(data, "index", expected)
    assert set(parsed) == set(tensors)
    for name, (dtype, shape) in kinds.items():
        values = parsed[name].numpy()
        assert values.dtype == dtype
        assert (values == np.arange(np.prod(shape)).reshape(shape).astype(dtype)).all()


def test_golden_bytes():
    tensors = {"b": ("I8", (2, 2), b"1234"), "c": ("F32", (1,), ONE), "a": ("U8", (1,), b"5")}
    data = serialize_tensors({name: StoredTensor(*fields) for name, fields in tensors.items()})
    assert data == (
        b"\xa0\0\0\0\0\0\0\0"
        b'{"a":{"data_offsets":[4,5],"dtype":"U8","shape":[1]},'
        b'"b":{"data_offsets":[5,9],"dtype":"I8","shape":[2,2]},'
        b'"c":{"data_offsets":[0,4],"dtype":"F32","shape":[1]}}' + ONE + b"51234"
    )


def test_layout_of_the_array_does_not_matter():
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    tensor = StoredTensor.from_numpy(array)
    assert tensor.shape == (3, 2)
    assert tensor.data == np.array([0, 3, 1, 4, 2, 5], "<f4").tobytes()


def test_bfloat16_comes_as_float32():
    values = np.array([1.0, -2.5, 3.140625, 1e30], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    tensor = StoredTensor("BF16", (2, 2), bits.tobytes())
    back = tensor.numpy()
    assert back.dtype == np.float32
    assert back.shape == (2, 2)
    # bfloat16 keeps the high half of a float32.
    assert (back.view(np.uint32) == bits.astype(np.uint32).reshape(2, 2) << 16).all()
    assert back[0, 0] == 1.0


@pytest.mark.parametrize("name", ["float64", "bfloat16"])
def test_unknown_dtype_of_an_array(name):
    # NumPy has no bfloat16, but libraries add one of this name, whose values <u2 would convert.
    array = SimpleNamespace(dtype=SimpleNamespace(name=name), shape=(2,), data=bytes(4))
    with pytest.raises(UserInputError, match=f"E_DATA: array of {name}; expected float32, float16"):
        StoredTensor.from_numpy(array)


A = '{"a":{"data_offsets":[0,4],"dtype":"F32","shape":[1]}}  '
REFUSED = [
    (b"", "differs at byte 0 from the one that the manifest implies; expected 8"),
    (b"\x38\0\0", "differs at byte 3 "),
    (section(A + " " * 8, ONE), "differs at byte 64 "),
    (section(" " + A[:-1], ONE), "differs at byte 8 "),
    (section(A.replace("0,4", "0, 4"), ONE), "differs at byte 32 "),
    (section(A.replace("F32", "I32"), ONE), """; expected F32","shape":[1]}}  """),
    (section(A.replace("F32", "I32"), ONE), """, got I32","shape":[1]}}  """),
    (section(A, ONE + b"\0"), "the tensors end at byte 68; the section has 69"),
    (section(A, ONE[:-1]), "the tensors end at byte 68; the section has 67"),
]


@pytest.mark.parametrize(("data", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refused(data, text):
    with pytest.raises(SpecError) as caught:
        parse_tensors(data, "adapter", EXPECTED)
    assert caught.value.code == "E_TENSOR"
    assert caught.value.member == "__hello__/adapter"
    assert text in str(caught.value)


def test_an_adapter_without_targets_is_an_empty_object():
    assert serialize_tensors({}) == struct.pack("<Q", 8) + b"{}      "
    assert parse_tensors(serialize_tensors({}), "adapter", {}) == {}


def parsed_base(data):
    return parse_tensors(data, "base", stated_tensors(data, "base"))


def test_base_states_its_tensors():
    data = serialize_tensors({"x.y": StoredTensor("F32", (1,), ONE)})
    assert parsed_base(data)["x.y"].shape == (1,)
    for wrong in (
        data.replace(b"F32", b"I32"),
        data.replace(b"x.y", b"x y"),
        data.replace(b"x.y", b"x\x7fy"),
        data.replace(b"[1]", b"[0]"),
        data.replace(b"[1]", b'"1"'),
    ):
        with pytest.raises(SpecError, match="expected F32, F16 or BF16, 1 to 5 dimensions and a"):
            parsed_base(wrong)
    for wrong in (b"", data[:20], data.replace(b"{", b"[", 1), data.replace(b"shape", b"sharp")):
        with pytest.raises(SpecError, match="the header is not a JSON object of tensors"):
            parsed_base(wrong)
    with pytest.raises(SpecError, match="the header differs at byte 32"):
        parsed_base(data.replace(b"[0,4]", b"[4,8]").replace(b"x.y", b"xy:"))
    with pytest.raises(LimitError, match=r"E_LIMIT_TENSOR_HEADER .*is 1048577, cap 1048576"):
        parsed_base(struct.pack("<Q", 2**20 + 1) + b"{}")


def stored(dtype, data, name="a"):
    size = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}[dtype]
    return {name: StoredTensor(dtype, (len(data) // size,), data)}


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (
            stored("F32", struct.pack("<f", float("nan"))),
            "tensor a holds a value that is not finite",
        ),
        (stored("F32", struct.pack("<f", float("-inf"))), "not finite"),
        (stored("F16", b"\0\0\0\x7c"), "not finite"),
        (stored("BF16", b"\0\0\x80\x7f"), "not finite"),
        (stored("BF16", b"\xc0\xff"), "not finite"),
        (stored("I8", b"\x7f\x80"), "tensor a; expected int8 values from -127 to 127"),
        (stored("U8", b"\x11\x10"), "tensor a; expected int4 values from -7 to 7"),
        (stored("U8", b"\x11\x01"), "tensor a; expected int4 values from -7 to 7"),
        (stored("F32", bytes(4), "a_scale"), "tensor a_scale; expected scales above 0"),
        (stored("F32", struct.pack("<f", -1.0), "a_scale"), "expected scales above 0"),
    ],
)
def test_values(tensors, text):
    [problem] = validate_values(tensors)
    assert text in problem
    [(name, tensor)] = tensors.items()
    data = serialize_tensors(tensors)
    with pytest.raises(SpecError, match="E_TENSOR"):
        parse_tensors(data, "head", {name: (tensor.dtype, tensor.shape)})


def test_values_that_are_fine():
    fine = {
        **stored("F32", struct.pack("<ff", -3e38, 1e-45)),
        **stored("F16", b"\xff\x7b", "b"),
        **stored("BF16", b"\x7f\x7f", "c"),
        **stored("I8", b"\x81\x7f", "d"),
        **stored("U8", b"\x11\xff", "e"),
        **stored("F32", struct.pack("<f", -1.0), "logit_scale"),
    }
    assert validate_values(fine) == []


def test_base_digest_does_not_depend_on_storage():
    values = np.array([[1.0, -0.5]], np.float32)
    half = StoredTensor.from_numpy(values.astype(np.float16))
    brain = StoredTensor("BF16", (1, 2), (values.view(np.uint32) >> 16).astype("<u2").tobytes())
    digests = {
        base_tensors_digest({"w": tensor})
        for tensor in (StoredTensor.from_numpy(values), half, brain)
    }
    assert len(digests) == 1
