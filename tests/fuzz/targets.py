"""What is fuzzed: four parts of the reader, each fed raw bytes or bytes signed anew, and labels.

Raw bytes show what a damaged file can do; nearly all of them end at a digest or at canonical JSON.
The re-signed mode repairs exactly those (digests and ids, the canonical form, lengths and offsets
of a tensor header), so that the checks behind them are reached with hostile content. The fifth,
`labels`, goes on to the labels of a view. A target
passes if it returns or raises ``HelloError``; whatever it accepts must also hold the invariants
asserted there.
"""

import hashlib
import json
import math
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))

from zoo.functions import Memory
from zoo.parts import (
    VALID,
    WIDTHS,
    canonical,
    embedded,
    images_only,
    packed,
    projector,
    tensor_file,
    up,
)

from hellofmt.archive.format.classes import ClassLine, class_bytes, parse_classes
from hellofmt.archive.format.digest import content_id
from hellofmt.archive.format.implied import expected_tensors, section_tensors
from hellofmt.archive.format.index import parse_index
from hellofmt.archive.format.limits import DEFAULT_LIMITS
from hellofmt.archive.format.manifest import UNSET
from hellofmt.archive.format.parse import manifest_bytes, parse_manifest
from hellofmt.archive.format.validate import check_manifest_limits
from hellofmt.archive.read import verify
from hellofmt.archive.read.file import HelloFile
from hellofmt.errors import HelloError


class Violated(Exception):
    """An accepted input that breaks what acceptance promises."""


def require(holds, what):
    # No assert: the fuzzer must not be switched off by -O.
    if not holds:
        raise Violated(what)


