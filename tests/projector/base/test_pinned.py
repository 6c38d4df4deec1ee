from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from hellofmt.archive import Draft, open_archive, write_archive
from hellofmt.archive.format.digest import base_digest
from hellofmt.archive.format.manifest import Preprocess
from hellofmt.errors import BaseModelError, SpecError
from hellofmt.projector import Projector, base_of


def write(path, projector, classes):
    from hellofmt.archive import default_views
    from hellofmt.archive.format.manifest import Dataset

    dataset = Dataset(name="x", version="1", license="CC0-1.0", method="test", sources=[])
    part = projector.part("float32")
    draft = Draft(dataset=dataset, classes=classes, views=default_views(16), projector=part)
    write_archive(path, draft)
    return path


def test_embedded_tensors_are_checked_against_the_architecture(tmp_path, vit, classes):
    projector = Projector.build(vit.embedded(), classes, start="stored", temperature=1.0, seed=0)
    path = write(tmp_path / "p.hello", projector, classes)
    with open_archive(path) as file:
        base = base_of(file)
        assert base.spec == file.manifest.base
        for name, tensor in vit.visual.state_dict().items():
            assert torch.equal(base.visual.state_dict()[name], tensor), name

        class Broken:
            manifest, limits = file.manifest, file.limits
            section_sizes = file.section_sizes

            def __init__(self, change):
                self.change = change

            def tensors(self, name):
                return self.change(dict(file.tensors(name)))

        def without(tensors):
            del tensors["proj"]
            return tensors

        for change in (without, lambda t: t | {"proj": np.zeros((64, 31), np.float32)}):
            with pytest.raises(SpecError, match=r"1 tensors differ .* first `proj`") as info:
                base_of(Broken(change))
            assert info.value.code == "E_TENSOR"
        with pytest.raises(BaseModelError, match="E_BASE_WEIGHTS"):
            base_of(Broken(lambda t: t | {"proj": t["proj"] + np.float32(1)}))


def test_preprocessing_decides_the_digest(vit):
    spec = vit.spec
    other = msgspec.structs.replace(spec.preprocess, antialias=False)
    assert isinstance(other, Preprocess)
    assert base_digest(spec.arch, other, spec.tensors) != spec.digest
