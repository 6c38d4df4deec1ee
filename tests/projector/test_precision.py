from __future__ import annotations

import numpy as np
import pytest
import torch

from hellofmt.archive import open_archive
from hellofmt.errors import UserInputError
from hellofmt.projector import Labeler, Projector, precision_table


@pytest.fixture
def projector(vit, classes, randomise):
    return randomise(
        Projector.build(vit, classes, start="stored", rank=4, head_rank=2, temperature=4.0, seed=1)
    )


@pytest.fixture
def many():
    return torch.rand(150, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_rows_are_what_readers_of_each_storage_compute(
    projector, many, classes, write_projector, tmp_path
):
    rows = precision_table(projector, many)
    assert [row.storage for row in rows] == ["float32", "float16", "bfloat16", "int8", "int4"]
    trained = projector.labeler().labels(many).double().numpy()
    for row in rows:
        path = tmp_path / f"{row.storage}.hello"
        write_projector(path, projector, classes, row.storage)
        labels = Labeler.from_file(path).labels(many).double().numpy()
        assert row.max_difference == pytest.approx(np.abs(labels - trained).max(), abs=1e-6)
        same = labels.argmax(1) == trained.argmax(1)
        assert row.agreement == pytest.approx(100 * same.mean())
        kl = (trained * np.log(trained / labels)).sum(1).mean()
        assert row.kl == pytest.approx(kl, rel=1e-2, abs=1e-6)
    # Fewer bits, worse labels; float32 is what was trained.
    kl = {row.storage: row.kl for row in rows}
    assert abs(kl["float32"]) < 1e-12
    assert kl["float16"] < kl["bfloat16"] < kl["int4"]
    assert kl["int8"] < kl["int4"] / 10
    assert rows[0].agreement == 100


def test_bytes_are_those_of_the_sections(projector, many, classes, write_projector, tmp_path):
    for row in precision_table(projector, many[:2]):
        path = tmp_path / f"{row.storage}.hello"
        write_projector(path, projector, classes, row.storage)
        with open_archive(path) as file:
            stored = {section.name: section.size for section in file.manifest.sections}
        assert row.section_bytes == stored["adapter"] + stored["head"]


def test_int8_does_not_pay_for_tiny_deltas(text_vit, classes, randomise, many):
    # One value in a row of a factor cannot save what the row's scale costs.
    projector = randomise(
        Projector.build(
            text_vit, classes, start="text", rank=1, head_rank=1, temperature=4.0, seed=1
        )
    )
    rows = precision_table(projector, many[:2], ["float16", "int8"])
    assert rows[1].section_bytes > rows[0].section_bytes


def test_a_storage_without_a_name_is_refused(projector, many):
    for storages, text in ((["int8", "int3"], r"got \['int3'\]"), ([], "got none")):
        with pytest.raises(UserInputError, match=f"storages: expected some of float32.*{text}"):
            precision_table(projector, many, storages)
