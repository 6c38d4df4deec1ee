"""One content has one encoding: no field of the manifest can change without a change of meaning.

Every field that the types know is changed, removed and added in vectors, and the file signed anew
around the change. Then a reader must refuse it, draw other views, give other labels or find another
text for people.
"""

import copy
import hashlib
import io
import json
from functools import cache
from pathlib import Path

import msgspec.inspect as mi
import numpy as np
import pytest

from hellofmt.archive import open_archive, verify_archive
from hellofmt.archive.format.canonical import canonical
from hellofmt.archive.format.layout import header, padded
from hellofmt.archive.format.manifest import Manifest
from hellofmt.errors import HelloError

VALID = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"
# Vectors, and how many changes of each are at least another content. Were all refused, nothing of
# meaning would have been compared.
LEAST = {
    "everything": 5,
    "images-packed": 1,
    "shard-00000-of-00002": 1,
    "zstd-classes": 15,
}
# Texts, and what a writer promises of things that are not in the file.
DECLARED = (
    "producer.", "dataset.name", "dataset.version", "dataset.license", "dataset.method",
    "dataset.sources", "base.name", "base.pretrained", "images.order", "label_function",
)  # fmt: skip
# A file of a later version says the same in another number; writers take the lowest.
LATER = "hello"
DIGEST = "sha256:" + "7" * 64
ADDED = {
    "a": [1, 16], "act_approximate": "tanh", "antialias": False, "attentional_pool": False,
    "attn_pooler_heads": 4, "attn_pooler_queries": 4, "b": [3, 1], "base": {}, "columns": [],
    "block_type": "custom", "final_ln_after_pool": False, "functions": [], "head_width": 64,
    "images": {}, "ipc": 1, "label_function": DIGEST, "ls_init_value": "0.00001",
    "mix_alpha": "0.5", "mix_probability": "0.5", "mlp_ratio": "4.0", "no_ln_pre": False,
    "norm_eps": "0.00001", "order": "value", "patch_size": 4, "pool_type": "tok",
    "pretrained": "x", "qk_norm": False, "raw_digest": DIGEST, "raw_size": 5, "scale": "1.0",
    "scale_attn": False, "scale_attn_inner": False, "scale_fc": False, "scale_heads": False,
    "seed": 1, "shape": [6, 8, 3], "storage": "float32", "text": {}, "timm_model_name": "vit",
    "timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": False,
    "shard": {"content_id": DIGEST, "count": 2, "first": 0, "index": 0, "total": 9},
}  # fmt: skip


def others(value, kind):
    """Values of the same type as ``value``."""
    if isinstance(kind, mi.LiteralType):
        return [v for v in kind.values if v != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, list):
        inner = [] if not value or isinstance(value[-1], dict) else others(value[-1], None)
        changed = [[*value[:-1], other] for other in inner]
        return [value[::-1], value[:-1], [*value, *value[:1]], *changed]
    if value.startswith("sha256:"):
        return [DIGEST]
    if value.replace(".", "").replace("-", "").isdigit() and value != "1.0.0":
        return ["0.375", "8.5"]
    return [value + "x"]


def plain(kind):
    """The one type of an optional field."""
    if isinstance(kind, mi.UnionType):
        kinds = [k for k in kind.types if not isinstance(k, mi.CustomType)]
        return kinds[0] if len(kinds) == 1 else kind
    return kind


def fields(kind, value, path=()):
    """(path, type, struct, whether it is there) of every field of an object and of those inside."""
    kind = plain(kind)
    if isinstance(kind, mi.ListType):
        for i, item in enumerate(value[:1]):
            yield from fields(kind.item_type, item, (*path, i))
    elif isinstance(kind, mi.StructType):
        for field in kind.fields:
            name = field.encode_name
            yield (*path, name), plain(field.type), kind.cls, name in value
            if name in value:
                yield from fields(field.type, value[name], (*path, name))


def structs(kind):
    """Every struct below a type."""
    kind = plain(kind)
    if isinstance(kind, mi.ListType):
        yield from structs(kind.item_type)
    elif isinstance(kind, mi.StructType):
        yield kind.cls
        for field in kind.fields:
            yield from structs(field.type)


