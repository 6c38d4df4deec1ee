"""A reader written from the specification alone agrees with hellofmt on every vector."""

import json
from pathlib import Path

import pytest

from hellofmt.archive import open_archive

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors"
VALID = sorted((VECTORS / "valid").glob("*.hello"))
INVALID = sorted((VECTORS / "invalid").glob("*.hello"))


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_both_readers_find_the_same(path, mini_reader):
    found = mini_reader.read(path)
    expected = json.loads(path.with_suffix(".json").read_text())
    for key in ("id", "content_id", "manifest"):
        assert found[key] == expected[key]
    with open_archive(path) as file:
        for section in expected["manifest"]["sections"]:
            name = section["name"]
            if section["encoding"] == "none":
                assert found["sections"][name] == file.section(name)
        for name, tensors in found["tensors"].items():
            # Of BF16 the archive gives float32, whose upper halves are the stored bits.
            assert {
                key: array.tobytes() if len(array.tobytes()) == len(tensors[key])
                else b"".join(array.reshape(-1)[i].tobytes()[2:] for i in range(array.size))
                for key, array in file.tensors(name).items()
            } == tensors  # fmt: skip
        assert [image[2] for image in found["images"]] == [
            file.read_image(row) for row in range(len(file))
        ]
    assert [image[1] for image in found["images"]] == [i["label"] for i in expected["images"]]
    if expected["manifest"].get("images", {}).get("layout") == "files":
        assert [image[0] for image in found["images"]] == [i["name"] for i in expected["images"]]


# What the second reader leaves out, as its docstring says: the schema, limits, zstd, images, and
# the values and names that only a second look at the content shows.
NOT_SEEN = {
    "base-digest-of-another-size", "class-key-twice", "decimal-minus-zero",
    "decimal-trailing-zero", "extra-too-long", "flip-above-one", "int8-minus-128", "jpeg-cut",
    "jpeg-progressive", "key-unknown", "png-bad-crc", "png-interlaced", "png-palette",
    "png-that-is-a-jpeg", "png-with-bytes-after-it", "product-of-another-shape", "rank-1025",
    "rank-of-factors-differs", "scale-zero", "webp-alpha", "width-wrong", "zstd-bomb",
    "zstd-lying-size", "zstd-no-checksum", "zstd-no-content-size", "zstd-raw-digest",
    "zstd-skippable-frame", "zstd-trailing-byte", "zstd-two-frames",
}  # fmt: skip
# Refused, but by the check that comes next where a limit or a finer name is left out.
NEXT_CHECK = {
    "image-name-dot-dot": "E_HEADER",
    "images-swapped": "E_HEADER",
    "manifest-too-large": "E_TRUNCATED",
    "probes-65": "E_TENSOR",
    "size-2-to-the-64": "E_INDEX",
    "tensor-header-100-mb": "E_TENSOR",
}


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_the_second_reader_refuses_what_it_can_see(path, mini_reader):
    if path.stem in NOT_SEEN:
        mini_reader.read(path)
        return
    code = json.loads(path.with_suffix(".json").read_text())["code"]
    with pytest.raises(mini_reader.Refused) as caught:
        mini_reader.read(path)
    assert str(caught.value) == NEXT_CHECK.get(path.stem, code)


def test_the_second_reader_is_independent(mini_reader):
    lines = Path(mini_reader.__file__).read_text().splitlines()
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert imported == {"hashlib", "json", "re", "struct", "itertools", "pathlib"}
