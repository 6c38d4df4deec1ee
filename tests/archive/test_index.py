import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hellofmt.archive import Limits, open_archive
from hellofmt.archive.format.index import parse_index
from hellofmt.archive.format.manifest import UNSET, Images
from hellofmt.archive.format.parse import manifest_bytes, parse_manifest
from hellofmt.archive.format.tensors import StoredTensor, serialize_tensors
from hellofmt.errors import LimitError, SpecError


@pytest.fixture(scope="module")
def template(samples, everything_bytes):
    document = samples.split(everything_bytes)[0]
    import json

    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    manifest, _ = parse_manifest(text)
    assert manifest_bytes(manifest, {"x_note": document["x_note"]}) == text
    return manifest


def manifest_for(template, count, span, **images):
    group = Images(codec="png", count=count, layout="files", span=span, **images)
    dataset = msgspec.structs.replace(template.dataset, ipc=UNSET)
    return msgspec.structs.replace(template, images=group, dataset=dataset)


def columns(sizes, labels, height=None, width=None):
    count = len(sizes)
    found = {
        "size": np.array(sizes, np.uint64),
        "label": np.array(labels, np.int32),
        "height": np.array(height if height is not None else [8] * count, np.uint16),
        "width": np.array(width if width is not None else [9] * count, np.uint16),
        "sha256": np.arange(count * 32, dtype=np.uint8).reshape(count, 32),
    }
    return {name: StoredTensor.from_numpy(values) for name, values in found.items()}


@settings(max_examples=50)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40), st.integers(0, 10**9))
def test_offsets_are_those_of_a_walk(template, sizes, start):
    wanted, at = [], start
    for size in sizes:
        wanted.append(at + 512)
        at += 512 + -(-size // 512) * 512
    data = serialize_tensors(columns(sizes, [1] * len(sizes)))
    index = parse_index(data, manifest_for(template, len(sizes), at - start), start, Limits())
    assert index.offset.tolist() == wanted
    assert index.size.tolist() == sizes
    assert len(index) == len(sizes)


def test_columns(template):
    data = serialize_tensors(columns([1, 2, 513], [0, 0, 1], [1, 2, 4096], [7, 8, 9]))
    index = parse_index(data, manifest_for(template, 3, 512 * 7), 0, Limits())
    assert index.label.tolist() == [0, 0, 1]
    assert index.height.tolist() == [1, 2, 4096]
    assert index.width.tolist() == [7, 8, 9]
    assert (index.sha256 == np.arange(96, dtype=np.uint8).reshape(3, 32)).all()
    assert {c.dtype for c in (index.size, index.label, index.offset)} == {np.dtype(np.int64)}
    for column in (index.size, index.label, index.height, index.width, index.offset, index.sha256):
        assert not column.flags.writeable


@pytest.mark.parametrize(
    ("tensors", "span", "text"),
    [
        (columns([1, 1], [1, 0]), 2048, "labels are not sorted"),
        (columns([1, 1], [-1, 0]), 2048, "labels from -1 to 0; expected 0 to 1"),
        (columns([1, 1], [0, 2]), 2048, "labels from 0 to 2; expected 0 to 1"),
        (columns([0, 1], [0, 0]), 2048, "row 0: size 0"),
        (columns([1, 1], [0, 0]), 2049, "images span 2048 bytes; the manifest states 2049"),
        (columns([1, 1], [0, 0], height=[0, 1]), 2048, "a row has height or width 0"),
        (columns([1, 1], [0, 0], width=[1, 0]), 2048, "a row has height or width 0"),
    ],
)
def test_refused_rows(template, tensors, span, text):
    with pytest.raises(SpecError) as caught:
        parse_index(serialize_tensors(tensors), manifest_for(template, 2, span), 0, Limits())
    assert caught.value.code == "E_INDEX"
    assert caught.value.member == "__hello__/index"
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        (columns([2**64 - 1, 1], [0, 0]), "E_LIMIT_IMAGE_BYTES"),
        (columns([2**63, 1], [0, 0]), "E_LIMIT_IMAGE_BYTES"),
        (columns([2**26 + 1, 1], [0, 0]), "E_LIMIT_IMAGE_BYTES"),
        (columns([1, 1], [0, 0], height=[4097, 1]), "E_LIMIT_IMAGE_SIDE"),
        (columns([1, 1], [0, 0], height=[2000, 1], width=[2000, 1]), "E_LIMIT_IMAGE_PIXELS"),
    ],
)
def test_limits(template, tensors, code):
    limits = Limits(image_pixels=1 << 20)
    with pytest.raises(LimitError) as caught:
        parse_index(serialize_tensors(tensors), manifest_for(template, 2, 2048), 0, limits)
    assert caught.value.code == code


def test_ipc_is_checked_per_class(template):
    manifest = manifest_for(template, 2, 2048)
    manifest = msgspec.structs.replace(
        manifest, dataset=msgspec.structs.replace(manifest.dataset, ipc=1)
    )
    fine = serialize_tensors(columns([1, 1], [0, 1]))
    assert len(parse_index(fine, manifest, 0, Limits())) == 2
    data = serialize_tensors(columns([1, 1], [0, 0]))
    with pytest.raises(SpecError, match="class 0 has 2 images; `ipc` states 1"):
        parse_index(data, manifest, 0, Limits())


def test_columns_of_other_dtypes(template):
    tensors = columns([1, 1], [0, 0])
    tensors["label"] = StoredTensor.from_numpy(np.zeros(2, np.uint64))
    with pytest.raises(SpecError, match=r"E_TENSOR .*the header differs at byte 35"):
        parse_index(serialize_tensors(tensors), manifest_for(template, 2, 2048), 0, Limits())


def test_packed_rows(samples, tmp_path, refusal):
    from hellofmt.archive import write_archive

    path = tmp_path / "p.hello"
    write_archive(path, samples.draft(images=samples.images(2, layout="packed")))
    with open_archive(path) as file:
        assert file.index.size.tolist() == [192, 192]
        assert int(file.index.offset[1] - file.index.offset[0]) == 192
    manifest, sections, rest = samples.split(path.read_bytes())
    for tensors, text in (
        (columns([192, 191], [0, 1], [8, 8], [8, 8]), "packed rows; expected all 192 bytes"),
        (columns([192, 192], [0, 1], [8, 8], [8, 9]), "packed rows; expected all 8 x 8 pixels"),
    ):
        hostile = {**sections, "index": serialize_tensors(tensors)}
        error = refusal(samples.join(manifest, hostile, rest))
        assert error.code == "E_INDEX"
        assert text in str(error)
