"""Time the archive beside tools that do less: tar and sha256sum on the same bytes.

Everything is measured in one run on one machine, floors included. An archive is opened, inspected,
packed, verified and read over the loopback, each beside the least that such an operation can cost:
hashing the index, starting an interpreter, `tar cf`, `sha256sum` and `openssl dgst`. The row names
the work that the floor leaves out. Each row first checks that the result is right.

    python benchmarks/archive.py --out benchmarks/results/archive-cpu

prints a table and JSON, and writes both. `--small` is a quick look with a tenth of the images.
Three options do nothing else: `--pack DIR ...` packs these folders of JPEG files, `--codecs`
verifies archives of each codec, and `--startup` times what every command and import costs before
any work, beside an interpreter that does nothing or imports torch.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from times import best, interleaved, publish

from hellofmt.archive import (
    ClassLine,
    Dataset,
    Draft,
    ImageItem,
    ImageSet,
    default_views,
    encode_image,
    open_archive,
    verify_archive,
    write_archive,
)
from hellofmt.archive.format.image_data import check_image_data
from hellofmt.archive.format.images import parse_image
from hellofmt.sources import pack_archive
from hellofmt_cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 100
PICTURES = 50
LATENCY = 0.01


def processor():
    """Return the processor's name, and whether it has SHA instructions, if known."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    if "flags" not in facts:
        return platform.machine()
    has = "with" if "sha_ni" in facts["flags"].split() else "without"
    return f"{facts.get('model name', platform.machine())}, {has} SHA instructions"


def run(*command, cwd=None):
    """Run a program to completion."""
    done = subprocess.run(list(map(str, command)), capture_output=True, check=True, cwd=cwd)  # noqa: S603
    return done.stdout


def hello(*arguments):
    return run(sys.executable, "-m", "hellofmt", *arguments)