def edits(document):
    for path, kind, _, is_there in fields(mi.type_info(Manifest), document):
        at = document
        for step in path[:-1]:
            at = at[step]
        if not is_there:
            yield path, ADDED[path[-1]]
        else:
            yield path, ...
            if not isinstance(at[path[-1]], dict):
                for value in others(at[path[-1]], kind):
                    yield path, value


def edited(document, path, value):
    made = copy.deepcopy(document)
    at = made
    for step in path[:-1]:
        at = at[step]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    if path[0] == "base" and path != ("base", "digest") and isinstance(made.get("base"), dict):
        kept = {k: made["base"][k] for k in ("arch", "preprocess", "tensors") if k in made["base"]}
        digest = hashlib.sha256(b"hello/base/1\n" + canonical(kept)).hexdigest()
        made["base"]["digest"] = f"sha256:{digest}"
    return made


def signed(document, rest):
    text = canonical(document)
    digits = hashlib.sha256(text).hexdigest().encode() + b"\n"
    out = io.BytesIO()
    for name, data in (("__hello__/manifest", text), ("__hello__/id", digits)):
        out.write(header(name, len(data)) + data + bytes(padded(len(data)) - len(data)))
    return out.getvalue() + rest


def views_of(views):
    from hellofmt.loading import render, view_table

    random = np.random.default_rng(0)
    sides = [(9, 7), (12, 16), (8, 8), (5, 20)] * 4
    pictures = [random.integers(0, 256, (*side, 3), np.uint8) for side in sides]
    heights, widths = np.array(sides).T
    table = view_table(
        views, seed=1, epochs=0, indices=np.arange(len(sides)), heights=heights, widths=widths,
        count=len(sides),
    )  # fmt: skip
    return render(pictures, table, views).numpy().tobytes()


def labels_of(file):
    import torch

    from hellofmt.projector import Labeler

    random = np.random.default_rng(0)
    views = torch.from_numpy(random.random((2, 3, 12, 12), np.float32))
    return [
        (
            function.name,
            Labeler.from_file(file, label_function=function.name).labels(views).numpy().tobytes(),
        )
        for function in file.manifest.functions
    ]


@cache
def base_labels(name):
    with open_archive(VALID / f"{name}.hello") as file:
        return labels_of(file)


def is_the_same(path, name, step):
    """Whether a file that was accepted says what the vector ``name`` says."""
    with open_archive(path) as file, open_archive(VALID / f"{name}.hello") as before:
        if step == "views":
            new, old = file.manifest.views, before.manifest.views
            is_same = (new.mean, new.std) == (old.mean, old.std)
            return is_same and views_of(new) == views_of(old)
        if step in ("base", "functions"):
            return labels_of(file) == base_labels(name)
        # Which part of which set it is.
        return file.manifest.shard == before.manifest.shard


@pytest.mark.parametrize(
    "name",
    # Thirty label functions are built; the zoo has each rule of absence one by one.
    [n if n != "everything" else pytest.param(n, marks=pytest.mark.slow) for n in LEAST],
)
def test_no_field_is_without_effect(name, tmp_path):
    data = (VALID / f"{name}.hello").read_bytes()
    size = int(data[124:135], 8)
    document, rest = json.loads(data[512 : 512 + size]), data[512 + padded(size) + 1024 :]
    path = tmp_path / "x.hello"
    path.write_bytes(signed(document, rest))
    assert path.read_bytes() == data
    accepted = 0
    for place, value in edits(document):
        made = edited(document, place, value)
        dotted = ".".join(map(str, place))
        # All vectors have the same views.
        is_met = place[0] == "views" and name != "zstd-classes"
        if made == document or is_met or dotted.startswith((*DECLARED, LATER)):
            continue
        path.write_bytes(signed(made, rest))
        try:
            verify_archive(path)
            assert not is_the_same(path, name, place[0]), f"{dotted} = {value} has no effect"
        except HelloError:
            continue
        accepted += 1
    assert accepted >= LEAST[name]


def test_every_field_is_met():
    met = set()
    for path in VALID.glob("*.hello"):
        data = path.read_bytes()
        document = json.loads(data[512 : 512 + int(data[124:135], 8)])
        for place, _, struct, is_there in fields(mi.type_info(Manifest), document):
            met.add(struct)
            assert is_there or place[-1] in ADDED, place
    assert set(structs(mi.type_info(Manifest))) <= met
