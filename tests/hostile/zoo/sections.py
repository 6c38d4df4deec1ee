"""Lies of the index, the classes, the texts, and of zstd frames."""

import struct
from functools import partial

from zoo.parts import (
    Row,
    Sparse,
    add,
    canonical,
    frame,
    hostile,
    images_only,
    member,
    packed,
    png,
    projector,
    sha,
    squeezed,
    stored_index,
    up,
)

index = partial(hostile, "index")


def column(**columns):
    return images_only().reindex(**columns).build()


def without_column(name):
    kit = images_only()
    kept = {key: value for key, value in stored_index(kit).items() if key != name}
    return kit.tensors("index", kept).build()


for key in ("size", "label", "height", "width", "sha256"):
    add(f"index_without_{key}", "E_TENSOR", partial(without_column, key), group="index")

U64 = partial(struct.pack, "<3Q")
for name, key, value, code in (
    ("extra_column", "offset", ("U64", [3], U64(0, 1, 2)), "E_TENSOR"),
    ("size_as_u32", "size", ("I32", [3], bytes(12)), "E_TENSOR"),
    ("label_as_u64", "label", ("U64", [3], bytes(24)), "E_TENSOR"),
    ("label_as_floats", "label", ("F32", [3], bytes(12)), "E_TENSOR"),
    ("two_rows", "label", ("I32", [2], bytes(8)), "E_TENSOR"),
    ("label_in_two_dimensions", "label", ("I32", [3, 1], bytes(12)), "E_TENSOR"),
    ("digest_of_20_bytes", "sha256", ("U8", [3, 20], bytes(60)), "E_TENSOR"),
    ("label_negative", "label", ("I32", [3], struct.pack("<3i", -1, 0, 1)), "E_INDEX"),
    ("label_minimum", "label", ("I32", [3], struct.pack("<3i", -(2**31), 0, 1)), "E_INDEX"),
    ("label_too_large", "label", ("I32", [3], struct.pack("<3i", 0, 0, 2)), "E_INDEX"),
    ("label_unsorted", "label", ("I32", [3], struct.pack("<3i", 0, 1, 0)), "E_INDEX"),
    ("size_2_to_63", "size", ("U64", [3], U64(80, 1 << 63, 80)), "E_LIMIT_IMAGE_BYTES"),
    ("size_2_to_64_minus_1", "size", ("U64", [3], U64(80, 2**64 - 1, 80)), "E_LIMIT_IMAGE_BYTES"),
    ("sizes_that_wrap", "size", ("U64", [3], U64(1 << 63, 1 << 63, 80)), "E_LIMIT_IMAGE_BYTES"),
    ("size_64_mib_and_1", "size", ("U64", [3], U64((64 << 20) + 1, 9, 9)), "E_LIMIT_IMAGE_BYTES"),
    ("size_one_block_more", "size", ("U64", [3], U64(80, 80, 600)), "E_INDEX"),
    ("height_zero", "height", ("U16", [3], struct.pack("<3H", 0, 3, 3)), "E_INDEX"),
    ("width_zero", "width", ("U16", [3], struct.pack("<3H", 4, 4, 0)), "E_INDEX"),
    ("width_65535", "width", ("U16", [3], struct.pack("<3H", 4, 4, 65535)), "E_LIMIT_IMAGE_SIDE"),
    ("height_4097", "height", ("U16", [3], struct.pack("<3H", 4097, 3, 3)), "E_LIMIT_IMAGE_SIDE"),
    ("digest_of_nothing", "sha256", ("U8", [3, 32], bytes(96)), "E_DIGEST_MEMBER"),
):
    add(f"index_{name}", code, partial(column, **{key: value}), group="index")


def columned(*declared, **tensors):
    """An index with further columns: declared as (name, dtype, shape), stored as ``tensors``."""
    kit = images_only()
    kit.manifest["images"]["columns"] = [
        {"dtype": dtype, "name": name, "shape": list(shape)} for name, dtype, shape in declared
    ]
    return kit.reindex(**tensors).build()