def picture(seed):
    """Make the pixels of an image of 224 x 224 with shapes and noise; about 29 kB as JPEG."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (14, 14, 3), np.uint8)
    pixels = np.kron(coarse, np.ones((16, 16, 1), np.uint8)).astype(np.int16)
    pixels += generator.integers(-24, 25, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write(path, files, count, codec="png"):
    """Write an archive of `count` images, cycling through `files`."""
    items = [ImageItem(i * CLASSES // count, files[i % len(files)]) for i in range(count)]
    write_archive(
        path,
        Draft(
            Dataset(name="bench", version="1", license="CC0-1.0", method="none", sources=[]),
            [ClassLine(f"n{i:08d}", (f"class {i}",)) for i in range(CLASSES)],
            default_views(224),
            ImageSet(codec, items, "files"),
        ),
    )
    return path


class Table:
    """Rows of what, ours, rival."""

    def __init__(self):
        self.rows = []

    def add(self, what, ours, rival, floor, note=""):
        """Add a row; seconds are (wall, processor)."""
        row = {
            "what": what, "wall_s": ours[0], "cpu_s": ours[1], "rival": rival,
            "rival_wall_s": floor[0], "rival_cpu_s": floor[1],
            "speed_of_rival": floor[0] / ours[0], "cpu_speed_of_rival": floor[1] / ours[1],
            "note": note,
        }  # fmt: skip
        self.rows.append(row)
        print(
            f"{what}: {ours[0] * 1e3:.1f} ms, {rival}: {floor[0] * 1e3:.1f} ms, "
            f"{row['speed_of_rival']:.2f}x, CPU {row['cpu_speed_of_rival']:.2f}x {note}",
            file=sys.stderr,
        )


def bench_open(table, big, count):
    """Time opening an archive and reading its index."""

    def ours():
        with open_archive(big) as file:
            assert len(file.index) == count

    with open_archive(big) as file:
        at, size = file.section_offset("index"), file.section_sizes()["index"]
        digest = next(s.digest for s in file.manifest.sections if s.name == "index")

    def floor():
        with big.open("rb") as stream:
            stream.seek(at)
            data = stream.read(size)
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest

    ours()
    table.add(
        f"open and index, {count:,} images", best(ours, 15),
        "read and hash the index alone", best(floor, 15), "goal: 50 ms",
    )  # fmt: skip


def bench_startup(table, archive):
    """Time help, usage errors, completion and imports as processes, interleaved with the floors."""
    python = [sys.executable, "-c"]
    nothing, torch = [*python, "pass"], [*python, "import torch"]
    hello = [sys.executable, "-m", "hellofmt"]
    rows = [("hello --version", [*hello, "--version"], nothing)]
    rows += [(f"hello {name} --help", [*hello, name, "--help"], nothing) for name in COMMANDS]
    rows += [
        ("hello train --nope", [*hello, "train", "--nope"], nothing),
        ("hello train (no FILE)", [*hello, "train"], nothing),
        ("hello distill DIR --ipc x", [*hello, "distill", "DIR", "--ipc", "x"], nothing),
        ("hello train --<TAB>", hello, nothing),
        ("hello inspect FILE", [*hello, "inspect", archive], nothing),
    ]
    rows += [
        (f"import hellofmt; hellofmt.{name}", [*python, f"import hellofmt; hellofmt.{name}"], torch)
        for name in ("HelloDataset", "HelloLoader", "Labeler", "distill")
    ]
    tab = {"_HELLO_COMPLETE": "bash_complete", "COMP_WORDS": "hello train --", "COMP_CWORD": "2"}
    for what, ours, rival in rows:
        env = {**os.environ, **(tab if "TAB" in what else {})}
        least = interleaved(
            {
                key: lambda words=words: subprocess.run(words, capture_output=True, env=env)  # noqa: B023, S603
                for key, words in (("ours", ours), ("rival", rival))
            },
            5,
        )
        goal = "goal: 300 ms" if rival is nothing else "goal: 1.15x of torch, so 0.87x"
        name = f"python -c '{rival[-1]}'"
        table.add(what, least["ours"], name, least["rival"], goal)


def bench_inspect(table, small, big, count):
    """Time `hello inspect` as a process."""
    for path in (small, big):
        assert json.loads(hello("inspect", "--json", path))["images"]["count"]
    start = best(lambda: run(sys.executable, "-c", "import click, msgspec"), 7)
    few = best(lambda: hello("inspect", small), 7)
    many = best(lambda: hello("inspect", big), 7)
    table.add("hello inspect, 10 images", few, "python -c 'import click, msgspec'", start)
    table.add(
        f"hello inspect, {count:,} images", many, "the same with 10 images", few,
        f"difference {1e3 * (many[0] - few[0]):.0f} ms, goal: 60 ms",
    )  # fmt: skip


def write_folder(source, files, count):
    """Write a folder of JPEG files."""
    for i in range(count):
        place = source / f"n{i * CLASSES // count:08d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:06d}.jpg").write_bytes(files[i % len(files)])


def bench_pack(table, folder, source):
    """Time packing a folder of JPEG files, beside tar and beside what must be looked at."""
    packed, tar = folder / "packed.hello", folder / "packed.tar"
    options = {"force": True, "say": lambda _: None}

    def archive():
        run("tar", "cf", tar, source.name, cwd=source.parent)

    def archive_and_hash():
        archive()
        run("sync", tar)
        run("openssl", "dgst", "-sha256", tar)

    ours = best(lambda: pack_archive(source, packed, **options), 5)
    plain = best(archive, 5)
    safe = best(archive_and_hash, 5)
    with open_archive(packed) as file:
        images, codec = [file.read_image(row) for row in range(len(file))], "jpeg"

    def look():
        for data in images:
            hashlib.sha256(data).digest()
            check_image_data(data, codec, parse_image(data, codec))

    looked = best(look, 5)
    least = tuple(a + b for a, b in zip(safe, looked, strict=True))
    size = sum(map(len, images))
    what = f"pack {len(images):,} JPEG files, {size / 1e6:.0f} MB"
    table.add(what, ours, "tar cf", plain, "which neither hashes nor syncs nor looks at an image")
    table.add(what, ours, "tar cf, sync, openssl dgst", safe, "goal: 0.7x")
    table.add(
        "the same, and a walk over every image", least, "tar cf, sync, openssl dgst", safe,
        f"the floor on one core: {size / looked[1] / 1e6:.0f} MB/s of CPU to hash images and to "
        f"read every Huffman code",
    )  # fmt: skip
    table.add(what, ours, "that floor", least)
    tar.unlink()
    return packed


def bench_verify(table, path):
    """Time verifying every byte of an archive."""
    megabytes = path.stat().st_size / 1e6
    with open_archive(path) as file:
        count = len(file)
    ours = best(lambda: verify_archive(path), 5)
    pixels = best(lambda: verify_archive(path, pixels=True), 1)
    process = best(lambda: hello("verify", path), 3)
    floor = best(lambda: run("sha256sum", path), 5)
    openssl = best(lambda: run("openssl", "dgst", "-sha256", path), 5)

    def decode():
        from PIL import Image

        with open_archive(path) as file:
            for row in range(count):
                with Image.open(io.BytesIO(file.read_image(row))) as image:
                    np.asarray(image)

    decoded = best(decode, 1)
    what = f"verify {count:,} images, {megabytes:.0f} MB"
    goal = "goal: 0.7x"
    speeds = f"{megabytes / ours[0]:.0f} against {megabytes / floor[0]:.0f} MB/s; {goal}"
    table.add(what, ours, "sha256sum", floor, speeds)
    table.add(what, ours, "openssl dgst -sha256", openssl, "in assembler")
    table.add("hello verify, the same", process, "sha256sum", floor, "with the interpreter's start")
    table.add(f"{what}, pixels decoded", pixels, "Pillow on verified bytes", decoded)


def bench_codecs(table, folder, pictures):
    """Time what verifying costs by codec, beside one SHA-256 of the same bytes in memory."""
    for name, codec, quality in (
        ("PNG", "png", 95), ("JPEG", "jpeg", 95), ("lossy WebP", "webp", 95),
        ("lossless WebP", "webp", 100),
    ):  # fmt: skip
        files = [encode_image(pixels, codec, quality=quality) for pixels in pictures]
        path = write(folder / "codec.hello", files, 10 * PICTURES, codec)
        data = path.read_bytes()
        assert verify_archive(path).images == 10 * PICTURES
        ours = best(lambda: verify_archive(path), 7)  # noqa: B023
        floor = best(lambda: hashlib.sha256(data).digest(), 7)  # noqa: B023
        ours_speed, floor_speed = (len(data) / cpu / 1e6 for cpu in (ours[1], floor[1]))
        note = f"{ours_speed:.0f} against {floor_speed:.0f} MB/s of CPU; goal: 300 MB/s on a core"
        path.unlink()
        what = f"verify {10 * PICTURES} images of {name}, {len(data) / 1e6:.0f} MB"
        table.add(what, ours, "one SHA-256 of the same bytes in memory", floor, note)


def bench_tiny(table, path):
    """Time many tiny images: the cost of each one."""
    with open_archive(path) as file:
        count = len(file)
    ours = best(lambda: verify_archive(path), 5)
    floor = best(lambda: run("sha256sum", path), 5)
    note = f"{1e6 * ours[1] / count:.1f} us of CPU an image; goal: 0.7x"
    table.add(f"verify {count:,} images of 100 bytes", ours, "sha256sum", floor, note)


def bench_remote(table, path):
    """Time reading by ranges over the loopback; the server is a thread of this process."""
    spec = importlib.util.spec_from_file_location(
        "bad_http", ROOT / "tests" / "hostile" / "bad_http.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.Server(path.read_bytes())
    try:
        open_archive(server.url).close()

        def opened():
            with open_archive(server.url) as file:
                assert len(file.index) == len(file)

        def local():
            with open_archive(path) as file:
                assert len(file.index) == len(file)

        server.ranges.clear()
        opened()
        note = f"{len(server.ranges)} requests"
        table.add("open and index over http", best(opened, 9), "local file", best(local, 9), note)
        with open_archive(server.url) as file:
            rows = np.random.default_rng(0).choice(len(file), 128, replace=False)
            # Over the loopback an answer costs nothing; over a network it is waited for.
            server.delay = LATENCY
            server.ranges.clear()
            assert len(file.read_images(rows)) == 128
            note = f"{len(server.ranges)} requests, 16 at a time, each after {1e3 * LATENCY:.0f} ms"
            many = best(lambda: file.read_images(rows), 5)
            single = best(lambda: [file.read_image(row) for row in rows], 3)
        table.add("batch of 128 images over http", many, "one after another", single, note)
    finally:
        server.stop()


def page(document):
    """Return the table as Markdown."""
    lines = ["# Archive: times", "", *document["head"], ""]
    lines += ["| what | ms | CPU ms | beside | ms | CPU ms | speed | CPU speed | |"]
    lines += ["| --- " * 9 + "|"]
    lines += [
        f"| {r['what']} | {r['wall_s'] * 1e3:.1f} | {r['cpu_s'] * 1e3:.1f} | {r['rival']} | "
        f"{r['rival_wall_s'] * 1e3:.1f} | {r['rival_cpu_s'] * 1e3:.1f} | "
        f"{r['speed_of_rival']:.2f}x | {r['cpu_speed_of_rival']:.2f}x | {r['note']} |"
        for r in document["rows"]
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="prefix of the .json and .md to write")
    parser.add_argument("--small", action="store_true", help="a tenth of the images")
    parser.add_argument("--codecs", action="store_true", help="verify by codec, nothing else")
    parser.add_argument("--startup", action="store_true", help="start-up times, nothing else")
    parser.add_argument("--pack", nargs="+", metavar="DIR", help="pack these folders, nothing else")
    options = parser.parse_args()
    count, files = (20_000, 500) if options.small else (200_000, 5_000)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    table = Table()
    pictures = [picture(seed) for seed in range(PICTURES)]
    jpegs = [encode_image(pixels, "jpeg") for pixels in pictures]
    tiny = [encode_image(np.full((2, 2, 3), value, np.uint8), "png") for value in range(50)]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if options.startup:
            bench_startup(table, write(folder / "small.hello", tiny, CLASSES // 10))
        elif options.pack:
            for source in options.pack:
                bench_pack(table, folder, Path(source).resolve())
        else:
            bench_codecs(table, folder, pictures)
        if not (options.codecs or options.startup or options.pack):
            small = write(folder / "small.hello", tiny, CLASSES // 10)
            big = write(folder / "big.hello", tiny, count)
            bench_open(table, big, count)
            bench_inspect(table, small, big, count)
            write_folder(folder / "images", jpegs, files)
            packed = bench_pack(table, folder, folder / "images")
            bench_verify(table, packed)
            bench_tiny(table, big)
            bench_remote(table, packed)
    names = ("hellofmt", "numpy", "msgspec", "pillow", "isal", "simplejpeg", "fsspec", "aiohttp")
    names += ("torch", "click") if options.startup else ()
    versions = {name: version(name) for name in names}
    versions |= {
        "python": platform.python_version(),
        "tar": run("tar", "--version").decode().splitlines()[0],
        "sha256sum": run("sha256sum", "--version").decode().splitlines()[0],
        "openssl": run("openssl", "version").decode().strip(),
    }
    load = os.getloadavg()[0]
    head = [
        f"{processor()}, {os.cpu_count()} cores, load {load:.1f} at the end; page cache warm.",
        ", ".join(f"{name} {value}" for name, value in versions.items()) + ".",
        f"Command: `python benchmarks/archive.py {' '.join(sys.argv[1:])}`.".replace(" `.", "`."),
        "Least of several runs. `speed` is the time of the thing beside over ours: below 1 we are",
        "slower. A load above the number of cores makes wall times worse, and ours, which use the",
        "second core where it is free, worse than those beside; `CPU speed` compares CPU times.",
    ]
    publish(options.out, {"head": head, "rows": table.rows}, page)


if __name__ == "__main__":
    main()
