"""Small archives for the tests of the archive room."""

import importlib.util
from pathlib import Path

import pytest


def _load():
    # Tests are no package, so the sample builder is loaded from its file.
    spec = importlib.util.spec_from_file_location(
        "archive_samples", Path(__file__).with_name("samples.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def samples():
    """The module that builds the sample archives."""
    return _load()


@pytest.fixture(scope="session")
def everything_bytes(samples, tmp_path_factory):
    """The bytes of an archive with images and every section that goes with them."""
    from hellofmt.archive import write_archive

    path = tmp_path_factory.mktemp("everything") / "tiny.hello"
    write_archive(path, samples.everything())
    return path.read_bytes()


@pytest.fixture
def everything(everything_bytes, tmp_path):
    """The same as a file of one's own."""
    path = tmp_path / "tiny.hello"
    path.write_bytes(everything_bytes)
    return path


@pytest.fixture
def refusal(tmp_path):
    """The error that opening and fully verifying some bytes gives."""
    from hellofmt.archive import verify_archive
    from hellofmt.errors import HelloError

    path = tmp_path / "refused.hello"

    def check(data, **options):
        path.write_bytes(data)
        with pytest.raises(HelloError) as caught:
            verify_archive(path, **options)
        return caught.value

    return check