WEIGHT = ("weight", "F32", ())
THREE = {"weight": ("F32", [3], struct.pack("<3f", 1, 0, 2))}
for name, code, declared, tensors in (
    ("columns_none", "E_SCHEMA", (), {}),
    ("column_missing", "E_TENSOR", (WEIGHT,), {}),
    ("column_twice", "E_DUPLICATE", (WEIGHT, WEIGHT), THREE),
    ("column_of_a_fixed_name", "E_DUPLICATE", (("label", "I32", ()),), {}),
    ("column_of_an_unknown_name", "E_SCHEMA", (("score", "F32", ()),), {}),
    ("column_of_another_form", "E_SCHEMA", (("weight", "I32", ()),), {}),
    ("column_of_another_shape", "E_SCHEMA", (("crop", "I32", (4,)),), {}),
    ("column_of_f64", "E_SCHEMA", (("x_a", "F64", ()),), {}),
    ("column_of_four_dimensions", "E_SCHEMA", (("x_a", "U8", (1, 1, 1, 1)),), {}),
    ("column_of_a_zero_dimension", "E_SCHEMA", (("x_a", "U8", (0,)),), {}),
    ("column_of_4097_bytes", "E_SCHEMA", (("x_a", "U8", (4097,)),), {}),
    ("column_of_2_to_52_bytes", "E_SCHEMA", (("x_a", "U8", (1 << 52, 1 << 52, 2)),), {}),
    ("columns_not_sorted", "E_ORDER", (("x_b", "U8", ()), ("x_a", "U8", ())), {}),
    ("columns_17", "E_SCHEMA", tuple((f"x_{i:02d}", "U8", ()) for i in range(17)), {}),
    (
        "weight_negative",
        "E_INDEX",
        (WEIGHT,),
        {"weight": ("F32", [3], struct.pack("<3f", 1, -1, 1))},
    ),
    (
        "weight_nan",
        "E_TENSOR",
        (WEIGHT,),
        {"weight": ("F32", [3], struct.pack("<3f", 1, float("nan"), 1))},
    ),
    (
        "labels_too_large",
        "E_INDEX",
        (("labels", "I32", (1,)),),
        {"labels": ("I32", [3, 1], struct.pack("<3i", -1, 1, 2))},
    ),
    (
        "crop_of_no_pixel",
        "E_INDEX",
        (("crop", "I32", (1, 4)),),
        {"crop": ("I32", [3, 1, 4], struct.pack("<12i", *[0, 0, 1, 1] * 2, 0, 0, 0, 1))},
    ),
):
    add(f"index_{name}", code, partial(columned, *declared, **tensors), group="index")


@index("E_HEADER")
def index_size_wrong_within_its_block():
    kit = images_only()
    sizes = [len(row.data) for row in kit.rows]
    return column(size=("U64", [3], U64(sizes[0] - 1, *sizes[1:])))


@index("E_INDEX")
def index_size_zero():
    # Everything else fits: the span, and the digest of no bytes.
    kit = images_only()
    kit.rows[0].data = b""
    return kit.reindex().build()


def index_stored(change):
    """An archive whose index section was changed as a whole."""
    kit = images_only()
    kit.files["index"] = change(kit.files["index"])
    return kit.build()


def reheaded(data, change):
    """A tensor section with its header's text changed and its length right."""
    (size,) = struct.unpack_from("<Q", data)
    text = change(data[8 : 8 + size])
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


for name, change in {
    "trailing_byte": lambda data: data + b"\0",
    "cut": lambda data: data[:-1],
    "space_before_its_header": lambda data: reheaded(data, lambda text: b" " + text),
    "line_feed_after_its_header": lambda data: reheaded(data, lambda text: text + b"\n"),
    "nul_after_its_header": lambda data: reheaded(data, lambda text: text + b"\0"),
    "header_of_another_length": lambda data: struct.pack("<Q", len(data)) + data[8:],
    "header_of_half_its_length": lambda data: struct.pack("<Q", 40) + data[8:],
    "space_within_its_header": lambda data: reheaded(
        data, lambda text: text.replace(b"[0,24]", b"[0, 24]")
    ),
}.items():
    add(f"index_section_{name}", "E_TENSOR", partial(index_stored, change), group="index")


@index("E_INDEX")
def index_sum_unequal_to_the_span():
    kit = images_only()
    head = kit.head()
    head["images"]["span"] -= 512
    return kit.build(head, trailer=bytes(512))


