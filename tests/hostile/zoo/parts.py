"""Named hostile files: each a valid archive with one lie in it, signed anew around the lie.

The builder shares no line with the writer, so that every lie can be written down: headers, JSON,
safetensors, PNG chunks and zstd frames are put together by hand, and every digest up to the `id`
is recomputed, so that a file is refused for what it says and not for a digest that no longer fits.
A few entries are harmless and expected to be accepted (code ``""``): what looks like an attack is
there only text.
"""

import copy
import hashlib
import io
import json
import struct
import zlib
from dataclasses import dataclass, field
from functools import cache

EXITS = {
    "": ("", 0),
    "E_MAGIC": ("NotHelloError", 3),
    "E_VERSION": ("NotHelloError", 3),
    "E_FEATURE": ("NotHelloError", 3),
    "E_TRUNCATED": ("CorruptError", 4),
    "E_TRAILING": ("CorruptError", 4),
    "E_DIGEST_ROOT": ("CorruptError", 4),
    "E_DIGEST_INDEX": ("CorruptError", 4),
    "E_DIGEST_MEMBER": ("CorruptError", 4),
    "E_PADDING": ("CorruptError", 4),
    "E_ZSTD": ("CorruptError", 4),
    "E_IMAGE": ("CorruptError", 4),
    "E_HEADER": ("SpecError", 5),
    "E_ORDER": ("SpecError", 5),
    "E_DUPLICATE": ("SpecError", 5),
    "E_JSON": ("SpecError", 5),
    "E_SCHEMA": ("SpecError", 5),
    "E_CODEC": ("SpecError", 5),
    "E_TENSOR": ("SpecError", 5),
    "E_RANK": ("SpecError", 5),
    "E_CLASSES": ("SpecError", 5),
    "E_INDEX": ("SpecError", 5),
}
"""Code to class and exit; written out here so that a change of the contract shows."""


@dataclass(frozen=True)
class Sparse:
    """A file too large for memory: zeros of ``length`` bytes with ``pieces`` (offset, bytes)."""

    length: int
    pieces: tuple

    def write(self, path):
        with path.open("wb") as stream:
            for offset, data in self.pieces:
                stream.seek(offset)
                stream.write(data)
            stream.truncate(self.length)


@dataclass(frozen=True)
class Hostile:
    """One file: ``make()`` gives its bytes; ``full`` if only a full verification can see it,
    ``decode`` if only decoding the pixels can.
    """

    name: str
    group: str
    code: str
    make: object
    full: bool = False
    decode: bool = False

    @property
    def error(self):
        return "LimitError" if self.code.startswith("E_LIMIT_") else EXITS[self.code][0]

    @property
    def exit(self):
        return 6 if self.code.startswith("E_LIMIT_") else EXITS[self.code][1]

    def write(self, path):
        made = self.make()
        if isinstance(made, Sparse):
            made.write(path)
        else:
            path.write_bytes(made)
        return path


ZOO = {}


def add(name, code, make, *, group, full=False, decode=False):
    if name in ZOO:
        raise ValueError(f"{name} stands twice")
    ZOO[name] = Hostile(name, group, code, make, full, decode)


def hostile(group, code, **options):
    def keep(make):
        add(make.__name__, code, make, group=group, **options)
        return make

    return keep


def up(n):
    return -(-n // 512) * 512


def sha(data):
    return hashlib.sha256(data).hexdigest()


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "checksum": (148, 8),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "uname": (265, 32),
    "gname": (297, 32),
    "devmajor": (329, 8),
    "devminor": (337, 8),
    "prefix": (345, 155),
    "reserved": (500, 12),
}


