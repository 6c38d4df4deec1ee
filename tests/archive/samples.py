"""Small archives with known content, built by NumPy and zlib alone.

No random number generator and no image encoder takes part, so the bytes are the same with every
version of either; ``png`` writes stored deflate blocks for the same reason.
"""

import hashlib
import json
import struct
import tarfile
import zlib

import numpy as np

from hellofmt.archive import (
    Arch,
    ClassLine,
    Dataset,
    Draft,
    ImageItem,
    ImageSet,
    Preprocess,
    ProjectorPart,
    Views,
    VisionArch,
)
from hellofmt.archive.format.digest import base_digest, tensors_digest
from hellofmt.archive.format.label_function import Adapter, Head, Target
from hellofmt.archive.format.manifest import Base, Producer
from hellofmt.archive.format.tensors import StoredTensor

CLASSES = (ClassLine("n01", ("tench", "Tinca tinca")), ClassLine("n02", ("gold fish",)))
VIEWS = Views(
    antialias=True,
    crop_ratio=["0.75", "1.3333333333333333"],
    crop_scale=["0.08", "1.0"],
    flip="0.5",
    interpolation="bilinear",
    mean=["0.5", "0.5", "0.5"],
    mix="cutmix",
    mix_alpha="1.0",
    mix_probability="1.0",
    shuffle=1,
    size=8,
    std=["0.25", "0.25", "0.25"],
)
DATASET = Dataset(name="tiny", version="1.0.0", license="CC0-1.0", method="none", sources=["made"])
PRODUCER = Producer(name="sample", version="0")
EMBED_DIM = 3


def pattern(seed, *shape):
    """Bytes that look arbitrary: a counter through SHA-256."""
    size = int(np.prod(shape))
    blocks = [hashlib.sha256(b"%d %d" % (seed, i)).digest() for i in range(size // 32 + 1)]
    return np.frombuffer(b"".join(blocks)[:size], np.uint8).reshape(shape)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(pixels, *, level=0, extra=()):
    """A PNG of uint8 (H, W, 1 or 3); ``extra`` chunks stand before the data."""
    height, width, channels = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            *(chunk(name, body) for name, body in extra),
            chunk(b"IDAT", zlib.compress(rows, level)),
            chunk(b"IEND", b""),
        ]
    )


def images(count=2, side=8, channels=3, layout="files"):
    items = [
        ImageItem(i % len(CLASSES), png(pattern(i, side, side, channels))) for i in range(count)
    ]
    return ImageSet("png", items, layout)


def floats(seed, *shape):
    """Float32 in [-1, 1)."""
    return pattern(seed, *shape).astype(np.float32) / 128 - 1


