import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hellofmt.archive.format.compress import compress, decompress
from hellofmt.errors import CorruptError

TEXT = b"one line, many times\n" * 100


def frame(data, **options):
    parameters = {"write_content_size": True, "write_checksum": True, **options}
    made = zstandard.ZstdCompressionParameters(compression_level=3, **parameters)
    return zstandard.ZstdCompressor(compression_params=made).compress(data)


@given(
    st.binary(min_size=1, max_size=30).flatmap(lambda b: st.integers(20, 90).map(lambda n: b * n))
)
def test_round_trip(raw):
    stored = compress(raw)
    if stored is None:
        assert len(raw) < 1100
    else:
        assert decompress(stored, len(raw), member="m") == raw
        assert compress(raw) == stored


def test_only_where_it_saves():
    noise = bytes(i * i * 31 % 251 ^ (i * 7919 >> 5) & 255 for i in range(2000))
    assert compress(noise) is None
    # Nothing is gained inside one block of the file.
    assert compress(b"a" * 512) is None
    assert compress(b"") is None
    # A reader with default limits refuses a ratio above 200.
    assert compress(bytes(1 << 20)) is None
    assert compress(TEXT) is not None


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        (b"", "not a zstd frame"),
        (b"\x50\x2a\x4d\x18\x04\0\0\0abcd", "not a zstd frame"),
        (b"\x28\xb5\x2f\xfd", "damaged frame header"),
        (frame(TEXT[:-1]), "size stated by the frame; expected 2100, got 2099"),
        (frame(TEXT, write_content_size=False), "size stated by the frame; expected 2100"),
        (frame(TEXT, write_checksum=False), "the frame has no checksum"),
        (frame(TEXT) + b"\0", "damaged frame, or bytes after it"),
        (frame(TEXT) + frame(b"x"), "damaged frame, or bytes after it"),
        (frame(TEXT)[:-1], "damaged frame, or bytes after it"),
        (frame(TEXT)[:-1] + b"\0", "damaged frame, or bytes after it"),
    ],
)
def test_refused_frames(stored, text):
    with pytest.raises(CorruptError) as caught:
        decompress(stored, len(TEXT), member="__hello__/card")
    assert caught.value.code == "E_ZSTD"
    assert caught.value.member == "__hello__/card"
    assert text in str(caught.value)


def test_refused_window_and_dictionary():
    # Frame headers alone: magic, descriptor, window or dictionary, content size.
    window = b"\x28\xb5\x2f\xfd" + bytes([0x84, 0x70]) + (9 << 20).to_bytes(4, "little")
    with pytest.raises(CorruptError, match="window; expected at most 8388608 bytes, got 16777216"):
        decompress(window, 9 << 20, member="m")
    dictionary = b"\x28\xb5\x2f\xfd" + bytes([0x25, 0x07, 0x10])
    with pytest.raises(CorruptError, match="the frame needs a dictionary"):
        decompress(dictionary, 16, member="m")
