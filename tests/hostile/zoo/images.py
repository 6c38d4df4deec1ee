"""Lies of image files, each with the digest and the dimensions that the index states."""

import struct
import zlib
from functools import partial

from zoo.parts import PNG, add, chunk, hostile, ihdr, images_only, pillow, png, rows_of, with_images

image = partial(hostile, "images")


def shown(data, codec="png", height=3, width=4):
    """An archive whose second picture is ``data``."""
    good = {
        "png": partial(pillow, "PNG"),
        "jpeg": partial(pillow, "JPEG"),
        "webp": partial(pillow, "WEBP"),
    }[codec]
    kit = with_images(codec, good(), data)
    kit.rows[1].height, kit.rows[1].width = height, width
    return kit.reindex().build()


ICC = b"icc\0\0" + zlib.compress(bytes(1 << 20))
for name, data, code in (
    ("65535_square", lambda: png(head=ihdr(65535, 65535)), "E_INDEX"),
    ("2_to_31_wide", lambda: png(head=ihdr((1 << 31) - 1, 1)), "E_INDEX"),
    ("0_wide", lambda: png(head=ihdr(0, 1)), "E_CODEC"),
    ("palette", lambda: png(head=ihdr(4, 3, colour=3), before=chunk(b"PLTE", bytes(9))), "E_CODEC"),
    ("alpha", lambda: png(head=ihdr(4, 3, colour=6), raw=rows_of(4, 3, 4)), "E_CODEC"),
    ("grey_and_alpha", lambda: png(head=ihdr(4, 3, colour=4), raw=rows_of(4, 3, 2)), "E_CODEC"),
    ("16_bit", lambda: png(head=ihdr(4, 3, depth=16), raw=rows_of(4, 3, 6)), "E_CODEC"),
    ("1_bit", lambda: png(head=ihdr(4, 3, depth=1, colour=0)), "E_CODEC"),
    ("interlaced", lambda: png(head=ihdr(4, 3, interlace=1)), "E_CODEC"),
    ("compression_1", lambda: png(head=ihdr(4, 3, packing=1)), "E_CODEC"),
    ("filter_1", lambda: png(head=ihdr(4, 3, filters=1)), "E_CODEC"),
    ("ztxt_bomb", lambda: png(before=chunk(b"zTXt", ICC)), "E_CODEC"),
    ("iccp_bomb", lambda: png(before=chunk(b"iCCP", ICC)), "E_CODEC"),
    ("itxt", lambda: png(before=chunk(b"iTXt", b"a\0\0\0\0\0b")), "E_CODEC"),
    ("text", lambda: png(before=chunk(b"tEXt", b"Comment\0hello")), "E_CODEC"),
    ("exif", lambda: png(before=chunk(b"eXIf", b"MM\0\x2a\0\0\0\x08")), "E_CODEC"),
    ("gamma", lambda: png(before=chunk(b"gAMA", struct.pack(">I", 45455))), "E_CODEC"),
    ("transparency", lambda: png(before=chunk(b"tRNS", bytes(6))), "E_CODEC"),
    ("palette_of_rgb", lambda: png(before=chunk(b"PLTE", bytes(6))), "E_CODEC"),
    ("private_chunk", lambda: png(before=chunk(b"evIl", b"x")), "E_CODEC"),
    ("lower_case_chunk_name", lambda: png(before=chunk(b"\x1b[2J", b"x")), "E_CODEC"),
    ("srgb_twice", lambda: png(before=chunk(b"sRGB", b"\0") * 2), "E_CODEC"),
    ("srgb_of_intent_4", lambda: png(before=chunk(b"sRGB", b"\4")), "E_CODEC"),
    ("srgb_of_two_bytes", lambda: png(before=chunk(b"sRGB", b"\0\0")), "E_CODEC"),
    ("apng", lambda: png(before=chunk(b"acTL", struct.pack(">II", 1 << 30, 0))), "E_CODEC"),
    ("second_header", lambda: png(before=ihdr(4000, 4000)), "E_CODEC"),
    ("chunk_between_the_data", lambda: png(between=chunk(b"tEXt", b"a\0b")), "E_CODEC"),
    ("srgb_between_the_data", lambda: png(between=chunk(b"sRGB", b"\0")), "E_CODEC"),
    ("no_data", lambda: PNG + ihdr(4, 3) + chunk(b"IEND", b""), "E_CODEC"),
    ("end_with_data", lambda: png()[:-12] + chunk(b"IEND", b"x"), "E_CODEC"),
    ("header_of_14_bytes", lambda: png(head=chunk(b"IHDR", bytes(14))), "E_CODEC"),
    ("header_not_first", lambda: png(head=chunk(b"sRGB", b"\0") + ihdr(4, 3)), "E_CODEC"),
    ("bytes_after_the_end", lambda: png(after=b"\0"), "E_CODEC"),
    ("script_after_the_end", lambda: png(after=b"<?php system($_GET[0]); ?>"), "E_CODEC"),
    ("two_pictures", lambda: png(after=png()), "E_CODEC"),
    ("bad_crc", lambda: png(head=ihdr(4, 3)[:-4] + bytes(4)), "E_IMAGE"),
    ("bad_crc_of_the_data", lambda: png()[:-16] + bytes(4) + png()[-12:], "E_IMAGE"),
    ("no_end", lambda: png()[:-12], "E_IMAGE"),
    ("cut_in_a_chunk", lambda: png()[:-20], "E_IMAGE"),
    ("cut_after_the_signature", lambda: PNG, "E_IMAGE"),
    ("chunk_of_2_gib", lambda: png(before=struct.pack(">I", 0x7FFFFFFF) + b"IDAT"), "E_IMAGE"),
    ("chunk_of_4_gib", lambda: png(before=b"\xff\xff\xff\xffIDAT"), "E_IMAGE"),
    ("is_a_tiff", lambda: pillow("TIFF"), "E_CODEC"),
    ("is_a_gif", lambda: pillow("GIF", mode="P"), "E_CODEC"),
    ("is_a_bmp", lambda: pillow("BMP"), "E_CODEC"),
    ("is_a_jpeg", lambda: pillow("JPEG"), "E_CODEC"),
    ("is_a_webp", lambda: pillow("WEBP"), "E_CODEC"),
    ("is_a_psd", lambda: b"8BPS\0\1" + bytes(60), "E_CODEC"),
    ("is_an_eps", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 3\n", "E_CODEC"),
    ("is_an_svg", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "E_CODEC"),
    ("is_jpeg_xl", lambda: b"\xff\x0a" + bytes(30), "E_CODEC"),
    ("is_avif", lambda: b"\0\0\0\x20ftypavif" + bytes(30), "E_CODEC"),
    ("is_a_jng", lambda: b"\x8bJNG\r\n\x1a\n" + bytes(30), "E_CODEC"),
    ("is_one_byte", lambda: b"\x89", "E_CODEC"),
):
    add(f"png_{name}", code, lambda data=data: shown(data()), group="images")

IDAT = rows_of(4, 3)


def compressed(stream):
    return PNG + ihdr(4, 3) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


# Of the second group all rows are there, so only full verification looks further.
for full, streams in (
    (
        False,
        {
            "short": zlib.compress(IDAT[:-1]),
            "empty": zlib.compress(b""),
            "not_zlib": b"not zlib at all",
            "bad_adler": zlib.compress(IDAT)[:-4] + bytes(4),
            "dictionary": b"\x78\xbb" + bytes(20),
            "filter_9": zlib.compress(b"\x09" + IDAT[1:]),
        },
    ),
    (
        True,
        {
            "long": zlib.compress(IDAT + b"\0"),
            "bomb": zlib.compress(IDAT + bytes(16 << 20), 9),
            "cut": zlib.compress(IDAT)[:-1],
            "twice": zlib.compress(IDAT) * 2,
        },
    ),
):
    for name, stream in streams.items():
        add(
            f"png_data_{name}",
            "E_IMAGE",
            lambda stream=stream: shown(compressed(stream)),
            group="images",
            full=full,
        )


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


@image("E_CODEC")
def jpeg_progressive_with_1000_scans():
    data = pillow("JPEG", progressive=True)
    at = data.index(b"\xff\xda")
    scan = data[at : data.index(b"\xff", at + 2)]
    return shown(data[:-2] + scan * 1000 + b"\xff\xd9", "jpeg", 12, 16)


def baseline():
    return pillow("JPEG")


def frame_at(data):
    return data.index(b"\xff\xc0")


def reframed(**fields):
    data = baseline()
    at = frame_at(data)
    depth, height, width, parts = struct.unpack_from(">BHHB", data, at + 4)
    values = {"depth": depth, "height": height, "width": width, "parts": parts} | fields
    made = struct.pack(">BHHB", *(values[k] for k in ("depth", "height", "width", "parts")))
    return data[: at + 4] + made + data[at + 10 :]


def remarked(marker):
    data = baseline()
    at = frame_at(data)
    return data[: at + 1] + bytes([marker]) + data[at + 2 :]


def empty_scans():
    """A picture with a thousand scans of no component before its own."""
    data = baseline()
    at = data.index(b"\xff\xda")
    return data[:at] + segment(0xDA, b"\0\0\x3f\0") * 1000 + data[at:]


def scanned_again():
    data = baseline()
    at = data.index(b"\xff\xda")
    return data[:-2] + data[at:]


for name, data, code in (
    ("progressive", lambda: pillow("JPEG", progressive=True), "E_CODEC"),
    ("cmyk", lambda: pillow("JPEG", mode="CMYK"), "E_CODEC"),
    ("12_bit", lambda: reframed(depth=12), "E_CODEC"),
    ("2_components", lambda: reframed(parts=2), "E_CODEC"),
    ("255_components", lambda: reframed(parts=255), "E_CODEC"),
    ("no_height", lambda: reframed(height=0), "E_CODEC"),
    ("65535_square", lambda: reframed(height=65535, width=65535), "E_INDEX"),
    ("lossless", lambda: remarked(0xC3), "E_CODEC"),
    ("hierarchical", lambda: remarked(0xC5), "E_CODEC"),
    ("arithmetic", lambda: remarked(0xC9), "E_CODEC"),
    ("jpeg_ls", lambda: remarked(0xF7), "E_CODEC"),
    (
        "arithmetic_conditioning",
        lambda: baseline()[:2] + segment(0xCC, b"\0\0") + baseline()[2:],
        "E_CODEC",
    ),
    (
        "number_of_lines",
        lambda: baseline()[:2] + segment(0xDC, b"\0\x0c") + baseline()[2:],
        "E_CODEC",
    ),
    ("expand", lambda: baseline()[:2] + segment(0xDF, b"\0") + baseline()[2:], "E_CODEC"),
    (
        "second_frame",
        lambda: (
            baseline()[:2]
            + baseline()[frame_at(baseline()) : frame_at(baseline()) + 19]
            + baseline()[2:]
        ),
        "E_CODEC",
    ),
    ("short_frame", lambda: baseline()[:2] + segment(0xC0, b"\x08\0") + baseline()[2:], "E_CODEC"),
    ("scan_twice", scanned_again, "E_CODEC"),
    ("1000_scans_of_no_component", empty_scans, "E_CODEC"),
    (
        "1000_scans",
        lambda: (
            baseline()[:-2] + baseline()[baseline().index(b"\xff\xda") : -2] * 1000 + b"\xff\xd9"
        ),
        "E_CODEC",
    ),
    ("scan_of_nothing", lambda: baseline()[:2] + segment(0xDA, b"") + baseline()[2:], "E_CODEC"),
    (
        "scan_before_the_frame",
        lambda: baseline()[:2] + segment(0xDA, b"\1\1\0\0\x3f\0") + baseline()[2:],
        "E_CODEC",
    ),
    ("no_scan", lambda: baseline()[: baseline().index(b"\xff\xda")] + b"\xff\xd9", "E_CODEC"),
    ("only_start_and_end", lambda: b"\xff\xd8\xff\xd9", "E_CODEC"),
    ("start_twice", lambda: b"\xff\xd8" + baseline(), "E_CODEC"),
    ("restart_outside_a_scan", lambda: b"\xff\xd8\xff\xd0" + baseline()[2:], "E_CODEC"),
    ("bytes_after_the_end", lambda: baseline() + b"\0", "E_CODEC"),
    ("motion_video_after_the_end", lambda: baseline() + b"\0\0\0\x20ftypisom", "E_CODEC"),
    ("thumbnail_after_the_end", lambda: baseline() * 2, "E_CODEC"),
    ("truncated", lambda: baseline()[:-2], "E_IMAGE"),
    ("cut_in_the_scan", lambda: baseline()[:-30], "E_IMAGE"),
    ("cut_in_a_segment", lambda: baseline()[:30], "E_IMAGE"),
    ("only_its_start", lambda: b"\xff\xd8", "E_IMAGE"),
    ("ends_in_fill_bytes", lambda: baseline()[:2] + b"\xff" * 64, "E_IMAGE"),
    ("segment_of_one_byte", lambda: b"\xff\xd8\xff\xe0\0\1" + baseline()[2:], "E_IMAGE"),
    ("segment_of_no_byte", lambda: b"\xff\xd8\xff\xe0\0\0" + baseline()[2:], "E_IMAGE"),
    ("stray_byte", lambda: b"\xff\xd8A" + baseline()[2:], "E_IMAGE"),
    # A segment that lacks its 0xFF; the metadata that it is would be cut away before decoding.
    ("segment_without_its_marker", lambda: b"\xff\xd8\xe1\0\4ab" + baseline()[2:], "E_IMAGE"),
    ("is_a_png", png, "E_CODEC"),
    ("is_jpeg_2000", lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30), "E_CODEC"),
    ("is_jpeg_2000_stream", lambda: b"\xff\x4f\xff\x51" + bytes(30), "E_CODEC"),
):
    add(f"jpeg_{name}", code, lambda data=data: shown(data(), "jpeg", 12, 16), group="images")