def block(name, size, /, **fields):
    """A USTAR header with any field replaced by bytes; the checksum is right unless given."""
    name = name if isinstance(name, bytes) else name.encode()
    values = {
        "name": name,
        "mode": b"0000644\0",
        "uid": b"0000000\0",
        "gid": b"0000000\0",
        "size": b"%011o\0" % size,
        "mtime": b"00000000000\0",
        "checksum": b" " * 8,
        "type": b"0",
        "magic": b"ustar\x0000",
        **{key: value for key, value in fields.items() if key != "checksum"},
    }
    out = bytearray(512)
    for key, value in values.items():
        at, room = FIELDS[key]
        if len(value) > room:
            raise ValueError(f"{key} does not fit")
        out[at : at + len(value)] = value
    out[148:156] = fields.get("checksum", b"%06o\0 " % sum(out))
    return bytes(out)


def member(name, data, /, **fields):
    return block(name, len(data), **fields) + data + bytes(up(len(data)) - len(data))


def tensor_bytes(header, data):
    """A safetensors file from the bytes or the value of its header."""
    text = header if isinstance(header, bytes) else canonical(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


WIDTHS = {"F64": 8, "U64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U16": 2, "I8": 1, "U8": 1}


def tensor_file(tensors):
    """name -> (dtype, shape, bytes), laid out one after another, largest dtype first."""
    header, body = {}, b""
    for name, (dtype, shape, data) in sorted(
        tensors.items(), key=lambda item: (-WIDTHS[item[1][0]], item[0])
    ):
        end = len(body) + len(data)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), end]}
        body += data
    return tensor_bytes(header, body)


def f32(*values):
    return struct.pack(f"<{len(values)}f", *values)


def chunk(name, data, crc=None):
    body = name + data
    return (
        struct.pack(">I", len(data))
        + body
        + struct.pack(">I", zlib.crc32(body) if crc is None else crc)
    )


PNG = b"\x89PNG\r\n\x1a\n"


def ihdr(width, height, depth=8, colour=2, packing=0, filters=0, interlace=0):
    return chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, packing, filters, interlace)
    )


def rows_of(width, height, channels=3, step=37):
    return b"".join(
        b"\0" + bytes((y * 91 + x * step) % 256 for x in range(width * channels))
        for y in range(height)
    )


def png(width=4, height=3, *, head=None, raw=None, before=b"", between=None, after=b"", level=6):
    """A PNG of ``width`` x ``height`` from hand-made chunks."""
    stream = zlib.compress(rows_of(width, height) if raw is None else raw, level)
    data = chunk(b"IDAT", stream)
    if between is not None:
        data = chunk(b"IDAT", stream[:9]) + between + chunk(b"IDAT", stream[9:])
    head = ihdr(width, height) if head is None else head
    return PNG + head + before + data + chunk(b"IEND", b"") + after


@cache
def pillow(kind, width=16, height=12, mode="RGB", **options):
    from PIL import Image

    picture = Image.frombytes(
        mode,
        (width, height),
        bytes(i * 31 % 251 for i in range(width * height * len(mode.replace("P", "L")))),
    )
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def stored_index(kit):
    """The index of a kit's images."""
    rows = kit.rows
    return {
        "size": (
            "U64",
            [len(rows)],
            struct.pack(f"<{len(rows)}Q", *(len(row.data) for row in rows)),
        ),
        "label": ("I32", [len(rows)], struct.pack(f"<{len(rows)}i", *(row.label for row in rows))),
        "height": (
            "U16",
            [len(rows)],
            struct.pack(f"<{len(rows)}H", *(row.height for row in rows)),
        ),
        "width": ("U16", [len(rows)], struct.pack(f"<{len(rows)}H", *(row.width for row in rows))),
        "sha256": (
            "U8",
            [len(rows), 32],
            b"".join(hashlib.sha256(row.data).digest() for row in rows),
        ),
    }


@dataclass
class Row:
    label: int
    data: bytes
    height: int = 3
    width: int = 4


VIEWS = {
    "antialias": True,
    "crop_ratio": ["0.75", "1.3333333333333333"],
    "crop_scale": ["0.08", "1.0"],
    "flip": "0.5",
    "interpolation": "bilinear",
    "mean": ["0.485", "0.456", "0.406"],
    "mix": "cutmix",
    "mix_alpha": "1.0",
    "mix_probability": "1.0",
    "shuffle": 1,
    "size": 4,
    "std": ["0.229", "0.224", "0.225"],
}
DIM = 8