def sha(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def container(data):
    file = HelloFile(Memory(data))
    verify._verify(file, "full", [], None, hashlib.sha256())
    require(file.size_bytes == len(data), "bytes that nobody read")
    size = int(data[124:135], 8)
    require(file.id == sha(data[512 : 512 + size]), "an id of something else")


def sign_container(data):
    """Digests of sections and images as the bytes have them, then the manifest, then the id."""
    out = bytearray(data)
    try:
        size = int(bytes(data[124:135]), 8)
        document = json.loads(bytes(data[512 : 512 + size]))
        at = 512 + up(size) + 1024
        places = {}
        for section in document["sections"]:
            places[section["name"]] = at + 512, section
            at += 512 + up(section["size"])
        sign_pictures(out, places["index"][0], at, places.get("pixels"))
    except (ValueError, KeyError, TypeError, IndexError, struct.error, RecursionError):
        return sign_id(out)
    for start, section in places.values():
        stored = bytes(out[start : start + section["size"]])
        section["digest"] = sha(stored)
        if "raw_digest" in section:
            section["raw_digest"] = sha(decompressed(stored))
    try:
        text = canonical(document)
    except (ValueError, RecursionError):
        return sign_id(out)
    if len(text) == size:
        out[512 : 512 + size] = text
    return sign_id(out)


def decompressed(stored):
    import zstandard

    try:
        if zstandard.frame_content_size(stored) > 1 << 20:
            return b""
        return zstandard.ZstdDecompressor().decompress(stored, max_output_size=1 << 20)
    except zstandard.ZstdError:
        return b""


def header_of(out, at):
    """The header of a tensor section at ``at``, and where its data begins."""
    (length,) = struct.unpack_from("<Q", out, at)
    return json.loads(bytes(out[at + 8 : at + 8 + length])), at + 8 + length


def sign_pictures(out, index_at, images_at, pixels):
    """The digest column of an index of a few pictures, wherever its header says that it is."""
    header, data = header_of(out, index_at)
    rows = min(header["size"]["shape"][0], 8)
    sizes = struct.unpack_from(f"<{rows}Q", out, data + header["size"]["data_offsets"][0])
    digests = data + header["sha256"]["data_offsets"][0]
    at = images_at + 512 if pixels is None else header_of(out, pixels[0])[1]
    for row, size in enumerate(sizes):
        picture = hashlib.sha256(out[at : at + size]).digest()
        out[digests + 32 * row : digests + 32 * row + 32] = picture
        at += size if pixels is not None else 512 + up(size)


def sign_id(out):
    try:
        size = int(bytes(out[124:135]), 8)
    except ValueError:
        return bytes(out)
    at = 512 + up(size) + 512
    if size >= 0 and at + 64 <= len(out):
        out[at : at + 64] = hashlib.sha256(out[512 : 512 + size]).hexdigest().encode()
    return bytes(out)


def manifest(data):
    parsed, extras = parse_manifest(data)
    check_manifest_limits(parsed, DEFAULT_LIMITS)
    content_id(data)
    for section in parsed.sections:
        expected_tensors(parsed, section.name)
    if parsed.hello == "1.0":
        require(manifest_bytes(parsed, extras) == data, "a manifest that reads as another")


def sign_manifest(data):
    """Canonical JSON of what was meant, with the digest of its base."""
    try:
        document = json.loads(data)
        base = document.get("base")
        if isinstance(base, dict):
            kept = {key: base[key] for key in ("arch", "preprocess", "tensors")}
            base["digest"] = sha(b"hello/base/1\n" + canonical(kept))
        return canonical(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return data


def parsed_manifest(kit):
    return parse_manifest(canonical(kit.head()))[0]


PROJECTOR = parsed_manifest(projector())
EMBEDDED = parsed_manifest(embedded())
PICTURES = parsed_manifest(images_only())
PACKED = parsed_manifest(packed())
SECTIONS = (
    ("adapter", PROJECTOR),
    ("head", PROJECTOR),
    ("probes", PROJECTOR),
    ("base", EMBEDDED),
    ("pixels", PACKED),
)


def tensors(data):
    if not data:
        return
    section, described = SECTIONS[data[0] % len(SECTIONS)]
    body = data[1:]
    wanted = expected_tensors(described, section)
    found = section_tensors(body, described, section)
    require(section == "base" or found.keys() == wanted.keys(), "tensors missing or added")
    (length,) = struct.unpack_from("<Q", body)
    stored = sum(len(tensor.data) for tensor in found.values())
    require(8 + length + stored == len(body), "bytes that belong to no tensor")
    for tensor in found.values():
        require(tensor.numpy().shape == tensor.shape, "a shape that is not the data's")


def sign_tensors(data):
    """The one header of what the header says, and as many bytes of data."""
    if len(data) < 10:
        return data
    try:
        length = min(struct.unpack_from("<Q", data, 1)[0], len(data))
        made, body = {}, data[9 + length :]
        header = json.loads(data[9 : 9 + length])
        for name in sorted(header, key=lambda name: (-WIDTHS[header[name]["dtype"]], name)):
            dtype, shape = header[name]["dtype"], header[name]["shape"]
            size = WIDTHS[dtype] * math.prod(shape)
            if not 0 <= size < 1 << 14:
                return data
            made[name] = (dtype, shape, body[:size].ljust(size, b"\0"))
            body = body[size:]
        return data[:1] + tensor_file(made)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return data


def index(data):
    if not data:
        return
    body = data[1:]
    if data[0] % 2:
        count = body.count(b"\n")
        found = parse_classes(body, count)
        lines = map(ClassLine, found.keys, found.names)
        require(class_bytes(list(lines)) == body, "classes that read as others")
        require(len(set(found.keys)) == count, "duplicate key")
        return
    described = PACKED if data[0] % 4 else PICTURES
    rows = parse_index(body, described, 4096, DEFAULT_LIMITS)
    ends = rows.offset + rows.size
    require(bool((rows.size > 0).all() and (rows.offset[1:] >= ends[:-1]).all()), "rows overlap")
    require(bool((rows.label[1:] >= rows.label[:-1]).all()), "rows are not sorted")
    images = described.images
    if images is not UNSET and images.layout == "files":
        require(up(int(ends[-1]) - 4096) == images.span, "rows end elsewhere")


HEADS = {
    kind: kit.files["index"][: 8 + struct.unpack_from("<Q", kit.files["index"])[0]]
    for kind, kit in (("files", images_only()), ("packed", packed()))
}


def sign_index(data):
    """A header that is right, and sizes that end where the manifest says."""
    if len(data) < 2 or data[0] % 2:
        return data
    kind = "packed" if data[0] % 4 else "files"
    columns = bytearray(data[1:][-144:].ljust(144, b"\0"))
    sizes = [n % 2048 or 1 for n in struct.unpack_from("<3Q", columns)]
    if kind == "packed":
        sizes = [36] * 3
    elif columns[0] % 2:
        span = PICTURES.images.span
        sizes[2] = max(span - sum(512 + up(n) for n in sizes[:2]) - 512, 1)
        struct.pack_into("<3Q", columns, 0, *sizes)
    return data[:1] + HEADS[kind] + bytes(columns)


def labels(data):
    from labels import compute

    compute(data)


def sign_labels(data):
    from labels import sign

    return sign(data)


RUN = {
    "container": container,
    "manifest": manifest,
    "tensors": tensors,
    "index": index,
    "labels": labels,
}
SIGN = {
    "container": sign_container,
    "manifest": sign_manifest,
    "tensors": sign_tensors,
    "index": sign_index,
    "labels": sign_labels,
}
CELLS = [(target, mode) for target in RUN for mode in ("raw", "resigned")]
# An input of the fifth target is no file but a list of changes to one.
CELLS.remove(("labels", "raw"))


def run_one(target, mode, data):
    """Feed one input; True if it was accepted, False if a ``HelloError`` refused it."""
    if mode == "resigned":
        data = SIGN[target](data)
    try:
        RUN[target](data)
    except HelloError:
        return False
    return True


def seeds(target):
    """Valid inputs to start from."""
    if target == "container":
        return [make() for name, make in VALID.items() if name not in ("jpeg", "grey_png")]
    if target == "labels":
        return [b"\0", b"\1", b"\2"]
    kits = [images_only(), projector(), embedded(), packed()]
    if target == "manifest":
        return [canonical(kit.head()) for kit in kits]
    if target == "tensors":
        stored = {"adapter": 1, "head": 1, "probes": 1, "base": 2, "pixels": 3}
        return [bytes([i]) + kits[stored[name]].files[name] for i, (name, _) in enumerate(SECTIONS)]
    return [
        b"\0" + kits[0].files["index"],
        b"\2" + kits[3].files["index"],
        b"\1" + kits[0].files["classes"],
        b"\1" + "a\tb\nn01\tx y, \u00fc\n".encode(),
    ]


TOKENS = [
    *b'null true false NaN Infinity -0 1e999 1.0 \\ud800 \\u0000 {} [] "" : , \t'.split(b" "),
    *(b"\n", b"\0", b"\xff", b" "),
    *(b'"hello":"1.7"', b'"x_a":"b"', b'"__metadata__"', b'"data_offsets"', b'"shape"', b'"F64"'),
    *(b'"U64"', b'"BF16"', b'"I8"', b"9007199254740993", b"18446744073709551615", b"-1", b"PK\5\6"),
    *(struct.pack("<Q", n) for n in (0, 1, 1 << 31, 1 << 32, 1 << 63, 2**64 - 1)),
]
"""What a random byte rarely spells."""
