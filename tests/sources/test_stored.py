"""One pass over the images of a source: each encoded once, and all refusals in one run."""

import numpy as np
import pytest
from PIL import Image

from hellofmt.archive import encode_image, open_archive, verify_archive
from hellofmt.errors import LimitError, UserInputError
from hellofmt.sources import pack_archive, stored


def pixels(seed, height=24, width=40, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Four images that a PNG archive takes as they are."""
    for seed in range(4):
        path = tmp_path / "set" / "ab"[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(pixels(seed), "png"))
    return tmp_path / "set"


def pack(folder, **options):
    said = []
    target = folder.parent / "x.hello"
    pack_archive(folder, target, say=said.append, force=True, **options)
    verify_archive(sorted(folder.parent.glob("x*.hello")))
    return said


def refused(folder, kind=UserInputError, **options):
    said = []
    with pytest.raises(kind) as caught:
        pack_archive(folder, folder.parent / "x.hello", say=said.append, **options)
    assert [path.name for path in folder.parent.iterdir()] == ["set"]
    return str(caught.value), said


@pytest.mark.parametrize("shards", [None, 2])
@pytest.mark.parametrize("layout", ["auto", "files", "packed"])
def test_each_image_is_encoded_once(folder, monkeypatch, layout, shards):
    encoded = []

    def spy(image, codec):
        encoded.append(codec)
        return encode_image(image, codec)

    monkeypatch.setattr(stored, "encode_image", spy)
    for seed in (0, 3):
        path = folder / "ab"[seed % 2] / f"{seed}.png"
        path.with_suffix(".jpg").write_bytes(encode_image(pixels(seed), "jpeg"))
        path.unlink()
    pack(folder, reencode="png", layout=layout, shards=shards)
    assert encoded == ["png", "png"]


def test_all_that_is_refused_is_named_in_one_run(folder):
    whole = encode_image(pixels(0), "jpeg")
    for path in folder.glob("*/*.png"):
        path.with_suffix(".jpg").write_bytes(whole)
        path.unlink()
    Image.fromarray(pixels(1)).save(folder / "a" / "0.jpg", progressive=True)
    (folder / "b" / "1.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    (folder / "b" / "3.jpg").write_bytes(whole[:-2])
    text, said = refused(folder)
    assert text == (
        f"E_DATA: `{folder}/a/0.jpg`: E_CODEC: jpeg outside the profile: progressive; expected "
        "sequential Huffman coding; 3 of 4 images are refused; `reencode` converts what is outside "
        "its profile"
    )
    assert [line.partition("`: ")[0] for line in said] == [
        f"refused: E_DATA: `{folder}/{name}" for name in ("a/0.jpg", "b/1.jpg", "b/3.jpg")
    ]
    # Converting makes no whole picture of half a one.
    for codec in ("jpeg", "png"):
        text, said = refused(folder, reencode=codec)
        assert f"`{folder}/b/1.jpg`" in text
        assert "2 of 4 images are refused" in text
        assert len(said) == 2


def test_what_is_no_image_is_named_with_what_is_damaged(folder, monkeypatch):
    # A listing looks into some of many files, here into the first.
    monkeypatch.setattr("hellofmt.sources.folder._SNIFFED", 1)
    (folder / "a" / "2.png").write_bytes(b"<html>")
    (folder / "b" / "1.png").write_bytes(b"")
    (folder / "b" / "3.png").write_bytes((folder / "b" / "3.png").read_bytes()[:-200])
    for options, reason in (({}, "E_IMAGE: damaged png"), ({"reencode": "png"}, "cannot read")):
        text, said = refused(folder, **options)
        assert text == (
            f"E_DATA: `{folder}/a/2.png` is not an image in PNG, JPEG or WebP but a web page; "
            "3 of 4 images are refused; convert or remove it"
        )
        assert "b/1.png` is not an image in PNG, JPEG or WebP but empty" in said[1]
        assert "b/3.png" in said[2]
        assert reason in said[2]


def test_one_that_is_refused_has_one_line(folder):
    (folder / "b" / "1.png").write_bytes((folder / "b" / "1.png").read_bytes()[:-20])
    text, said = refused(folder)
    assert text.startswith(f"E_DATA: `{folder}/b/1.png`: E_IMAGE: damaged png")
    assert said == []


def test_limits_come_last(folder):
    from hellofmt.archive import Limits

    text, said = refused(folder, LimitError, limits=Limits(image_pixels=40))
    assert text.startswith(f"E_LIMIT_IMAGE_PIXELS member={folder}/a/0.png: `image_pixels` is 960")
    assert (len(said), "4 of 4 images are refused" in text) == (4, True)
    (folder / "b" / "1.png").write_bytes((folder / "b" / "1.png").read_bytes()[:-20])
    text, _ = refused(folder, limits=Limits(image_pixels=40))
    assert f"`{folder}/b/1.png`: E_IMAGE" in text


def test_max_side_shrinks_what_is_larger(folder):
    Image.fromarray(pixels(7, 90, 30, 1)).save(folder / "a" / "grey.png")
    Image.fromarray(pixels(8, 16, 30)).save(folder / "b" / "small.png")
    said = pack(folder, reencode="png", max_side=30, layout="files")
    assert said == ["5 of 6 images with a side longer than asked for: shrunk to it"]
    with open_archive(folder.parent / "x.hello") as file:
        assert file.index.height.tolist() == [18, 18, 30, 18, 18, 16]
        assert file.index.width.tolist() == [30, 30, 10, 30, 30, 30]
        # By Pillow's own antialiased filter; the smaller one has its own bytes.
        reference = Image.fromarray(pixels(0)).resize((30, 18), Image.Resampling.BICUBIC)
        assert (file.decode_image(0) == np.asarray(reference)).all()
        assert file.read_image(5) == (folder / "b" / "small.png").read_bytes()
        # The median shorter side of what is stored.
        assert file.manifest.views.size == 18


@pytest.mark.parametrize("options", [{}, {"reencode": "png", "max_side": 0}])
def test_max_side_is_for_what_is_encoded(folder, options):
    text, _ = refused(folder, **{"max_side": 30, **options})
    assert text.startswith("E_OPTION: `max_side`: expected 1 to 4096, and a codec to reencode to")