@index("E_INDEX")
def index_span_one_block_too_long():
    kit = images_only()
    head = kit.head()
    head["images"]["span"] += 512
    return kit.build(head, trailer=bytes(1536))


@index("E_INDEX")
def index_of_an_uneven_ipc():
    kit = images_only()
    kit.manifest["dataset"]["ipc"] = 2
    kit.rows.append(Row(1, png(level=1)))
    kit.rows[1].label = 1
    kit.manifest["images"]["count"] = 4
    return kit.reindex().build()


def counted(count):
    kit = images_only()
    kit.manifest["images"]["count"] = count
    return kit.build()


for count, code in ((4, "E_TENSOR"), (1_000_000, "E_TENSOR"), (10_000_000, "E_LIMIT_IMAGES")):
    add(f"index_{count}_rows_claimed", code, partial(counted, count), group="index")


@index("E_INDEX")
def index_of_a_million_rows_that_wrap():
    """48 MB of index whose sizes are each allowed; sparse, so that the file costs nothing."""
    count = 1_000_000
    kit = images_only()
    kit.manifest["images"] |= {"count": count, "span": 1 << 35}
    entries, at = {}, 0
    for name, (dtype, width, shape) in {
        "size": ("U64", 8, [count]),
        "label": ("I32", 4, [count]),
        "height": ("U16", 2, [count]),
        "width": ("U16", 2, [count]),
        "sha256": ("U8", 32, [count, 32]),
    }.items():
        size = width * count
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = canonical(entries)
    text += b" " * (-len(text) % 8)
    # All sizes 0: the first check that sees a value refuses it, after 48 MB were read.
    head = struct.pack("<Q", len(text)) + text
    kit.files["index"] = head + bytes(at)
    manifest = canonical(kit.head())
    front = member("__hello__/manifest", manifest)
    front += member("__hello__/id", (sha(manifest) + "\n").encode())
    index_at = len(front)
    end = index_at + 512 + up(len(head) + at)
    first = member("__hello__/index", kit.files["index"])[: 512 + len(head)]
    back = member("__hello__/classes", kit.files["classes"])
    return Sparse(end + len(back) + (1 << 35) + 1024, ((0, front), (index_at, first), (end, back)))


@index("E_INDEX")
def index_packed_of_other_dimensions():
    kit = packed()
    kit.reindex(height=("U16", [3], struct.pack("<3H", 3, 3, 4)))
    return kit.build()


@index("E_INDEX")
def index_packed_of_other_sizes():
    kit = packed()
    kit.reindex(size=("U64", [3], U64(36, 36, 35)))
    return kit.build()


@index("E_DIGEST_MEMBER")
def index_packed_of_other_digests():
    kit = packed()
    kit.reindex(sha256=("U8", [3, 32], bytes(96)))
    return kit.build()


@index("E_DIGEST_INDEX")
def packed_pixels_digest_of_another_section():
    # Every picture has its digest; the section as a whole does not.
    kit = packed()
    return kit.note("pixels", digest="sha256:" + "0" * 64).build()


@index("E_TENSOR")
def packed_pixels_one_byte_more():
    kit = packed()
    kit.files["pixels"] += b"\0"
    return kit.build()


@index("E_TENSOR")
def packed_pixels_header_of_2_to_64():
    kit = packed()
    kit.files["pixels"] = b"\xff" * 8 + kit.files["pixels"][8:]
    return kit.build()


@index("E_TENSOR")
def packed_pixels_of_another_shape():
    kit = packed()
    data = b"".join(row.data for row in kit.rows)
    return kit.tensors("pixels", {"pixels": ("U8", [3, 4, 3, 3], data)}).build()


classes = partial(hostile, "classes")