@dataclass
class Kit:
    """The parts of an archive; ``build`` signs whatever they are.

    ``files`` maps section to stored bytes in file order, ``notes`` adds keys to a section's entry
    in the manifest (or replaces them, or removes those that are None).
    """

    manifest: dict
    files: dict
    rows: list = field(default_factory=list)
    notes: dict = field(default_factory=dict)
    extension: str = "png"

    def note(self, section, **keys):
        self.notes.setdefault(section, {}).update(keys)
        return self

    def tensors(self, section, values):
        self.files[section] = tensor_file(values)
        return self

    def reindex(self, **columns):
        return self.tensors("index", {**stored_index(self), **columns})

    def head(self):
        """The manifest as it will be signed."""
        made = copy.deepcopy(self.manifest)
        made["sections"] = []
        for name, data in self.files.items():
            entry = {
                "name": name,
                "size": len(data),
                "digest": "sha256:" + sha(data),
                "encoding": "none",
                **self.notes.get(name, {}),
            }
            made["sections"].append({k: v for k, v in entry.items() if v is not None})
        if "images" in made:
            made["images"].setdefault("span", len(b"".join(self.pictures())))
        return made

    def names(self):
        return [
            f"images/{row.label:04d}/{i:06d}.{self.extension}" for i, row in enumerate(self.rows)
        ]

    def pictures(self):
        return [member(name, row.data) for name, row in zip(self.names(), self.rows, strict=True)]

    def body(self):
        sections = [member(f"__hello__/{name}", data) for name, data in self.files.items()]
        return sections + self.pictures()

    def build(self, head=None, body=None, trailer=bytes(1024)):
        text = self.head() if head is None else head
        text = text if isinstance(text, bytes) else canonical(text)
        parts = [
            member("__hello__/manifest", text),
            member("__hello__/id", (sha(text) + "\n").encode()),
        ]
        return b"".join(parts + (self.body() if body is None else body)) + trailer


def base_of_kit():
    arch = {
        "embed_dim": DIM,
        "quick_gelu": False,
        "vision": {"head_width": 8, "image_size": 4, "layers": 1, "patch_size": 2, "width": 8},
    }
    preprocess = {
        "antialias": True,
        "interpolation": "bicubic",
        "mean": ["0.5", "0.5", "0.5"],
        "size": 4,
        "std": ["0.5", "0.5", "0.5"],
    }
    return sign_base(
        {
            "arch": arch,
            "preprocess": preprocess,
            "tensors": "sha256:" + sha(b"no weights"),
            "kind": "seeded",
            "name": "tiny",
            "seed": 1,
        }
    )


def sign_base(base):
    document = {key: base[key] for key in ("arch", "preprocess", "tensors")}
    base["digest"] = "sha256:" + sha(b"hello/base/1\n" + canonical(document))
    return base


def factor(rows, columns, storage="int8", seed=1):
    """name suffix -> tensor, of one factor."""

    def cell(i):
        return (i * 7 + seed * 13) % 21 - 10

    if storage == "int8":
        data = struct.pack(f"<{rows * columns}b", *(cell(i) for i in range(rows * columns)))
        return {"": ("I8", [rows, columns], data), "_scale": ("F32", [rows], f32(*[0.01] * rows))}
    if storage == "int4":
        width = (columns + 1) // 2
        last = 0x87 if columns % 2 else 0x97
        data = b"".join(b"\x97" * (width - 1) + bytes([last]) for _ in range(rows))
        return {"": ("U8", [rows, width], data), "_scale": ("F32", [rows], f32(*[0.01] * rows))}
    if storage == "float32":
        return {"": ("F32", [rows, columns], f32(*(cell(i) / 100 for i in range(rows * columns))))}
    width = {"float16": "F16", "bfloat16": "BF16"}[storage]
    return {"": (width, [rows, columns], b"\x00\x3c" * (rows * columns))}


