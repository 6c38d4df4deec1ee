"""Lies of tensor sections: everything that safetensors accepts and the format does not, and more.

Each is written into the adapter of the projector archive unless it says otherwise.
"""

import json
import struct
from functools import partial

from zoo.parts import (
    adapter_tensors,
    add,
    canonical,
    embedded,
    f32,
    head_tensors,
    hostile,
    pair,
    projector,
    sha,
    sign_base,
    tensor_bytes,
)

tensors = partial(hostile, "tensors")


def listed(section="adapter"):
    """Header entries, as a list of pairs so that keys can stand twice, and data of a section."""
    kit = projector()
    data = kit.files[section]
    (size,) = struct.unpack_from("<Q", data)
    return list(json.loads(data[8 : 8 + size]).items()), data[8 + size :]


def text(pairs):
    return b"{" + b",".join(canonical(k) + b":" + canonical(v) for k, v in pairs) + b"}"


def stored(data, section="adapter", kit=projector):
    made = kit()
    made.files[section] = data
    return made.build()


def headed(change, section="adapter"):
    """The section with ``change(pairs, data)`` giving its header (pairs or bytes) and data."""
    head, data = change(*listed(section))
    return stored(tensor_bytes(head if isinstance(head, bytes) else text(head), data), section)


def entry(change, which="conv1.weight::A"):
    """The section with one header entry changed."""

    def edit(pairs, data):
        return [(k, change(dict(v)) if k == which else v) for k, v in pairs], data

    return headed(edit)


for name, change in {
    "unknown_field": lambda e: e | {"device": "cuda"},
    "field_missing": lambda e: {k: v for k, v in e.items() if k != "shape"},
    "dtype_f64": lambda e: e | {"dtype": "F64"},
    "dtype_of_the_same_width": lambda e: e | {"dtype": "U8"},
    "shape_swapped": lambda e: e | {"shape": [8, 2]},
    "shape_zero": lambda e: e | {"shape": [0, 9007199254740993]},
    "shape_that_wraps": lambda e: e | {"shape": [1 << 32, (1 << 32) + 1]},
    "offsets_overlap": lambda e: e | {"data_offsets": [0, 16]},
    "offsets_hole": lambda e: e | {"data_offsets": [n + 1 for n in e["data_offsets"]]},
}.items():
    add(f"tensor_{name}", "E_TENSOR", partial(entry, change), group="tensors")


def raw_entry(old, new):
    """The section with its header's text edited."""

    def edit(pairs, data):
        head = text(pairs)
        if old not in head:
            raise ValueError(old)
        return head.replace(old, new, 1), data

    return headed(edit)


for name, old, new in (
    ("space", b"[2,8]", b"[2, 8]"),
    ("dtype_twice", b'"dtype":"I8"', b'"dtype":"F32","dtype":"I8"'),
    ("fields_in_another_order", b'"dtype":"I8","shape":[2,8]', b'"shape":[2,8],"dtype":"I8"'),
    ("metadata", b"{", b'{"__metadata__":{"format":"pt"},'),
    ("name_escaped_otherwise", b'"proj::A"', b'"proj:\\u003aA"'),
    ("name_unknown", b'"proj::A"', b'"proj::C"'),
):
    add(f"tensor_{name}", "E_TENSOR", partial(raw_entry, old, new), group="tensors")


@tensors("E_TENSOR")
def tensor_name_twice_last_is_consistent():
    # The library loads the last one.
    def edit(pairs, data):
        name, last = pairs[-1]
        return [*pairs[:-1], (name, last | {"dtype": "U8"}), (name, last)], data

    return headed(edit)


@tensors("E_TENSOR")
def tensor_entries_in_another_order():
    return headed(lambda pairs, data: (pairs[::-1], data))


@tensors("E_TENSOR")
def tensor_data_in_another_order():
    """The data in the order of the names, as offsets say: the library loads the same values."""

    def edit(pairs, data):
        made, body = [], b""
        for name, e in pairs:
            start, end = e["data_offsets"]
            place = [len(body), len(body) + end - start]
            made.append((name, e | {"data_offsets": place}))
            body += data[start:end]
        return made, body

    return headed(edit)


@tensors("E_TENSOR")
def tensor_missing():
    return headed(lambda pairs, data: (pairs[1:], data))


@tensors("E_TENSOR")
def tensor_trailing_bytes():
    return headed(lambda pairs, data: (pairs, data + b"\0"))


@tensors("E_TENSOR")
def tensor_data_cut():
    return headed(lambda pairs, data: (pairs, data[:-1]))


@tensors("E_TENSOR")
def tensor_extra():
    def edit(pairs, data):
        end = len(data)
        more = {"data_offsets": [end, end + 4], "dtype": "U8", "shape": [4]}
        return [*pairs, ("z", more)], data + b"evil"

    return headed(edit)


@tensors("E_TENSOR")
def tensor_eight_spaces_more():
    return headed(lambda pairs, data: (text(pairs) + b" " * 8, data))