for name, text in {
    "without_tab": b"tench\ngoldfish\ta\n",
    "without_key": b"\ttench\nb\tgoldfish\n",
    "without_name": b"a\t\nb\tgoldfish\n",
    "twice": b"a\ttench\na\tgoldfish\n",
    "two_tabs": b"a\ttench\tmore\nb\tgoldfish\n",
    "control_character": b"a\tten\x07ch\nb\tgoldfish\n",
    "escape_sequence": b"a\t\x1b[31mtench\nb\tgoldfish\n",
    "c1_control": "a\tten\x9bch\nb\tgoldfish\n".encode(),
    "nul": b"a\tten\0ch\nb\tgoldfish\n",
    "del": b"a\tten\x7fch\nb\tgoldfish\n",
    "crlf": b"a\ttench\r\nb\tgoldfish\r\n",
    "no_last_line_feed": b"a\ttench\nb\tgoldfish",
    "empty_line_at_the_end": b"a\ttench\nb\tgoldfish\n\n",
    "empty_line": b"a\ttench\n\n",
    "one_line_few": b"a\ttench\n",
    "one_line_many": b"a\ttench\nb\tgoldfish\nc\tshark\n",
    "latin_1": b"a\ttench\nb\tpoisson rouge\xe9\n",
    "overlong_utf8": b"a\tten\xc0\xafch\nb\tgoldfish\n",
    "surrogate_utf8": b"a\tten\xed\xa0\x80ch\nb\tgoldfish\n",
    "utf16": "a\ttench\nb\tgoldfish\n".encode("utf-16"),
    "line_too_long": b"a\t" + b"t" * 4095 + b"\nb\tgoldfish\n",
    "only_a_line_feed": b"\n",
    "line_separator": "a\tten\u2028ch\nb\tgoldfish\n".encode(),
}.items():

    def written(text=text):
        kit = images_only()
        kit.files["classes"] = text
        return kit.build()

    add(f"classes_{name}", "E_CLASSES", written, group="classes")


@classes("E_CLASSES")
def classes_a_hundred_thousand_claimed():
    kit = images_only()
    kit.manifest["classes"] = 100_000
    return kit.build()


@classes("E_SCHEMA")
def card_not_utf8():
    kit = projector()
    kit.files["card"] = b"\xff\xfe"
    return kit.build()


@classes("E_SCHEMA")
def license_not_utf8():
    kit = projector()
    kit.files["license"] = b"\xc0\x80"
    return kit.build()


records = partial(hostile, "records")
RUN = {"device": "cpu", "seeds": {"fit": 0}, "versions": {"hellofmt": "1.0"}}
EVALUATED = {
    "classes": 2,
    "digest": "sha256:" + "0" * 64,
    "images": 500,
    "name": "test",
    "per_class": [250, 250],
}
RESULT = {
    "accuracy": ["41.2", "39.5"],
    "batch_size": 50,
    "bfloat16": False,
    "device": "cpu",
    "evaluated": EVALUATED,
    "images": "archive",
    "labels": "soft",
    "learning_rate": "0.001",
    "recipe": "kl",
    "seeds": [0, 1],
    "steps": 300,
    "student": "cnn",
    "versions": RUN["versions"],
}


def recorded(data):
    """An archive with a record of these bytes."""
    kit = images_only()
    kit.files["record"] = data if isinstance(data, bytes) else canonical(data)
    return kit.build()


def result(**changes):
    return {"results": [RESULT | changes]}


for name, data, code in (
    ("empty_object", {}, ""),
    ("of_two_seeds", result(), ""),
    ("that_looks_like_an_attack", result(student="\x1b]0;x\x07<script>$(id)", recipe="..."), ""),
    ("list", [], "E_JSON"),
    ("white_space", b'{"results": []}', "E_JSON"),
    ("key_order", b'{"results":[],"images":1}', "E_JSON"),
    ("key_twice", b'{"results":[],"results":[]}', "E_JSON"),
    ("line_feed_last", b"{}\n", "E_JSON"),
    ("float", b'{"results":[0.5]}', "E_JSON"),
    ("lone_surrogate", b'{"x_a":"\\ud800"}', "E_JSON"),
    ("nested_10000_deep", b'{"a":' * 10000 + b"1" + b"}" * 10000, "E_JSON"),
    ("not_json", b"\x80\x04K\x01.", "E_JSON"),
    ("unknown_key", {"eval": "import os"}, "E_SCHEMA"),
    ("unknown_key_inside", result(url="http://a/b"), "E_SCHEMA"),
    ("free_key", {"x_note": "here"}, "E_SCHEMA"),
    ("number_for_a_list", {"functions": 1}, "E_SCHEMA"),
    ("accuracy_above_100", result(accuracy=["100.1", "1.0"]), "E_SCHEMA"),
    ("accuracy_as_number", result(accuracy=[41, 39]), "E_SCHEMA"),
    ("accuracy_of_17_digits", result(accuracy=["41.00000000000001", "1.0"]), "E_SCHEMA"),
    ("seed_twice", result(seeds=[0, 0]), "E_SCHEMA"),
    ("seed_without_accuracy", result(seeds=[0, 1, 2]), "E_SCHEMA"),
    ("65_results", {"results": [RESULT] * 65}, "E_SCHEMA"),
    ("long_student", result(student="n" * 401), "E_SCHEMA"),
    ("17_versions", result(versions={f"v{i}": "1" for i in range(17)}), "E_SCHEMA"),
    ("64_kib_and_1", b"{" + b" " * (64 << 10), "E_LIMIT_TEXT"),
):
    add(f"record_{name}", code, partial(recorded, data), group="records")


