"""Measure making at the size of ImageNet: sources that are listed and never in memory at once.

    python benchmarks/making.py IMAGES --scratch DIR --out benchmarks/results/making-cpu

IMAGES is an image folder with real files. Folders of any number of names are made of hard links to
them in DIR, which must lie on the same disk and is kept, so a second run is quick. Every row runs
in a process of its own, so that peak memory is its own: the largest resident size less that of an
interpreter that has imported the same. `--most` leaves out the larger folders. Writes a table and
JSON, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tarfile
import time
from importlib.metadata import version
from pathlib import Path

SIZES = (10_000, 100_000, 1_281_167)
VIEW_SIDES = (224, 112, 64)
CROPS = 1_000
ROUNDS = 3


def linked(images, folder, count):
    """Make a folder of ``count`` hard links to the files of an image folder, classes kept."""
    done = folder / ".done"
    if done.exists():
        return folder
    files = sorted(path for path in images.glob("*/*") if path.is_file())
    each, rest = divmod(count, len(files))
    for number, path in enumerate(files):
        target = folder / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for copy in range(each + (number < rest)):
            name = target / f"{path.stem}_{copy:05d}{path.suffix}"
            if not name.exists():
                os.link(path, name)
    done.touch()
    return folder


def sharded(images, path, count):
    """Write shards of ``count`` samples in all, 2,000 each, and return their paths."""
    files = sorted(path for path in images.glob("*/*") if path.is_file())
    classes = sorted({file.parent.name for file in files})
    path.mkdir(parents=True, exist_ok=True)
    shards = []
    for start in range(0, count, 2_000):
        shard = path / f"{start // 2_000:05d}.tar"
        shards.append(shard)
        if shard.exists():
            continue
        with tarfile.open(shard.with_suffix(".tmp"), "w", dereference=True) as tar:
            for number in range(start, min(count, start + 2_000)):
                file = files[number % len(files)]
                tar.add(file, f"{number:08d}.jpg")
                label = shard.with_suffix(".cls")
                label.write_text(str(classes.index(file.parent.name)))
                tar.add(label, f"{number:08d}.cls")
        label.unlink()
        shard.with_suffix(".tmp").rename(shard)
    return shards


def resident():
    """Return the largest resident size so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def row_listing(words, work):
    """List a source twice, the second time from the work folder."""
    from hellofmt.sources import open_source
    from hellofmt.sources.kept import KEPT_PATTERN

    words = words.split(",")
    for kept in Path(work).glob(KEPT_PATTERN):
        kept.unlink()
    before, start, used = resident(), time.perf_counter(), time.process_time()
    source = open_source(words, work=work)
    seconds, cpu, peak = time.perf_counter() - start, time.process_time() - used, resident()
    count = len(source)
    del source
    start = time.perf_counter()
    source = open_source(words, work=work)
    again = time.perf_counter() - start
    return {
        "images": count,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "again_seconds": again,
        "peak_bytes": peak - before,
        "kept_bytes": sum(p.stat().st_size for p in Path(work).glob(KEPT_PATTERN)),
        "image_bytes": bytes_per_image(source),
    }


def bytes_per_image(source):
    """Return what a source and a subset of all its rows keep for an image."""
    import numpy as np

    part = source.subset(np.arange(len(source)))
    arrays = [value for item in (source, part) for value in vars(item).values()]
    arrays += [value for item in arrays if hasattr(item, "ends") for value in vars(item).values()]
    seen = {id(a): a.nbytes for a in arrays if isinstance(a, np.ndarray)}
    return sum(seen.values()) / len(source)


