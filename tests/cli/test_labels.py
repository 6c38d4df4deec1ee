from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from hellofmt.archive import (
    Arch,
    ClassLine,
    Dataset,
    Draft,
    ImageItem,
    ImageSet,
    Preprocess,
    VisionArch,
    encode_image,
    open_archive,
    write_archive,
)
from hellofmt.loading import FORMS, HelloDataset, StoredLabels, view_recipe
from hellofmt.projector import Projector, seeded_base
from hellofmt_cli.main import hello


@pytest.fixture(scope="module")
def projector_images(tmp_path_factory):
    vision = VisionArch(image_size=8, layers=1, width=32, patch_size=4, head_width=16)
    entrance = Preprocess(
        antialias=True,
        interpolation="bicubic",
        mean=["0.4"] * 3,
        resize_mode="squash",
        size=8,
        std=["0.3"] * 3,
    )
    base = seeded_base(Arch(embed_dim=16, quick_gelu=False, vision=vision), entrance, seed=0)
    classes = [ClassLine(key, (key,)) for key in ("a", "b", "c")]
    projector = Projector.build(base, classes, rank=2, start="stored", temperature=3.0, seed=0)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    items = [ImageItem(k // 2, encode_image(p, "png")) for k, p in enumerate(pixels)]
    draft = Draft(
        Dataset(name="x", version="1", license="CC0-1.0", method="test", sources=[]),
        classes,
        view_recipe("sre2l", 8),
        images=ImageSet("png", items),
        projector=projector.part(),
    )
    path = tmp_path_factory.mktemp("labels") / "x.hello"
    write_archive(path, draft)
    return path


def run(*arguments):
    return CliRunner().invoke(hello, [str(a) for a in arguments])


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_those_of_the_data_set(projector_images, tmp_path, form):
    out = tmp_path / "out"
    result = run("labels", projector_images, "--epochs", 1, "-o", out, "--form", form, "-k", 2)
    assert result.exit_code == 0, result.output
    assert "1 epoch, as " + form in result.output
    dataset = HelloDataset(projector_images, stored=out)
    fresh = HelloDataset(projector_images)
    for (image, label), (other, expected) in zip(dataset, fresh, strict=True):
        assert (image == other).all()
        assert (label - expected).abs().max() < (0.5 if form == "topk" else 5e-3)


def test_one_document_says_what_was_written(projector_images, tmp_path):
    out = tmp_path / "out"
    result = run("labels", projector_images, "--epochs", 2, "-o", out, "--seed", 7, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    file = open_archive(projector_images)
    assert document["id"] == file.id
    assert document["labels"] == 2 * len(file)
    assert document["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert document["kernel"] == "reference"
    assert StoredLabels(out).seed == 7
    again = run("labels", projector_images, "--epochs", 2, "-o", out)
    assert again.exit_code == 10
    assert "E_TARGET" in again.output
    assert np.isfinite(StoredLabels(out).labels(np.array([0]), np.array([1])).numpy()).all()


def test_an_archive_without_a_projector_has_no_labels(packed, tmp_path):
    result = run("labels", packed, "--epochs", 1, "-o", tmp_path / "out")
    assert result.exit_code != 0
    assert "need a projector" in result.output