@records("E_LIMIT_TEXT")
def record_of_1_mib_as_zstd():
    raw = b"{" + b" " * (1 << 20)
    kit = images_only()
    kit.files["record"] = frame(raw)
    digest = "sha256:" + sha(raw)
    return kit.note("record", encoding="zstd", raw_size=len(raw), raw_digest=digest).build()


@records("E_ORDER")
def record_after_the_card():
    kit = images_only()
    kit.files |= {"card": b"# card\n", "record": b"{}"}
    return kit.build()


zstd = partial(hostile, "zstd")
RAW = b"# card\n" * 100
SUM = frame(RAW)[-4:]
"""The right checksum, so that a frame is refused for what else it says."""


def as_frame(stored, raw=RAW, **notes):
    """The card stored as given bytes, with right digests of everything."""
    kit = projector()
    kit.files["card"] = stored
    entry = {"encoding": "zstd", "raw_size": len(raw), "raw_digest": "sha256:" + sha(raw)}
    return kit.note("card", **entry | notes).build()


def raw_frame(blocks, *, size=None, window=None, checksum=None, descriptor=0, dictionary=b""):
    """A zstd frame put together by hand; ``size`` stated in 8 bytes, ``blocks`` (type, n, data)."""
    flags = descriptor | (4 if checksum is not None else 0)
    out = b"\x28\xb5\x2f\xfd"
    flags |= {0: 0, 1: 1, 2: 2, 4: 3}[len(dictionary)]
    if size is not None:
        flags |= 0xC0
    body = b"" if window is None else bytes([window])
    body += dictionary
    body += b"" if size is None else struct.pack("<Q", size)
    out += bytes([flags]) + body
    for i, (kind, count, data) in enumerate(blocks):
        last = i == len(blocks) - 1
        out += struct.pack("<I", last | kind << 1 | count << 3)[:3] + data
    return out + (b"" if checksum is None else checksum)


# 0x68 means a window of 8 MiB, each 8 more doubles it.
RLE = [(1, 1 << 17, b"\0")] * 80


@zstd("E_LIMIT_ZSTD_RATIO")
def zstd_honest_bomb():
    return squeezed("card", bytes(1 << 20)).build()


@zstd("E_LIMIT_ZSTD_BYTES")
def zstd_honest_bomb_of_1_gib():
    # Six megabytes stored, so that the ratio alone is no reason.
    kit = projector()
    kit.files["adapter"] = bytes(6 << 20)
    digest = "sha256:" + "0" * 64
    return kit.note("adapter", encoding="zstd", raw_size=1 << 30, raw_digest=digest).build()


@zstd("E_ZSTD")
def zstd_lying_bomb():
    # The frame says 1 GiB, the manifest 700 bytes.
    return as_frame(raw_frame(RLE, size=1 << 30, window=0x68, checksum=bytes(4)))


@zstd("E_ZSTD")
def zstd_bomb_behind_a_small_stated_size():
    # Header and manifest agree on 700 bytes; the blocks hold 10 MiB.
    return as_frame(raw_frame(RLE, size=len(RAW), window=0x68, checksum=bytes(4)))


@zstd("E_ZSTD")
def zstd_size_2_to_64():
    return as_frame(raw_frame(RLE, size=2**64 - 1, window=0x68, checksum=bytes(4)))


