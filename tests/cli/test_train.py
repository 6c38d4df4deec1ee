"""``hello train``: accuracy of a student trained from an archive and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hellofmt.archive import (
    Arch,
    ClassLine,
    Dataset,
    Draft,
    ImageItem,
    ImageSet,
    Preprocess,
    Views,
    VisionArch,
    encode_image,
    write_archive,
)
from hellofmt.projector import Projector, seeded_base
from hellofmt_cli.main import hello

KEYS = ("rows", "columns")


def stripes(count, seed):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 60, (2 * count, 8, 8, 3))
    pixels[:count, ::2] += 180
    pixels[count:, :, ::2] += 180
    return pixels.astype(np.uint8), np.repeat([0, 1], count)


@pytest.fixture
def archive(tmp_path):
    pixels, labels = stripes(4, 0)
    vision = VisionArch(image_size=8, layers=1, width=64, patch_size=4, head_width=32)
    preprocess = Preprocess(
        antialias=True,
        interpolation="bicubic",
        mean=["0.4"] * 3,
        resize_mode="squash",
        size=8,
        std=["0.3"] * 3,
    )
    base = seeded_base(Arch(embed_dim=16, quick_gelu=False, vision=vision), preprocess, seed=0)
    classes = [ClassLine(key, (key,)) for key in KEYS]
    projector = Projector.build(base, classes, rank=2, start="stored", temperature=3.0, seed=0)
    views = Views(
        antialias=True,
        crop_ratio=["1.0", "1.0"],
        crop_scale=["1.0", "1.0"],
        flip="0.0",
        interpolation="bilinear",
        mean=["0.4"] * 3,
        mix="none",
        mix_alpha="1.0",
        mix_probability="0.0",
        shuffle=1,
        size=8,
        std=["0.3"] * 3,
    )
    draft = Draft(
        dataset=Dataset(
            name="stripes", version="1.0.0", license="CC0-1.0", method="hello", sources=[], ipc=4
        ),
        classes=classes,
        views=views,
        images=ImageSet(
            "png",
            [
                ImageItem(int(c), encode_image(p, "png"))
                for p, c in zip(pixels, labels, strict=True)
            ],
        ),
        projector=projector.part("float32"),
    )
    path = tmp_path / "stripes.hello"
    write_archive(path, draft)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    pixels, labels = stripes(10, 1)
    root = tmp_path / "eval"
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (root / KEYS[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / KEYS[label] / f"{i:02}.png")
    return str(root)


def run(*arguments):
    return CliRunner().invoke(hello, ["train", *arguments])


def test_hard_labels_reach_full_accuracy_on_stripes(archive, folder):
    done = run(
        archive, "--student", "cnn", "--eval", folder, "--labels", "hard", "--steps", "40", "--json"
    )
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["accuracy"] == {"last": 100.0, "best": 100.0}
    assert (document["steps"], document["batch_size"], document["images"]) == (40, 8, 20)
    assert (document["recipe"], document["labels"], document["seed"]) == ("hard", "hard", 0)
    assert document["schema"] == "hello.train/1"


def test_soft_labels_and_passes(archive, folder):
    done = run(archive, "--student", "cnn", "--eval", folder, "--epochs", "3", "--batch-size", "4")
    assert done.exit_code == 0, done.output
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert "kl, 6 steps of 4 views" in lines["recipe"]
    assert "% of 20 images" in lines["accuracy, last"]


def test_stored_labels_are_read_instead_of_made(archive, folder, tmp_path):
    out = str(tmp_path / "stored")
    done = CliRunner().invoke(hello, ["labels", archive, "--epochs", "3", "-o", out])
    assert done.exit_code == 0, done.output
    options = [archive, "--student", "cnn", "--eval", folder, "--batch-size", "4", "--json"]
    accuracy = []
    for labels in ("soft", out):
        done = run(*options, "--epochs", "3", "--labels", labels)
        assert done.exit_code == 0, done.output
        document = json.loads(done.stdout)
        assert document["labels"] == labels
        accuracy.append(document["accuracy"]["last"])
    assert abs(accuracy[0] - accuracy[1]) <= 5
    done = run(*options, "--epochs", "4", "--labels", out)
    assert done.exit_code == 2
    assert "labels of 3 epochs are stored" in done.stderr
    done = run(*options, "--epochs", "1", "--labels", str(tmp_path / "absent"))
    assert done.exit_code == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "2", "--epochs", "2"], "`--steps` and `--epochs`: expected one, got both"),
        (["--labels", "hard", "--recipe", "kl"], "`--recipe` with hard labels: expected none"),
        (["--recipe", "none"], "unknown recipe `none`"),
        (["--expect", "sha256:" + "0" * 64], "E_PIN"),
    ],
)
def test_impossible_options(archive, folder, options, message):
    done = run(archive, "--student", "cnn", "--eval", folder, *options)
    assert done.exit_code == (7 if message == "E_PIN" else 2)
    assert message in done.stderr


def test_an_archive_without_images_cannot_train(archive, folder, tmp_path):
    from hellofmt.archive import open_archive

    with open_archive(archive) as file:
        manifest = file.manifest
    path = tmp_path / "p.hello"
    base = seeded_base(manifest.base.arch, manifest.base.preprocess, seed=0)
    classes = [ClassLine(key, (key,)) for key in KEYS]
    projector = Projector.build(base, classes, rank=2, start="stored", temperature=3.0, seed=0)
    dataset = Dataset(name="p", version="1.0.0", license="CC0-1.0", method="hello", sources=[])
    draft = Draft(
        dataset=dataset, classes=classes, views=manifest.views, projector=projector.part("float32")
    )
    write_archive(path, draft)
    done = run(str(path), "--student", "cnn", "--eval", folder)
    assert done.exit_code == 2
    assert "the archive has no images" in done.stderr