def drawn(generator, height, width):
    """Draw a crop by the rule of torchvision's ``RandomResizedCrop``."""
    for _ in range(10):
        area = height * width * generator.uniform(0.08, 1)
        ratio = (3 / 4) ** generator.uniform(-1, 1)
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            top, left = generator.randint(0, height - h), generator.randint(0, width - w)
            return top, left, h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def row_crops(images, _):
    """Cut crops of real images in one thread, beside torchvision; least of several rounds."""
    import numpy as np
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from hellofmt.sources import decode_crop, open_source

    torch.set_num_threads(1)
    source = open_source(images)
    rows = np.random.default_rng(0).permutation(len(source))[:CROPS].tolist()
    result = {"images": len(rows)}
    for side in VIEW_SIDES:
        theirs = ImageFolder(images, v2.RandomResizedCrop(side, antialias=True))
        generator = random.Random(0)  # noqa: S311

        def ours(row, side=side, generator=generator):
            return decode_crop(source, row, lambda h, w: drawn(generator, h, w), side)

        least = {}
        # Side by side, since others may use the machine.
        for _ in range(ROUNDS):
            for name, call in (("ours", ours), ("theirs", lambda r, d=theirs: np.asarray(d[r][0]))):
                used = time.process_time()
                for row in rows:
                    call(row)
                spent = (time.process_time() - used) / len(rows)
                least[name] = min(spent, least.get(name, spent))
        result[str(side)] = least
    return result


def measured(kind, argument, scratch):
    """Run a row in a process of its own."""
    work = scratch / "work"
    work.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--row", kind, str(argument), "--scratch", str(work)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return json.loads(done.stdout)


def page(document):
    """Return the document as a page."""
    lines = [
        "# Making at the size of ImageNet",
        "",
        f"`{document['command']}`, {document['machine']}; others used the machine, so seconds of",
        "the processor are given beside those of the clock.",
        "",
        "## Listing",
        "",
        "Peak memory is beyond that of the imports. Bytes are kept for an image, a subset of all",
        "rows included. Again: from the listing in the work folder (kept from 20,000 images on).",
        "",
        "| source | images | seconds | processor | again | peak MB | bytes an image | kept MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in document["listing"].items():
        lines.append(
            f"| {name} | {row['images']:,} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} |"
            f" {row['again_seconds']:.3f} | {row['peak_bytes'] / 1e6:.0f} |"
            f" {row['image_bytes']:.0f} | {row['kept_bytes'] / 1e6:.0f} |"
        )
    crops = document["crops"]
    lines += [
        "",
        "## Crops of original images, one thread",
        "",
        f"Random resized crops of {crops['images']:,} images, read, decoded, cut and resized to 8",
        "bits; processor time, least of three rounds side by side. Beside it torchvision's",
        "`ImageFolder` with `v2.RandomResizedCrop`.",
        "",
        "| side | ours, ms | torchvision, ms | times as fast |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for side in VIEW_SIDES:
        ours, theirs = crops[str(side)]["ours"], crops[str(side)]["theirs"]
        lines.append(f"| {side} | {ours * 1e3:.2f} | {theirs * 1e3:.2f} | {theirs / ours:.2f} |")
    return "\n".join(lines) + "\n"


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--most", type=int, default=max(SIZES))
    parser.add_argument("--row", choices=["listing", "crops"])
    options = parser.parse_args()
    if options.row:
        function = {"listing": row_listing, "crops": row_crops}[options.row]
        print(json.dumps(function(options.images, options.scratch)))
        return
    images, scratch = Path(options.images), options.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    listing = {}
    for size in (size for size in SIZES if size <= options.most):
        folder = linked(images, scratch / f"links-{size}", size)
        listing[f"folder of {size:,}"] = measured("listing", folder, scratch)
    shards = sharded(images, scratch / "shards", 10_000)
    listing["shards"] = measured("listing", ",".join(map(str, shards)), scratch)
    document = {
        "command": f"python benchmarks/making.py IMAGES --scratch DIR --most {options.most}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("pillow", "torch", "torchvision", "numpy")},
        "listing": listing,
        "crops": measured("crops", images, scratch),
    }
    text = page(document)
    print(text)
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
