"""Data sets from wherever their bytes lie: a URL, a sharded set, the user's own images."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData

from hellofmt.archive import Texts, open_archive, shard_path
from hellofmt.errors import CorruptError, HelloIOError, TrustError, UserInputError
from hellofmt.loading import HelloDataset, HelloSampler, soft_batches
from hellofmt.sources import pack_archive

BAD_HTTP = Path(__file__).parents[1] / "hostile" / "bad_http.py"


@pytest.fixture
def server(mixing):
    spec = importlib.util.spec_from_file_location("bad_http", BAD_HTTP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.Server(Path(mixing).read_bytes())
    yield made
    made.stop()


def batches(dataset, workers=0):
    """Two passes, batch by batch."""
    sampler = HelloSampler(dataset, batch_size=4, seed=3)
    options = {"multiprocessing_context": "fork", "timeout": 30} if workers else {}
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, **options)
    found = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        found += list(loader)
    return found


def same(one, other):
    return all(
        torch.equal(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_url_gives_what_the_file_gives(server, mixing, workers, tmp_path):
    wanted = batches(HelloDataset(mixing, seed=5))
    dataset = HelloDataset(server.url, seed=5, cache_dir=tmp_path, expect=open_archive(mixing).id)
    assert same(batches(dataset, workers), wanted)


def test_a_batch_is_few_requests(server):
    dataset = HelloDataset(server.url, labels="none")
    before = len(server.ranges)
    dataset.__getitems__(range(len(dataset)))
    assert len(server.ranges) - before <= 1


def test_options_of_a_url(server, mixing):
    options = {"headers": {"X-Key": "word"}}
    HelloDataset(server.url, labels="none", storage_options=options)
    assert "X-Key: word" in server.headers[0]
    with (
        open_archive(mixing) as file,
        pytest.raises(
            UserInputError,
            match="`storage_options`, `cache_dir`, `limits`; expected none: the archive is open",
        ),
    ):
        HelloDataset(file, storage_options=options)
    with pytest.raises(TrustError, match="E_PIN"):
        HelloDataset(server.url, expect="sha256:" + "0" * 64)


def test_a_file_replaced_while_training(server, archive_of, monkeypatch):
    from hellofmt.archive.storage import remote

    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0.001)
    dataset = HelloDataset(server.url, labels="none")
    server.data = bytes(len(server.data))
    server.tag = '"2"'
    dataset.file.source.forget()
    with pytest.raises((CorruptError, HelloIOError)):
        dataset[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sharded_set_gives_what_the_whole_gives(mixing, tmp_path, workers):
    whole = tmp_path / "whole.hello"
    made = pack_archive(mixing, whole, projector=mixing, texts=Texts(version="1"))
    assert made
    pack_archive(
        mixing, tmp_path / "part.hello", projector=mixing, texts=Texts(version="1"), shards=3
    )
    wanted = batches(HelloDataset(whole, seed=5))
    names = [shard_path(tmp_path / "part.hello", i, 3) for i in range(3)]
    for source in (names, f"{tmp_path}/part-*-of-00003.hello"):
        dataset = HelloDataset(source, seed=5)
        assert same(batches(dataset, workers), wanted)
        assert dataset.targets == HelloDataset(whole).targets


def test_images_of_torchvision_are_labelled(projector_only):
    images = FakeData(size=10, image_size=(3, 21, 17), num_classes=3)
    images.targets = [int(label) for _, label in images]
    dataset = HelloDataset(projector_only, images=images, seed=1)
    assert (len(dataset), dataset.targets) == (10, images.targets)
    assert dataset.classes == open_archive(projector_only).classes.keys
    views, labels = next(iter(DataLoader(dataset, batch_size=10)))
    assert views.shape == (10, 3, 16, 16)
    assert torch.allclose(labels.sum(1), torch.ones(10))
    # The labels are those of these views.
    plain = HelloDataset(projector_only, images=images, labels="none", seed=1)
    loader = soft_batches(DataLoader(plain, batch_size=10), plain.labeler())
    again, soft = next(iter(loader))
    assert torch.allclose(labels, soft, atol=1e-6)
    assert torch.equal(views, again)


def test_images_of_torchvision_with_their_classes(projector_only):
    images = FakeData(size=6, image_size=(3, 9, 9), num_classes=3)
    dataset = HelloDataset(projector_only, images=images, labels="hard", views=None)
    assert [label for _, label in dataset] == [int(label) for _, label in images]


def test_without_projector_the_error_says_what_is_missing(archive_of):
    path = archive_of(with_projector=False)
    with pytest.raises(UserInputError, match=r"soft labels need a projector, which the archive lacks; it has hard ones"):  # fmt: skip  # noqa: E501
        HelloDataset(path)
    assert len(HelloDataset(path, labels="hard")) == 11


def test_without_images_the_error_says_what_is_missing(projector_only):
    with pytest.raises(UserInputError, match="the archive has no images; expected `images`"):
        HelloDataset(projector_only)


def test_rows_are_read_together(mixing, monkeypatch):
    dataset = HelloDataset(mixing, labels="none", views=None, cache=0)
    asked = []
    read = dataset.file.read_images
    monkeypatch.setattr(
        type(dataset.file), "read_images", lambda _, rows: asked.append(list(rows)) or read(rows)
    )
    found = dataset.pixels_of([7, 2, 9])
    assert asked == [[7, 2, 9]]
    for row, pixels in found.items():
        assert np.array_equal(pixels, dataset.file.decode_image(row))
