"""Pack one small archive; a program of its own, so that it can be killed at any system call.

``packing.py TARGET VERSION`` replaces ``TARGET``, ``packing.py --new TARGET VERSION`` refuses one
that is there. The temporary file has a fixed name, so that a tracer can be told to look at it; its
process id is one that no process has. The exit code is that of the command line.
"""

import os
import secrets
import struct
import sys
import zlib
from pathlib import Path

from hellofmt.archive import ClassLine, Dataset, Draft, ImageItem, ImageSet, Views, write_archive
from hellofmt.archive.format.manifest import Producer
from hellofmt.errors import HelloError

DEAD = 4194304 + 1
"""Above Linux's largest process id."""


def temporary(target):
    return target.with_name(f".{target.name}.{DEAD}.{'ab' * 8}.tmp")


def picture(version, number):
    """A PNG of 32 x 8 pixels that hardly compresses."""

    def chunk(name, data):
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    state, rows = 1 + number + 1000 * version, b""
    for _ in range(8):
        row = bytearray(1)
        for _ in range(96):
            state = (state * 1103515245 + 12345) % (1 << 31)
            row.append(state >> 16 & 255)
        rows += bytes(row)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 8, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


def draft(version):
    three = ["0.5", "0.5", "0.5"]
    return Draft(
        dataset=Dataset(
            name="faults", version=f"{version}.0", license="CC0-1.0", method="none", sources=[]
        ),
        classes=[ClassLine("a", ("a",)), ClassLine("b", ("b",))],
        views=Views(
            antialias=True,
            crop_ratio=["0.75", "1.25"],
            crop_scale=["0.5", "1.0"],
            flip="0.5",
            interpolation="bilinear",
            mean=three,
            mix="none",
            shuffle=1,
            size=8,
            std=three,
        ),
        images=ImageSet(
            "png", [ImageItem(i // 6, picture(version, i)) for i in range(12)], layout="files"
        ),
        card=f"version {version}\n",
        # The installed version is looked up in directories, which are not what is tested.
        producer=Producer(name="packing", version="1"),
    )


def pack(target, version, *, force):
    """Write the archive; the exit code."""
    secrets.token_hex = lambda _: "ab" * 8
    os.getpid = lambda: DEAD
    try:
        write_archive(target, draft(version), force=force)
    except HelloError as error:
        return error.exit_code
    except OSError:
        return 9
    except KeyboardInterrupt:
        return 130
    return 0


def main(arguments):
    force = arguments[0] != "--new"
    target, version = arguments[-2:]
    # Not sys.exit: what happens while the interpreter ends is not ours to test.
    os._exit(pack(Path(target), int(version), force=force))


if __name__ == "__main__":
    main(sys.argv[1:])
