"""What `hello extract --as` writes, read back by the programs that it is for."""

import contextlib
import dataclasses
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hellofmt.archive import (
    ImageItem,
    ImageSet,
    extract_archive,
    open_archive,
    write_archive,
    write_shards,
)
from hellofmt.archive.format.classes import ClassLine
from hellofmt.archive.write import extraction
from hellofmt_cli.main import hello

LABELS = [0] * 6 + [1] * 5


@pytest.fixture(scope="module", params=["files", "packed", "set"])
def archive(request, samples, tmp_path_factory):
    """Eleven images of the first two of three classes, and their pixels."""
    kind = request.param
    # Grey ones of a packed archive are grey PNG files.
    channels = 1 if kind == "packed" else 3
    pixels = [samples.pattern(i, 7, 7, channels) for i in range(11)]
    images = [ImageItem(k, samples.png(one)) for k, one in zip(LABELS, pixels, strict=True)]
    layout = "packed" if kind == "packed" else "files"
    draft = samples.draft(images=ImageSet("png", images, layout))
    classes = [*draft.classes, ClassLine("n03", ("great white shark",))]
    draft = dataclasses.replace(draft, classes=classes)
    path = tmp_path_factory.mktemp("extract") / "x.hello"
    if kind == "set":
        write_shards(path, draft, 3)
        path = path.with_name("x-*.hello")
    else:
        write_archive(path, draft)
    return path, [np.broadcast_to(one, (7, 7, 3)) for one in pixels]


def run(*arguments):
    return CliRunner().invoke(hello, [str(argument) for argument in arguments])


def extracted(archive, form, folder):
    result = run("extract", archive, folder, "--as", form)
    assert result.exit_code == 0, result.output
    return result


