"""Archives to show to other programs."""

import importlib.util
from pathlib import Path

import pytest

from hellofmt.archive import ImageItem, ImageSet, write_archive

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def samples():
    spec = importlib.util.spec_from_file_location(
        "archive_samples", TESTS / "archive" / "samples.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def archive(samples, tmp_path_factory):
    """Images of two classes, a label function with its base, card and licence."""
    items = [ImageItem(i % 2, samples.png(samples.pattern(i, 6 + i % 3, 7, 3))) for i in range(11)]
    draft = samples.draft(
        images=ImageSet("png", items, "files"),
        projector=samples.projector(kind="embedded"),
        card="# tiny\n" * 90,
        license="CC0",
    )
    path = tmp_path_factory.mktemp("interop") / "tiny.hello"
    write_archive(path, draft)
    return path


@pytest.fixture(scope="session")
def members(archive):
    """Name and stored bytes of every member, by our own reader."""
    from hellofmt.archive import open_archive

    with open_archive(archive) as file:
        found = {"__hello__/manifest": file.manifest_bytes}
        found["__hello__/id"] = file.id[7:].encode() + b"\n"
        for name, size in file.section_sizes().items():
            found[f"__hello__/{name}"] = file.source.read(file.section_offset(name), size)
        for row in range(len(file)):
            found[file.image_name(row)] = file.read_image(row)
    return found