def pair(name, b, a, storage="int8"):
    made = {f"{name}::B{k}": v for k, v in factor(*b, storage, 2).items()}
    return made | {f"{name}::A{k}": v for k, v in factor(*a, storage, 1).items()}


def adapter_tensors(kit):
    out = {}
    for target in kit.manifest["functions"][0]["adapter"]["targets"]:
        out |= pair(target["param"], target["b"], target["a"], target["storage"])
    return out


def head_tensors():
    return {
        "logit_scale": ("F32", [1], f32(4.6)),
        "bias": ("F32", [2], f32(0.0, 0.25)),
        **{f"weight{k}": v for k, v in factor(2, DIM, "float16").items()},
        **pair("weight", (2, 3), (3, DIM), "float16"),
    }


CLASSES = b"n01440764\ttench, Tinca tinca\nn01443537\tgoldfish\n"


def images_only():
    """The smallest ordinary archive: three pictures of two classes."""
    return Kit(
        {
            "classes": 2,
            "dataset": {
                "license": "CC0-1.0",
                "method": "hand",
                "name": "zoo",
                "sources": [],
                "version": "1.0.0",
            },
            "hello": "1.0",
            "images": {"codec": "png", "count": 3, "layout": "files"},
            "producer": {"name": "zoo", "version": "1"},
            "requires": [],
            "views": copy.deepcopy(VIEWS),
        },
        {"index": b"", "classes": CLASSES},
        [Row(0, png()), Row(0, png(raw=rows_of(4, 3, step=11))), Row(1, png(level=0))],
    ).reindex()


def projector():
    """A label function beside the pictures, with a card and a licence."""
    kit = images_only()
    function = {
        "adapter": {
            "targets": [
                {
                    "a": [2, 8],
                    "b": [4, 2],
                    "param": "conv1.weight",
                    "scale": "1.0",
                    "shape": [4, 2, 2, 2],
                    "storage": "int8",
                },
                {
                    "a": [3, 5],
                    "b": [6, 3],
                    "param": "proj",
                    "scale": "-0.5",
                    "shape": [6, 5],
                    "storage": "int4",
                },
            ]
        },
        "head": {
            "a": [3, DIM],
            "b": [2, 3],
            "bias": True,
            "link": "softmax",
            "scale": "1.0",
            "start": "stored",
            "storage": "float16",
            "temperature": "20.0",
        },
        "name": "late",
        "probes": {"count": 2},
        "task": "classification",
    }
    kit.manifest |= {"base": base_of_kit(), "functions": [function]}
    kit.tensors("adapter", adapter_tensors(kit))
    kit.tensors("head", head_tensors())
    kit.tensors("probes", {"logits": ("F32", [2, 2], f32(1.0, -1.0, 0.5, 2.0))})
    kit.files |= {"card": "# Zoo \u00fc\n".encode(), "license": b"CC0\n"}
    return kit


def two_functions():
    """Two label functions on one base; the sections of the second have its name."""
    kit = projector()
    kit.manifest["functions"].append(kit.manifest["functions"][0] | {"name": "early"})
    texts = {name: kit.files.pop(name) for name in ("card", "license")}
    for kind in ("adapter", "head", "probes"):
        kit.files[f"{kind}_early"] = kit.files[kind]
    kit.files |= texts
    return kit


def projector_only():
    """A label function without pictures."""
    kit = projector()
    del kit.manifest["images"], kit.files["index"]
    kit.rows = []
    return kit


