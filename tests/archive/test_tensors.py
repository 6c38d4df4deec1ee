import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hellofmt.archive import StoredTensor, open_archive
from hellofmt.archive.format.tensors import (
    base_tensors_digest,
    expected_tensors,
    parse_tensors,
    serialize_tensors,
    validate_values,
)
from hellofmt.errors import LimitError, SpecError, UserInputError


def section(header, data=b"", *, pad=b""):
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += pad
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


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
    data = serialize_tensors("index", tensors)
    assert data == serialize_tensors("index", dict(reversed(tensors.items())))
    expected = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    parsed = parse_tensors(data, "index", expected)
    assert set(parsed) == set(tensors)
    for name, (dtype, shape) in kinds.items():
        values = parsed[name].numpy()
        assert values.dtype == dtype
        assert (values == np.arange(np.prod(shape)).reshape(shape).astype(dtype)).all()


def test_golden_bytes():
    data = serialize_tensors("probes", {"logits": StoredTensor("F32", (1, 1), ONE)})
    assert data == (
        b"\x68\0\0\0\0\0\0\0"
        b'{"__metadata__":{"schema":"hello.probes/1"},'
        b'"logits":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}' + ONE
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


def test_unknown_dtype_of_an_array():
    with pytest.raises(UserInputError, match="E_DATA: the format stores no float64 tensors"):
        StoredTensor.from_numpy(np.zeros(2))


REFUSED = [
    (b"", "goes past the section of 0 bytes"),
    (b"\x01\0\0", "goes past the section of 3 bytes"),
    (struct.pack("<Q", 99) + b"{}", "goes past the section of 10 bytes"),
    (section(b" {}"), "does not begin with a JSON object"),
    (section({"a": entry()}, ONE, pad=b"\n"), "padded with something other than spaces"),
    (section({"a": entry()}, ONE, pad=b"\0"), "padded with something other than spaces"),
    (section(b'{"a":}'), "the header is not JSON"),
    (section(b'{"a":"\xff"}'), "the header is not JSON"),
    (section(b'{"a":' * 9000 + b"}"), "the header is not JSON"),
    (section(b'{"a":1.5}'), "expected integers, got 1.5"),
    (section(b'{"a":NaN}'), "expected integers, got NaN"),
    (section(b'{"a":' + b"1" * 4300 + b"}"), "integer of 4300 digits"),
    (section(b'{"a":1,"a":1}'), "header: duplicate key"),
    (section(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "header: duplicate key"),
    (section(b'{"__metadata__":{"schema":"","schema":""}}'), "header: duplicate key"),
    (section({"__metadata__": {"schema": "hello.head/1"}, "a": entry()}, ONE), "metadata; "),
    (section({"__metadata__": {}, "a": entry()}, ONE), "metadata; expected only schema"),
    (section({"": entry()}, ONE), "tensor : expected a name of 1 to 512 printable characters"),
    (section({"a\0": entry()}, ONE), "printable characters"),
    (section({"a": 1}, ONE), "tensor a: expected exactly dtype, shape and data_offsets"),
    (section({"a": entry(more=1)}, ONE), "tensor a: expected exactly dtype, shape and"),
    (section({"a": entry("F64")}, ONE), "tensor a: dtype F64 is not one the format stores"),
    (section({"a": entry(["F32"])}, ONE), "is not one the format stores"),
    (section({"a": entry(shape=())}, ONE), "tensor a: expected 1 to 5 dimensions, each at least 1"),
    (section({"a": entry(shape=(1,) * 6)}, ONE), "expected 1 to 5 dimensions"),
    (section({"a": entry(shape=(0, 2**53 - 1))}), "expected 1 to 5 dimensions, each at least 1"),
    (section({"a": entry(shape=(True,))}, ONE), "expected 1 to 5 dimensions, each at least 1"),
    (section({"a": entry(offsets=(4, 8))}, ONE), "tensor a: expected data from offset 0 to 4"),
    (section({"a": entry(offsets=(0, 5))}, ONE), "tensor a: expected data from offset 0 to 4"),
    (section({"a": entry(offsets=(False, 4))}, ONE), "tensor a: expected data from offset 0 to 4"),
    (section({"a": entry(shape=(2**40, 2**12))}, ONE), "from offset 0 to 18014398509481984"),
    (section({"b": entry()}, ONE), "tensor b is not one the manifest implies"),
    (section({"a": entry("I32")}, ONE), "tensor a; expected F32 1, got I32 1"),
    (section({"a": entry(shape=(1, 1))}, ONE), "tensor a; expected F32 1, got F32 1x1"),
    (section({}), "tensor a is missing (1 in all)"),
    (section({"a": entry()}, ONE + b"\0"), "the tensors end at byte"),
    (section({"a": entry()}, ONE[:-1]), "the tensors end at byte"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refused(data, text):
    with pytest.raises(SpecError) as caught:
        parse_tensors(data, "adapter", EXPECTED)
    assert caught.value.code == "E_TENSOR"
    assert caught.value.member == "__hello__/adapter"
    assert text in str(caught.value)


def test_accepted():
    for pad in (b"", b"    "):
        parsed = parse_tensors(section({"a": entry()}, ONE, pad=pad), "adapter", EXPECTED)
        assert parsed["a"].numpy() == [1.5]
    assert parse_tensors(section({}), "adapter", {}) == {}


def test_limits_of_the_header():
    with pytest.raises(LimitError, match=r"E_LIMIT_TENSOR_HEADER .*is 1048577, cap 1048576"):
        parse_tensors(struct.pack("<Q", 2**20 + 1) + b"{}", "adapter", EXPECTED)
    many = {f"t{i}": 1 for i in range(4097)}
    with pytest.raises(LimitError, match=r"E_LIMIT_TENSORS .*is 4097, cap 4096"):
        parse_tensors(section(many), "adapter", EXPECTED)


def test_base_takes_any_name_but_floats_only():
    assert parse_tensors(section({"x.y": entry()}, ONE), "base", None)["x.y"].shape == (1,)
    with pytest.raises(SpecError, match="tensor x; expected F32, F16 or BF16, got I32 1"):
        parse_tensors(section({"x": entry("I32")}, ONE), "base", None)


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
    shape = list(tensor.shape)
    data = section({name: entry(tensor.dtype, shape, (0, len(tensor.data)))}, tensor.data)
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


def test_expected_tensors(everything, samples):
    with open_archive(everything) as file:
        manifest = file.manifest
    assert expected_tensors(manifest, "adapter") == {
        "conv1.weight::A": ("F16", (1, 12)),
        "conv1.weight::B": ("F16", (4, 1)),
    }
    assert expected_tensors(manifest, "head") == {
        "logit_scale": ("F32", (1,)),
        "bias": ("F32", (2,)),
        "weight": ("F16", (2, 3)),
        "weight::A": ("F16", (1, 3)),
        "weight::B": ("F16", (2, 1)),
    }
    assert expected_tensors(manifest, "probes") == {"logits": ("F32", (1, 2))}
    assert expected_tensors(manifest, "index")["sha256"] == ("U8", (2, 32))
    assert expected_tensors(manifest, "base") is None


def test_base_digest_does_not_depend_on_storage():
    values = np.array([[1.0, -0.5]], np.float32)
    half = StoredTensor.from_numpy(values.astype(np.float16))
    brain = StoredTensor("BF16", (1, 2), (values.view(np.uint32) >> 16).astype("<u2").tobytes())
    digests = {
        base_tensors_digest({"w": tensor})
        for tensor in (StoredTensor.from_numpy(values), half, brain)
    }
    assert len(digests) == 1
