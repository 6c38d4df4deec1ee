"""zstd inside sections: one frame that states its size and carries a checksum.

Python's bindings ignore ``max_output_size`` for a frame that states its size, accept bytes and
frames after the first one, and allocate windows beyond ``max_window_size`` in one-shot calls. So
the frame header is checked first, and nothing is decompressed before it agrees with the manifest. A
section is compressed only if that saves 5 % and a block of 512 bytes, and never beyond the ratio or
size that a reader accepts by default.
"""

from __future__ import annotations

from typing import Final

from hellofmt.archive.format.digest import sha256
from hellofmt.archive.format.layout import padded
from hellofmt.archive.format.limits import DEFAULT_LIMITS
from hellofmt.archive.format.manifest import Section
from hellofmt.errors import CorruptError

_FRAME_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_WINDOW_BYTES: Final = 8 << 20
_LEVEL: Final = 19


def compress(raw: bytes) -> bytes | None:
    """Compress a section to one zstd frame with content size, checksum, window of 8 MiB at most.

    None if that saves less than 5 % or no block of the file, or if a reader with default limits
    would refuse it.
    """
    if not 0 < len(raw) <= DEFAULT_LIMITS.zstd_bytes:
        return None
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        source_size=len(raw),
        window_log=min(23, max(10, (len(raw) - 1).bit_length())),
        write_content_size=1,
        write_checksum=1,
        write_dict_id=0,
        threads=0,
    )
    stored = zstandard.ZstdCompressor(compression_params=parameters).compress(raw)
    saves = len(stored) * 100 <= len(raw) * 95 and padded(len(stored)) < padded(len(raw))
    if not saves or len(raw) > len(stored) * DEFAULT_LIMITS.zstd_ratio:
        return None
    return stored


def decompress(stored: bytes, raw_size: int, *, member: str) -> bytes:
    """Decompress a section, whose digest is checked already, to the size that the manifest states.

    It has to be one frame with a checksum, a window of at most 8 MiB and no dictionary (E_ZSTD).
    """
    import zstandard

    def fault(text: str) -> CorruptError:
        return CorruptError.make("E_ZSTD", text, member=member)

    if stored[:4] != _FRAME_MAGIC:
        raise fault("not a zstd frame")
    try:
        frame = zstandard.get_frame_parameters(stored)
    except zstandard.ZstdError:
        raise fault("damaged frame header") from None
    if frame.content_size != raw_size:
        raise fault(f"size stated by the frame; expected {raw_size}, got {frame.content_size}")
    if frame.window_size > _WINDOW_BYTES:
        raise fault(f"window; expected at most {_WINDOW_BYTES} bytes, got {frame.window_size}")
    if not frame.has_checksum:
        raise fault("the frame has no checksum")
    if frame.dict_id != 0:
        raise fault("the frame needs a dictionary")
    try:
        raw = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompress(
            stored, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError:
        raise fault("damaged frame, or bytes after it") from None
    if len(raw) != raw_size:
        raise fault(f"raw size; expected {raw_size}, got {len(raw)}")
    return raw


def stored_section(name: str, raw: bytes) -> tuple[Section, bytes]:
    """Return a section's entry in the manifest and its stored bytes, compressed where that pays."""
    packed = None if name in ("index", "base", "pixels") else compress(raw)
    if packed is None:
        return Section(digest=sha256(raw), encoding="none", name=name, size=len(raw)), raw
    section = Section(
        digest=sha256(packed),
        encoding="zstd",
        name=name,
        size=len(packed),
        raw_digest=sha256(raw),
        raw_size=len(raw),
    )
    return section, packed