def factors(param, a, b, storage):
    """The tensors of a pair of factors in any storage."""
    tensors = {}
    for seed, (name, (rows, columns)) in enumerate((("A", a), ("B", b))):
        values = floats(seed + 7, rows, columns)
        key = f"{param}::{name}"
        if storage == "int8":
            tensors[key] = StoredTensor.from_numpy((values * 127).astype(np.int8))
        elif storage == "int4":
            packed = np.full((rows, -(-columns // 2)), 0x8C, np.uint8)
            tensors[key] = StoredTensor.from_numpy(packed)
        elif storage == "bfloat16":
            bits = (values.view(np.uint32) >> 16).astype("<u2")
            tensors[key] = StoredTensor("BF16", values.shape, bits.tobytes())
        else:
            tensors[key] = StoredTensor.from_numpy(values.astype(storage))
        if storage in ("int8", "int4"):
            scale = np.linspace(0.5, 1.5, rows, dtype=np.float32)
            tensors[f"{key}_scale"] = StoredTensor.from_numpy(scale)
    return tensors


def base(kind="seeded"):
    vision = VisionArch(image_size=8, layers=1, width=8, patch_size=2, head_width=8)
    arch = Arch(embed_dim=EMBED_DIM, quick_gelu=True, vision=vision)
    preprocess = Preprocess(
        antialias=True,
        interpolation="bicubic",
        mean=["0.5", "0.5", "0.5"],
        size=8,
        std=["0.5", "0.5", "0.5"],
    )
    weights = {"conv1.weight": StoredTensor.from_numpy(floats(3, 4, 3, 2, 2).astype(np.float16))}
    tensors = tensors_digest(
        (name, "F32", tensor.shape, tensor.numpy().astype("<f4").tobytes())
        for name, tensor in weights.items()
    )
    seeded = {"seed": 5} if kind == "seeded" else {}
    made = Base(
        arch=arch,
        digest=base_digest(arch, preprocess, tensors),
        kind=kind,
        name="tiny",
        preprocess=preprocess,
        tensors=tensors,
        **seeded,
    )
    return made, weights if kind == "embedded" else None


def projector(storage="float16", kind="seeded", *, low_rank_head=True, probes=1):
    """A label function over two classes: one delta, a stored head, one probe."""
    classes, rank = len(CLASSES), 1
    made, weights = base(kind)
    target = Target(
        a=[rank, 12], b=[4, rank], param="conv1.weight", scale="1.0", shape=[4, 3, 2, 2],
        storage=storage,
    )  # fmt: skip
    delta = {"a": [rank, EMBED_DIM], "b": [classes, rank], "scale": "0.5"} if low_rank_head else {}
    head = Head(
        bias=True, link="softmax", start="stored", storage=storage,
        temperature="20.0", **delta,
    )  # fmt: skip
    head_tensors = {
        "logit_scale": StoredTensor.from_numpy(np.array([4.5], np.float32)),
        "bias": StoredTensor.from_numpy(floats(9, classes)),
    }
    # A stored start is quantised like a factor: borrow its tensors under their own names.
    for key, tensor in factors("start", [classes, EMBED_DIM], [1, 1], storage).items():
        if "::A" in key:
            head_tensors[key.replace("start::A", "weight")] = tensor
    if low_rank_head:
        head_tensors |= factors("weight", delta["a"], delta["b"], storage)
    return ProjectorPart(
        base=made,
        adapter=Adapter(targets=[target]),
        head=head,
        adapter_tensors=factors("conv1.weight", target.a, target.b, storage),
        head_tensors=head_tensors,
        probe_logits=floats(11, probes, classes),
        base_tensors=weights,
    )


def draft(**parts):
    """A draft of the sample data set with ``parts`` set."""
    return Draft(dataset=DATASET, classes=CLASSES, views=VIEWS, producer=PRODUCER, **parts)


def everything():
    """Images, a label function with its base inside, card and licence; the card is compressed."""
    return draft(
        images=images(2),
        projector=projector(kind="embedded"),
        card="# tiny\n" + "one line, many times\n" * 30,
        license="CC0",
        extras={"x_note": "caf\u00e9"},
    )


def up(size):
    return -(-size // 512) * 512


def tar_header(name, size):
    """A USTAR header made by the standard library."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def member(name, data):
    return tar_header(name, len(data)) + data + bytes(up(len(data)) - len(data))


def split(data):
    """Manifest (as JSON), stored sections by name, and the images with the trailer."""
    size = int(data[124:135], 8)
    manifest = json.loads(data[512 : 512 + size])
    at = 512 + up(size) + 1024
    sections = {}
    for section in manifest["sections"]:
        sections[section["name"]] = data[at + 512 : at + 512 + section["size"]]
        at += 512 + up(section["size"])
    return manifest, sections, data[at:]


def join(manifest, sections, rest):
    """An archive around any manifest and sections, with a matching id: what a hostile file is.

    Sizes and digests of the sections are set in the manifest where they are stored raw, so that
    only the lie itself is left to find. A manifest given as bytes is taken as it is.
    """
    if not isinstance(manifest, bytes):
        for section in manifest["sections"]:
            stored = sections.get(section["name"])
            if stored is not None and section["encoding"] == "none":
                section["size"] = len(stored)
                section["digest"] = "sha256:" + hashlib.sha256(stored).hexdigest()
        manifest = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode("ascii")
    digits = hashlib.sha256(manifest).hexdigest().encode("ascii") + b"\n"
    parts = [member("__hello__/manifest", manifest), member("__hello__/id", digits)]
    parts += [member(f"__hello__/{name}", stored) for name, stored in sections.items()]
    return b"".join(parts) + rest
