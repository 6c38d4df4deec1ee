"""Writes the vectors of the specification: `python tests/spec/make_vectors.py [FOLDER]`.

Valid archives are written by hellofmt, which verifies them; what a reader must find in each stands
in the JSON file beside it. Invalid ones are valid ones with one fault, put together again here with
all digests made right unless the fault is in a digest: a reader has to see the fault itself.

Everything is a function of the counter RNG and of the image files in `images/`, so the same
libzstd gives the same bytes everywhere. Logits of probes are rounded to 2**-12, which hides the
last bits in which machines differ and lies far inside the tolerance for probes.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import zstandard

from hellofmt import errors
from hellofmt.archive import (
    ClassLine,
    Draft,
    ImageItem,
    ImageSet,
    ProjectorPart,
    StoredTensor,
    base_digest,
    open_archive,
    probe_images,
    tensors_digest,
    write_archive,
)
from hellofmt.archive.layout import header
from hellofmt.archive.manifest import (
    Adapter,
    Arch,
    Base,
    Dataset,
    Head,
    HeadText,
    Preprocess,
    Producer,
    Shard,
    Target,
    Views,
    VisionArch,
    canonical,
)
from hellofmt.rng import uniform, words

ROOT = Path(__file__).resolve().parents[2]
IMAGES = Path(__file__).parent / "images"
TOWER = "sha256:" + hashlib.sha256(b"a text tower that nobody has").hexdigest()
CLASSES = (
    ClassLine("n02119789", ("kit fox", "Vulpes macrotis")),
    ClassLine("n02100735", ("English setter",)),
    ClassLine("zebra", ("zebra",)),
)
# Not hellofmt's version: a release must not change the vectors.
PRODUCER = Producer(name="hellofmt vectors", version="1")
ARCH = Arch(
    embed_dim=16,
    quick_gelu=False,
    vision=VisionArch(image_size=8, head_width=8, layers=1, patch_size=4, width=16),
)
PREPROCESS = Preprocess(
    antialias=True,
    interpolation="bicubic",
    mean=["0.48145466", "0.4578275", "0.40821073"],
    resize_mode="squash",
    size=8,
    std=["0.26862954", "0.26130258", "0.27577711"],
)
VIEWS = Views(
    antialias=True,
    crop_ratio=["0.75", "1.3333333333333333"],
    crop_scale=["0.08", "1.0"],
    flip="0.5",
    interpolation="bilinear",
    mean=["0.485", "0.456", "0.406"],
    mix="cutmix",
    mix_alpha="1.0",
    mix_probability="1.0",
    shuffle=2,
    size=8,
    std=["0.229", "0.224", "0.225"],
)
BLOCK = "transformer.resblocks.0."


# The parts of valid archives


def numbers(seed, *shape):
    """float32 in [-0.25, 0.25) from the counter RNG."""
    u = uniform(words(seed, 0, 3, 0, int(np.prod(shape))))
    return ((u - 0.5) / 2).astype(np.float32).reshape(shape)


def stored_matrix(name, values, storage):
    """The tensors that store ``values``, and the float32 values that a reader gets back."""
    if storage in ("int8", "int4"):
        largest = 127 if storage == "int8" else 7
        scale = (np.abs(values).max(axis=1) / largest).astype(np.float32)
        q = np.rint(values / scale[:, None]).astype(np.int8)
        tensors = {f"{name}_scale": StoredTensor.from_numpy(scale)}
        if storage == "int8":
            tensors[name] = StoredTensor.from_numpy(q)
        else:
            nibbles = np.full((len(q), -(-q.shape[1] // 2) * 2), 8, np.uint8)
            nibbles[:, : q.shape[1]] = q + 8
            packed = nibbles[:, ::2] | nibbles[:, 1::2] << 4
            tensors[name] = StoredTensor.from_numpy(packed)
        return tensors, q.astype(np.float32) * scale[:, None]
    if storage == "bfloat16":
        bits = values.view(np.uint32) >> np.uint32(16)
        tensor = StoredTensor("BF16", values.shape, bits.astype("<u2").tobytes())
        return {name: tensor}, tensor.numpy()
    values = values.astype(np.dtype(storage))
    return {name: StoredTensor.from_numpy(values)}, values.astype(np.float32)


def projector(kind, targets, head_storage, *, head_rank=None, bias=False, probes=1):
    """A projector on the tiny tower, its probes computed here and not by ``hellofmt.projector``."""
    import torch

    from hellofmt.projector import seeded_base

    base = seeded_base(ARCH, PREPROCESS, seed=7)
    made, tensors = [], {}
    weights = base.visual.state_dict()
    for number, (param, inner, storage) in enumerate(targets):
        shape = tuple(weights[param].shape)
        if len(shape) == 4 and inner % shape[2] == 0:
            rows, columns = shape[0] * shape[2], shape[1] * shape[3]
        else:
            rows, columns = shape[0], int(np.prod(shape[1:]))
        low, a = stored_matrix(f"{param}::A", numbers(10 + number, inner, columns), storage)
        high, b = stored_matrix(f"{param}::B", numbers(20 + number, rows, inner), storage)
        tensors |= low | high
        delta = torch.from_numpy((0.5 * (b @ a)).reshape(shape))
        weights[param] = weights[param] + delta
        made.append(
            Target(
                a=[inner, columns], b=[rows, inner], param=param, scale="0.5",
                shape=list(shape), storage=storage,
            )
        )  # fmt: skip
    base.visual.load_state_dict(weights)
    head_tensors, w = stored_matrix("weight", numbers(30, len(CLASSES), 16), head_storage)
    scale = np.array([2.5], np.float32)
    head_tensors["logit_scale"] = StoredTensor.from_numpy(scale)
    if head_rank:
        low, a = stored_matrix("weight::A", numbers(31, head_rank, 16), head_storage)
        high, b = stored_matrix("weight::B", numbers(32, len(CLASSES), head_rank), head_storage)
        head_tensors |= low | high
        w = w + b @ a
    offset = numbers(33, len(CLASSES)) if bias else np.zeros(len(CLASSES), np.float32)
    if bias:
        head_tensors["bias"] = StoredTensor.from_numpy(offset)
    pictures = torch.from_numpy(probe_images(8, probes)).permute(0, 3, 1, 2).float() / 255
    logits = np.exp(scale) * (base.encode(pictures).numpy() @ w.T) + offset
    rank = {} if head_rank is None else {"a": [head_rank, 16], "b": [len(CLASSES), head_rank]}
    spec = base.spec if kind == "seeded" else seeded_base(ARCH, PREPROCESS, seed=7).embedded().spec
    fresh = seeded_base(ARCH, PREPROCESS, seed=7)
    return ProjectorPart(
        base=spec,
        adapter=Adapter(targets=made),
        head=Head(
            bias=bias, scale="1.0", start="stored", storage=head_storage, temperature="4.0", **rank
        ),
        adapter_tensors=tensors,
        head_tensors=head_tensors,
        probe_logits=(np.rint(logits * 4096) / 4096).astype(np.float32),
        base_tensors=fresh.stored_tensors() if kind == "embedded" else None,
    )


def text_projector():
    """A head from text, without deltas, on a base that the user has to bring."""
    tensors = tensors_digest([("conv1.weight", "F32", (1,), bytes(4))])
    return ProjectorPart(
        base=Base(
            arch=ARCH,
            digest=base_digest(ARCH, PREPROCESS, tensors),
            kind="open_clip",
            name="ViT-nobody-has",
            preprocess=PREPROCESS,
            pretrained="nowhere",
            tensors=tensors,
        ),
        adapter=Adapter(targets=[]),
        head=Head(
            bias=False, scale="1.0", start="text", storage="float32", temperature="20.0",
            text=HeadText(prompts=["a photo of a {}.", "{0.__class__} {}, {}"], tower=TOWER),
        ),
        adapter_tensors={},
        head_tensors={"logit_scale": StoredTensor.from_numpy(np.array([4.6], np.float32))},
        probe_logits=numbers(40, 1, len(CLASSES)),
    )  # fmt: skip


def image_set(codec, names, layout="files"):
    items = [ImageItem(label, (IMAGES / name).read_bytes()) for label, name in names]
    return ImageSet(codec, items, layout=layout)


def draft(name, classes=CLASSES, ipc=None, **parts):
    about = {"license": "CC0-1.0", "method": "vector", "sources": ["drawn"]}
    if ipc is not None:
        about["ipc"] = ipc
    dataset = Dataset(name=name, version="1.0.0", **about)
    return Draft(dataset=dataset, classes=classes, views=VIEWS, producer=PRODUCER, **parts)


PNG = ((0, "noise.png"), (0, "smooth.png"), (2, "grey.png"), (2, "srgb.png"))
MANY = (
    ("conv1.weight", 4, "int8"),
    ("positional_embedding", 1, "float32"),
    ("proj", 5, "int4"),
    (f"{BLOCK}attn.in_proj_weight", 3, "int4"),
    (f"{BLOCK}attn.out_proj.weight", 2, "bfloat16"),
    (f"{BLOCK}mlp.c_fc.weight", 2, "float16"),
)


def drafts():
    """Name of each valid vector, and what is written."""
    seeded = projector("seeded", [(f"{BLOCK}attn.in_proj_weight", 2, "float16")], "float16")
    # Text that compresses, so that the section is stored as zstd.
    many = tuple(ClassLine(f"class-{i:04d}", (f"number {i}",)) for i in range(300))
    return {
        "projector": draft("projector", projector=seeded),
        "projector-text": draft("projector-text", projector=text_projector()),
        "images-png": draft("images-png", images=image_set("png", PNG)),
        "images-jpeg": draft(
            "images-jpeg", images=image_set("jpeg", ((0, "smooth.jpg"), (1, "grey.jpg")))
        ),
        "images-webp": draft(
            "images-webp", images=image_set("webp", ((1, "noise.webp"), (2, "smooth.webp")))
        ),
        "images-packed": draft(
            "images-packed", images=image_set("png", ((0, "noise.png"), (2, "srgb.png")), "packed")
        ),
        "zstd-classes": draft(
            "zstd-classes", classes=many, images=image_set("png", ((299, "noise.png"),))
        ),
        "everything": draft(
            "everything",
            ipc=1,
            images=image_set("png", ((0, "noise.png"), (1, "grey.png"), (2, "smooth.png"))),
            projector=projector("embedded", MANY, "int8", head_rank=2, bias=True, probes=3),
            card="# A card\n\nWith *Markdown* and an escape: \x1b[31m.\n" * 8,
            license="CC0 1.0 Universal\n",
            extras={"x_note": 'free text: \u00e9 \U0001f98a "\\\n', "x_": ""},
        ),
        "shard-00000-of-00002": draft(
            "shard",
            images=image_set("png", PNG[:2]),
            shard=Shard(count=2, first=0, index=0, total=4),
        ),
        "shard-00001-of-00002": draft(
            "shard",
            images=image_set("png", PNG[2:]),
            shard=Shard(count=2, first=2, index=1, total=4),
        ),
    }


# Archives as parts that can be spoilt


class Parts:
    """A valid archive taken apart; ``assemble`` puts it together with all digests right."""

    def __init__(self, path):
        with open_archive(path) as file:
            data = Path(path).read_bytes()
            size = int(data[124:135], 8)
            self.manifest = json.loads(data[512 : 512 + size])
            self.sections = {
                name: data[file.section_offset(name) :][:length]
                for name, length in file.section_sizes().items()
            }
            self.images = [
                (file.image_name(row), file.read_image(row))
                for row in range(len(file) if self.manifest["images"]["span"] else 0)
            ] if "images" in self.manifest else []  # fmt: skip

    def entry(self, name):
        return next(s for s in self.manifest["sections"] if s["name"] == name)

    def tensors(self, name):
        """(header document, data) of a tensor section, which is stored raw from now on."""
        entry = self.entry(name)
        if entry["encoding"] == "zstd":
            raw = zstandard.ZstdDecompressor().decompress(self.sections[name])
            self.sections[name], entry["encoding"] = raw, "none"
            del entry["raw_size"], entry["raw_digest"]
        raw = self.sections[name]
        size = int.from_bytes(raw[:8], "little")
        return json.loads(raw[8 : 8 + size]), raw[8 + size :]

    def set_tensors(self, name, document, data):
        text = document if isinstance(document, bytes) else json.dumps(document).encode()
        text += b" " * (-len(text) % 8)
        self.sections[name] = len(text).to_bytes(8, "little") + text + data

    def set_column(self, name, values, section="index"):
        """Overwrite the data of one tensor by raw bytes of the same length."""
        document, data = self.tensors(section)
        begin, end = document[name]["data_offsets"]
        self.set_tensors(section, document, data[:begin] + values + data[end:])

    def set_image(self, row, data):
        """Another image in a row, with its size, digest and the span right."""
        self.images[row] = (self.images[row][0], data)
        sizes = b"".join(len(image).to_bytes(8, "little") for _, image in self.images)
        self.set_column("size", sizes)
        self.set_column("sha256", b"".join(hashlib.sha256(i).digest() for _, i in self.images))
        self.manifest["images"]["span"] = sum(512 + up(len(image)) for _, image in self.images)

    def sign(self):
        for section in self.manifest["sections"]:
            stored = self.sections[section["name"]]
            section["digest"], section["size"] = sha256(stored), len(stored)
        return canonical(self.manifest)

    def assemble(self, manifest=None, identity=None, pad=b"\0", trailer=bytes(1024)):
        manifest = self.sign() if manifest is None else manifest
        if identity is None:
            identity = hashlib.sha256(manifest).hexdigest().encode() + b"\n"
        members = [("__hello__/manifest", manifest), ("__hello__/id", identity)]
        members += [
            (f"__hello__/{s['name']}", self.sections[s["name"]])
            for s in self.manifest["sections"]
        ]  # fmt: skip
        out = b""
        for name, payload in [*members, *self.images]:
            out += header(name, len(payload)) + payload + pad * (up(len(payload)) - len(payload))
        return out + trailer


def up(n):
    return -(-n // 512) * 512


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def newer_minor(path):
    """A file of minor version 7: an unknown section, unknown keys, nothing required."""
    parts = Parts(path)
    parts.manifest["hello"] = "1.7"
    parts.manifest["colour"] = {"space": ["sRGB", "linear"]}
    parts.manifest["views"]["rotate"] = "0.25"
    parts.sections["thumbnails"] = b"bytes of a later version\n"
    parts.manifest["sections"].insert(1, {"encoding": "none", "name": "thumbnails"})
    return parts.assemble()


def expectation(path):
    """What a reader must find in a valid vector."""
    with open_archive(path) as file:
        size = int(Path(path).read_bytes()[124:135], 8)
        found = {
            "id": file.id,
            "content_id": file.content_id,
            "manifest": json.loads(Path(path).read_bytes()[512 : 512 + size]),
            "classes": [
                [key, *names]
                for key, names in zip(file.classes.keys, file.classes.names, strict=True)
            ],
            "sections": {name: sha256(file.section(name)) for name in file.section_sizes()},
            "tensors": {},
            "images": [],
        }
        for name in ("adapter", "head", "probes", "base"):
            if file.has_section(name):
                found["tensors"][name] = {
                    key: {"shape": list(array.shape), "dtype": str(array.dtype),
                          "sha256": sha256(np.ascontiguousarray(array).tobytes())}
                    for key, array in sorted(file.tensors(name).items())
                }  # fmt: skip
        for row in range(len(file)):
            index = file.index
            image = {
                "name": file.image_name(row),
                "label": int(index.label[row]),
                "height": int(index.height[row]),
                "width": int(index.width[row]),
                "sha256": sha256(file.read_image(row)),
            }
            # JPEG decoders differ; PNG, packed and these (lossless) WebP files are exact.
            if file.manifest.images.codec != "jpeg":
                image["pixels"] = sha256(file.decode_image(row).tobytes())
            found["images"].append(image)
    return found


# Faults: each gets the parts of a valid archive, and spoils them or returns the bytes of the file

FAULTS = {}


def fault(code, source="images-png"):
    def register(spoil):
        FAULTS[spoil.__name__.replace("_", "-")] = (code, source, spoil)
        return spoil

    return register


@fault("E_MAGIC")
def empty(p):
    return b""


@fault("E_MAGIC")
def zero_block_first(p):
    return bytes(512) + p.assemble()


@fault("E_MAGIC")
def another_tar(p):
    return header("images/0000/000000.png", 0) + bytes(1536)


@fault("E_TRUNCATED")
def first_512_bytes(p):
    return p.assemble()[:512]


@fault("E_TRUNCATED")
def manifest_past_the_end(p):
    return header("__hello__/manifest", 1 << 20) + bytes(2048)


@fault("E_LIMIT_MANIFEST")
def manifest_too_large(p):
    return header("__hello__/manifest", (1 << 20) + 1) + bytes(2048)


@fault("E_TRUNCATED")
def last_block_missing(p):
    return p.assemble()[:-512]


@fault("E_TRUNCATED")
def last_image_missing(p):
    _, data = p.images[-1]
    return p.assemble()[: -1024 - up(len(data)) - 512] + bytes(1024)


@fault("E_TRAILING")
def third_zero_block(p):
    return p.assemble() + bytes(512)


@fault("E_TRAILING")
def zip_appended(p):
    return p.assemble() + b"PK\5\6" + bytes(18)


@fault("E_HEADER")
def header_mode_bits(p):
    data = bytearray(p.assemble())
    data[106:107] = b"5"
    return bytes(data)


@fault("E_HEADER")
def header_pax_type(p):
    data = bytearray(p.assemble())
    at = data.index(b"__hello__/index\0")
    data[at + 156 : at + 157] = b"x"
    return bytes(data)


@fault("E_HEADER")
def header_base_256_size(p):
    data = bytearray(p.assemble())
    size = int(data[124:135], 8)
    data[124:136] = b"\x80" + size.to_bytes(11, "big")
    return bytes(data)


@fault("E_HEADER")
def header_reserved_bytes(p):
    data = bytearray(p.assemble())
    at = data.index(b"images/0000/000000.png\0")
    data[at + 511] = 1
    return bytes(data)


@fault("E_NAME")
def image_name_dot_dot(p):
    p.images[0] = ("../../../../etc/cron.d/x", p.images[0][1])


@fault("E_ORDER")
def images_swapped(p):
    p.images[0], p.images[1] = p.images[1], p.images[0]


@fault("E_CODEC", "images-jpeg")
def zip_in_the_last_image(p):
    data = p.images[1][1]
    # A comment, which the profile allows.
    p.set_image(1, data[:2] + b"\xff\xfe\0\x18PK\5\6" + bytes(18) + data[2:])


@fault("E_PADDING")
def padding_not_zero(p):
    return p.assemble(pad=b" ")


@fault("E_TRAILING")
def trailer_not_zero(p):
    return p.assemble(trailer=bytes(1023) + b"\1")


@fault("E_DIGEST_ROOT")
def id_of_another_manifest(p):
    return p.assemble(identity=b"0" * 64 + b"\n")


@fault("E_DIGEST_ROOT")
def id_upper_case(p):
    return p.assemble(identity=hashlib.sha256(p.sign()).hexdigest().upper().encode() + b"\n")


@fault("E_DIGEST_INDEX")
def classes_changed(p):
    return p.assemble().replace(b"zebra\tzebra", b"zebra\tzebrA")


@fault("E_DIGEST_MEMBER")
def image_changed(p):
    data = bytearray(p.assemble())
    at = data.index(b"images/0002/000003.png\0")
    data[at + 512 + 50] ^= 1
    return bytes(data)


@fault("E_JSON")
def json_duplicate_key(p):
    return p.assemble(manifest=b'{"classes":3,' + p.sign()[1:])


@fault("E_JSON")
def json_float(p):
    return p.assemble(manifest=p.sign().replace(b'"classes":3', b'"classes":3.0'))


@fault("E_JSON")
def json_nan(p):
    return p.assemble(manifest=p.sign().replace(b'"classes":3', b'"classes":NaN'))


@fault("E_JSON")
def json_white_space(p):
    return p.assemble(manifest=p.sign() + b" ")


@fault("E_JSON")
def json_key_order(p):
    items = sorted(json.loads(p.sign()).items(), reverse=True)
    return p.assemble(manifest=json.dumps(dict(items), separators=(",", ":")).encode())


@fault("E_JSON")
def json_upper_case_escape(p):
    p.manifest["x_note"] = "\u00e9"
    return p.assemble(manifest=p.sign().replace(b"\\u00e9", b"\\u00E9"))


@fault("E_JSON")
def json_raw_utf8(p):
    p.manifest["x_note"] = "\u00e9"
    return p.assemble(manifest=p.sign().replace(b"\\u00e9", "\u00e9".encode()))


@fault("E_JSON")
def json_lone_surrogate(p):
    p.manifest["x_note"] = "\ud800"


@fault("E_JSON")
def json_long_integer(p):
    return p.assemble(manifest=p.sign().replace(b'"classes":3', b'"classes":' + b"3" * 5000))


@fault("E_JSON")
def json_deep(p):
    return p.assemble(manifest=b'{"classes":' + b"[" * 9999 + b"]" * 9999 + b"}")


@fault("E_VERSION")
def version_2(p):
    p.manifest["hello"] = "2.0"


@fault("E_SCHEMA")
def version_number(p):
    p.manifest["hello"] = 1


@fault("E_FEATURE")
def feature_unknown(p):
    p.manifest["requires"] = ["telepathy"]


@fault("E_SCHEMA")
def key_unknown(p):
    p.manifest["colour"] = "sRGB"


@fault("E_SCHEMA")
def decimal_minus_zero(p):
    p.manifest["views"]["flip"] = "-0.0"


@fault("E_SCHEMA")
def decimal_trailing_zero(p):
    p.manifest["views"]["flip"] = "0.50"


@fault("E_SCHEMA")
def flip_above_one(p):
    p.manifest["views"]["flip"] = "1.5"


@fault("E_SCHEMA")
def extra_too_long(p):
    p.manifest["x_note"] = "x" * 4097


@fault("E_SCHEMA", "projector")
def head_without_probes(p):
    del p.manifest["probes"], p.sections["probes"]
    p.manifest["sections"] = [s for s in p.manifest["sections"] if s["name"] != "probes"]


@fault("E_SCHEMA")
def index_without_images(p):
    del p.manifest["images"]


@fault("E_SCHEMA")
def section_unknown(p):
    p.manifest["sections"].append({"encoding": "none", "name": "thumbnails"})
    p.sections["thumbnails"] = b"1"


@fault("E_DUPLICATE")
def section_twice(p):
    p.manifest["sections"].append(dict(p.entry("classes")))


@fault("E_ORDER")
def section_order(p):
    p.manifest["sections"].reverse()


@fault("E_SCHEMA", "projector")
def base_digest_of_another_size(p):
    p.manifest["base"]["preprocess"]["size"] = 16


@fault("E_RANK", "projector")
def rank_of_factors_differs(p):
    p.manifest["adapter"]["targets"][0]["a"][0] = 3


@fault("E_RANK", "projector")
def product_of_another_shape(p):
    p.manifest["adapter"]["targets"][0]["shape"] = [16, 16]


@fault("E_LIMIT_RANK", "projector")
def rank_1025(p):
    target = p.manifest["adapter"]["targets"][0]
    target["a"][0] = target["b"][1] = 1025


@fault("E_LIMIT_PROBES", "projector")
def probes_65(p):
    p.manifest["probes"]["count"] = 65


@fault("E_CLASSES")
def class_line_without_tab(p):
    p.sections["classes"] = p.sections["classes"].replace(b"zebra\t", b"zebra ")


@fault("E_CLASSES")
def class_key_twice(p):
    p.sections["classes"] = p.sections["classes"].replace(b"zebra\t", b"n02119789\t")


@fault("E_CLASSES")
def class_line_crlf(p):
    p.sections["classes"] = p.sections["classes"].replace(b"\n", b"\r\n")


@fault("E_CLASSES")
def class_lines_without_last_lf(p):
    p.sections["classes"] = p.sections["classes"][:-1]


@fault("E_INDEX")
def label_too_large(p):
    p.set_column("label", np.array([0, 0, 2, 3], "<i4").tobytes())


@fault("E_INDEX")
def label_negative(p):
    p.set_column("label", np.array([-1, 0, 2, 2], "<i4").tobytes())


@fault("E_INDEX")
def labels_unsorted(p):
    p.set_column("label", np.array([0, 2, 0, 2], "<i4").tobytes())


@fault("E_INDEX")
def size_zero(p):
    p.set_column("size", np.array([0, 1, 2, 3], "<u8").tobytes())


@fault("E_LIMIT_IMAGE_BYTES")
def size_2_to_the_64(p):
    p.set_column("size", np.array([1, 1, 1, 2**64 - 1], "<u8").tobytes())


@fault("E_INDEX")
def sizes_beyond_span(p):
    p.set_column("size", np.array([1000, 1, 1, 1], "<u8").tobytes())


@fault("E_INDEX")
def width_wrong(p):
    p.set_column("width", np.array([8, 10, 6, 8], "<u2").tobytes())


@fault("E_TENSOR")
def tensor_twice(p):
    document, data = p.tensors("index")
    text = json.dumps(document)
    at = text.index('"size"')
    text = (
        text[:at] + '"size": {"dtype": "U64", "shape": [4], "data_offsets": [0, 32]}, ' + text[at:]
    )
    p.set_tensors("index", text.encode(), data)


@fault("E_TENSOR")
def tensor_missing(p):
    document, data = p.tensors("index")
    last = max((k for k in document if k[0] != "_"), key=lambda k: document[k]["data_offsets"])
    begin, _ = document.pop(last)["data_offsets"]
    p.set_tensors("index", document, data[:begin])


@fault("E_TENSOR", "projector")
def tensor_of_another_dtype(p):
    document, data = p.tensors("probes")
    document["logits"]["dtype"] = "I32"
    p.set_tensors("probes", document, data)


@fault("E_TENSOR", "projector")
def tensor_field_unknown(p):
    document, data = p.tensors("probes")
    document["logits"]["offset"] = 0
    p.set_tensors("probes", document, data)


@fault("E_TENSOR", "projector")
def tensor_metadata_unknown(p):
    document, data = p.tensors("probes")
    document["__metadata__"]["author"] = "nobody"
    p.set_tensors("probes", document, data)


@fault("E_TENSOR", "projector")
def tensor_hole(p):
    document, data = p.tensors("probes")
    document["logits"]["data_offsets"] = [4, 4 + len(data)]
    p.set_tensors("probes", document, bytes(4) + data)


@fault("E_TENSOR", "projector")
def tensor_trailing_bytes(p):
    p.sections["probes"] += bytes(4)


@fault("E_TENSOR", "projector")
def tensor_nan(p):
    p.set_column("logits", np.full(3, np.nan, "<f4").tobytes(), "probes")


@fault("E_TENSOR", "everything")
def scale_zero(p):
    p.set_column("weight_scale", np.zeros(3, "<f4").tobytes(), "head")


@fault("E_TENSOR", "everything")
def int8_minus_128(p):
    p.set_column("weight", np.full(48, -128, np.int8).tobytes(), "head")


@fault("E_LIMIT_TENSOR_HEADER", "projector")
def tensor_header_100_mb(p):
    p.sections["probes"] = (100 << 20).to_bytes(8, "little") + p.sections["probes"][8:]


def recompress(p, raw=None, tail=b"", **options):
    raw = zstandard.ZstdDecompressor().decompress(p.sections["classes"]) if raw is None else raw
    stored = zstandard.ZstdCompressor(**options).compress(raw)
    p.sections["classes"] = stored + tail
    p.entry("classes")["raw_size"] = len(raw)
    p.entry("classes")["raw_digest"] = sha256(raw)


@fault("E_ZSTD", "zstd-classes")
def zstd_trailing_byte(p):
    recompress(p, write_checksum=True, tail=b"\0")


@fault("E_ZSTD", "zstd-classes")
def zstd_two_frames(p):
    recompress(p, write_checksum=True, tail=p.sections["classes"])


@fault("E_ZSTD", "zstd-classes")
def zstd_no_checksum(p):
    recompress(p, write_checksum=False)


@fault("E_ZSTD", "zstd-classes")
def zstd_no_content_size(p):
    recompress(p, write_checksum=True, write_content_size=False)


@fault("E_ZSTD", "zstd-classes")
def zstd_lying_size(p):
    p.entry("classes")["raw_size"] += 1


@fault("E_ZSTD", "zstd-classes")
def zstd_skippable_frame(p):
    p.sections["classes"] = b"\x50\x2a\x4d\x18\0\0\0\0" + p.sections["classes"]


@fault("E_DIGEST_INDEX", "zstd-classes")
def zstd_raw_digest(p):
    p.entry("classes")["raw_digest"] = sha256(b"something else")


@fault("E_LIMIT_ZSTD_RATIO", "zstd-classes")
def zstd_bomb(p):
    recompress(p, raw=bytes(15 << 20), write_checksum=True)


def png_with(data, at, replacement):
    """A PNG whose IHDR bytes from ``at`` on are replaced, its checksum right."""
    import zlib

    head = data[12 : 16 + at] + replacement + data[16 + at + len(replacement) : 29]
    return data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:]


@fault("E_CODEC")
def png_interlaced(p):
    p.set_image(0, png_with(p.images[0][1], 12, b"\1"))


@fault("E_CODEC")
def png_palette(p):
    p.set_image(0, (IMAGES / "palette.png").read_bytes())


@fault("E_CODEC")
def png_that_is_a_jpeg(p):
    p.set_image(0, (IMAGES / "smooth.jpg").read_bytes())


@fault("E_CODEC")
def png_with_bytes_after_it(p):
    p.set_image(0, p.images[0][1] + b"\0")


@fault("E_IMAGE")
def png_bad_crc(p):
    p.set_image(0, p.images[0][1][:-1] + b"\0")


@fault("E_CODEC", "images-jpeg")
def jpeg_progressive(p):
    p.set_image(0, (IMAGES / "progressive.jpg").read_bytes())


@fault("E_IMAGE", "images-jpeg")
def jpeg_cut(p):
    p.set_image(0, p.images[0][1][:-2])


@fault("E_CODEC", "images-webp")
def webp_alpha(p):
    p.set_image(0, (IMAGES / "alpha.webp").read_bytes())


def exit_code(code):
    """(class, exit) of an error code, from the docstrings that list the codes of each class."""
    family = "E_LIMIT_*" if code.startswith("E_LIMIT_") else code
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and family in (kind.__doc__ or ""):
            return name, kind(f"{code}: ").exit_code
    raise LookupError(code)


def dump(path, document):
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="ascii")


def make(folder):
    """Write every vector below ``folder``, which is emptied first."""
    for kind in ("valid", "invalid"):
        shutil.rmtree(folder / kind, ignore_errors=True)
        (folder / kind).mkdir(parents=True)
    valid, invalid = folder / "valid", folder / "invalid"
    for name, made in drafts().items():
        write_archive(valid / f"{name}.hello", made)
    (valid / "minor-1.7.hello").write_bytes(newer_minor(valid / "images-png.hello"))
    for path in sorted(valid.glob("*.hello")):
        dump(path.with_suffix(".json"), expectation(path))
    for name, (code, source, spoil) in FAULTS.items():
        parts = Parts(valid / f"{source}.hello")
        data = spoil(parts)
        (invalid / f"{name}.hello").write_bytes(parts.assemble() if data is None else data)
        kind, status = exit_code(code)
        dump(invalid / f"{name}.json", {"error": kind, "code": code, "exit": status})


def write_schema(path):
    from hellofmt.archive.schema import json_schema

    path.write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    spec = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "spec"
    make(spec / "vectors")
    write_schema(spec / "hello-1.schema.json")