def rgb(image):
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("most", [10_000, 4])
def test_webdataset_reads_its_tar_files(archive, tmp_path, monkeypatch, most):
    from webdataset.autodecode import Decoder, imagehandler
    from webdataset.tariterators import group_by_keys, tar_file_expander

    path, pixels = archive
    monkeypatch.setattr(extraction, "_SHARD_IMAGES", most)
    # webdataset formats its pattern.
    folder = tmp_path / "50 %d"
    extracted(path, "webdataset", folder)
    shards = sorted(map(str, folder.glob("*.tar")))
    assert len(shards) == -(-11 // most)
    # The reader and the decoder inside `WebDataset`, which leaves its files open.
    decode = Decoder([imagehandler("rgb8")])
    with contextlib.ExitStack() as stack:
        opened = [{"url": p, "stream": stack.enter_context(Path(p).open("rb"))} for p in shards]
        read = [decode(one) for one in group_by_keys(tar_file_expander(opened))]
    assert [one["cls"] for one in read] == LABELS
    with open_archive(str(path)) as file:
        names = [", ".join(names) for names in file.classes.names]
    assert [one["txt"] for one in read] == [names[label] for label in LABELS]
    assert all((one["png"] == known).all() for one, known in zip(read, pixels, strict=True))
    with tarfile.open(shards[0]) as tar:
        assert tar.getnames()[:3] == ["0000/000000.cls", "0000/000000.png", "0000/000000.txt"]
        # Nothing of the machine, so that the same archive gives the same bytes.
        assert {member.mtime for member in tar.getmembers()} == {0}


def test_what_was_extracted_is_packed_again(archive, tmp_path):
    """With the classes that lie beside the images; those of `set` come in one file."""
    path, pixels = archive
    for form, source in (("imagefolder", ""), ("webdataset", "images-000000.tar")):
        extracted(path, form, tmp_path / form)
        classes = tmp_path / form / "classes.txt"
        options = ["--classes", classes, "--layout", "files", "-o", tmp_path / f"{form}.hello"]
        result = run("pack", tmp_path / form / source, *options)
        assert result.exit_code == 0, result.output
        with open_archive(tmp_path / f"{form}.hello") as two, open_archive(str(path)) as one:
            assert two.classes == one.classes
            assert two.index.label.tolist() == LABELS
            assert all((two.decode_image(i) == known).all() for i, known in enumerate(pixels))


def test_image_folders_are_read_by_torchvision(archive, tmp_path):
    from torchvision.datasets import ImageFolder

    path, pixels = archive
    result = extracted(path, "imagefolder", tmp_path / "out")
    assert "classes without images: 1 (2)" in result.stderr
    read = ImageFolder(tmp_path / "out")
    with open_archive(str(path)) as file:
        assert read.classes == file.classes.keys[:2]
    assert [label for _, label in read.samples] == LABELS
    assert all((rgb(read[i][0]) == known).all() for i, known in enumerate(pixels))


def test_hugging_face_datasets_reads_both(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    path, pixels = archive
    for form, column, label in (("imagefolder", "image", "label"), ("webdataset", "png", "cls")):
        folder = tmp_path / form
        extracted(path, form, folder)
        options = {"data_dir": str(folder)}
        if form == "webdataset":
            options = {"data_files": str(folder / "*.tar")}
        read = datasets.load_dataset(
            form, split="train", cache_dir=str(tmp_path / "cache"), **options
        )
        assert [one[label] for one in read] == LABELS
        found = [rgb(one[column]) for one in read]
        assert all((one == known).all() for one, known in zip(found, pixels, strict=True))


@pytest.mark.parametrize(
    ("keys", "folders", "reason"),
    [
        (["cat", "dog, wild"], ["0000-cat", "0001-dog_wild"], "`dog, wild` is no name of a folder"),
        (["a", "nul.x"], ["0000-a", "0001-nul.x"], "`nul.x` is no name of a folder"),
        (["..", "x/../y"], ["0000-", "0001-x_.._y"], "`..` is no name of a folder"),
        (["a.", "é"], ["0000-a", "0001-_"], "`a.` is no name of a folder"),
        (["A", "a"], ["0000-A", "0001-a"], "differ only in capitals"),
        (["dog", "cat"], ["0000-dog", "0001-cat"], "the order of the keys is not that of"),
        (["great white shark", "n01"], ["great white shark", "n01"], ""),
    ],
)
def test_folders_of_classes(samples, tmp_path, keys, folders, reason):
    items = [ImageItem(k, samples.png(samples.pattern(k, 2, 2, 3))) for k in (0, 1)]
    classes = [ClassLine(key, ("a class",)) for key in keys]
    draft = samples.draft(images=ImageSet("png", items, "files"))
    draft = dataclasses.replace(draft, classes=classes)
    write_archive(tmp_path / "x.hello", draft)
    said = []
    with open_archive(tmp_path / "x.hello") as file:
        extract_archive(file, tmp_path / "out", form="imagefolder", say=said.append)
    made = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert made == [name.rstrip("-") for name in folders]
    assert [reason in line for line in said] == [True] * bool(reason)


def test_members_of_every_file(archive, tmp_path):
    path, pixels = archive
    extracted(path, "members", tmp_path / "out")
    with open_archive(str(path)) as file:
        roots = [tmp_path / "out"]
        if len(file.shards) > 1:
            roots = [tmp_path / "out" / f"shard-{i:05d}" for i in range(3)]
        for root, part in zip(roots, file.shards, strict=True):
            digits = (root / "__hello__/id").read_text()
            assert part.id == f"sha256:{digits[:-1]}"
            for name in set(part.section_sizes()) - {"pixels"}:
                assert (root / "__hello__" / name).read_bytes() == part.section(name)
    found = [rgb(Image.open(each)) for root in roots for each in sorted(root.glob("images/*/*"))]
    assert all((one == known).all() for one, known in zip(found, pixels, strict=True))


def test_further_columns_are_left_out_and_said(samples, tmp_path):
    items = [ImageItem(k, samples.png(samples.pattern(k, 2, 2, 3))) for k in (0, 1)]
    columns = {"weight": np.ones(2, np.float32)}
    write_archive(
        tmp_path / "x.hello", samples.draft(images=ImageSet("png", items, "files", columns=columns))
    )
    for form in ("imagefolder", "webdataset"):
        said = extracted(tmp_path / "x.hello", form, tmp_path / form).stderr
        assert said == "Warning: further columns of the index are left out: weight\n"
    assert extracted(tmp_path / "x.hello", "members", tmp_path / "members").stderr == ""


def test_options_that_do_not_fit_are_refused(samples, tmp_path):
    bare = tmp_path / "bare.hello"
    write_archive(bare, samples.draft(projector=samples.projector()))
    for form in ("webdataset", "imagefolder"):
        result = run("extract", bare, tmp_path / "out", "--peft", "--as", form)
        assert (result.exit_code, "excludes --as" in result.stderr) == (2, True)
        result = run("extract", bare, tmp_path / "out", "--as", form)
        assert (result.exit_code, f"no images to write as {form}" in result.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_report_counts_what_was_written(archive, tmp_path):
    result = run("extract", archive[0], tmp_path / "out", "--as", "webdataset", "--json")
    report = json.loads(result.stdout)
    files = list((tmp_path / "out").iterdir())
    assert (report["files"], report["bytes"]) == (2, sum(map(os.path.getsize, files)))
