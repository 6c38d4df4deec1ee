from __future__ import annotations

import errno
import io
import os

import numpy as np
import pytest
from PIL import Image

from hellofmt.archive import ClassLine, default_views, open_archive
from hellofmt.archive.write.whole_file import waiting_file
from hellofmt.distillation import Selection, fidelity
from hellofmt.distillation.archive_of import _waiting
from hellofmt.distillation.stored_images import StoredImages, check_quality, quality_of
from hellofmt.errors import HelloIOError, UserInputError
from hellofmt.projector import Labeler
from hellofmt.sources import ArrayImages


@pytest.fixture
def pixels():
    """Six 16 x 16 images of one colour with red and blue columns, where 4:2:0 would show."""
    images = np.zeros((6, 16, 16, 3), np.uint8)
    images[:, :, ::2, 0] = 200
    images[:, :, 1::2, 2] = 200
    images[..., 1] = 30 * np.arange(6)[:, None, None]
    return images


def stored(pixels, codec, quality, labels=None):
    """Images whose pixels are given, of two classes or more."""
    count = len(pixels)
    labels = np.zeros(count, np.int64) if labels is None else labels
    side = pixels.shape[1]
    classes = np.arange(max(2, labels.max() + 1))
    lines = tuple(ClassLine(key, (key,)) for key in map(str, classes))
    # One more of each class: a source has images of all.
    every = np.concatenate([pixels, pixels[:1].repeat(len(classes), 0)])
    source = ArrayImages(every, np.concatenate([labels, classes]), lines)
    whole = np.tile(np.array([0, 0, side, side], np.int32), (count, 1, 1))
    selection = Selection(labels, np.arange(count)[:, None], whole)
    return StoredImages(selection, source, default_views(side), codec, quality)


def encoded(pixels, codec, quality, workers=0):
    return list(stored(pixels, codec, quality).files(workers=workers))


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(("codec", "form", "quality"), [("jpeg", "JPEG", 85), ("webp", "WEBP", 90)])
def test_files_are_in_order_and_of_the_codec(pixels, codec, form, quality):
    files = encoded(pixels, codec, None)
    for data, image in zip(files, pixels, strict=True):
        assert Image.open(io.BytesIO(data)).format == form
        assert abs(decoded(data)[..., 1].astype(int).mean() - image[0, 0, 1]) < 15
    assert files == encoded(pixels, codec, quality)
    assert files == encoded(pixels, codec, None, workers=1)
    assert sum(map(len, encoded(pixels, codec, 20))) < sum(map(len, files))


def test_jpeg_keeps_every_pixels_colour(pixels):
    (data, *_) = encoded(pixels, "jpeg", 95)
    assert np.abs(decoded(data).astype(int) - pixels[0]).max() < 16


@pytest.mark.parametrize(("codec", "quality"), [("png", None), ("webp", 100)])
def test_what_loses_nothing(pixels, codec, quality):
    for data, image in zip(encoded(pixels, codec, quality), pixels, strict=True):
        assert np.array_equal(decoded(data), image)


def test_a_quality_that_means_nothing():
    assert [quality_of(codec, None) for codec in ("png", "jpeg", "webp")] == [None, 85, 90]
    assert quality_of("jpeg", 20) == 20
    check_quality("png", None)
    check_quality("jpeg", 1)
    with pytest.raises(UserInputError, match="E_OPTION: `quality`: PNG keeps every pixel"):
        check_quality("png", 90)
    for quality in (0, 101):
        with pytest.raises(UserInputError, match=f"E_OPTION: .*expected 1 to 100, got {quality}"):
            check_quality("webp", quality)


def test_what_is_read_back_is_spread_over_the_classes(pixels):
    many = 1026
    labels = np.repeat(np.arange(2), many // 2)
    small = pixels[labels, :2, :2]
    before, read = stored(small, "jpeg", 90, labels).read_back()
    assert np.array_equal(before.pixels, pixels[np.repeat([0, 1], 512), :2, :2])
    assert np.array_equal(read.pixels[5], decoded(encoded(pixels[:1, :2, :2], "jpeg", 90)[0]))


def test_of_many_classes_no_more_images_are_read_back(pixels):
    many = 1026
    small = np.broadcast_to(pixels[:1, :2, :2], (many, 2, 2, 3))
    before, read = stored(small, "jpeg", 90, np.arange(many)).read_back()
    assert len(before) == len(read) == 1024


def test_a_distillation_stores_and_measures_what_it_says(make, arguments, tmp_path):
    report = make(codec="jpeg", quality=30)
    with open_archive(tmp_path / "x.hello") as file:
        assert file.manifest.images.codec == "jpeg"
        assert (file.record.images.codec, file.record.images.quality) == ("jpeg", 30)
        labels = Labeler.from_file(file, base=arguments["base"]).logits
        images = np.stack(file.decode_images(range(3)))
    assert make("y.hello").stored is None
    with open_archive(tmp_path / "y.hello") as file:
        whole = np.stack(file.decode_images(range(3)))
    classes, views = arguments["source"].classes, arguments["views"]
    better = np.stack([decoded(data) for data in encoded(whole, "jpeg", 95)])
    before, after, better = (
        ArrayImages(pixels, np.arange(3), classes) for pixels in (whole, images, better)
    )
    expected = fidelity(labels, labels, after, views, original=before)
    # The file holds float16.
    assert report.stored.kl == pytest.approx(expected.kl, rel=0.05)
    assert report.stored.agreement == pytest.approx(expected.agreement, abs=1)
    # It tells qualities apart, and nothing from nothing.
    assert 2 * fidelity(labels, labels, better, views, original=before).kl < expected.kl
    assert fidelity(labels, labels, before, views, original=before).kl == pytest.approx(0, abs=1e-9)


def test_files_wait_on_the_disk_in_any_order(pixels, tmp_path):
    images = stored(pixels, "jpeg", 90)
    with waiting_file(tmp_path / "x.hello") as fd:
        items = _waiting(images, fd, "x.hello", 0)
        assert [item.source() for item in items[::-1]] == list(images.files())[::-1]
        assert [item.size for item in items] == [len(data) for data in images.files()]


def test_a_full_disk_is_named_while_files_wait(pixels, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", fail)
    full = pytest.raises(HelloIOError, match=r"^x\.hello: E_NOSPACE: writing the archive failed")
    with waiting_file(tmp_path / "x.hello") as fd, full:
        _waiting(stored(pixels, "png", None), fd, "x.hello", 0)
    assert list(tmp_path.iterdir()) == []
