"""No byte of an archive may change, go or come unseen."""

import importlib.util
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from hellofmt.archive import open_archive, verify_archive, write_archive
from hellofmt.errors import CorruptError, HelloError, NotHelloError, SpecError

EXITS = {NotHelloError: 3, CorruptError: 4, SpecError: 5}


def _samples():
    path = Path(__file__).parents[1] / "archive" / "samples.py"
    spec = importlib.util.spec_from_file_location("archive_samples_for_flips", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAMPLES = _samples()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An archive of images, a label function with its base, a compressed card and a licence."""
    path = tmp_path_factory.mktemp("flips") / "everything.hello"
    write_archive(path, SAMPLES.everything())
    return path.read_bytes()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """12 KiB, for what is tried byte by byte: an image, a label function, a compressed card."""
    path = tmp_path_factory.mktemp("flips") / "small.hello"
    card = "# tiny\n" + "one line, many times\n" * 30
    draft = SAMPLES.draft(images=SAMPLES.images(1), projector=SAMPLES.projector(), card=card)
    write_archive(path, draft)
    data = path.read_bytes()
    assert len(data) == 12 * 1024
    return data


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Packed pixels, and the sections that ``small`` lacks: a base inside, and a licence."""
    path = tmp_path_factory.mktemp("flips") / "packed.hello"
    images = SAMPLES.images(3, layout="packed")
    projector = SAMPLES.projector(kind="embedded")
    write_archive(path, SAMPLES.draft(images=images, projector=projector, license="CC0"))
    return path.read_bytes()


@pytest.fixture
def refused(tmp_path):
    """Whether a full verification refuses some bytes, with one of the three classes."""
    path = tmp_path / "x.hello"

    def check(data):
        path.write_bytes(data)
        return exit_of(path) in (3, 4, 5)

    return check


def exit_of(path):
    """Exit code of a full verification; 0 if it passes; a foreign exception goes through."""
    try:
        verify_archive(path)
    except HelloError as error:
        return error.exit_code if EXITS.get(type(error)) == error.exit_code else -1
    return 0


def flip_all(path, data, positions):
    """(position, bit, exit code) of every flip that was not refused as it should be."""
    path.write_bytes(data)
    unseen = []
    fd = os.open(path, os.O_WRONLY)
    try:
        for at in positions:
            for bit in range(8):
                os.pwrite(fd, bytes([data[at] ^ 1 << bit]), at)
                code = exit_of(path)
                if code not in (3, 4, 5):
                    unseen.append((at, bit, code))
            os.pwrite(fd, data[at : at + 1], at)
    finally:
        os.close(fd)
    assert exit_of(path) == 0
    return unseen


def test_every_bit_flip(small, tmp_path):
    assert flip_all(tmp_path / "x.hello", small, range(len(small))) == []


def test_bit_flips_of_a_packed_archive(packed, tmp_path):
    # The front is as above: every bit of the pixels section and the trailer, one byte in 8 else.
    front = packed.index(b"__hello__/pixels")
    positions = [*range(0, front, 8), *range(front, len(packed))]
    assert flip_all(tmp_path / "x.hello", packed, positions) == []


VECTORS = sorted((Path(__file__).parents[2] / "spec" / "vectors" / "valid").glob("*.hello"))


@pytest.mark.slow
@pytest.mark.parametrize("vector", VECTORS, ids=lambda path: path.stem)
def test_every_bit_flip_and_truncation_of_the_vectors(vector, tmp_path):
    whole = vector.read_bytes()
    path = tmp_path / "x.hello"
    assert flip_all(path, whole, range(len(whole))) == []
    for length in range(len(whole) - 1, -1, -1):
        os.truncate(path, length)
        assert exit_of(path) == (4 if length else 3), length


@pytest.mark.slow
def test_bit_flips_of_a_mebibyte(tmp_path):
    """One bit of every 64th byte, another bit and another byte of 64 from place to place."""
    path = tmp_path / "x.hello"
    items = [
        SAMPLES.ImageItem(i // 8, SAMPLES.png(SAMPLES.pattern(i, 144, 150, 3))) for i in range(16)
    ]
    write_archive(path, SAMPLES.draft(images=SAMPLES.ImageSet("png", items, "files")))
    whole = path.read_bytes()
    assert len(whole) > 1 << 20
    unseen, fd = [], os.open(path, os.O_WRONLY)
    try:
        for number, place in enumerate(range(0, len(whole), 64)):
            at = min(place + number * 37 % 64, len(whole) - 1)
            os.pwrite(fd, bytes([whole[at] ^ 1 << number % 8]), at)
            if exit_of(path) not in (3, 4, 5):
                unseen.append(at)
            os.pwrite(fd, whole[at : at + 1], at)
    finally:
        os.close(fd)
    assert unseen == []
    assert exit_of(path) == 0


def test_flips_in_the_magic_are_no_archive(whole, tmp_path):
    path = tmp_path / "x.hello"
    for at in range(18):
        data = bytearray(whole)
        data[at] ^= 1
        path.write_bytes(data)
        assert exit_of(path) == 3


def test_every_truncation(small, tmp_path):
    path = tmp_path / "x.hello"
    path.write_bytes(small)
    codes = {}
    for length in range(len(small) - 1, -1, -1):
        os.truncate(path, length)
        codes[length] = exit_of(path)
    assert codes[0] == 3
    assert set(codes.values()) == {3, 4}
    assert [length for length, code in codes.items() if code == 3] == [0]


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1024, 10_240])
@pytest.mark.parametrize("byte", [b"\0", b"x"])
def test_appended_bytes(whole, tmp_path, count, byte):
    path = tmp_path / "x.hello"
    path.write_bytes(whole + byte * count)
    with pytest.raises(CorruptError, match=f"E_TRAILING offset={len(whole)}: bytes after the end"):
        verify_archive(path)


