from __future__ import annotations

import json

import builders
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from hellofmt.archive import (
    ClassLine,
    Draft,
    ImageItem,
    ImageSet,
    encode_image,
    open_archive,
    write_archive,
)
from hellofmt.loading import HelloDataset, StoredLabels, view_recipe
from hellofmt.loading.stored_labels import FORMS
from hellofmt.projector import Projector
from hellofmt.student import build_student
from hellofmt.teacher import write_teacher
from hellofmt_cli.main import hello


@pytest.fixture(scope="module")
def projector_images(tmp_path_factory):
    base = builders.tiny_base(width=32, head_width=16)
    classes = [ClassLine(key, (key,)) for key in ("a", "b", "c")]
    projector = Projector.build(base, classes, rank=2, start="stored", temperature=3.0, seed=0)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    images = builders.image_set(pixels, [0, 0, 1, 1, 2, 2])
    draft = Draft(
        builders.dataset(),
        classes,
        view_recipe("sre2l", 8),
        images=images,
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
        assert (label - expected).abs().max() < (0.5 if form in ("topk", "pruned") else 5e-3)


def test_another_function_and_fewer_images(projector_images, tmp_path):
    both, out = tmp_path / "both.hello", tmp_path / "out"
    projectors = ["--projector", projector_images, "--projector", f"early={projector_images}"]
    made = run("pack", projector_images, *projectors, "--ordered", "-o", both)
    assert made.exit_code == 0, made.output
    chosen = ["--label-function", "early", "--ipc", 1]
    result = run("labels", both, "--epochs", 1, "-o", out, *chosen, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["labels"] == 3
    stored = StoredLabels(out)
    assert (stored.rows, stored.label_function) == (3, "early")
    stored.check(HelloDataset(both, label_function="early", ipc=1))
    refused = run("labels", both, "--epochs", 1, "-o", tmp_path / "x", "--ipc", 3)
    assert refused.exit_code == 2
    assert "E_DATA: `--ipc`: class `a` has 2 images; expected at least 3" in refused.output
    assert not (tmp_path / "x").exists()


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


def test_labels_in_bfloat16_say_so(projector_images, tmp_path):
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        done = run("labels", projector_images, "--epochs", 1, "-o", out, "--label-dtype", dtype)
        assert done.exit_code == 0, done.output
        assert dtype in done.output
        assert json.loads((out / "labels.json").read_text())["label_dtype"] == dtype
    rows, first = np.arange(6), np.zeros(6, np.int64)
    labels = [
        StoredLabels(tmp_path / dtype).labels(rows, first) for dtype in ("float32", "bfloat16")
    ]
    assert 0 < (labels[0] - labels[1]).abs().max() < 3e-2


def test_an_archive_without_a_projector_has_no_labels(packed, tmp_path):
    result = run("labels", packed, "--epochs", 1, "-o", tmp_path / "out")
    assert result.exit_code != 0
    assert "need a projector" in result.output


@pytest.fixture
def teacher_of(projector_images, tmp_path):
    """A network, and its directory for a data set of these classes."""

    def teacher(classes=("a", "b", "c")):
        network = build_student("cnn", 3, 8, seed=1).eval()
        views = open_archive(projector_images).manifest.views
        write_teacher(tmp_path / "t", "cnn", network, views=views, classes=classes, storage="int8")
        return network, tmp_path / "t"

    return teacher


def test_labels_of_a_teacher(projector_images, tmp_path, teacher_of):
    network, path = teacher_of()
    save_file(network.state_dict(), tmp_path / "plain.safetensors")
    options = ("--epochs", 2, "--form", "pruned", "-k", 3, "--json")
    dataset = HelloDataset(projector_images)
    means, stds = ([float(v) for v in values] for values in (dataset.views.mean, dataset.views.std))
    shape = (3, 1, 1)
    # Eight bits of each weight of an untrained network, against all of them.
    for name, tolerance in ((path, 2e-3), (f"cnn={tmp_path / 'plain.safetensors'}", 5e-4)):
        out = tmp_path / f"out{tolerance}"
        result = run("labels", projector_images, *options, "--teacher", name, "-o", out)
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert document["kernel"] == "function"
        assert (out / "epoch_1.bin").stat().st_size == 6 * 3 * 4
        views, _ = dataset.draw(np.arange(6), 1)
        images = (views - torch.tensor(means).view(shape)) / torch.tensor(stds).view(shape)
        with torch.no_grad():
            truth = torch.softmax(network(images).double() / 3.0, dim=1)
        got = StoredLabels(out).labels(np.arange(6), np.full(6, 3))
        assert (got - truth).abs().max() < tolerance


@pytest.fixture
def without_projector(projector_images, tmp_path):
    """The same images with hard labels only."""
    with open_archive(projector_images) as file:
        pixels = file.decode_images(list(range(6)))
        draft = Draft(
            file.manifest.dataset,
            [ClassLine(key, (key,)) for key in ("a", "b", "c")],
            file.manifest.views,
            images=ImageSet(
                "png", [ImageItem(k // 2, encode_image(p, "png")) for k, p in enumerate(pixels)]
            ),
        )
    write_archive(tmp_path / "hard.hello", draft)
    return tmp_path / "hard.hello"


def test_a_teacher_makes_labels_for_an_archive_without_a_projector(
    without_projector, tmp_path, teacher_of
):
    _, path = teacher_of()
    options = ("labels", without_projector, "--epochs", 1, "-o", tmp_path / "out")
    options += ("--teacher", path)
    result = run(*options)
    assert result.exit_code == 2
    assert "E_OPTION: `--temperature`: the archive has no projector" in result.output
    result = run(*options, "--temperature", 4)
    assert result.exit_code == 0, result.output
    assert HelloDataset(without_projector, stored=tmp_path / "out").temperature == 4.0


def test_students_train_from_a_teacher_and_from_its_stored_labels(
    without_projector, tmp_path, teacher_of
):
    """The archive has no labels of its own but hard ones, so they are the teacher's."""
    _, path = teacher_of()
    out = tmp_path / "pruned"
    options = ("--epochs", 1, "--form", "pruned", "-k", 3, "--temperature", 20)
    result = run("labels", without_projector, *options, "-o", out, "--teacher", path)
    assert result.exit_code == 0, result.output
    for key in ("a", "b", "c"):
        (tmp_path / "eval" / key).mkdir(parents=True)
        pixels = np.full((8, 8, 3), 40 * ord(key) % 256, np.uint8)
        (tmp_path / "eval" / key / "0.png").write_bytes(encode_image(pixels, "png"))
    train = ("train", without_projector, "--student", "cnn", "--eval", tmp_path / "eval")
    train += ("--recipe", "rded", "--epochs", 2, "--json")
    for labels in (path, out):
        result = run(*train, "--labels", labels)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["labels"] == str(labels)
    result = run(*train)
    assert result.exit_code == 2
    assert "need a projector" in result.output


def test_a_teacher_of_other_classes_or_without_embeddings_is_refused(
    projector_images, tmp_path, teacher_of
):
    _, path = teacher_of(("c", "b", "a"))
    options = ("labels", projector_images, "--epochs", 1, "-o", tmp_path / "out", "--teacher", path)
    result = run(*options)
    assert result.exit_code == 2
    assert "E_TEACHER" in result.output
    assert "the same number in another order" in result.output
    result = run(*options, "--form", "embeddings")
    assert result.exit_code == 2
    assert "`--form embeddings` of a teacher" in result.output
    assert not (tmp_path / "out").exists()
