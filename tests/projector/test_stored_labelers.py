from __future__ import annotations

import pytest
import torch

from hellofmt.archive import open_archive
from hellofmt.errors import UserInputError
from hellofmt.projector import Labeler, Projector, stored_labelers


@pytest.fixture
def projector(vit, classes, randomise):
    return randomise(
        Projector.build(vit, classes, start="stored", rank=4, head_rank=2, temperature=4.0, seed=1)
    )


def test_labelers_and_bytes_are_those_of_an_archive_in_each_storage(
    projector, views, classes, write_projector, tmp_path
):
    kl, trained = {}, projector.labeler().labels(views).double()
    for storage, size, labeler in stored_labelers(projector):
        path = tmp_path / f"{storage}.hello"
        write_projector(path, projector, classes, storage)
        labels = labeler.labels(views).double()
        torch.testing.assert_close(
            labels, Labeler.from_file(path).labels(views).double(), rtol=0, atol=1e-6
        )
        kl[storage] = float((trained * (trained / labels).log()).sum(1).mean())
        with open_archive(path) as file:
            sections = {section.name: section.size for section in file.manifest.sections}
        assert size == sections["adapter"] + sections["head"]
    # Fewer bits, worse labels; float32 is what was trained.
    assert list(kl) == ["float32", "float16", "bfloat16", "int8", "int4"]
    assert abs(kl["float32"]) < 1e-6
    assert kl["float16"] < kl["bfloat16"] < kl["int4"]
    assert kl["int8"] < kl["int4"] / 10


def test_int8_does_not_pay_for_tiny_deltas(text_vit, classes, randomise):
    # One value in a row of a factor cannot save what the row's scale costs.
    projector = randomise(
        Projector.build(
            text_vit, classes, start="text", rank=1, head_rank=1, temperature=4.0, seed=1
        )
    )
    half, eighth = (size for _, size, _ in stored_labelers(projector, ["float16", "int8"]))
    assert eighth > half


def test_a_storage_without_a_name_is_refused(projector):
    for storages, text in ((["int8", "int3"], r"got \['int3'\]"), ([], "got none")):
        with pytest.raises(UserInputError, match=f"storages: expected some of float32.*{text}"):
            next(stored_labelers(projector, storages))