for name, data in {
    "of_one_byte": b"{",
    "length_only": bytes(8),
    "not_an_object": tensor_bytes(b"[]", b""),
    "of_a_pickle": b"\x80\x04cposix\nsystem\n(S'id'\ntR.",
}.items():
    add(f"tensor_section_{name}", "E_TENSOR", partial(stored, data), group="tensors")


def based(data):
    return stored(data, "base", embedded)


# Only the base states its tensors.
for name, code, data in (
    ("of_nothing", "E_TENSOR", bytes(3)),
    ("length_only", "E_TENSOR", bytes(8)),
    ("length_past_the_end", "E_TENSOR", struct.pack("<Q", 4096) + b"{}"),
    ("of_a_list", "E_TENSOR", tensor_bytes(b"[1]", b"")),
    ("of_a_number", "E_TENSOR", tensor_bytes(b'{"a":7}', b"")),
    ("utf8_damaged", "E_TENSOR", tensor_bytes(b'{"\xff":1}', b"")),
    ("nan", "E_TENSOR", tensor_bytes(b'{"a":{"dtype":"F32","shape":[NaN]}}', b"")),
    ("5000_digits", "E_TENSOR", tensor_bytes(b'{"a":' + b"8" * 5000 + b"}", b"")),
    ("deep", "E_TENSOR", tensor_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"")),
    ("dtype_list", "E_TENSOR", tensor_bytes(b'{"a":{"dtype":["F32"],"shape":[1]}}', bytes(4))),
    ("shape_true", "E_TENSOR", tensor_bytes(b'{"a":{"dtype":"F32","shape":[true]}}', bytes(4))),
    ("shape_text", "E_TENSOR", tensor_bytes(b'{"a":{"dtype":"F32","shape":"1"}}', bytes(4))),
    (
        "without_offsets",
        "E_TENSOR",
        tensor_bytes(b'{"a.weight":{"dtype":"F32","shape":[1]}}', bytes(4)),
    ),
    ("empty", "E_TENSOR", tensor_bytes(b"{}", b"")),
    ("of_100_mb", "E_LIMIT_TENSOR_HEADER", struct.pack("<Q", 100_000_000) + bytes(64)),
    ("of_2_to_64", "E_LIMIT_TENSOR_HEADER", b"\xff" * 8 + bytes(64)),
):
    add(f"tensor_base_header_{name}", code, partial(based, data), group="tensors")


@tensors("E_TENSOR")
def tensor_base_header_with_a_space():
    data = embedded().files["base"]
    (size,) = struct.unpack_from("<Q", data)
    return based(tensor_bytes(b"{ " + data[9 : 8 + size].rstrip(), data[8 + size :]))


def valued(section, name, dtype, shape, data):
    """The archive with one tensor of other values."""
    kit = projector()
    values = {"adapter": lambda: adapter_tensors(kit), "head": head_tensors}[section]()
    values[name] = (dtype, shape, data)
    return kit.tensors(section, values).build()


NAN, INF = float("nan"), float("inf")
for name, section, key, dtype, shape, data in (
    ("scale_zero", "adapter", "proj::A_scale", "F32", [3], f32(1, 0, 1)),
    ("scale_negative", "adapter", "proj::A_scale", "F32", [3], f32(1, -1, 1)),
    ("scale_nan", "adapter", "proj::A_scale", "F32", [3], f32(1, NAN, 1)),
    ("scale_infinite", "adapter", "conv1.weight::B_scale", "F32", [4], f32(1, 1, INF, 1)),
    ("int8_minus_128", "adapter", "conv1.weight::A", "I8", [2, 8], b"\x80" + bytes(15)),
    ("int4_odd_row_with_a_sixth_value", "adapter", "proj::A", "U8", [3, 3], b"\x97" * 9),
    ("int4_nibble_zero", "adapter", "proj::A", "U8", [3, 3], b"\x90\x97\x87" * 3),
    ("int4_high_nibble_zero", "adapter", "proj::A", "U8", [3, 3], b"\x07\x97\x87" * 3),
    ("logit_scale_nan", "head", "logit_scale", "F32", [1], f32(NAN)),
    ("logit_scale_infinite", "head", "logit_scale", "F32", [1], f32(-INF)),
    ("bias_nan", "head", "bias", "F32", [2], f32(0, NAN)),
    ("bias_of_three", "head", "bias", "F32", [3], f32(0, 1, 2)),
    ("weight_f16_nan", "head", "weight", "F16", [2, 8], b"\x00\x7e" * 16),
    ("weight_f16_infinite", "head", "weight", "F16", [2, 8], b"\x00\x7c" * 16),
    ("weight_as_f32", "head", "weight", "F32", [2, 8], bytes(64)),
    ("logit_scale_of_no_dimension", "head", "logit_scale", "F32", [], f32(1.0)),
):
    add(
        f"tensor_{name}",
        "E_TENSOR",
        partial(valued, section, key, dtype, shape, data),
        group="tensors",
    )


