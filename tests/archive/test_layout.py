import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hellofmt.archive.format.layout import describe_header, header, image_name, padded
from hellofmt.errors import SpecError


def by_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def test_header_golden_bytes():
    block = header("__hello__/manifest", 1234)
    assert len(block) == 512
    assert block[:20] == b"__hello__/manifest\0\0"
    assert block[100:157] == (
        b"0000644\x000000000\x000000000\x0000000002322\x0000000000000\x00011374\x00 0"
    )
    assert block[257:265] == b"ustar\x0000"
    assert block[20:100].strip(b"\0") == block[157:257].strip(b"\0") == b""
    assert block[265:].strip(b"\0") == b""


@given(
    st.text("abcdefghijklmnopqrstuvwxyz0123456789_/.", min_size=1, max_size=99).filter(
        # tarfile strips slashes; such names never occur.
        lambda name: not name.endswith("/") and not name.startswith("/")
    ),
    st.integers(0, 8**11 - 1),
)
def test_header_equals_tarfile(name, size):
    assert header(name, size) == by_tarfile(name, size)


@pytest.mark.parametrize("name", ["", "a" * 100, "caf\u00e9", "a\nb"])
def test_header_refuses_names(name):
    with pytest.raises(SpecError, match="E_HEADER: member name; expected 1 to 99 ASCII characters"):
        header(name, 1)


@pytest.mark.parametrize("size", [-1, 8**11])
def test_header_refuses_sizes(size):
    with pytest.raises(SpecError, match=r"E_HEADER member=a: member size; expected at most 8589"):
        header("a", size)


@pytest.mark.parametrize(("size", "up"), [(0, 0), (1, 512), (512, 512), (513, 1024)])
def test_padded(size, up):
    assert padded(size) == up


@pytest.mark.parametrize(
    ("block", "code", "text"),
    [
        (header("__hello__/index", 7), "E_HEADER", "expected 6, got 7"),
        (header("__hello__/id", 65), "E_HEADER", "got __hello__/id"),
        (header("__hello__/head", 6), "E_HEADER", "got __hello__/head"),
        (header("images/0000/000000.png", 6), "E_HEADER", "got images/0000/000000.png"),
        (header("etc/passwd", 6), "E_HEADER", "got etc/passwd"),
        (header("__hello__/index", 6).replace(b"0000644", b"0000755"), "E_HEADER", "at byte 104"),
        (bytes(512), "E_HEADER", "at byte 0"),
        (b"\xff" * 512, "E_HEADER", "at byte 0"),
    ],
)
def test_describe_header(block, code, text):
    error = describe_header(block, "__hello__/index", 6)
    assert error.code == code
    assert error.member == "__hello__/index"
    assert text in str(error)


@pytest.mark.parametrize(
    ("label", "number", "codec", "classes", "total", "name"),
    [
        (0, 0, "png", 1, 1, "images/0000/000000.png"),
        (7, 123, "jpeg", 1000, 10_000, "images/0007/000123.jpg"),
        (9999, 999_999, "webp", 10_000, 1_000_000, "images/9999/999999.webp"),
        (5, 5, "png", 10_001, 1_000_001, "images/00005/0000005.png"),
    ],
)
def test_image_name(label, number, codec, classes, total, name):
    assert image_name(label, number, codec, classes, total) == name


def test_sizes_are_padded_in_arrays_as_alone():
    size = np.arange(1, 2000)
    assert padded(size).tolist() == [padded(n) for n in size.tolist()]
