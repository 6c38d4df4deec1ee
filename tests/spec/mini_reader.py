"""A second reader of `.hello` files: standard library only, written from spec/hello-1.md alone.

It shares no line with hellofmt: where the two agree, the page says enough to be implemented. It
leaves out what needs more than the standard library (zstd, decoding images, the label function),
the limits, and what spec/hello-1.schema.json already says. It has fewer than 220 lines of code,
blank lines, comments and docstrings not counted; the tests count them.
"""

import hashlib
import json
import re
import struct
from itertools import accumulate
from pathlib import Path

TENSORS = {"index", "adapter", "head", "probes", "base", "pixels"}
PARTS = ["adapter", "head", "probes"]
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "I32": 4, "U16": 2, "U64": 8}
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "int4": "U8"}
COLUMNS = {"size": "U64", "label": "I32", "height": "U16", "width": "U16"}
FORMS = r"x_.*|weight F32 \[\]|source U64 \[\d+\]|crop I32 \[\d+, 4\]|labels I32 \[\d+\]"
CODES = {"U64": "Q", "I32": "i", "U16": "H"}
LINE = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+\t[^\x00-\x1f\x7f-\x9f\u2028\u2029]+"


class Refused(Exception):
    """Carries one error code of the specification."""


def require(holds, code):
    if not holds:
        raise Refused(code)


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def up(n, block=512):
    return -(-n // block) * block


def header(name, size):
    texts = ["0000644", "0000000", "0000000", f"{size:011o}", "0" * 11, " " * 8, "0", "", "ustar"]
    form = "100s 8s 8s 8s 12s 12s 8s 1s 100s 6s 2s 247x"
    block = struct.pack(form, *(text.encode() for text in (name, *texts, "00")))
    return block.replace(b" " * 8, b"%06o\0 " % sum(block))


def functions(m):
    """Ending of the sections of each label function -> its entry in the manifest."""
    return [("_" + f["name"] if i else "", f) for i, f in enumerate(m.get("functions", []))]


def parse_json(data):
    try:
        # `int` refuses the text of every float, NaN included.
        m = json.loads(data, parse_float=int, parse_constant=int)
        require(isinstance(m, dict) and canonical(m) == data and within(m), "E_JSON")
        json.dumps(m, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise Refused("E_JSON") from None
    return m


def within(item, depth=1):
    """The bounds of section 4.1."""
    if isinstance(item, int | str):
        return abs(item) < 1 << 53 if isinstance(item, int) else len(item) <= 4096
    parts = [*item, *item.values()] if isinstance(item, dict) else item
    is_short = isinstance(item, dict) or len(item) <= 65536
    return is_short and depth <= 8 and all(within(part, depth + 1) for part in parts)


def parse_manifest(data):
    m = parse_json(data)
    version = re.fullmatch(r"(0|[1-9]\d{0,3})\.(0|[1-9]\d{0,3})", str(m.get("hello")))
    require(version, "E_SCHEMA")
    require(version[1] == "1", "E_VERSION")
    require(set(m["requires"]) <= {"images.packed"}, "E_FEATURE")
    names, labels = [section["name"] for section in m["sections"]], [end for end, _ in functions(m)]
    titles = [f["name"] for _, f in functions(m)]
    require(len(set(titles)) == len(titles), "E_DUPLICATE")
    parts = [part + label for label in labels for part in PARTS]
    order = ["index", "classes", *parts, "base", "record", "card", "license", "pixels"]
    known = [name for name in names if name in order]
    require(("base" in m) == bool(parts) and {"functions", "images"} & set(m), "E_SCHEMA")
    require({*parts, "classes"} <= set(names), "E_SCHEMA")
    require(("images" in m) == ("index" in names), "E_SCHEMA")
    require(known == names or m["hello"] != "1.0", "E_SCHEMA")
    require("label_function" not in m or not parts, "E_SCHEMA")
    columns = m.get("images", {}).get("columns", [])
    further = [column["name"] for column in columns]
    require(len({*COLUMNS, "sha256", *further}) == 5 + len(further), "E_DUPLICATE")
    require(further == sorted(further), "E_ORDER")
    forms = (f"{c['name']} {c['dtype']} {c['shape']}" for c in columns)
    require(all(re.fullmatch(FORMS, form) for form in forms), "E_SCHEMA")
    require(len(set(names)) == len(names), "E_DUPLICATE")
    require(known == sorted(known, key=order.index), "E_ORDER")
    return m


def implied(name, m):
    """Name -> (dtype, shape) of every tensor in a section; None for `base`, which states them."""
    images, matrices = m.get("images"), []
    kind, _, label = name.partition("_")
    function = dict(functions(m)).get(label and "_" + label, {})
    head = function.get("head", {})
    if name == "index":
        out = {key: (dtype, [images["count"]]) for key, dtype in COLUMNS.items()}
        for column in images.get("columns", []):
            out[column["name"]] = (column["dtype"], [images["count"], *column["shape"]])
        return out | {"sha256": ("U8", [images["count"], 32])}
    if name == "pixels":
        return {"pixels": ("U8", [images["count"], *images["shape"]])}
    if kind == "probes":
        return {"logits": ("F32", [function["probes"]["count"], m["classes"]])}
    out = {"logit_scale": ("F32", [1])} if kind == "head" else {}
    if kind == "head":
        out |= {"bias": ("F32", [m["classes"]])} if head["bias"] else {}
        whole = ("weight", [m["classes"], m["base"]["arch"]["embed_dim"]], head.get("storage"))
        matrices = [whole] if head["start"] == "stored" else []
    deltas = [head | {"param": "weight"}]
    if kind == "adapter":
        deltas = function["adapter"]["targets"]
    for d in (d for d in deltas if "a" in d):
        matrices += [(f"{d['param']}::{k.upper()}", d[k], d["storage"]) for k in "ab"]
    for key, (rows, columns), storage in matrices:
        out[key] = (STORED[storage], [rows, -(-columns // 2) if storage == "int4" else columns])
        if storage in ("int8", "int4"):
            out[key + "_scale"] = ("F32", [rows])
    return None if name == "base" else out


def tensor_header(kinds):
    """The one header of tensors, and where each of them begins and ends after it."""
    ends, entries = [0], {}
    for key in sorted(kinds, key=lambda key: (-WIDTHS[kinds[key][0]], key)):
        dtype, shape = kinds[key]
        *_, length = accumulate([WIDTHS[dtype], *shape], int.__mul__)
        ends.append(ends[-1] + length)
        entries[key] = {"data_offsets": ends[-2:], "dtype": dtype, "shape": shape}
    head = canonical(entries).ljust(up(len(canonical(entries)), 8))
    return struct.pack("<Q", len(head)) + head, {k: e["data_offsets"] for k, e in entries.items()}


def parse_tensors(data, name, m):
    """Name -> bytes, after the header was compared with its only form."""
    kinds, out = implied(name, m), {}
    if kinds is None:
        try:
            stated = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            kinds = {key: (entry["dtype"], entry["shape"]) for key, entry in stated.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise Refused("E_TENSOR") from None
    head, places = tensor_header(kinds)
    require(data.startswith(head), "E_TENSOR")
    require(len(data) == len(head) + max((e for _, e in places.values()), default=0), "E_TENSOR")
    for key, (start, end) in places.items():
        out[key] = data[len(head) :][start:end]
        values = struct.iter_unpack("<f", out[key]) if kinds[key][0] == "F32" else ()
        require(all(abs(x) < float("inf") for (x,) in values), "E_TENSOR")
    return out


def content_id(m):
    kept = {k: v for k, v in m.items() if k != "producer" and not k.startswith("x_")}
    left_out = ("card", "license", "record", "pixels")
    raw = [{"size": s["size"], "digest": s["digest"]} | {
        k[4:]: s[k] for k in s if k.startswith("raw_")} | {"name": s["name"]}
        for s in m["sections"] if s["name"] not in left_out]  # fmt: skip
    return digest(b"hello/content/1\n" + canonical(kept | {"sections": raw}))


def read(path):
    """Everything in the archive, or Refused."""
    data, at = Path(path).read_bytes(), 0
    require(data and b"__hello__/manifest".startswith(data[:18]), "E_MAGIC")
    require(len(data) >= 2048, "E_TRUNCATED")
    require(re.fullmatch(rb"[0-7]{11}", data[124:135]), "E_HEADER")

    def member(name, size, want=None, code=None):
        nonlocal at
        require(data[at : at + 512] == header(name, size), "E_HEADER")
        at += 512 + size
        payload, pad = data[at - size : at], -size % 512
        require(len(payload) == size, "E_TRUNCATED")
        require(want in (None, digest(payload)), code)
        require(data[at : at + pad] == bytes(pad), "E_PADDING")
        at += pad
        return payload

    raw = member("__hello__/manifest", int(data[124:135], 8))
    require(member("__hello__/id", 65) == digest(raw)[7:].encode() + b"\n", "E_DIGEST_ROOT")
    m = parse_manifest(raw)
    sections, tensors, images, span = {}, {}, [], m.get("images", {}).get("span", 0)
    total = at + sum(512 + s["size"] + -s["size"] % 512 for s in m["sections"]) + span + 1024
    require(len(data) == total, "E_TRUNCATED" if len(data) < total else "E_TRAILING")
    for s in m["sections"]:
        name = s["name"]
        sections[name] = member(f"__hello__/{name}", s["size"], s["digest"], "E_DIGEST_INDEX")
        require(s["encoding"] == "none" or name not in ("index", "pixels"), "E_SCHEMA")
        if s["encoding"] == "none" and name == "classes":
            text = sections[name].decode(errors="surrogateescape")
            require(re.fullmatch(f"({LINE}\n){{{m['classes']}}}", text), "E_CLASSES")
        elif s["encoding"] == "none" and name == "record":
            parse_json(sections[name])
        elif s["encoding"] == "none" and name.partition("_")[0] in TENSORS:
            tensors[name] = parse_tensors(sections[name], name, m)
    if "images" in m:
        rows, first = m["images"]["count"], m.get("shard", {}).get("first", 0)
        index = tensors["index"]
        unpacked = (struct.unpack(f"<{rows}{CODES[t]}", index[k]) for k, t in COLUMNS.items())
        sizes, labels, *sides = unpacked
        packed, starts = m["images"]["layout"] == "packed", [0, *accumulate(sizes)]
        require(list(labels) == sorted(labels) and labels[-1] < m["classes"], "E_INDEX")
        require(labels[0] >= 0 and min(map(min, (sizes, *sides))) > 0, "E_INDEX")
        require(packed or span == sum(512 + n + -n % 512 for n in sizes), "E_INDEX")
        last = m.get("shard", {}).get("total", rows) - 1
        wide, ext = max(4, len(str(m["classes"] - 1))), m["images"]["codec"].replace("peg", "pg")
        for i, (size, label) in enumerate(zip(sizes, labels, strict=True)):
            name = f"images/{label:0{wide}}/{i + first:0{max(6, len(str(last)))}}.{ext}"
            want = "sha256:" + index["sha256"][32 * i : 32 * i + 32].hex()
            if packed:
                payload = tensors["pixels"]["pixels"][starts[i] : starts[i + 1]]
                require(digest(payload) == want, "E_DIGEST_MEMBER")
            else:
                payload = member(name, size, want, "E_DIGEST_MEMBER")
            images.append((name, label, payload))
    require(data[at:] == bytes(1024), "E_TRAILING")
    return {"id": digest(raw), "content_id": content_id(m), "manifest": m, "sections": sections,
            "tensors": tensors, "images": images}  # fmt: skip


def read_set(paths):
    """The files of a set in order, and the id and content_id of the set, or Refused."""
    files = [read(path) for path in paths]
    manifests = [file["manifest"] for file in files]
    content = manifests[0]["shard"]["content_id"]
    require(all(m["shard"]["content_id"] == content for m in manifests), "E_DIGEST_ROOT")
    images = [m["images"] for m in manifests]
    sums = {key: sum(one[key] for one in images) for key in ("count", "span")}
    whole = {k: v for k, v in manifests[0].items() if k != "shard"}
    whole["images"] = images[0] | sums
    head, places = tensor_header(implied("index", whole))
    index = head + b"".join(file["tensors"]["index"][key] for key in places for file in files)
    entry = {"name": "index", "size": len(index), "digest": digest(index)}
    whole["sections"] = [entry if s["name"] == "index" else s for s in whole["sections"]]
    require(content_id(whole) == content, "E_DIGEST_ROOT")
    ids = "".join(f"{file['id']}\n" for file in files)
    return files, digest(b"hello/set/1\n" + ids.encode()), content