@zstd("E_ZSTD")
def zstd_no_content_size():
    return as_frame(frame(RAW, size=False))


@zstd("E_ZSTD")
def zstd_two_frames():
    return as_frame(frame(RAW[:350]) + frame(RAW[350:]))


@zstd("E_ZSTD")
def zstd_frame_after_a_whole_one():
    return as_frame(frame(RAW) + frame(b"more"))


@zstd("E_ZSTD")
def zstd_skippable_frame():
    return as_frame(b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"evil" + frame(RAW))


@zstd("E_ZSTD")
def zstd_skippable_frame_at_the_end():
    return as_frame(frame(RAW) + b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"evil")


@zstd("E_ZSTD")
def zstd_only_a_skippable_frame():
    return as_frame(b"\x5f\x2a\x4d\x18" + struct.pack("<I", 0xFFFFFFFF) + bytes(64))


@zstd("E_ZSTD")
def zstd_trailing_byte():
    return as_frame(frame(RAW) + b"\0")


@zstd("E_ZSTD")
def zstd_no_checksum():
    return as_frame(frame(RAW, checksum=False))


@zstd("E_ZSTD")
def zstd_wrong_checksum():
    return as_frame(frame(RAW)[:-4] + bytes(4))


@zstd("E_ZSTD")
def zstd_window_of_16_mib():
    return as_frame(raw_frame([(0, len(RAW), RAW)], size=len(RAW), window=0x70, checksum=SUM))


@zstd("E_ZSTD")
def zstd_window_of_1_gib():
    return as_frame(raw_frame([(0, len(RAW), RAW)], size=len(RAW), window=0xA0, checksum=SUM))


@zstd("E_ZSTD")
def zstd_window_of_3_tib():
    return as_frame(raw_frame([(0, len(RAW), RAW)], size=len(RAW), window=0xFF, checksum=SUM))


@zstd("E_ZSTD")
def zstd_dictionary():
    # A frame that names a dictionary by its number.
    stored = raw_frame(
        [(0, len(RAW), RAW)], size=len(RAW), window=0x50, checksum=SUM, dictionary=b"\x07"
    )
    return as_frame(stored)


@zstd("E_ZSTD")
def zstd_dictionary_without_a_name():
    import zstandard

    shared = zstandard.ZstdCompressionDict(RAW, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return as_frame(frame(RAW, dictionary=shared))


@zstd("E_ZSTD")
def zstd_reserved_bit():
    return as_frame(
        raw_frame([(0, len(RAW), RAW)], size=len(RAW), window=0x50, checksum=SUM, descriptor=8)
    )


@zstd("E_ZSTD")
def zstd_reserved_block_type():
    return as_frame(raw_frame([(3, 8, RAW[:8])], size=len(RAW), window=0x50, checksum=SUM))


@zstd("E_ZSTD")
def zstd_empty_frame():
    return as_frame(frame(b""))


@zstd("E_ZSTD")
def zstd_cut():
    return as_frame(frame(RAW)[:-9])


@zstd("E_ZSTD")
def zstd_only_its_magic():
    return as_frame(b"\x28\xb5\x2f\xfd")


@zstd("E_ZSTD")
def zstd_of_version_0_7():
    return as_frame(b"\x27" + frame(RAW)[1:])


@zstd("E_ZSTD")
def zstd_gzip_inside():
    import gzip

    return as_frame(gzip.compress(RAW, mtime=0))


@zstd("E_ZSTD")
def zstd_not_compressed_at_all():
    return as_frame(RAW)


@zstd("E_ZSTD")
def zstd_raw_size_one_more():
    return as_frame(frame(RAW), raw_size=len(RAW) + 1)


@zstd("E_DIGEST_INDEX")
def zstd_raw_digest_of_another_text():
    return as_frame(frame(RAW), raw_digest="sha256:" + "0" * 64)


@zstd("E_LIMIT_TEXT")
def zstd_card_of_2_mib_raw():
    # Hexadecimal digits of noise: half the size, so that the ratio is no reason.
    raw = b"".join(sha(b"%d" % i).encode() for i in range(1 << 15))
    return squeezed("card", raw).build()


@zstd("E_SCHEMA")
def zstd_of_no_bytes():
    return as_frame(b"")
