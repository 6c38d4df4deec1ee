"""Lies of tensor sections: everything that safetensors accepts and the format does not, and more.

Each is written into the adapter of the projector archive unless it says otherwise.
"""

import json
import struct
from functools import partial

from zoo.parts import (
    adapter_tensors,
    add,
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
    return (
        b"{"
        + b",".join(
            json.dumps(k).encode() + b":" + (v if isinstance(v, bytes) else json.dumps(v).encode())
            for k, v in pairs
        )
        + b"}"
    )


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
    "entry_is_a_list": lambda e: list(e.values()),
    "entry_is_a_number": lambda _: 7,
    "entry_is_null": lambda _: None,
    "dtype_f64": lambda e: e | {"dtype": "F64"},
    "dtype_bool": lambda e: e | {"dtype": "BOOL"},
    "dtype_lower_case": lambda e: e | {"dtype": "i8"},
    "dtype_number": lambda e: e | {"dtype": 1},
    "dtype_list": lambda e: e | {"dtype": ["I8"]},
    "dtype_object": lambda e: e | {"dtype": {"I8": 1}},
    "dtype_of_another_width": lambda e: e | {"dtype": "F32"},
    "dtype_of_the_same_width": lambda e: e | {"dtype": "U8"},
    "dtype_f8": lambda e: e | {"dtype": "F8_E4M3"},
    "shape_flat": lambda e: e | {"shape": [16]},
    "shape_swapped": lambda e: e | {"shape": [8, 2]},
    "shape_of_no_dimension": lambda e: e | {"shape": []},
    "shape_of_six": lambda e: e | {"shape": [2, 8, 1, 1, 1, 1]},
    "shape_zero": lambda e: e | {"shape": [0, 9007199254740993]},
    "shape_negative": lambda e: e | {"shape": [-2, -8]},
    "shape_true": lambda e: e | {"shape": [True, 16]},
    "shape_string": lambda e: e | {"shape": "28"},
    "shape_that_wraps": lambda e: e | {"shape": [1 << 32, (1 << 32) + 1]},
    "offsets_one": lambda e: e | {"data_offsets": e["data_offsets"][:1]},
    "offsets_three": lambda e: e | {"data_offsets": [*e["data_offsets"], 0]},
    "offsets_reversed": lambda e: e | {"data_offsets": e["data_offsets"][::-1]},
    "offsets_negative": lambda e: e | {"data_offsets": [-16, 0]},
    "offsets_overlap": lambda e: e | {"data_offsets": [0, 16]},
    "offsets_short": lambda e: (
        e | {"data_offsets": [e["data_offsets"][0], e["data_offsets"][1] - 1]}
    ),
    "offsets_long": lambda e: (
        e | {"data_offsets": [e["data_offsets"][0], e["data_offsets"][1] + 1]}
    ),
    "offsets_hole": lambda e: e | {"data_offsets": [n + 1 for n in e["data_offsets"]]},
    "offsets_null": lambda e: e | {"data_offsets": None},
    "offsets_huge": lambda e: e | {"data_offsets": [2**53, 2**53 + 16]},
    "offsets_true": lambda e: e | {"data_offsets": [True, 17]},
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
    ("float_shape", b"[2, 8]", b"[2.0, 8]"),
    ("exponent_shape", b"[2, 8]", b"[2e0, 8]"),
    ("nan_shape", b"[2, 8]", b"[NaN, 8]"),
    ("infinite_offset", b"[2, 8]", b"[Infinity, 8]"),
    ("5000_digits", b"[2, 8]", b"[2, " + b"8" * 5000 + b"]"),
    ("dtype_twice", b'"dtype": "I8"', b'"dtype": "F32", "dtype": "I8"'),
    ("shape_twice", b'"shape": [2, 8]', b'"shape": [16], "shape": [2, 8]'),
    (
        "schema_twice",
        b'{"schema": "hello.adapter/1"}',
        b'{"schema": "hello.adapter/1", "schema": "hello.adapter/1"}',
    ),
    (
        "two_metadata_keys",
        b'{"schema": "hello.adapter/1"}',
        b'{"schema": "hello.adapter/1", "format": "pt"}',
    ),
    ("metadata_of_another_section", b"hello.adapter/1", b"hello.head/1"),
    ("metadata_of_another_version", b"hello.adapter/1", b"hello.adapter/2"),
    ("metadata_empty", b'{"schema": "hello.adapter/1"}', b"{}"),
    ("metadata_list", b'{"schema": "hello.adapter/1"}', b'["schema"]'),
    ("metadata_string", b'{"schema": "hello.adapter/1"}', b'"hello.adapter/1"'),
    ("metadata_null", b'{"schema": "hello.adapter/1"}', b"null"),
    ("name_unknown", b'"proj::A"', b'"proj::C"'),
    ("name_traversal", b'"proj::A"', b'"../../x\\u0000y"'),
    ("name_empty", b'"proj::A"', b'""'),
    ("name_control", b'"proj::A"', b'"proj::\\u0007A"'),
    ("name_escaped_otherwise", b'"proj::A"', b'"proj:\\u003aB"'),
    ("name_surrogate", b'"proj::A"', b'"\\ud800"'),
    ("name_of_600_characters", b'"proj::A"', b'"' + b"p" * 600 + b'"'),
    ("name_latin_1", b'"proj::A"', b'"proj::\xe9"'),
    ("comment", b'"proj::A"', b'/**/"proj::A"'),
    ("trailing_comma", b'"proj::A"', b',"proj::A"'),
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
def tensor_metadata_twice():
    return headed(lambda pairs, data: ([pairs[0], *pairs], data))


@tensors("E_TENSOR")
def tensor_missing():
    return headed(lambda pairs, data: (pairs[:-1], data[: pairs[-1][1]["data_offsets"][0]]))


@tensors("E_TENSOR")
def tensor_all_missing():
    return headed(lambda pairs, _: (pairs[:1], b""))


@tensors("E_TENSOR")
def tensor_data_without_tensors():
    return headed(lambda pairs, data: (pairs[:1], data))


@tensors("E_TENSOR")
def tensor_header_empty_object():
    return stored(tensor_bytes(b"{}", b""))


@tensors("E_TENSOR")
def tensor_trailing_bytes():
    return headed(lambda pairs, data: (pairs, data + b"\0"))


@tensors("E_TENSOR")
def tensor_data_cut():
    return headed(lambda pairs, data: (pairs, data[:-1]))


@tensors("E_TENSOR")
def tensor_entries_not_in_order_of_their_data():
    return headed(lambda pairs, data: (pairs[:1] + pairs[:0:-1], data))


@tensors("E_TENSOR")
def tensor_extra():
    def edit(pairs, data):
        end = len(data)
        more = {"dtype": "U8", "shape": [4], "data_offsets": [end, end + 4]}
        return [*pairs, ("hidden", more)], data + b"evil"

    return headed(edit)


@tensors("E_LIMIT_TENSORS")
def tensor_9000_empty():
    def edit(pairs, data):
        head = [pairs[0]] + [
            (f"{i:x}", {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}) for i in range(9_000)
        ]
        return head, data[:0]

    return headed(edit)


@tensors("E_LIMIT_TENSOR_HEADER")
def tensor_header_of_200_000_entries():
    body = b",".join(
        b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(200_000)
    )
    return stored(tensor_bytes(b"{" + body + b"}", b""))


@tensors("E_LIMIT_TENSORS")
def tensor_4097_entries():
    head = {
        f"t{i:04d}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
        for i in range(4097)
    }
    return stored(tensor_bytes(head, bytes(4 * 4097)), "base", embedded)


@tensors("E_LIMIT_TENSOR_HEADER")
def tensor_header_of_100_mb():
    return stored(struct.pack("<Q", 100_000_000) + projector().files["adapter"][8:])


@tensors("E_LIMIT_TENSOR_HEADER")
def tensor_header_of_2_to_64():
    return stored(b"\xff" * 8 + projector().files["adapter"][8:])


for name, data in {
    "of_one_byte": b"{",
    "of_seven_bytes": bytes(7),
    "length_only": bytes(8),
    "length_past_the_end": struct.pack("<Q", 4096) + b"{}",
    "not_an_object": tensor_bytes(b"[]", b""),
    "space_first": tensor_bytes(b" {}", b""),
    "line_feed_last": struct.pack("<Q", 3) + b"{}\n",
    "nul_last": struct.pack("<Q", 3) + b"{}\0",
    "two_objects": tensor_bytes(b"{}{}", b""),
    "utf8_damaged": tensor_bytes(b'{"\xff":1}', b""),
    "bom": tensor_bytes(b"\xef\xbb\xbf{}", b""),
    "deep": tensor_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
    "deep_objects": tensor_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b""),
    "of_a_pickle": b"\x80\x04cposix\nsystem\n(S'id'\ntR.",
    "of_a_npy_file": b"\x93NUMPY\x01\0\x46\0{'descr': '|O', 'fortran_order': False}",
    "of_a_zip": b"PK\3\4" + bytes(60),
}.items():
    # What begins with text states a header of many bytes.
    code = "E_LIMIT_TENSOR_HEADER" if name.startswith("of_a_") else "E_TENSOR"
    add(f"tensor_section_{name}", code, partial(stored, data), group="tensors")


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
    target = kit.manifest["adapter"]["targets"][1]
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
    kit.manifest["adapter"]["targets"][1]["storage"] = "float32"
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
    kit.manifest["adapter"]["targets"] = [target]
    values = {"proj::A": ("F32", [1, n], bytes(4 * n)), "proj::B": ("F32", [n, 1], bytes(4 * n))}
    return kit.tensors("adapter", values).build()
