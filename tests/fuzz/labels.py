"""The fifth target: archives changed, signed anew and computed, up to the labels of a view.

An input is a list of instructions of five bytes, each of which changes one thing of an archive: a
value of the manifest, a key of it, bytes of a section. So nearly every input is a well-formed
archive whose digests are right, and what is tried are the rules behind them. What the reader still
accepts learns its own weights' digest and probes, and must then give labels that are numbers.
"""

import copy
import hashlib
import json
import struct

import msgspec
import torch
from targets import require
from zoo.functions import Living, Memory, archive, learned

from hellofmt.archive.read import verify
from hellofmt.archive.read.file import HelloFile
from hellofmt.errors import HelloError
from hellofmt.loading import HelloDataset
from hellofmt.projector import Labeler
from hellofmt.projector.base import pinned

KINDS = ("seeded", "embedded", "text")
INTEGERS = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65, 96, 100, 128, 224),
    *(255, 256, 257, 512, 1000, 1024, 4096, 8192, 49_408, 65_535, 1 << 20, 1 << 31, 1 << 53, -1),
)
TEXTS = (
    *("0.0", "0.5", "1.0", "2.0", "4.0", "-1.0", "0.001", "0.0001", "100000.0", "1000.0", "0.25"),
    *("0.0000001", "999999999.0", "64.0", "0.00001", "1.5", "", "a", "{}", "\u202e", "avg", "tok"),
    *("none", "nearest", "bilinear", "bicubic", "text", "stored", "softmax", "int8", "int4"),
    *("float16", "bfloat16", "float32", "embedded", "seeded", "open_clip", "cutmix", "mixup"),
    *("vit_tiny_patch16_224", "resnet18", "custom", "tanh", "conv1.weight", "proj", "ln_post.bias"),
)
KEYS = (
    *(("image_size", 16), ("layers", [1, 1, 1, 1]), ("layers", 2), ("patch_size", 3)),
    *(("mlp_ratio", "0.5"), ("attentional_pool", True), ("attn_pooler_heads", 2)),
    *(("attn_pooler_queries", 3), ("no_ln_pre", True), ("pool_type", "avg"), ("norm_eps", "0.1")),
    *(("final_ln_after_pool", True), ("act_approximate", "tanh"), ("qk_norm", True)),
    *(("ls_init_value", "0.00001"), ("timm_model_name", "resnet18"), ("timm_pool", "token")),
    *(("scale_fc", True), ("block_type", "custom"), ("scale", "1.0"), ("a", [2, 8]), ("b", [2, 2])),
    *(("bias", False), ("text", {"prompts": ["{}"], "tower": "sha256:" + "0" * 64})),
    *(("text", {"context_length": 8, "heads": 2, "layers": 1, "vocab_size": 49408, "width": 8}),),
    *(
        ("seed", 3),
        ("pretrained", "x"),
        ("mix_alpha", "1.0"),
        ("storage", "int4"),
        ("head_width", 4),
    ),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-38, 1e-45, 1e4, 7e4, 1e20, 3.4e38, float("inf"))
NUMBERS = (
    *(struct.pack("<f", x) for x in FLOATS),
    *(b"\xff\xff\xff\x7f", b"\x7f\x7f\x7f\x7f", bytes(4), b"\x80\x80\x80\x80"),
)


made = pinned.seeded_base
bases = {}


def kept_base(arch, preprocess, **options):
    """``seeded_base``, which need not build the same tower for every input."""
    key = msgspec.json.encode([arch, preprocess, options])
    if key not in bases:
        base = made(arch, preprocess, **options)
        if sum(p.numel() for p in base.visual.parameters()) > 1 << 20:
            return base
        if len(bases) > 32:
            bases.clear()
        bases[key] = base
    return bases[key]


pinned.seeded_base = kept_base


def places(value, found):
    """Every object and list below ``value`` with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], (dict, list)):
            places(value[key], found)
    return found


def replaced(old, a, b):
    """Another value in the place of ``old``, mostly of its type."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return INTEGERS[a % len(INTEGERS)] if b % 2 else old + b % 16 - 8
    if isinstance(old, str):
        return TEXTS[a % len(TEXTS)]
    if isinstance(old, list):
        return old[: a % (len(old) + 1)] if b % 2 else old + old[:1]
    return TEXTS[a % len(TEXTS)] if b % 2 else {}


def change(kit, kind, a, b, c, d):
    """Carry out one instruction."""
    if kind % 8 < 4:
        found = places(kit.manifest, [])
        parent, key = found[(a * 256 + b) % len(found)]
        parent[key] = replaced(parent[key], c, d)
    elif kind % 8 == 4:
        found = [p for p in places(kit.manifest, []) if isinstance(p[0], dict)]
        parent, key = found[(a * 256 + b) % len(found)]
        if c % 4:
            parent.update([copy.deepcopy(KEYS[c % len(KEYS)])])
        else:
            del parent[key]
    elif kind % 8 == 5:
        name = list(kit.files)[a % len(kit.files)]
        data = kit.files[name]
        at = (b * 256 + c) * 4 % max(len(data), 1)
        kit.files[name] = data[:at] + NUMBERS[d % len(NUMBERS)] + data[at + 4 :]
    elif kind % 8 == 6:
        name = list(kit.files)[a % len(kit.files)]
        data, at = kit.files[name], (b * 256 + c) % max(len(kit.files[name]), 1)
        kit.files[name] = data[:at] + bytes([d]) + data[at + 1 :]
    elif a % 3:
        vision = kit.manifest.get("base", {}).get("arch", {}).get("vision")
        if isinstance(vision, dict) and vision:
            key = list(vision)[b % len(vision)]
            vision[key] = replaced(vision[key], c, d)
            kit.manifest["base"]["preprocess"]["size"] = vision.get("image_size", 224)
    else:
        kit.files["classes"] = b"a\t" + bytes([b, c, d]) + b"\nb\t{}\n"


def changed(data):
    """The archive that the instructions make, signed; None if they leave none."""
    kit = Living.of(archive(KINDS[data[0] % len(KINDS)] if data else "seeded"))
    try:
        for at in range(1, min(len(data), 31), 5):
            change(kit, *data[at : at + 5].ljust(5, b"\0"))
    except (KeyError, TypeError, IndexError, AttributeError):
        # Earlier instructions took away what this one changes.
        return None
    return kit


def sign(data):
    """Instructions to an archive that is right in everything that can be computed."""
    kit = changed(data)
    if kit is None:
        return b""
    try:
        made = kit.build()
    except (ValueError, TypeError, KeyError, struct.error, json.JSONDecodeError):
        return b""
    try:
        made = kit.refit().build()
        return learned(made)
    except HelloError:
        return made


def compute(data):
    """Verify an archive, build its label function, label a view."""
    file = HelloFile(Memory(data))
    verify._verify(file, "full", [], None, hashlib.sha256())
    if not file.has_section("head"):
        return
    labeler = Labeler.from_file(file)
    view = torch.linspace(0, 1, 3 * 64).reshape(1, 3, 8, 8)
    made = labeler.labels(view)
    require(bool(torch.isfinite(made).all()), "labels that are no numbers")
    require(abs(float(made.sum()) - 1) < 1e-4, "labels that are no distribution")
    half = labeler.logits(view).half()
    require(bool(torch.isfinite(half).all()), "logits that half precision cannot hold")
    if file.manifest.views.size <= 64 and len(file):
        HelloDataset(file, labels="none", cache=0)[0]