def embedded():
    """A label function that carries its base."""
    kit = projector()
    weights = {"a.weight": ("F16", [2, 2], b"\x00\x3c" * 4), "b": ("BF16", [3], b"\x80\x3f" * 3)}
    lines = f"a.weight|F32|2x2|{sha(f32(1, 1, 1, 1))}\n" + f"b|F32|3|{sha(f32(1, 1, 1))}\n"
    base = kit.manifest["base"]
    del base["seed"]
    base |= {"kind": "embedded", "tensors": "sha256:" + sha(lines.encode())}
    sign_base(base)
    card, licence = kit.files.pop("card"), kit.files.pop("license")
    kit.tensors("base", weights)
    kit.files |= {"card": card, "license": licence}
    return kit


def packed():
    """Pictures in one section instead of members."""
    kit = images_only()
    kit.manifest["images"] = {
        "codec": "raw",
        "count": 3,
        "layout": "packed",
        "shape": [3, 4, 3],
        "span": 0,
    }
    kit.manifest["requires"] = ["images.packed"]
    pixels = [bytes((i * 7 + k) % 256 for i in range(36)) for k in range(3)]
    kit.rows = [Row(label, data) for label, data in zip((0, 0, 1), pixels, strict=True)]
    kit.reindex()
    kit.tensors("pixels", {"pixels": ("U8", [3, 3, 4, 3], b"".join(pixels))})
    kit.pictures = list
    return kit


def squeezed(section="classes", raw=None, **options):
    """The projector archive with one section as a zstd frame; ``options`` go to the compressor."""
    kit = projector()
    raw = kit.files[section] if raw is None else raw
    if section == "card" and raw == kit.files["card"]:
        raw *= 40
    kit.files[section] = frame(raw, **options)
    return kit.note(section, encoding="zstd", raw_size=len(raw), raw_digest="sha256:" + sha(raw))


def frame(raw, *, window_log=None, checksum=True, size=True, level=3, dictionary=None):
    import zstandard

    parameters = {"write_content_size": size, "write_checksum": checksum}
    if window_log:
        parameters["window_log"] = window_log
        parameters["compression_level"] = level
        settings = {"compression_params": zstandard.ZstdCompressionParameters(**parameters)}
    else:
        settings = {"level": level, **parameters}
    if dictionary:
        settings["dict_data"] = dictionary
    return zstandard.ZstdCompressor(**settings).compress(raw)


def with_images(codec, *pictures, height=12, width=16):
    """An archive of given image files, one of class 0 and the rest of class 1."""
    kit = images_only()
    kit.manifest["images"] |= {"codec": codec, "count": len(pictures)}
    kit.extension = "jpg" if codec == "jpeg" else codec
    kit.rows = [Row(min(i, 1), data, height, width) for i, data in enumerate(pictures)]
    if len(pictures) == 2:
        kit.manifest["dataset"]["ipc"] = 1
    return kit.reindex()


VALID = {
    "images": lambda: images_only().build(),
    "projector": lambda: projector().build(),
    "projector_only": lambda: projector_only().build(),
    "embedded": lambda: embedded().build(),
    "packed": lambda: packed().build(),
    "zstd": lambda: squeezed("card").build(),
    "jpeg": lambda: with_images("jpeg", pillow("JPEG"), pillow("JPEG", mode="L")).build(),
    "webp": lambda: with_images(
        "webp", pillow("WEBP"), pillow("WEBP", lossless=True, quality=100)
    ).build(),
    "grey_png": lambda: with_images(
        "png", pillow("PNG", mode="L"), pillow("PNG"), png(16, 12, before=chunk(b"sRGB", b"\0"))
    ).build(),
}
"""What the lies start from: if one of these is refused, its zoo proves nothing."""


def parts(data):
    """(name, offset of the header, size) of the members of a canonical archive."""
    found, at = [], 0
    while data[at : at + 1] != b"\0":
        name = data[at : at + 100].rstrip(b"\0").decode()
        size = int(data[at + 124 : at + 135], 8)
        found.append((name, at, size))
        at += 512 + up(size)
    return found


def place(data, name):
    return next((at, size) for found, at, size in parts(data) if found == name)


def patch(data, at, new):
    return data[:at] + new + data[at + len(new) :]
