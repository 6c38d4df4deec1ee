"""Time a remote archive from opening to the first batch, and count what an epoch fetches.

    python benchmarks/streaming.py --out benchmarks/results/streaming-cpu

About 1 GB of JPEG files in one archive, CutMix in every view, soft labels of a small seeded base. A
server in a separate process serves it on the loopback, 10 MB/s for all connections together, 50 ms
before each answer. Each row is a separate process, timed from the call that opens the archive,
after `import hellofmt.loading`; later imports, such as aiohttp, count. The floor of a row is the
line: the bytes needed, divided by its speed. The same epoch is drawn from the local file, and the
digests of all pixels and labels are compared. `--small` uses a tenth of the data, `--first` skips
the epoch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import re
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from times import publish

RATE, LATENCY = 10e6, 0.05
SIDE, CLASSES, BATCH = 224, 100, 64
PICTURES = 100
PIECE = 1 << 14


class Line:
    """One line for all connections: a piece may be sent once the pieces before it are through."""

    def __init__(self):
        self.lock = threading.Lock()
        self.free_at = 0.0

    def wait(self, size):
        with self.lock:
            self.free_at = max(self.free_at, time.monotonic()) + size / RATE
            pause = self.free_at - time.monotonic()
        if pause > 0:
            time.sleep(pause)


class Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self):
        while (head := self.read_head()) is not None:
            match = re.search(rb"(?i)range: bytes=(\d+)-(\d+)", head)
            if match is None:
                self.wfile.write(self.server.report())
                return
            start, end = int(match[1]), min(int(match[2]) + 1, self.server.size)
            self.server.count(start, end)
            time.sleep(LATENCY)
            self.wfile.write(
                b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\n"
                b"Content-Length: %d\r\n\r\n" % (start, end - 1, self.server.size, end - start)
            )
            for at in range(start, end, PIECE):
                data = os.pread(self.server.fd, min(PIECE, end - at), at)
                self.server.line.wait(len(data))
                self.wfile.write(data)

    def read_head(self):
        lines = []
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            lines.append(line)
        return b"".join(lines) if lines else None


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.fd).st_size
        self.line = Line()
        self.lock = threading.Lock()
        self.requests, self.bytes = 0, 0
        self.times = np.zeros(-(-self.size // 512), np.uint8)

    def count(self, start, end):
        with self.lock:
            self.requests += 1
            self.bytes += end - start
            # Whatever is read begins and ends with a block of the tar, or with a pixel.
            self.times[start // 512 : -(-end // 512)] += 1

    def report(self):
        with self.lock:
            found = {"requests": self.requests, "bytes": self.bytes}
            found["twice"] = int((self.times > 1).sum()) * 512
            self.requests, self.bytes = 0, 0
            self.times[:] = 0
        body = json.dumps(found).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    def handle_error(self, request, client_address):
        pass


def serve(path, pipe):
    server = Server(path)
    pipe.send(server.server_address[1])
    server.serve_forever()


def build(path, count):
    """Write the archive, with a small seeded projector."""
    from hellofmt.archive import (
        Arch,
        ClassLine,
        Dataset,
        Draft,
        ImageItem,
        ImageSet,
        Preprocess,
        VisionArch,
        encode_image,
        write_archive,
    )
    from hellofmt.loading import view_recipe
    from hellofmt.projector import Projector, seeded_base

    random = np.random.default_rng(0)
    files = [
        encode_image(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8), "jpeg", quality=92)
        for _ in range(PICTURES)
    ]
    preprocess = Preprocess(
        antialias=True,
        interpolation="bicubic",
        mean=["0.5"] * 3,
        size=32,
        std=["0.25"] * 3,
    )
    vision = VisionArch(image_size=32, layers=2, width=64, patch_size=8, head_width=32)
    base = seeded_base(Arch(embed_dim=64, quick_gelu=False, vision=vision), preprocess, seed=0)
    classes = [ClassLine(f"c{k}", (f"class {k}",)) for k in range(CLASSES)]
    part = Projector.build(base, classes, rank=4, start="stored", temperature=2.0, seed=0).part()
    items = [ImageItem(k * CLASSES // count, files[k % PICTURES]) for k in range(count)]
    facts = Dataset(name="big", version="1", license="CC0-1.0", method="none", sources=[])
    views = view_recipe("rded", SIDE, 1)
    images = ImageSet("jpeg", items, "files")
    write_archive(path, Draft(facts, classes, views, images=images, projector=part))


class Rows:
    """A data set for a sampler that cannot prefetch."""

    def __init__(self, count, archive_id):
        self.count, self.id = count, archive_id

    def __len__(self):
        return self.count


def client(source, batches):
    """Open the archive in one process and draw the first batch, then as many as requested."""
    import torch

    from hellofmt.loading import HelloLoader, HelloSampler

    torch.set_num_threads(1)
    start, busy = time.perf_counter(), time.process_time()
    loader = HelloLoader(source, batch_size=BATCH, seed=1)
    opened = time.perf_counter() - start
    stream, waited = loader.dataset._images.stream, []  # noqa: SLF001
    if stream is not None:
        read = stream.read

        def timed(rows):
            before = time.perf_counter()
            found = read(rows)
            waited.append(time.perf_counter() - before)
            return found

        stream.read = timed
    digest, first = hashlib.sha256(), 0.0
    shown = np.zeros(len(loader.dataset), bool)
    order = iter(HelloSampler(Rows(len(shown), loader.dataset.id), batch_size=BATCH, seed=1))
    needed_first, before = 0, start
    steps = iter(loader)
    for k in range(min(batches, len(loader))):
        images, labels = next(steps)
        now = time.perf_counter()
        before = now
        if k == 0:
            first, busy = now - start, time.process_time() - busy
        rows = np.array(next(order), np.int64)
        table = loader.dataset.table(rows, 0)
        shown[table[:, [0, 6]].ravel()] = True
        size = loader.dataset.file.index.size
        needed = int(((size + 511) // 512 * 512 + 512)[shown].sum())
        needed_first = needed_first or needed
        if batches > 1:
            digest.update(images.numpy().tobytes())
            digest.update(labels.numpy().tobytes())
    found = {
        "open_s": opened,
        "first_s": first,
        "first_cpu_s": busy,
        "first_read_s": waited[0] if waited else 0.0,
        "read_s": sum(waited),
        "total_s": before - start,
        "needed_first": needed_first,
        "needed": needed,
        "sha256": digest.hexdigest(),
    }
    print(json.dumps(found), flush=True)
    # Do not wait for prefetched batches that nobody will use.
    os._exit(0)


def measure(source, batches, port):
    """Run a client and return it with what the server counted meanwhile."""
    import urllib.request

    def report():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            return json.load(answer)

    time.sleep(0.5)
    report()
    command = [sys.executable, __file__, "--client", str(source), "--batches", str(batches)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)  # noqa: S603
    return {**json.loads(done.stdout), **report()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="prefix of the .json and .md to write")
    parser.add_argument("--small", action="store_true", help="a tenth of the images")
    parser.add_argument("--first", action="store_true", help="no epoch, only the first batch")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        client(options.client, options.batches)
    count = 2_200 if options.small else 22_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.hello"
        build(path, count)
        size = path.stat().st_size
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(
            target=serve, args=(str(path), theirs), daemon=True
        )
        server.start()
        port = ours.recv()
        url = f"http://127.0.0.1:{port}/big.hello"
        firsts = [measure(url, 1, port) for _ in range(3)]
        nears = [measure(path, 1, port) for _ in range(3)]
        far, near = ({}, {}) if options.first else (measure(s, count, port) for s in (url, path))
        server.kill()
        server.join()
    assert far.get("sha256") == near.get("sha256")
    names = ("hellofmt", "torch", "numpy", "pillow", "fsspec", "aiohttp")
    versions = {name: version(name) for name in names} | {"python": platform.python_version()}
    document = {
        "head": [
            (
                f"{size / 1e6:.0f} MB, {count:,} JPEG files of {SIDE} px, batches of {BATCH} with"
                f" CutMix, soft labels. Server on the loopback: {RATE / 1e6:.0f} MB/s in all,"
                f" {1e3 * LATENCY:.0f} ms before each answer."
            ),
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end. "
            + ", ".join(f"{name} {value}" for name, value in versions.items())
            + ".",
            f"Command: `{' '.join(['python', 'benchmarks/streaming.py', *sys.argv[1:]])}`.",
        ],
        "rate": RATE,
        "first": firsts,
        "first_local": nears,
        "epoch": far,
        "epoch_local": near,
    }
    publish(options.out, document, page)


def page(document):
    """Return the results as Markdown."""
    firsts, nears, far = document["first"], document["first_local"], document["epoch"]

    def least(key, runs):
        return min(run[key] for run in runs)

    alone = firsts[0]["needed_first"]
    rows = [
        ("open to first batch", least("first_s", firsts), least("first_s", nears), alone),
        ("of which open", least("open_s", firsts), least("open_s", nears), 0),
        ("of which fetching", least("first_read_s", firsts), 0.0, alone),
    ]
    if far:
        local = document["epoch_local"]["total_s"]
        rows.append(("an epoch, from open", far["total_s"], local, far["needed"]))
    walls = ", ".join(f"{run['first_s']:.2f}" for run in firsts)
    lines = [
        "# Streaming from a remote archive",
        "",
        *document["head"],
        "",
        "| what | remote, s | local, s | remote / local | line alone, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {what} | {ours:.2f} | "
        + (f"{local:.2f} | {ours / local:.1f} | " if local else "| | ")
        + (f"{needed / document['rate']:.2f} |" if needed else "|")
        for what, ours, local, needed in rows
    ]
    lines += [
        "",
        f"The first row is the best of 3 ({walls} s). Goal: 2 s.",
        (
            f"It needs {alone / 1e6:.1f} MB of images and {least('first_cpu_s', firsts):.2f} s of"
            " processor time."
        ),
    ]
    if far:
        lines += [
            "",
            f"The epoch asked for {far['bytes'] / 1e6:.1f} MB in {far['requests']:,} requests; its",
            (
                f"images have {far['needed'] / 1e6:.1f} MB with their headers: ratio"
                f" {far['bytes'] / far['needed']:.4f}. {far['twice']:,} bytes were asked for twice."
            ),
            f"Of its time {far['read_s']:.1f} s were spent waiting for bytes.",
            "Pixels and labels of the epoch are bit-equal to those from the local file.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
