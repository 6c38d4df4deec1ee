"""Loaders of others on the same JPEG files, each as its documentation says and at its fastest.

A rival whose library is not installed is left out and named by ``missing``. Crop, flip, float32 and
normalisation are torchvision's v2 on tensors, which beats it on PIL images, except where the
library has views of its own (SPDL). Every loader gives batches (images, labels).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tarfile
from pathlib import Path

import torch
from making import drawn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def views_of(side, *first):
    """Return torchvision's views; ``first`` comes before what all have."""
    shared = (v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip())
    end = (v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD))
    return v2.Compose([*shared, *first, *end])


class View:
    """The view of a JPEG file's bytes."""

    def __init__(self, side):
        self._view = views_of(side)

    def __call__(self, data):
        return self._view(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)))


def _bytes(path):
    return Path(path).read_bytes()


class Kept(Dataset):
    """Decoded images as tensors in memory, and torchvision's views of them."""

    def __init__(self, folder, side):
        listed = ImageFolder(folder).samples
        self._images = [decode_jpeg(torch.frombuffer(bytearray(_bytes(path)), dtype=torch.uint8))
                        for path, _ in listed]  # fmt: skip
        self._labels = [label for _, label in listed]
        self._view = views_of(side)

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, row):
        return self._view(self._images[row]), self._labels[row]


def folders(folder, side, workers):
    """Return torchvision's loaders: an image folder on PIL images and tensors, and memory."""
    images = folder / "images"
    options = {"batch_size": BATCH, "num_workers": workers, "shuffle": True}
    view = View(side)
    data = {
        "ImageFolder, PIL": ImageFolder(images, views_of(side, v2.PILToTensor())),
        "ImageFolder, tensors": ImageFolder(images, view, loader=_bytes),
        "tensors kept in memory": Kept(images, side),
    }
    return {name: DataLoader(each, **options) for name, each in data.items()}


def webdataset(folder, side, workers):
    """Return webdataset's loader of one shard for each worker."""
    import webdataset as wds

    samples = ImageFolder(folder / "images").samples
    random.Random(0).shuffle(samples)  # noqa: S311
    shards = max(1, workers)
    for number in range(shards):
        path = folder / f"shards-{shards}" / f"{number:03}.tar"
        path.parent.mkdir(exist_ok=True)
        label_file = path.with_suffix(".cls")
        with tarfile.open(path, "w") as tar:
            for row, (file, label) in enumerate(samples[number::shards]):
                label_file.write_text(str(label))
                tar.add(file, f"{row:06}.jpg")
                tar.add(label_file, f"{row:06}.cls")
        label_file.unlink()
    view = View(side)
    data = (
        wds.WebDataset(sorted(map(str, path.parent.glob("*.tar"))), shardshuffle=False)
        .shuffle(1000)
        .to_tuple("jpg", "cls")
        .map_tuple(view, int)
    )
    return DataLoader(data, batch_size=BATCH, num_workers=workers)


def huggingface(folder, side, workers):
    """Return a loader of a Hugging Face data set of image files."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    listed = ImageFolder(folder / "images").samples
    columns = {"image": [_bytes(path) for path, _ in listed], "label": [n for _, n in listed]}
    view = View(side)

    def viewed(batch):
        return {"image": [view(data) for data in batch["image"]], "label": batch["label"]}

    # From a file, as any set larger than memory.
    path = folder / "arrow"
    if not path.exists():
        datasets.Dataset.from_dict(columns).save_to_disk(path)
    data = datasets.load_from_disk(path).with_transform(viewed)
    return Pairs(DataLoader(data, batch_size=BATCH, num_workers=workers, shuffle=True))


class Pairs:
    """Batches that are dicts, as pairs."""

    def __init__(self, loader):
        self._loader = loader

    def __iter__(self):
        return ((batch["image"], batch["label"]) for batch in self._loader)


def _sample(pair):
    path, label = pair
    return {"image": _bytes(path), "label": label}


def litdata(folder, side, workers):
    """Return Lightning's streaming loader of local chunks."""
    import litdata as ld

    path = folder / "chunks"
    if not path.exists():
        samples = ImageFolder(folder / "images").samples
        ld.optimize(_sample, samples, str(path), num_workers=1, chunk_bytes="64MB", verbose=False)
        # It has chosen `spawn` for all of this process; workers here are forked, as by default.
        multiprocessing.set_start_method("fork", force=True)
    data = ld.StreamingDataset(str(path), shuffle=True, transform=Viewed(side))
    return Pairs(ld.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers))


class Viewed:
    """The view of a sample of ``litdata``."""

    def __init__(self, side):
        self._view = View(side)

    def __call__(self, sample):
        return {"image": self._view(sample["image"]), "label": sample["label"]}


class Spdl:
    """SPDL's pipeline: FFmpeg decodes, crops, scales and flips in threads; a batch is normalised.

    FFmpeg cuts to even pixels of the JPEG's own planes and scales in 8 bits, which is less work.
    """

    def __init__(self, folder, side, workers):
        import spdl.io

        self._samples = ImageFolder(folder / "images").samples
        self._side, self._threads, self._io = side, max(1, workers), spdl.io
        self._random = random.Random(0)  # noqa: S311
        shape = (1, 3, 1, 1)
        self._mean, self._std = (255 * torch.tensor(each).view(shape) for each in (MEAN, STD))

    def _decoded(self, sample):
        path, label = sample
        packets = self._io.demux_image(path)
        top, left, height, width = drawn(self._random, packets.height, packets.width)
        views = [f"crop={width}:{height}:{left}:{top}"]
        views.append(f"scale={self._side}:{self._side}:flags=bilinear")
        if self._random.random() < 0.5:
            views.append("hflip")
        views.append("format=rgb24")
        return self._io.decode_packets(packets, filter_desc=",".join(views)), label

    def _batch(self, pairs):
        frames, labels = zip(*pairs, strict=True)
        pixels = self._io.to_torch(self._io.convert_frames(list(frames))).permute(0, 3, 1, 2)
        images = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return images.sub_(self._mean).div_(self._std), torch.tensor(labels)

    def __iter__(self):
        from spdl.pipeline import PipelineBuilder

        order = self._random.sample(self._samples, len(self._samples))
        pipeline = (
            PipelineBuilder()
            .add_source(order)
            .pipe(self._decoded, concurrency=self._threads)
            .aggregate(BATCH)
            .pipe(self._batch)
            .add_sink(2)
            .build(num_threads=self._threads)
        )
        with pipeline.auto_stop():
            yield from pipeline.get_iterator()


OTHERS = {
    "webdataset": webdataset,
    "datasets": huggingface,
    "litdata": litdata,
    "spdl": Spdl,
}


def others(folder, side, workers):
    """Return the loaders of other libraries by package, and why others are missing."""
    found, missing = {}, {}
    for name, make in OTHERS.items():
        try:
            loader = make(folder, side, workers)
            next(iter(loader))
        except ImportError as error:
            # SPDL finds out here whether FFmpeg's libraries are there.
            missing[name] = str(error).splitlines()[0]
        else:
            found[name] = loader
    return found, missing
