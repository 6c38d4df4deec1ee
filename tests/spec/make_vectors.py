"""Writes the vectors of the specification: `python tests/spec/make_vectors.py [FOLDER]`.

Valid archives are written by hellofmt, which verifies them; what a reader must find in each stands
in the JSON file beside it. Invalid ones come from `tests/hostile/zoo`: a valid archive with one
fault, every digest right unless the fault is in a digest, so that a reader has to see it.

Valid vectors are a function of the counter RNG and of the image files in `images/`, so the same
libzstd gives the same bytes everywhere. Logits of probes are rounded to 2**-12, which hides the
last bits in which machines differ and lies far inside the tolerance for probes.
"""

import hashlib
import importlib
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from hellofmt.archive import (
    ClassLine,
    Draft,
    ImageItem,
    ImageSet,
    ProjectorPart,
    open_archive,
    write_archive,
    write_shards,
)
from hellofmt.archive.format.canonical import canonical
from hellofmt.archive.format.digest import base_digest, tensors_digest
from hellofmt.archive.format.label_function import Adapter, Head, HeadText, Target
from hellofmt.archive.format.layout import header
from hellofmt.archive.format.manifest import (
    Arch,
    Base,
    Dataset,
    Preprocess,
    Producer,
    TextArch,
    VisionArch,
)
from hellofmt.archive.format.probes import probe_images
from hellofmt.archive.format.record import parse_record
from hellofmt.archive.format.tensors import StoredTensor
from hellofmt.archive.format.views import Views
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
RESNET = Arch(
    embed_dim=16,
    quick_gelu=True,
    vision=VisionArch(image_size=32, head_width=16, layers=[1, 2, 1, 1], width=2),
)
TEXT = TextArch(context_length=16, vocab_size=49408, width=8, heads=2, layers=2)
PROMPTS = ["a photo of a {}.", "{0.__class__} {}, {}"]
RUN = {"device": "cpu", "seeds": {"fit": 0}, "versions": {"hellofmt": "1.0", "torch": "2.10"}}
SOURCE = {"classes": 3, "digest": TOWER, "images": 600, "name": "drawn", "per_class": [200, 200]}
HALF = ["0.5"] * 3
INPUT = {"interpolation": "bilinear", "mean": HALF, "stated_by": "nobody", "std": HALF}
NETWORK = {"digest": TOWER, "input": INPUT, "network": "cnn", "origin": "hello teach"}
MEASURED = {"accuracy": "97.5", "images": 60, "of": "held-out images"}
RECORD = {
    "functions": [
        {
            "agreement": "93.75",
            "batch_size": 128,
            "bfloat16": False,
            "kl": "0.0125",
            "learning_rate": "0.003",
            "loss": "kl",
            "measured": MEASURED | {"accuracy": "96.0"},
            "name": "default",
            "parameters": 4711,
            "rank": 2,
            "run": RUN | {"command": "hello distill drawn --teacher teacher --base seeded --ipc 1"},
            "source": SOURCE,
            "steps": 300,
            "storage": "int8",
            "targets": ["all"],
            "teacher": {"measured": MEASURED, "networks": [NETWORK]},
            "temperature": "2.0",
            "views": 1024,
        }
    ],
    "images": {
        "candidates": 300,
        "chosen_by": "lowest loss",
        "codec": "png",
        "crops": 5,
        "factor": 1,
        "ipc": 1,
    },
    "results": [
        {
            "accuracy": ["41.2", "39.5", "42.75"],
            "batch_size": 50,
            "bfloat16": False,
            "device": "cpu",
            "evaluated": SOURCE,
            "images": "archive",
            "labels": "soft",
            "learning_rate": "0.001",
            "recipe": "kl",
            "seeds": [0, 1, 2],
            "steps": 300,
            "student": "cnn",
            "versions": RUN["versions"],
        }
    ],
}


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


