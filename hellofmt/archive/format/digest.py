"""Digests of sections, tensors, bases, contents and sets, as the specification spells them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from hellofmt.archive.format.canonical import canonical

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hellofmt.archive.format.manifest import Arch, Preprocess


def sha256(data: bytes | memoryview) -> str:
    """Return the digest of ``data`` as the manifest spells it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tensors_digest(lines: Iterable[tuple[str, str, tuple[int, ...], bytes]]) -> str:
    """Digest a set of tensors, whatever container they came from.

    SHA-256 over one line ``name|dtype|shape|sha256`` per tensor, sorted by name, each ended by a
    line feed; the shape is written ``3x4x5``, the last field is the hex SHA-256 of the data,
    little-endian and row-major. Dtypes are spelt as in safetensors (``F32``): pass floating tensors
    of a base as F32 and leave out integer counters.
    """
    rows = sorted(
        (name, f"{dtype}|{'x'.join(map(str, shape))}|{hashlib.sha256(data).hexdigest()}")
        for name, dtype, shape, data in lines
    )
    return sha256("".join(f"{name}|{row}\n" for name, row in rows).encode("utf-8"))


@dataclass(frozen=True)
class Whole:
    """Images of a sharded data set as one file would have them: number, bytes of members, index."""

    count: int
    span: int
    index: bytes


def base_digest(arch: Arch, preprocess: Preprocess, tensors: str) -> str:
    r"""Digest a base encoder: its architecture, its preprocessing and its tensors' digest.

    SHA-256 over ``hello/base/1\n`` and the canonical JSON of the three.
    """
    document = {
        "arch": msgspec.to_builtins(arch),
        "preprocess": msgspec.to_builtins(preprocess),
        "tensors": tensors,
    }
    return sha256(b"hello/base/1\n" + canonical(document))


def content_id(data: bytes, *, whole: Whole | None = None) -> str:
    r"""Identify the content: equal for files that differ only in compression or in their shards.

    SHA-256 over ``hello/content/1\n`` and the canonical JSON of the manifest without ``producer``,
    ``x_`` keys, ``card``, ``license``, ``record`` and ``pixels`` (whose images the index fixes),
    each section with its raw size and digest. It answers "same data set?" and is never a pin: only
    ``id`` fixes the bytes. Keys that this reader does not know are included; otherwise readers of
    two versions would give one file two identities.

    ``data`` is the stored bytes of a valid manifest; if it describes a shard, ``whole`` is the
    images of the data set, and the result what the manifest of one file with all of them would
    give.
    """
    stored: dict[str, Any] = json.loads(data)
    document = {k: v for k, v in stored.items() if k != "producer" and not k.startswith("x_")}
    document["sections"] = [
        {
            "digest": section.get("raw_digest", section["digest"]),
            "name": section["name"],
            "size": section.get("raw_size", section["size"]),
        }
        for section in stored["sections"]
        if section["name"] not in ("card", "license", "record", "pixels")
    ]
    if whole is not None:
        del document["shard"]
        document["images"] = {**stored["images"], "count": whole.count, "span": whole.span}
        for section in document["sections"]:
            if section["name"] == "index":
                section |= {"digest": sha256(whole.index), "size": len(whole.index)}
    return sha256(b"hello/content/1\n" + canonical(document))


def set_id(ids: Sequence[str]) -> str:
    r"""Identify a set: SHA-256 over ``hello/set/1\n`` and its ids in order, a line each."""
    text = "hello/set/1\n" + "".join(f"{one}\n" for one in ids)
    return sha256(text.encode("ascii"))