@image("E_IMAGE")
def jpeg_without_tables():
    data = baseline()
    while (at := data.find(b"\xff\xdb")) >= 0:
        data = data[:at] + data[at + 2 + struct.unpack_from(">H", data, at + 2)[0] :]
    return shown(data, "jpeg", 12, 16)


@image("E_IMAGE")
def jpeg_of_a_huffman_table_that_lies():
    data = baseline()
    at = data.index(b"\xff\xc4")
    return shown(data[: at + 5] + b"\xff" * 16 + data[at + 21 :], "jpeg", 12, 16)


def sampled(first):
    data = baseline()
    at = frame_at(data) + 11
    return data[:at] + bytes([first]) + data[at + 1 :]


add("jpeg_sampled_3_to_1", "E_CODEC", lambda: shown(sampled(0x31), "jpeg", 12, 16), group="images")
# Pillow fills what is missing with grey, and skips what is too much.
for name, end in {"ends_early": -12, "goes_on": None}.items():
    add(
        f"jpeg_scan_{name}",
        "E_IMAGE",
        lambda end=end: shown((baseline()[:-2] + bytes(9))[:end] + b"\xff\xd9", "jpeg", 12, 16),
        group="images",
    )


@image("E_IMAGE")
def jpeg_restarts_without_dri():
    data = pillow("JPEG", 32, 24, restart_marker_blocks=1)
    at = data.index(b"\xff\xdd\x00\x04")
    return shown(data[:at] + data[at + 6 :], "jpeg", 24, 32)


