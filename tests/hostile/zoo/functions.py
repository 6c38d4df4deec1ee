"""Hostile label functions: right digests, and a base, head or list that hurts whoever computes it.

Unlike the rest of the zoo they start from archives of the project's own writer, whose labels can be
made, because what they are after lies behind every digest. ``Living`` takes such an archive apart
and signs whatever becomes of its parts; ``learned`` asks the reader itself for the weights' digest
and the probes of a changed function, so that a lie can reach the labels.
"""

import json
import re
import struct
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import zstandard

from zoo.parts import canonical, f32, frame, member, parts, png, sha, sign_base

TEXT = {"context_length": 8, "heads": 2, "layers": 1, "vocab_size": 49408, "width": 8}


@cache
def archive(kind="seeded"):
    """An archive of two pictures whose labels can be made: ``seeded``, ``embedded`` or ``text``."""
    import builders

    from hellofmt.archive import ClassLine, Draft, ImageItem, ImageSet, write_archive
    from hellofmt.archive.format.manifest import TextArch
    from hellofmt.projector import Projector, seeded_base

    classes = [ClassLine("a", ("tench",)), ClassLine("b", ("goldfish",))]
    arch = builders.vit(8, 8, width=16, head_width=8)
    text = TextArch(**TEXT) if kind == "text" else None
    base = seeded_base(arch, builders.preprocess(8), seed=5, text=text)
    projector = Projector.build(
        base.embedded() if kind == "embedded" else base,
        classes,
        start="text" if kind == "text" else "stored",
        rank=2,
        temperature=4.0,
        seed=1,
    )
    draft = Draft(
        dataset=builders.dataset(),
        classes=classes,
        views=builders.mixed_views(8),
        images=ImageSet(
            "png", [ImageItem(0, png(9, 9)), ImageItem(1, png(9, 9, level=0))], "files"
        ),
        projector=projector.part("int8", 2),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "valid.hello"
        write_archive(path, draft)
        return path.read_bytes()


@dataclass
class Living:
    """An archive as manifest, raw sections and image members; ``build`` signs them.

    ``packed`` sections are stored as zstd.
    """

    manifest: dict
    files: dict
    tail: bytes
    packed: tuple = ()

    @classmethod
    def of(cls, data):
        members = parts(data)
        size = int(data[124:135], 8)
        manifest = json.loads(data[512 : 512 + size])
        files = {
            name[10:]: data[at + 512 : at + 512 + length]
            for name, at, length in members[2:]
            if name.startswith("__hello__/")
        }
        for entry in manifest.pop("sections"):
            if entry["encoding"] == "zstd":
                raw = zstandard.ZstdDecompressor().decompress(files[entry["name"]])
                files[entry["name"]] = raw
        first = next(
            (at for name, at, _ in members if name.startswith("images/")), len(data) - 1024
        )
        return cls(manifest, files, data[first:-1024])

    def build(self):
        made = json.loads(json.dumps(self.manifest))
        made["sections"], body = [], []
        for name, data in self.files.items():
            entry = {"encoding": "none", "name": name}
            if name in self.packed:
                entry |= {
                    "encoding": "zstd",
                    "raw_digest": "sha256:" + sha(data),
                    "raw_size": len(data),
                }
                data = frame(data)
            entry |= {"digest": "sha256:" + sha(data), "size": len(data)}
            made["sections"].append(entry)
            body.append(member(f"__hello__/{name}", data))
        base = made.get("base")
        if isinstance(base, dict) and {"arch", "preprocess", "tensors"} <= base.keys():
            sign_base(base)
        text = canonical(made)
        front = [member("__hello__/manifest", text)]
        front.append(member("__hello__/id", (sha(text) + "\n").encode()))
        return b"".join([*front, *body, self.tail, bytes(1024)])

    def refit(self):
        """Give the tensor sections the headers and lengths that the manifest implies now."""
        from hellofmt.archive.format.implied import expected_tensors
        from hellofmt.archive.format.parse import parse_manifest
        from hellofmt.archive.format.tensors import tensor_header, tensors_size

        size = int(self.build()[124:135], 8)
        manifest, _ = parse_manifest(self.build()[512 : 512 + size])
        for name in ("adapter", "head", "probes"):
            if name in self.files:
                kinds = expected_tensors(manifest, name)
                (length,) = struct.unpack_from("<Q", self.files[name])
                data = self.files[name][8 + length :]
                end = tensors_size(kinds) - len(tensor_header(kinds))
                if end > 1 << 16:
                    continue
                data = (data * (end // max(len(data), 1) + 1))[:end]
                self.files[name] = tensor_header(kinds) + data
        return self


def learned(data, attempts=3):
    """``data`` with the digest and the probes that its label function has for this reader."""
    from hellofmt.errors import BaseModelError

    for _ in range(attempts):
        try:
            labeler, count = labeler_of(data, check_probes=False)
        except BaseModelError as error:
            found = re.search(r"got (?:tensors )?(sha256:[0-9a-f]{64})", str(error))
            if error.code != "E_BASE_WEIGHTS" or found is None:
                raise
            kit = Living.of(data)
            if "text tower" in str(error):
                kit.manifest["functions"][0]["head"]["text"]["tower"] = found[1]
            else:
                kit.manifest["base"]["tensors"] = found[1]
            data = kit.build()
            continue
        kit = Living.of(data)
        (length,) = struct.unpack_from("<Q", kit.files["probes"])
        logits = labeler.probe_logits(count)
        kit.files["probes"] = kit.files["probes"][: 8 + length] + logits.astype("<f4").tobytes()
        return kit.build()
    return data


class Memory:
    """An archive in memory, as a source of the reader."""

    is_remote = False

    def __init__(self, data):
        self.name = "memory"
        self.size = len(data)
        self._data = data

    def read(self, offset, length):
        from hellofmt.errors import HelloIOError

        if offset < 0 or offset + length > self.size:
            raise HelloIOError.make("E_SHORT_READ", "beyond the end")
        return self._data[offset : offset + length]

    def read_ranges(self, ranges):
        return [self.read(offset, length) for offset, length in ranges]

    def close(self):
        pass


def labeler_of(data, **options):
    """The labeler of an archive in memory, and its number of probes."""
    from hellofmt.archive.read.file import HelloFile
    from hellofmt.projector import Labeler

    file = HelloFile(Memory(data))
    return Labeler.from_file(file, **options), len(file.tensors("probes")["logits"])


FUNCTIONS = {}
"""Name to (code, how to make it): ``""`` if the archive is valid and only has to be cheap."""


def function(code, kind="seeded"):
    def keep(make):
        def made():
            kit = Living.of(archive(kind))
            changed = make(kit)
            return kit.build() if changed is None else changed

        FUNCTIONS[make.__name__] = code, made
        return make

    return keep


def vision(kit):
    return kit.manifest["base"]["arch"]["vision"]


def head(kit):
    return kit.manifest["functions"][0]["head"]


def resized(kit, side, **keys):
    vision(kit).update(image_size=side, **keys)
    kit.manifest["base"]["preprocess"]["size"] = side


def tensor(kit, section, name):
    """Where a tensor's data begin in its section, and how many bytes they have."""
    (length,) = struct.unpack_from("<Q", kit.files[section])
    first, last = json.loads(kit.files[section][8 : 8 + length])[name]["data_offsets"]
    return 8 + length + first, last - first


def overwrite(kit, section, name, data):
    at, size = tensor(kit, section, name)
    stored = kit.files[section]
    kit.files[section] = stored[:at] + (data * size)[:size] + stored[at + size :]


@function("E_SCHEMA")
def preprocess_size_unlike_the_tower(kit):
    kit.manifest["base"]["preprocess"]["size"] = 16


@function("E_SCHEMA")
def pool_that_gives_no_vector(kit):
    vision(kit)["pool_type"] = "none"


@function("E_SCHEMA")
def ratio_of_zero(kit):
    vision(kit)["mlp_ratio"] = "0.0"


@function("E_SCHEMA")
def seeded_timm_model(kit):
    kit.manifest["base"]["arch"]["vision"] = {
        "image_size": 8,
        "timm_model_name": "eva_giant_patch14_224",
    }


@function("E_TENSOR", "embedded")
def embedded_huge_timm_model(kit):
    kit.manifest["base"]["arch"]["vision"] = {"timm_model_name": "convnext_xxlarge"}
    resized(kit, 64)


@function("E_BASE_CONFIG", "embedded")
def embedded_timm_model_of_another_size(kit):
    kit.manifest["base"]["arch"]["vision"] = {
        "image_size": 8,
        "timm_model_name": "vit_tiny_patch16_224",
    }


@function("E_BASE_CONFIG", "embedded")
def embedded_timm_model_that_nobody_knows(kit):
    kit.manifest["base"]["arch"]["vision"] = {"image_size": 8, "timm_model_name": "no_such_model"}


@function("E_TENSOR", "embedded")
def embedded_wide_tower_without_its_weights(kit):
    vision(kit).update(width=8192)


@function("E_SCHEMA", "text")
def vocabulary_smaller_than_the_tokens(kit):
    kit.manifest["base"]["text"]["vocab_size"] = 10


@function("E_SCHEMA")
def heads_that_do_not_divide(kit):
    vision(kit)["width"] = 33


@function("E_LIMIT_PARAMETERS")
def eight_hundred_million_parameters(kit):
    vision(kit).update(width=4096, layers=4)


@function("E_SCHEMA")
def a_thousand_layers(kit):
    vision(kit)["layers"] = 1000


@function("E_LIMIT_BASE_SIDE")
def probes_of_8192_pixels(kit):
    resized(kit, 4096, patch_size=256)


@function("E_LIMIT_GFLOP")
def many_tokens(kit):
    resized(kit, 512, patch_size=9, width=64, layers=16)
    del vision(kit)["head_width"]


@function("E_SCHEMA")
def attention_that_fills_the_memory(kit):
    resized(kit, 512, patch_size=8, width=512)


@function("E_SCHEMA")
def more_patches_than_pixels_of_a_page(kit):
    resized(kit, 512, patch_size=1)


@function("E_LIMIT_TEXT_CHARACTERS", "text")
def a_thousand_long_prompts(kit):
    head(kit)["text"]["prompts"] = [f"{i} " + "a b " * 100 for i in range(1000)]


@function("E_LIMIT_WORD", "text")
def a_word_of_four_thousand_letters(kit):
    head(kit)["text"]["prompts"] = ["a" * 4096]


@function("E_LIMIT_TEXT_CHARACTERS", "text")
def names_that_prompts_multiply(kit):
    head(kit)["text"]["prompts"] = ["{}" * 2000]
    kit.files["classes"] = ("a\t" + "x " * 1000 + "x\nb\ty\n").encode()


def listed(kit, lines):
    kit.manifest["classes"] = len(lines)
    kit.manifest["dataset"].pop("ipc", None)
    kit.files["classes"] = "".join(lines).encode()
    kit.packed = ("classes",)
    for key in ("functions", "base"):
        del kit.manifest[key]
    kit.files = {name: kit.files[name] for name in ("index", "classes")}
    if len(lines) > 10_000:
        digits = len(str(len(lines) - 1))
        kit.tail = renamed(kit.tail, digits)


def renamed(tail, digits):
    """Image members under a label of more digits, their headers signed."""
    out, at = b"", 0
    while at < len(tail):
        name = tail[at : at + 100].rstrip(b"\0").decode()
        size = int(tail[at + 124 : at + 135], 8)
        group, label, file = name.split("/")
        out += member(f"{group}/{int(label):0{digits}d}/{file}", tail[at + 512 : at + 512 + size])
        at += 512 + -(-size // 512) * 512
    return out


@function("E_LIMIT_CLASSES")
def two_million_classes(kit):
    listed(kit, [f"{i}\ta\n" for i in range(500_000)])


@function("E_LIMIT_CLASS_BYTES")
def names_without_end(kit):
    listed(kit, [f"{i}\t" + "a" * 4080 + "\n" for i in range(1100)])


@function("")
def as_many_classes_as_are_read(kit):
    listed(kit, [f"{i}\ta\n" for i in range(131_072)])


@function("")
def a_million_names(kit):
    listed(kit, [f"{i}\t" + ", ".join(sha(b"%d" % i) * 16) + "\n" for i in range(1300)])


@function("E_LIMIT_VIEW_SIDE")
def views_of_4096_pixels(kit):
    kit.manifest["views"]["size"] = 4096


@function("")
def views_of_1024_pixels(kit):
    kit.manifest["views"]["size"] = 1024


@function("E_TENSOR")
def bias_that_hides_the_logits(kit):
    overwrite(kit, "head", "bias", f32(1e30))


@function("E_SCHEMA")
def temperature_that_makes_labels_infinite(kit):
    head(kit)["temperature"] = "0.0000000000000001"


@function("E_TENSOR")
def scale_of_logits_beyond_half_precision(kit):
    overwrite(kit, "head", "logit_scale", f32(20.5))


@function("E_TENSOR")
def rows_that_are_infinite(kit):
    overwrite(kit, "head", "weight_scale", f32(3e38))


@function("E_TENSOR")
def weights_that_become_infinite(kit):
    for name in ("A_scale", "B_scale"):
        target = kit.manifest["functions"][0]["adapter"]["targets"][0]["param"]
        overwrite(kit, "adapter", f"{target}::{name}", f32(3e38))
        overwrite(kit, "adapter", f"{target}::{name[0]}", b"\x7f")


@function("E_BASE_WEIGHTS")
def as_large_a_base_as_is_made(kit):
    vision(kit).update(width=1024, layers=1, mlp_ratio="9.0")


@function("")
def pictures_of_sixteen_million_pixels(kit):
    # Whole images in the largest view.
    kit.manifest["views"].update(
        mix="cutmix", mix_alpha="1.0", mix_probability="1.0", size=1024, crop_scale=["1.0", "1.0"]
    )
    side = 4096
    data = png(side, side, raw=(b"\0" + bytes(3 * side)) * side, level=9)
    kit.tail = b"".join(member(f"images/{label:04d}/{label:06d}.png", data) for label in range(2))
    kit.manifest["images"]["span"] = len(kit.tail)
    for name, value in (
        ("size", struct.pack("<Q", len(data))),
        ("height", struct.pack("<H", side)),
        ("width", struct.pack("<H", side)),
        ("sha256", bytes.fromhex(sha(data))),
    ):
        overwrite(kit, "index", name, value)


@function("")
def names_that_turn_the_text_around(kit):
    kit.files["classes"] = (
        'a"><script>alert(1)</script>\t\u202egnp.exe\u202c, <b>&amp;\nb\u202e\tgoldfish\n'
    ).encode()
    return learned(kit.build())
