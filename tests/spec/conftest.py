"""The vectors, the program that writes them, and the second reader, as fixtures."""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load(name):
    """A module that lies beside the tests, by its path: tests are not packages."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def spec_folder():
    return HERE.parents[1] / "spec"


@pytest.fixture(scope="session")
def mini_reader():
    return load("mini_reader")


@pytest.fixture(scope="session")
def make_vectors():
    return load("make_vectors")


@pytest.fixture(scope="session")
def load_beside():
    return load