def projector(
    kind, targets, head_storage, *, head_rank=None, bias=False, probes=1, arch=ARCH, text=None
):
    """A projector on a tiny tower, its probes computed here and not by ``hellofmt.projector``."""
    import torch

    from hellofmt.projector import seeded_base

    side = arch.vision.image_size
    preprocess = msgspec.structs.replace(PREPROCESS, size=side)
    base = seeded_base(arch, preprocess, seed=7, text=text)
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
    if text is None:
        head_tensors, w = stored_matrix("weight", numbers(30, len(CLASSES), 16), head_storage)
        start = {"start": "stored"}
    else:
        head_tensors, w = {}, base.text_rows([c.names[0] for c in CLASSES], PROMPTS).numpy()
        start = {"start": "text", "text": HeadText(prompts=PROMPTS, tower=base.text_digest)}
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
    pictures = torch.from_numpy(probe_images(side, probes)).permute(0, 3, 1, 2).float() / 255
    logits = np.exp(scale) * (base.encode(pictures).numpy() @ w.T) + offset
    rank = {}
    if head_rank is not None:
        rank = {"a": [head_rank, 16], "b": [len(CLASSES), head_rank], "scale": "1.0"}
    fresh = seeded_base(arch, preprocess, seed=7)
    spec = base.spec if kind == "seeded" else fresh.embedded().spec
    return ProjectorPart(
        base=spec,
        adapter=Adapter(targets=made),
        head=Head(
            bias=bias,
            link="softmax",
            storage=head_storage,
            temperature="4.0",
            **rank,
            **start,
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
            bias=False, link="softmax", start="text", temperature="20.0",
            text=HeadText(prompts=PROMPTS, tower=TOWER),
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
# Of each of the four: whole images of an earlier listing, their weights, other classes, a name.
COLUMNS = {
    "weight": np.array([0.0, 1.5, 1.0, 0.25], np.float32),
    "source": np.array([[7], [0], [2**63], [8]], np.uint64),
    "crop": np.array([[[0, 1, 8, 7]], [[2, 0, 3, 3]], [[0, 0, 1, 1]], [[5, 5, 9, 2]]], np.int32),
    "labels": np.array([[1, 2], [-1, -1], [0, -1], [2, 1]], np.int32),
    "x_name": np.frombuffer(b"a.pngb.pngc.pngd.png", np.uint8).reshape(4, 5),
}
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
    # The paper's deltas: 3x3 convolutions in the form of a convolution; and a head from text.
    names = [("layer1.0.conv2.weight", 3), ("layer2.1.conv2.weight", 6), ("conv1.weight", 3)]
    resnet = projector(
        "seeded", [(n, inner, "int8") for n, inner in sorted(names)], "int8",
        head_rank=2, bias=True, probes=2, arch=RESNET, text=TEXT,
    )  # fmt: skip
    pictures = image_set("jpeg", ((0, "smooth.jpg"), (1, "grey.jpg")))
    # Fill bytes before the marker of the scan, which any marker may have.
    filled = (IMAGES / "smooth.jpg").read_bytes().replace(b"\xff\xda", b"\xff\xff\xff\xda", 1)
    # Text that compresses, so that the section is stored as zstd.
    many = tuple(ClassLine(f" class, {i:04d}", (f"number {i}",)) for i in range(300))
    early = projector("seeded", [("proj", 1, "int8")], "float32", bias=True, probes=2)
    return {
        "functions": draft("functions", projector=seeded, further=[replace(early, name="early_2")]),
        "projector": draft("projector", projector=seeded),
        "projector-resnet": draft("projector-resnet", projector=resnet),
        "projector-text": draft("projector-text", projector=text_projector()),
        "images-png": draft(
            "images-png",
            images=image_set("png", PNG),
            # Too short to be compressed.
            record=parse_record(canonical({"images": RECORD["images"]})),
        ),
        "images-columns": draft(
            "images-columns",
            images=replace(image_set("png", PNG), columns=COLUMNS, order="value"),
            label_function=TOWER,
        ),
        "images-jpeg": draft(
            "images-jpeg",
            images=ImageSet("jpeg", [*pictures.items, ImageItem(2, filled)]),
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
            record=parse_record(canonical(RECORD)),
            extras={"x_note": 'free text: \u00e9 \U0001f98a "\\\n', "x_": ""},
        ),
    }


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def newer_minor(path):
    """``path`` as of minor version 7: an unknown section, unknown keys, nothing required."""
    data = path.read_bytes()
    size = int(data[124:135], 8)
    manifest = json.loads(data[512 : 512 + size])
    manifest["hello"] = "1.7"
    manifest["colour"] = {"space": ["sRGB", "linear"]}
    manifest["views"]["rotate"] = "0.25"
    later = b"bytes of a later version\n"
    entry = {"digest": sha256(later), "encoding": "none", "name": "thumbnails", "size": len(later)}
    manifest["sections"].insert(0, entry)
    text = canonical(manifest)
    members = [
        ("__hello__/manifest", text),
        ("__hello__/id", sha256(text)[7:].encode() + b"\n"),
        ("__hello__/thumbnails", later),
    ]
    out = b"".join(header(n, len(d)) + d + bytes(-len(d) % 512) for n, d in members)
    return out + data[512 + size + -size % 512 + 1024 :]


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
        for name in file.section_sizes():
            if name.partition("_")[0] in ("adapter", "head", "probes", "base"):
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


# About one file for each rule of the page, out of the many that the zoo makes.
INVALID = (Path(__file__).parent / "invalid.txt").read_text().split()


def dump(path, document):
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="ascii")


def make(folder):
    """Write every vector below ``folder``, in the place of the old ones once all are written."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as new:
        write_all(Path(new))
        for kind in Path(new).iterdir():
            shutil.rmtree(folder / kind.name, ignore_errors=True)
            kind.rename(folder / kind.name)


def write_all(folder):
    zoo = load("zoo", ROOT / "tests" / "hostile").ZOO
    for kind in ("valid", "invalid"):
        (folder / kind).mkdir(parents=True)
    load("make_views").make(folder / "views")
    valid = folder / "valid"
    for name, made in drafts().items():
        write_archive(valid / f"{name}.hello", made)
    write_shards(valid / "shard.hello", draft("shard", images=image_set("png", PNG)), 2)
    # Of a set that differs in its pictures only, in the place of the other's second file.
    write_shards(valid / "foreign.hello", draft("shard", images=image_set("png", PNG[::-1])), 2)
    (valid / "foreign-00000-of-00002.hello").unlink()
    (valid / "minor-1.7.hello").write_bytes(newer_minor(valid / "images-png.hello"))
    for path in sorted(valid.glob("*.hello")):
        dump(path.with_suffix(".json"), expectation(path))
    for name in INVALID:
        path = zoo[name].write(folder / "invalid" / f"{name.replace('_', '-')}.hello")
        about = {"error": zoo[name].error, "code": zoo[name].code, "exit": zoo[name].exit}
        dump(path.with_suffix(".json"), about)


def load(name, folder=Path(__file__).parent):
    """A module or package of the tests, which lie on no path."""
    sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def write_schemas(folder):
    from hellofmt.archive.format.schema import json_schema, record_schema

    for name, schema in (("hello-1", json_schema()), ("hello-1-record", record_schema())):
        text = json.dumps(schema, indent=1) + "\n"
        (folder / f"{name}.schema.json").write_text(text, encoding="ascii")


if __name__ == "__main__":
    spec = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "spec"
    make(spec / "vectors")
    write_schemas(spec)