@tensors("E_TENSOR")
def tensor_probes_infinite():
    kit = projector()
    return kit.tensors("probes", {"logits": ("F32", [2, 2], f32(1, -INF, 0, 0))}).build()


@tensors("E_TENSOR")
def tensor_probes_of_another_count():
    kit = projector()
    return kit.tensors("probes", {"logits": ("F32", [1, 2], f32(1, 0))}).build()


@tensors("E_TENSOR")
def tensor_bfloat16_nan():
    kit = projector()
    target = kit.manifest["functions"][0]["adapter"]["targets"][1]
    target["storage"] = "bfloat16"
    values = adapter_tensors(kit)
    values["proj::A"] = ("BF16", [3, 5], b"\xc0\x7f" * 15)
    return kit.tensors("adapter", values).build()


@tensors("E_TENSOR")
def tensor_scale_missing():
    kit = projector()
    values = adapter_tensors(kit)
    del values["proj::A_scale"]
    return kit.tensors("adapter", values).build()


@tensors("E_TENSOR")
def tensor_scale_of_a_float():
    kit = projector()
    kit.manifest["functions"][0]["adapter"]["targets"][1]["storage"] = "float32"
    values = adapter_tensors(kit)
    values["proj::A_scale"] = ("F32", [3], f32(1, 1, 1))
    return kit.tensors("adapter", values).build()


@tensors("E_TENSOR")
def tensor_a_and_b_swapped():
    kit = projector()
    values = adapter_tensors(kit)
    values["proj::A"], values["proj::B"] = values["proj::B"], values["proj::A"]
    return kit.tensors("adapter", values).build()


@tensors("E_TENSOR")
def tensor_of_another_projector():
    kit = projector()
    return kit.tensors("adapter", pair("layer9.weight", (4, 2), (2, 8))).build()


@tensors("E_TENSOR")
def tensor_head_in_the_adapter():
    kit = projector()
    kit.files["adapter"] = kit.files["head"]
    return kit.build()


@tensors("E_TENSOR")
def tensor_embedded_base_of_other_weights():
    kit = embedded()
    kit.tensors(
        "base",
        {
            "a.weight": ("F16", [2, 2], b"\x00\x3c" * 3 + b"\x00\x3d"),
            "b": ("BF16", [3], b"\x80\x3f" * 3),
        },
    )
    return kit.build()


def in_the_base(name, dtype, shape, data):
    """The embedded base with one more tensor, and the digest of all of them."""
    kit = embedded()
    weights = {"a.weight": ("F16", [2, 2], b"\x00\x3c" * 4), name: (dtype, shape, data)}
    kit.tensors("base", weights)
    lines = [(name, "x".join(map(str, shape)), data), ("a.weight", "2x2", f32(1, 1, 1, 1))]
    text = "".join(f"{key}|F32|{dims}|{sha(body)}\n" for key, dims, body in sorted(lines))
    kit.manifest["base"]["tensors"] = "sha256:" + sha(text.encode())
    sign_base(kit.manifest["base"])
    return kit.build()


for name, key, shape, data in (
    ("name_empty", "", [1], f32(1)),
    ("name_control", "a\x07b", [1], f32(1)),
    ("name_nul", "../../x\0y", [1], f32(1)),
    ("name_of_513_characters", "n" * 513, [1], f32(1)),
    ("shape_zero", "b", [0], b""),
    ("shape_of_no_dimension", "b", [], f32(1)),
    ("shape_of_six", "b", [1] * 6, f32(1)),
):
    add(
        f"tensor_embedded_base_{name}",
        "E_TENSOR",
        partial(in_the_base, key, "F32", shape, data),
        group="tensors",
    )


@tensors("E_TENSOR")
def tensor_embedded_base_of_integers():
    kit = embedded()
    kit.tensors("base", {"a.weight": ("I32", [2, 2], bytes(16)), "b": ("BF16", [3], bytes(6))})
    return kit.build()


@tensors("E_TENSOR")
def tensor_embedded_base_nan():
    kit = embedded()
    kit.tensors(
        "base", {"a.weight": ("F16", [2, 2], b"\x00\x7e" * 4), "b": ("BF16", [3], bytes(6))}
    )
    return kit.build()


@hostile("harmless", "")
def matmul_bomb():
    """Two factors of 4 MB whose product has 10^12 entries; only a base can tell."""
    kit = projector()
    n = 1_000_000
    target = {
        "a": [1, n],
        "b": [n, 1],
        "param": "proj",
        "scale": "1.0",
        "shape": [n, n],
        "storage": "float32",
    }
    kit.manifest["functions"][0]["adapter"]["targets"] = [target]
    values = {"proj::A": ("F32", [1, n], bytes(4 * n)), "proj::B": ("F32", [n, 1], bytes(4 * n))}
    return kit.tensors("adapter", values).build()
