"""Measure images per second of our loaders beside those of others on the same images.

    python benchmarks/loading.py [--out benchmarks/results/loading-cpu]

One run, one machine, the same JPEG files, the same views for all: random resized crop, flip,
float32, normalisation, batches of 64; the rows that say so add CutMix or soft labels. Rows are
interleaved, and the best round counts. A loader is compared with those that do the same work:
decode each image in each pass, or keep what was decoded. The rivals are in ``rival_loaders.py``.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rival_loaders import BATCH, MEAN, STD, folders, others
from times import facts, head, interleaved, publish, rows, spent
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional, v2

from hellofmt.archive import (
    Arch,
    ClassLine,
    Draft,
    ImageItem,
    ImageSet,
    Preprocess,
    VisionArch,
    encode_image,
    write_archive,
)
from hellofmt.archive import Dataset as DatasetFacts
from hellofmt.loading import HelloDataset, HelloLoader, StoredLabels, view_recipe, write_labels
from hellofmt.projector import Projector, seeded_base

CLASSES = 100
PACKAGES = (
    *("hellofmt", "torch", "torchvision", "pillow", "simplejpeg"),
    *("webdataset", "datasets", "litdata", "spdl"),
)
# Works that are compared, and what each does. A name that begins with "Hello" is ours.
DECODED, KEPT, MIXED, REPLAYED, SOFT = (
    "decoded in every pass",
    "kept decoded in memory",
    "decoded in every pass, CutMix",
    "stored labels and crops, as FKD",
    "soft labels of a tiny encoder",
)


def pictures(count, side):
    """Make JPEG files with about the entropy of photographs: coarse colours, fine noise."""
    random = np.random.default_rng(0)
    for k in range(count):
        coarse = random.integers(0, 256, (max(2, side // 16), max(2, side // 16), 3), np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((side, side), Image.BICUBIC)).astype(int)
        image = (image + random.integers(-8, 9, image.shape)).clip(0, 255).astype(np.uint8)
        yield k * CLASSES // count, encode_image(image, "jpeg", quality=90)


def build(folder, count, side):
    """Write the same images as a folder and as archives with a small seeded projector."""
    items = []
    for k, (label, data) in enumerate(pictures(count, side)):
        path = folder / "images" / f"{label:04}" / f"{k:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        items.append(ImageItem(label, data))
    preprocess = Preprocess(
        antialias=True, interpolation="bicubic", mean=["0.5"] * 3, size=side, std=["0.25"] * 3
    )
    vision = VisionArch(image_size=side, layers=2, width=64, patch_size=side // 8, head_width=32)
    base = seeded_base(Arch(embed_dim=64, quick_gelu=False, vision=vision), preprocess, seed=0)
    classes = [ClassLine(f"c{k}", (f"class {k}",)) for k in range(CLASSES)]
    projector = Projector.build(base, classes, rank=4, start="stored", temperature=4.0, seed=0)
    facts = DatasetFacts(name="bench", version="1", license="CC0-1.0", method="x", sources=[])
    for name, recipe in (("x", "plain"), ("mixed", "sre2l")):
        draft = Draft(
            facts,
            classes,
            view_recipe(recipe, side),
            images=ImageSet("jpeg", items, layout="files"),
            projector=projector.part(),
        )
        write_archive(folder / f"{name}.hello", draft)
    dataset = HelloDataset(folder / "x.hello")
    write_labels(dataset, folder / "fkd", epochs=12, form="fkd", batch_size=BATCH)


class FkdFolder(Dataset):
    """Data as FKD stores it: image file, stored crop and flip, a label file per batch."""

    def __init__(self, folder, side):
        self._files = sorted((folder / "images").rglob("*.jpg"))
        self._side = side
        # Read from memory: a patched loader would find them in its label file.
        table = HelloDataset(folder / "x.hello", labels="none").table(np.arange(len(self)), 0)
        self._crops = table[:, 1:6].tolist()
        self._labels = StoredLabels(folder / "fkd")

    def __len__(self):
        return len(self._files)

    def __getitems__(self, rows):
        rows = np.array(rows)
        soft = self._labels.labels(rows, np.zeros(len(rows), np.int64))
        return list(zip(map(self._image, rows.tolist()), soft, strict=True))

    def _image(self, row):
        image = Image.open(self._files[row]).convert("RGB")
        *crop, flip = self._crops[row]
        image = functional.resized_crop(image, *crop, [self._side, self._side], antialias=True)
        image = functional.hflip(image) if flip else image
        return functional.normalize(functional.to_tensor(image), MEAN, STD)


class Cut:
    """CutMix as the collate function, from torchvision."""

    def __init__(self):
        self._mix = v2.CutMix(num_classes=CLASSES)

    def __call__(self, batch):
        return self._mix(*default_collate(batch))


def contenders(folder, side, workers):
    """Return loaders by (work, name), each pass over one an epoch, and what is not installed."""
    options = {"batch_size": BATCH, "num_workers": workers, "shuffle": True}
    path = folder / "x.hello"

    def ours(path=path, labels="hard", **more):
        return DataLoader(HelloDataset(path, labels=labels, **more), **options)

    torchvision, (rest, missing) = folders(folder, side, workers), others(folder, side, workers)
    tensors = torchvision["ImageFolder, tensors"].dataset
    made = {
        **{
            (KEPT if "kept" in name else DECODED, name): loader
            for name, loader in torchvision.items()
        },
        **{(DECODED, name): loader for name, loader in rest.items()},
        (DECODED, "HelloDataset, cache=0"): ours(cache=0),
        (KEPT, "HelloDataset"): ours(),
        (MIXED, "ImageFolder, tensors"): DataLoader(tensors, collate_fn=Cut(), **options),
        (MIXED, "HelloDataset, cache=0"): ours(folder / "mixed.hello", cache=0),
        (REPLAYED, "folder of FKD"): DataLoader(FkdFolder(folder, side), **options),
        (REPLAYED, "HelloDataset"): ours(labels="soft", stored=folder / "fkd"),
        (SOFT, "HelloDataset"): ours(labels="soft"),
    }
    if not workers:
        made[KEPT, "HelloLoader"] = HelloLoader(path, batch_size=BATCH, labels="hard")
    return made, missing


def drain(loader, count=0):
    """Draw a pass; with a ``count``, check that it is one of that many normalised views."""
    seen = 0
    for batch in loader:
        seen += len(batch[0])
    if count:
        images = batch[0]
        spread = images.std(dim=(0, 2, 3))
        if seen != count or images.dtype != torch.float32 or not 0.6 < spread.min() < 1.6:
            raise SystemExit(f"{loader}: {seen} images, {images.dtype}, spread {spread}")


def decoding(folder):
    """Decode every file once with Pillow and do nothing else."""
    for path, _ in ImageFolder(folder / "images").samples:
        Image.open(io.BytesIO(Path(path).read_bytes())).convert("RGB")


def measured(folder, side, count, workers, rounds):
    """Measure all loaders of one folder with so many workers."""
    loaders, missing = contenders(folder, side, workers)
    first = {key: spent(lambda each=loader: drain(each, count)) for key, loader in loaders.items()}
    calls = {key: (lambda each=loader: drain(each)) for key, loader in loaders.items()}
    best = interleaved({**calls, "floor": lambda: decoding(folder)}, rounds)
    setting = {
        "side_px": side,
        "workers": workers,
        "images": count,
        "floor_cpu_ms": round(1e3 * best.pop("floor")[1] / count, 4),
    }
    found = [
        {
            "side_px": side,
            "workers": workers,
            "work": work,
            "loader": name,
            "images_per_second": round(count / wall),
            "cpu_ms": round(1e3 * cpu / count, 4),
            "first_cpu_ms": round(1e3 * first[work, name][1] / count, 4),
        }
        for (work, name), (wall, cpu) in best.items()
    ]
    return setting, found, missing


def is_ours(row):
    return row["loader"].startswith("Hello")


def standing(found):
    """Return each of our best rows' processor time over the best rival's, by what is compared."""
    best = {}
    for row in found:
        key = row["side_px"], row["workers"], row["work"]
        pair = best.setdefault(key, {})
        kind = is_ours(row)
        pair[kind] = min(row["cpu_ms"], pair.get(kind, row["cpu_ms"]))
    return {key: pair[False] / pair[True] for key, pair in best.items() if len(pair) == 2}


def page(document):
    lines = head(
        document,
        "Loading on a CPU",
        "Same JPEG files and same views, rows interleaved in one run, best of"
        f" {document['rounds']} rounds after a first pass. Others used the machine, so rows are"
        " ranked by processor time, of all processes and threads together. *Times* is the time of"
        " the fastest of the same work over a row's: 1 is the fastest, ours are bold. *First* is"
        " the first pass, in which an archive's images are verified, too.",
    )
    missing = document["missing"]
    if missing:
        reasons = "; ".join(f"{name} ({why})" for name, why in missing.items())
        lines += [f"Not installed, and so missing: {reasons}.", ""]
    for setting in document["settings"]:
        side, workers = setting["side_px"], setting["workers"]
        here = [r for r in document["rows"] if (r["side_px"], r["workers"]) == (side, workers)]
        lines += [
            f"## {side} px, {workers} workers",
            "",
            f"{setting['images']:,} images; Pillow decodes one in {setting['floor_cpu_ms']:.3f} ms",
            "",
        ]
        cells = []
        for work in dict.fromkeys(row["work"] for row in here):
            same = sorted((r for r in here if r["work"] == work), key=lambda r: r["cpu_ms"])
            for row in same:
                mark = "**" if is_ours(row) else ""
                cells.append(
                    (
                        work,
                        f"{mark}{row['loader']}{mark}",
                        f"{row['cpu_ms']:.3f}",
                        f"{same[0]['cpu_ms'] / row['cpu_ms']:.2f}",
                        f"{row['images_per_second']:,}",
                        f"{row['first_cpu_ms']:.3f}",
                    )
                )
        columns = ("work", "loader", "CPU ms an image:", "times:", "images/s:", "first, CPU ms:")
        lines += [*rows(columns, cells), ""]
    ratios = standing(document["rows"])
    lost = [
        f"{work} at {side} px with {workers} workers ({ratio:.2f})"
        for (side, workers, work), ratio in ratios.items()
        if ratio < 0.95
    ]
    said = f"behind in {len(lost)} of {len(ratios)}: {'; '.join(lost)}" if lost else "in all"
    lines += [f"Goal: first, or within 5 % of the first: {said}. Soft labels have no rival here."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loading-cpu"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224], metavar="PX")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings, found, missing = [], [], {}
    for side in options.sizes:
        count = 1280 if side < 100 else 384
        with tempfile.TemporaryDirectory() as name:
            build(Path(name), count, side)
            for workers in options.workers:
                start = time.perf_counter()
                setting, more, missing = measured(Path(name), side, count, workers, options.rounds)
                settings.append(setting)
                found += more
                seconds = time.perf_counter() - start
                print(f"{side} px, {workers} workers: {seconds:.0f} s", file=sys.stderr)
    document = {
        "schema": "hello.bench.loading/2",
        "facts": facts(PACKAGES),
        "rounds": options.rounds,
        "missing": missing,
        "settings": settings,
        "rows": found,
    }
    publish(options.out, document, page)


if __name__ == "__main__":
    main()
