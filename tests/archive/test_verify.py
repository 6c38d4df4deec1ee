import hashlib
import subprocess
import sys

import numpy as np
import pytest

from hellofmt.archive import (
    ImageItem,
    ImageSet,
    Limits,
    encode_image,
    open_archive,
    verify_archive,
    write_archive,
)
from hellofmt.archive.read import verify as verify_module
from hellofmt.errors import CorruptError, TrustError, UserInputError


def test_report(samples, everything):
    seen = []
    report = verify_archive(everything, progress=lambda done, total: seen.append((done, total)))
    with open_archive(everything) as file:
        assert report.id == file.id
        assert report.content_id == file.content_id
    assert report.bytes == everything.stat().st_size
    assert report.images == 2
    assert report.pixel_digest is None
    assert seen == [(1, 2), (2, 2)]
    assert report.checks == [
        "manifest", "id", "length", "headers",
        *(f"section {name}" for name in samples_sections(everything)),
        "images", "trailer",
    ]  # fmt: skip


def samples_sections(path):
    with open_archive(path) as file:
        return list(file.section_sizes())


def test_a_file_swapped_after_verification_is_not_read(samples, tmp_path):
    path, other = tmp_path / "x.hello", tmp_path / "other.hello"
    write_archive(path, samples.draft(images=samples.images(4)))
    items = [ImageItem(i % 2, samples.png(samples.pattern(i + 9, 8, 8, 3))) for i in range(4)]
    write_archive(other, samples.draft(images=ImageSet("png", items, "files")))
    with open_archive(path) as file:
        verified = verify_archive(path).id
        assert verified == file.id
        assert len(file.index) == 4
        # In its place, under the open file.
        path.write_bytes(other.read_bytes())
        for row in range(4):
            with pytest.raises(CorruptError, match="E_DIGEST_MEMBER"):
                file.read_image(row)
    with pytest.raises(TrustError, match="E_PIN"):
        open_archive(path, expect=verified)


def test_fast_reads_no_image(samples, everything_bytes, tmp_path):
    path = tmp_path / "x.hello"
    data = bytearray(everything_bytes)
    data[-1024 - 512 - 40] ^= 1
    path.write_bytes(data)
    report = verify_archive(path, level="fast")
    assert report.images == 0
    assert report.checks[-1] == "section license"


def test_options(everything):
    known = verify_archive(everything).id
    assert "expect" in verify_archive(everything, expect=known).checks
    with pytest.raises(TrustError, match="E_PIN"):
        verify_archive(everything, expect="sha256:" + "0" * 64)
    for options in ({"level": "slow"}, {"level": "fast", "pixels": True}):
        with pytest.raises(UserInputError, match="E_OPTION: `level`; expected full, or fast"):
            verify_archive(everything, **options)


@pytest.mark.parametrize("layout", ["files", "packed"])
def test_pixel_digest(samples, tmp_path, layout):
    path = tmp_path / "x.hello"
    write_archive(path, samples.draft(images=samples.images(4, layout=layout)))
    report = verify_archive(path, pixels=True)
    wanted = hashlib.sha256()
    for source in (0, 2, 1, 3):
        wanted.update(samples.pattern(source, 8, 8, 3).tobytes())
    assert report.pixel_digest == f"sha256:{wanted.hexdigest()}"
    assert "pixels" in report.checks


def test_decoded_jpegs_are_not_walked_over_and_the_first_fault_is_named(
    samples, tmp_path, monkeypatch
):
    path = tmp_path / "x.hello"
    whole = encode_image(samples.pattern(0, 40, 40, 3), "jpeg")
    cut = whole[:-40] + whole[-2:]
    sources = [whole, cut, whole]
    # Said to be walked over, so that the writer takes the damaged one.
    items = [ImageItem(0, data, walked=hashlib.sha256(data).digest()) for data in sources]
    items.append(ImageItem(1, whole))
    write_archive(path, samples.draft(images=ImageSet("jpeg", items)))
    data = bytearray(path.read_bytes())
    with open_archive(path) as file:
        data[int(file.index.offset[2]) + 5] ^= 1
        path.write_bytes(data)
        for pixels in (False, True):
            with pytest.raises(CorruptError, match="E_IMAGE") as caught:
                verify_archive(path, pixels=pixels)
            assert caught.value.member == file.image_name(1)
    write_archive(path, samples.draft(images=ImageSet("jpeg", items[::2])), force=True)
    monkeypatch.delattr("hellofmt.archive.format.image_data._CHECKS")
    assert verify_archive(path, pixels=True).images == 2


