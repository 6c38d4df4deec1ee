"""A hostile file costs little memory: at most 64 MiB above opening the smallest archive.

Each file is verified in a process of its own under RLIMIT_AS. CPU time is measured, not wall time,
so that a busy machine does not fail the test.
"""

import json
import subprocess
import sys

import pytest
from tracing import HERE
from zoo import VALID, ZOO

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")

MIB = 1 << 20
CEILING = 64 * MIB
SECONDS = 2.0
SIX = [
    "manifest_of_8_gib",
    "zstd_lying_bomb",
    "zstd_bomb_behind_a_small_stated_size",
    "document_mebibyte_of_lists",
    "png_data_bomb",
    "sparse_section_of_80_mib",
]


def peaks(tmp_path, names):
    """What ``ceiling.py`` measures, the smallest archive first."""
    warm = []
    for name, make in VALID.items():
        warm.append(tmp_path / f"{name}.valid")
        warm[-1].write_bytes(make())
    files = [ZOO[name].write(tmp_path / f"{name}.hello") for name in names]
    command = [sys.executable, HERE / "ceiling.py", *warm, "--", warm[0], *files]
    done = subprocess.run(  # noqa: S603 (our own program)
        command, capture_output=True, text=True, check=True, timeout=900
    )
    first, *rest = map(json.loads, done.stdout.splitlines())
    assert (first["exit"], len(rest)) == (0, len(names))
    return first["peak"], rest


def check(tmp_path, names):
    base, measured = peaks(tmp_path, names)
    wrong = [
        line
        for name, line in zip(names, measured, strict=True)
        if (line["exit"], line["code"]) != (ZOO[name].exit, ZOO[name].code)
        or line["peak"] - base > CEILING
        or line["seconds"] > SECONDS
    ]
    assert wrong == []
    return base, measured


def test_six_files(tmp_path):
    check(tmp_path, SIX)


@pytest.mark.slow
def test_the_whole_zoo(tmp_path):
    check(tmp_path, list(ZOO))


def test_the_ceiling_is_seen_to_be_passed(tmp_path):
    # An honest archive of one large section costs its size, and the measurement shows it.
    from zoo.parts import projector

    kit = projector()
    n = 12 * MIB
    target = {"a": [1, n], "b": [2, 1], "param": "proj", "scale": "1.0", "shape": [2, n]}
    kit.manifest["functions"][0]["adapter"]["targets"] = [target | {"storage": "float32"}]
    tensors = {"proj::A": ("F32", [1, n], bytes(4 * n)), "proj::B": ("F32", [2, 1], bytes(8))}
    path = tmp_path / "large.hello"
    path.write_bytes(kit.tensors("adapter", tensors).build())
    small = tmp_path / "small.hello"
    small.write_bytes(VALID["images"]())
    command = [sys.executable, HERE / "ceiling.py", small, "--", small, path]
    done = subprocess.run(  # noqa: S603 (our own program)
        command, capture_output=True, text=True, check=True, timeout=60
    )
    first, large = map(json.loads, done.stdout.splitlines())
    assert large["exit"] == 1 or large["peak"] - first["peak"] > 48 * MIB