def members(data):
    """(begin, end) of every member and of the trailer."""
    found, at = [], 0
    while data[at] != 0:
        size = int(data[at + 124 : at + 135], 8)
        end = at + 512 + -(-size // 512) * 512
        found.append((at, end))
        at = end
    return [*found, (at, len(data))]


def test_members_swapped_doubled_or_lost(whole, refused):
    pieces = [whole[begin:end] for begin, end in members(whole)]
    assert len(pieces) == 2 + 8 + 2 + 1
    for i, j in itertools.combinations(range(len(pieces)), 2):
        swapped = list(pieces)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        assert refused(b"".join(swapped)), (i, j)
    for i in range(len(pieces)):
        doubled = [*pieces[: i + 1], *pieces[i:]]
        assert refused(b"".join(doubled)), i
        assert refused(b"".join([*pieces[:i], *pieces[i + 1 :]])), i


def test_index_of_one_archive_with_the_body_of_another(whole, refused, tmp_path):
    items = [SAMPLES.ImageItem(i, SAMPLES.png(SAMPLES.pattern(i + 50, 8, 8, 3))) for i in range(2)]
    draft = SAMPLES.everything()
    images = SAMPLES.ImageSet("png", items, "files")
    draft = SAMPLES.Draft(**{**draft.__dict__, "images": images})
    path = tmp_path / "other.hello"
    write_archive(path, draft)
    other = path.read_bytes()
    assert len(other) == len(whole)
    edges = [begin for begin, _ in members(whole)]
    for edge in edges[1:-1]:
        assert refused(whole[:edge] + other[edge:])
        assert refused(other[:edge] + whole[edge:])


@pytest.mark.parametrize(
    ("trials", "seed"), [(20_000, 11), pytest.param(100_000, 12, marks=pytest.mark.slow)]
)
def test_random_splices(whole, tmp_path, trials, seed):
    """Blocks swapped, inserted, deleted, doubled, zeroed or filled with noise."""
    path = tmp_path / "x.hello"
    random = np.random.Generator(np.random.PCG64(seed))
    blocks = [whole[at : at + 512] for at in range(0, len(whole), 512)]
    unseen = []
    for trial in range(trials):
        made = list(blocks)
        kind = int(random.integers(6))
        i, j = (int(n) for n in random.integers(len(made), size=2))
        if kind == 0:
            made[i], made[j] = made[j], made[i]
        elif kind == 1:
            made.insert(i, made[j])
        elif kind == 2:
            del made[min(i, j) : max(i, j) + 1]
        elif kind == 3:
            made[i] = made[j]
        elif kind == 4:
            made[i] = bytes(512)
        else:
            made[i] = random.bytes(512)
        data = b"".join(made)
        if data == whole:
            continue
        path.write_bytes(data)
        code = exit_of(path)
        if code not in (3, 4, 5):
            unseen.append((trial, kind, i, j, code))
    assert unseen == []


def read(path, row, name):
    """Read one image, one section, or nothing but what opening reads."""
    with open_archive(path) as file:
        if row is not None:
            file.read_image(row)
        elif name not in (None, "front"):
            file.section(name)


def test_reading_the_damaged_part_raises(whole, tmp_path):
    """What full verification refuses, reading refuses too, unless it never touches the place."""
    path = tmp_path / "x.hello"
    path.write_bytes(whole)
    with open_archive(path) as file:
        ends = {"front": file.section_offset("index") - 512}
        for name, size in file.section_sizes().items():
            ends[name] = file.section_offset(name) + size
        images = [
            (int(at) - 512, int(size))
            for at, size in zip(file.index.offset, file.index.size, strict=True)
        ]
    positions = range(0, images[-1][0] + 1024, 7)
    for at in positions:
        data = bytearray(whole)
        data[at] ^= 0x10
        path.write_bytes(data)
        row = next(
            (row for row, (begin, _) in enumerate(images) if begin <= at < begin + 1024), None
        )
        name = next((name for name, end in ends.items() if at < end), None)
        with pytest.raises((NotHelloError, CorruptError, SpecError)):
            read(path, row, name)