@image("E_IMAGE")
def jpeg_restarts_out_of_order():
    data = pillow("JPEG", 32, 24, restart_marker_blocks=1)
    return shown(data.replace(b"\xff\xd1", b"\xff\xd5"), "jpeg", 24, 32)


def riff(*chunks, size=None):
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def part(name, data):
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def lossy():
    return pillow("WEBP")


def lossless():
    return pillow("WEBP", lossless=True, quality=100)


def body_of(data):
    return data[20 : 20 + struct.unpack_from("<I", data, 16)[0]]


VP8X = part(b"VP8X", b"\x02\0\0\0" + b"\x0f\0\0" + b"\x0b\0\0")
for name, data, code in (
    ("animation", lambda: riff(VP8X, part(b"ANIM", bytes(6)), part(b"ANMF", bytes(24))), "E_CODEC"),
    ("alpha", lambda: pillow("WEBP", mode="RGBA"), "E_CODEC"),
    ("lossless_alpha", lambda: pillow("WEBP", mode="RGBA", lossless=True), "E_CODEC"),
    ("extended_without_need", lambda: riff(VP8X, part(b"VP8 ", body_of(lossy()))), "E_CODEC"),
    (
        "icc",
        lambda: riff(VP8X, part(b"ICCP", bytes(9)), part(b"VP8 ", body_of(lossy()))),
        "E_CODEC",
    ),
    ("exif_after", lambda: riff(part(b"VP8 ", body_of(lossy())), part(b"EXIF", b"MM")), "E_CODEC"),
    ("two_pictures", lambda: riff(*[part(b"VP8 ", body_of(lossy()))] * 2), "E_CODEC"),
    ("bytes_after", lambda: lossy() + b"\0", "E_CODEC"),
    (
        "bytes_after_in_the_count",
        lambda: riff(part(b"VP8 ", body_of(lossy())) + b"\0\0"),
        "E_CODEC",
    ),
    ("size_short", lambda: riff(part(b"VP8 ", body_of(lossy())), size=20), "E_CODEC"),
    ("size_long", lambda: riff(part(b"VP8 ", body_of(lossy())), size=1 << 20), "E_IMAGE"),
    ("size_2_to_32", lambda: riff(part(b"VP8 ", body_of(lossy())), size=2**32 - 1), "E_IMAGE"),
    (
        "chunk_long",
        lambda: riff(b"VP8 " + struct.pack("<I", 1 << 30) + body_of(lossy())),
        "E_CODEC",
    ),
    (
        "padding",
        lambda: riff(b"VP8L" + struct.pack("<I", 5) + b"\x2f\x0f\xc0\x02\0" + b"\1"),
        "E_CODEC",
    ),
    ("no_key_frame", lambda: riff(part(b"VP8 ", b"\x01" + body_of(lossy())[1:])), "E_IMAGE"),
    (
        "bad_start_code",
        lambda: riff(part(b"VP8 ", body_of(lossy())[:3] + b"\0\0\0" + body_of(lossy())[6:])),
        "E_IMAGE",
    ),
    (
        "scaled",
        lambda: riff(
            part(b"VP8 ", body_of(lossy())[:6] + b"\x10\x40\x0c\0" + body_of(lossy())[10:])
        ),
        "E_CODEC",
    ),
    (
        "16383_square",
        lambda: riff(
            part(b"VP8 ", body_of(lossy())[:6] + b"\xff\x3f\xff\x3f" + body_of(lossy())[10:])
        ),
        "E_INDEX",
    ),
    (
        "0_wide",
        lambda: riff(part(b"VP8 ", body_of(lossy())[:6] + b"\0\0\x0c\0" + body_of(lossy())[10:])),
        "E_CODEC",
    ),
    (
        "lossless_version_1",
        lambda: riff(
            part(
                b"VP8L",
                body_of(lossless())[:4]
                + bytes([body_of(lossless())[4] | 0x20])
                + body_of(lossless())[5:],
            )
        ),
        "E_CODEC",
    ),
    (
        "lossless_bad_signature",
        lambda: riff(part(b"VP8L", b"\0" + body_of(lossless())[1:])),
        "E_IMAGE",
    ),
    ("cut", lambda: lossy()[:-8], "E_IMAGE"),
    ("only_its_head", lambda: b"RIFF\x04\0\0\0WEBP", "E_CODEC"),
    ("unknown_chunk", lambda: riff(part(b"EVIL", body_of(lossless()))), "E_CODEC"),
    ("is_a_wav", lambda: b"RIFF\x24\0\0\0WAVEfmt " + bytes(28), "E_CODEC"),
    ("is_a_png", png, "E_CODEC"),
):
    add(f"webp_{name}", code, lambda data=data: shown(data(), "webp", 12, 16), group="images")


@image("E_IMAGE", decode=True)
def webp_damaged_inside():
    body = bytearray(body_of(lossless()))
    body[8:] = bytes(len(body) - 8)
    return shown(riff(part(b"VP8L", bytes(body[:9]))), "webp", 12, 16)


@image("E_IMAGE")
def webp_lossy_cut_and_resized():
    # The container agrees with itself; the partition sizes inside do not.
    return shown(riff(part(b"VP8 ", body_of(lossy())[:14])), "webp", 12, 16)


@image("E_INDEX")
def image_of_other_dimensions():
    return shown(png(), height=4, width=3)


@image("E_INDEX")
def image_larger_than_the_index_says():
    return shown(png(40, 30), height=3, width=4)


@image("E_DIGEST_MEMBER")
def image_of_another_digest():
    kit = images_only()
    body = kit.body()
    data = bytearray(body[-1])
    data[512 + 50] ^= 1
    return kit.build(body=[*body[:-1], bytes(data)])


@image("E_CODEC")
def images_of_two_codecs():
    return with_images("png", pillow("PNG"), pillow("JPEG")).build()
