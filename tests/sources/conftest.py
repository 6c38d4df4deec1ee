"""Small trees of images."""

import importlib.util
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hellofmt.sources import decode_centre


def image_bytes(kind="PNG", colour=(10, 20, 30), size=(8, 8), mode="RGB"):
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="session")
def samples():
    """Small archives with every kind of section; see ``tests/archive/samples.py``."""
    path = Path(__file__).parents[1] / "archive" / "samples.py"
    spec = importlib.util.spec_from_file_location("archive_samples", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def image():
    """Bytes of a one-coloured image: ``image(kind, colour, size, mode)``."""
    return image_bytes


@pytest.fixture
def tree(tmp_path):
    """Write files below ``tmp_path / "set"``: bytes, or None for a PNG."""

    def write(*names, **contents):
        root = tmp_path / "set"
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes())
        return root

    return write


@pytest.fixture
def shard(tmp_path):
    """Write a tar file of (name, bytes)."""

    def write(members, name="s.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return tmp_path / name

    return write


@pytest.fixture
def pixels():
    """All images of a source that are 8 x 8, decoded: uint8 (N, 8, 8, 3)."""
    return lambda source: np.stack([decode_centre(source, row, 8) for row in range(len(source))])