@pytest.mark.parametrize("window", [1, 700, 2000, 10_000])
@pytest.mark.parametrize("layout", ["files", "packed"])
def test_windows_of_any_size(samples, tmp_path, monkeypatch, window, layout):
    monkeypatch.setattr(verify_module, "_WINDOW_BYTES", window)
    path = tmp_path / "x.hello"
    items = [
        ImageItem(i % 2, samples.png(samples.pattern(i, *side, 3)))
        for i, side in enumerate(
            [(8, 8)] * 7 if layout == "packed" else [(3, i + 1) for i in range(9)]
        )
    ]
    write_archive(path, samples.draft(images=ImageSet("png", items, layout)))
    assert verify_archive(path).images == len(items)
    data = bytearray(path.read_bytes())
    with open_archive(path) as file:
        for row in range(len(items)):
            at = int(file.index.offset[row]) + 5
            data[at] ^= 4
            path.write_bytes(data)
            with pytest.raises(Exception, match="E_DIGEST_MEMBER") as caught:
                verify_archive(path)
            assert caught.value.member == file.image_name(row)
            data[at] ^= 4


def test_trailer(everything_bytes, refusal):
    for at in (1, 512, 1024):
        data = bytearray(everything_bytes)
        data[-at] = 1
        error = refusal(bytes(data))
        assert error.code == "E_TRAILING"
        assert error.offset == len(data) - 1024


def test_packed_section_digest(samples, refusal, tmp_path):
    path = tmp_path / "x.hello"
    write_archive(path, samples.draft(images=samples.images(4, layout="packed")))
    manifest, sections, rest = samples.split(path.read_bytes())
    next(s for s in manifest["sections"] if s["name"] == "pixels")["encoding"] = "none"
    joined = samples.join(manifest, sections, rest)
    assert joined == path.read_bytes()
    # Every row holds, only the header of the section was changed behind its digest.
    at = joined.rindex(b'"pixels":{"data_offsets"')
    data = joined[:at] + b'"pixelS' + joined[at + 7 :]
    assert refusal(data).code == "E_TENSOR"


def test_image_limits(samples, tmp_path):
    path = tmp_path / "x.hello"
    write_archive(path, samples.draft(images=samples.images(2)))
    with pytest.raises(Exception, match="E_LIMIT_IMAGE_PIXELS"):
        verify_archive(path, limits=Limits(image_pixels=63))
    assert np.prod([8, 8]) == 64
    assert verify_archive(path, limits=Limits(image_pixels=64)).images == 2


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_large_webp_pictures_take_their_pixels_few_times(samples, tmp_path):
    pixels = np.zeros((4096, 4096, 3), np.uint8)
    data = encode_image(pixels, "webp", quality=1)
    images = ImageSet("webp", [ImageItem(label, data) for label in (0, 1)], layout="files")
    write_archive(tmp_path / "large.hello", samples.draft(images=images))
    write_archive(tmp_path / "small.hello", samples.draft(images=samples.images(2)))
    program = (
        "import sys\n"
        "from hellofmt.archive import verify_archive\n"
        "verify_archive(sys.argv[1], pixels=True)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", program, tmp_path / f"{name}.hello"]))  # noqa: S603
        for name in ("small", "large")
    ]
    # 48 MiB of pixels each, of which the decoder takes five times as much.
    assert peaks[1] - peaks[0] < 280 << 10
