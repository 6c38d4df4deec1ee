from __future__ import annotations

import numpy as np
import pytest
import torch

from hellofmt.archive import Arch, Preprocess, VisionArch, open_archive, verify_archive
from hellofmt.distillation.fit import FitSettings
from hellofmt.distillation.pipeline import distill
from hellofmt.errors import HelloIOError, UserInputError
from hellofmt.projector import Labeler, seeded_base


@pytest.fixture
def base():
    vision = VisionArch(image_size=8, layers=1, width=64, patch_size=4, head_width=32)
    preprocess = Preprocess(
        antialias=True,
        interpolation="bicubic",
        mean=["0.4"] * 3,
        resize_mode="squash",
        size=8,
        std=["0.3"] * 3,
    )
    return seeded_base(Arch(embed_dim=32, quick_gelu=False, vision=vision), preprocess, seed=0)


def teacher(batch):
    rows = (batch[:, :, ::2] - batch[:, :, 1::2]).mean((1, 2, 3))
    columns = (batch[..., ::2] - batch[..., 1::2]).mean((1, 2, 3))
    return torch.stack([6 * rows, 6 * columns, 1.5 - 4 * (rows + columns)], dim=1)


def run(target, source, base, views, **changes):
    arguments = {
        "teacher": teacher,
        "base": base,
        "views": views(),
        "ipc": 2,
        "rank": 4,
        "start": "stored",
        "fit": FitSettings(steps=60, batch_size=32, learning_rate=5e-3),
        **changes,
    }
    return distill(source, target, **arguments)


def test_one_call_from_images_to_a_verified_archive(tmp_path, stripes, views, base):
    path, unseen = tmp_path / "x.hello", stripes(per_class=20, seed=5)
    report = run(path, stripes(), base, views, held_out=unseen)
    assert verify_archive(path).id == report.id
    assert report.teacher_accuracy > 95
    assert report.projector_accuracy > 85
    assert report.fidelity.agreement > 85
    with open_archive(path) as file:
        assert file.manifest.dataset.name == "stripes-ipc2"
        assert file.manifest.dataset.ipc == 2
        assert file.manifest.dataset.sources == ["stripes"]
        assert file.classes.keys == ["rows", "columns", "grey"]
        assert file.index.label.tolist() == [0, 0, 1, 1, 2, 2]
        # A stranger's labels, from the file alone, follow the teacher on images nobody trained on.
        view = torch.from_numpy(unseen.pixels).permute(0, 3, 1, 2).float() / 255
        labels = Labeler.from_file(file).labels(view)
    agreement = np.mean((labels.argmax(1) == teacher(view).argmax(1)).numpy())
    assert agreement > 0.85


def test_a_bad_teacher_stops_before_any_work(tmp_path, stripes, views, base):
    def swapped(batch):
        return teacher(batch)[:, [1, 2, 0]]

    with pytest.raises(UserInputError, match="E_TEACHER"):
        run(tmp_path / "x.hello", stripes(), base, views, teacher=swapped)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_refused_before_any_work(tmp_path, stripes, views, base):
    path = tmp_path / "x.hello"
    path.write_text("mine")

    def untouched(_):
        pytest.fail("the teacher was asked")

    with pytest.raises(HelloIOError, match=r"E_TARGET: `.*x\.hello` exists; `force` replaces it"):
        run(path, stripes(), base, views, teacher=untouched)
    assert path.read_text() == "mine"


def test_force_replaces_a_file(tmp_path, stripes, views, base):
    path = tmp_path / "x.hello"
    path.write_text("mine")
    report = run(path, stripes(), base, views, fit=FitSettings(steps=1, batch_size=4), force=True)
    assert verify_archive(path).id == report.id
