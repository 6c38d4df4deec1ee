"""Several label functions in one archive: names, sections, what is refused."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from hellofmt.archive import function_section, open_archive, write_archive
from hellofmt.archive.format.functions import find_function
from hellofmt.errors import UserInputError


@pytest.fixture
def two(samples, tmp_path):
    """An archive whose second label function, ``early``, is stored as int8."""
    early = replace(samples.projector("int8", probes=2), name="early")
    path = tmp_path / "two.hello"
    draft = samples.draft(
        images=samples.images(2), projector=samples.projector(), further=[early], card="# two"
    )
    write_archive(path, draft)
    return path


def test_every_function_has_its_sections(samples, two):
    early = samples.projector("int8", probes=2)
    with open_archive(two) as file:
        manifest = file.manifest
        names = ["index", "classes", "adapter", "head", "probes"]
        names += ["adapter_early", "head_early", "probes_early", "card"]
        assert [section.name for section in manifest.sections] == names
        assert find_function(manifest).name == "default"
        assert find_function(manifest, "early").head == early.head
        assert function_section(manifest, None, "head") == "head"
        assert function_section(manifest, "default", "head") == "head"
        assert function_section(manifest, "early", "head") == "head_early"
        for name, tensor in early.adapter_tensors.items():
            assert np.array_equal(file.tensors("adapter_early")[name], tensor.numpy())
        assert np.array_equal(file.tensors("probes_early")["logits"], early.probe_logits)


def test_an_unknown_name_is_answered_with_those_that_exist(samples, two, tmp_path):
    with open_archive(two) as file, pytest.raises(UserInputError) as caught:
        find_function(file.manifest, "earli")
    expected = "E_OPTION: `label_function`: no label function earli in the archive; "
    assert str(caught.value) == f"{expected}it has default, early; did you mean `early`?"
    write_archive(tmp_path / "bare.hello", samples.draft(images=samples.images(1)))
    with (
        open_archive(tmp_path / "bare.hello") as file,
        pytest.raises(UserInputError, match="E_OPTION: the archive has no projector"),
    ):
        find_function(file.manifest, "early")


def test_functions_of_one_archive_share_a_base(samples, tmp_path):
    part = samples.projector()
    other = msgspec.structs.replace(part.base, digest="sha256:" + "0" * 64)
    further = [replace(part, name="b", base=other)]
    with pytest.raises(UserInputError, match="E_DATA: label functions of one archive have one"):
        write_archive(tmp_path / "x.hello", samples.draft(projector=part, further=further))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("a", "a"), "duplicate label function `a`"),
        (("b", "b"), "duplicate label function `b`"),
        (("A", "b"), r"`functions\[1\].name`: not in the form"),
        (("a b", "b"), r"`functions\[1\].name`: not in the form"),
    ],
)
def test_names_that_no_archive_has(samples, tmp_path, names, text):
    part = replace(samples.projector(), name="a")
    further = [replace(part, name=name) for name in names]
    with pytest.raises(UserInputError, match=rf"E_DATA: cannot be packed: .*{text}"):
        write_archive(tmp_path / "x.hello", samples.draft(projector=part, further=further))
    assert not (tmp_path / "x.hello").exists()
