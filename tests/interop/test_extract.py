"""What `hello extract --as` writes, read back by the programs that it is for."""

import contextlib
import dataclasses
import json
import os
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from hellofmt.archive import ImageItem, ImageSet, write_archive
from hellofmt.archive.format.classes import ClassLine
from hellofmt_cli import extract as extract_module
from hellofmt_cli.main import hello


@pytest.fixture(scope="module")
def archive(samples, tmp_path_factory):
    """Eleven images of the first two of three classes."""
    items = [ImageItem(i // 6, samples.png(samples.pattern(i, 7, 7, 3))) for i in range(11)]
    draft = samples.draft(images=ImageSet("png", items, "files"))
    classes = [*draft.classes, ClassLine("n03", ("great white shark",))]
    draft = dataclasses.replace(draft, classes=classes)
    path = tmp_path_factory.mktemp("extract") / "x.hello"
    write_archive(path, draft)
    return path, items


def run(*arguments):
    return CliRunner().invoke(hello, [str(argument) for argument in arguments])


def extracted(archive, form, folder):
    result = run("extract", archive, folder, "--as", form)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("most", [10_000, 4])
def test_webdataset_reads_its_tar_files(archive, tmp_path, monkeypatch, most):
    from webdataset.tariterators import group_by_keys, tar_file_expander

    path, items = archive
    monkeypatch.setattr(extract_module, "_SHARD_IMAGES", most)
    # webdataset formats its pattern.
    folder = tmp_path / "50 %d"
    extracted(path, "webdataset", folder)
    shards = sorted(map(str, folder.glob("*.tar")))
    assert len(shards) == -(-11 // most)
    # The reader inside `WebDataset`, which leaves its files open.
    with contextlib.ExitStack() as stack:
        opened = [{"url": p, "stream": stack.enter_context(Path(p).open("rb"))} for p in shards]
        read = list(group_by_keys(tar_file_expander(opened)))
    assert [(one["png"], int(one["cls"])) for one in read] == [(i.source, i.label) for i in items]
    with tarfile.open(shards[0]) as tar:
        assert tar.getnames()[:2] == ["0000/000000.cls", "0000/000000.png"]
    assert len((folder / "classes.txt").read_text().splitlines()) == 3


def test_image_folders_are_read_by_torchvision(archive, tmp_path):
    from torchvision.datasets import ImageFolder

    path, items = archive
    result = extracted(path, "imagefolder", tmp_path / "out")
    assert "1 class without images (2)" in result.stderr
    read = ImageFolder(tmp_path / "out")
    assert read.classes == ["0000", "0001"]
    assert [label for _, label in read.samples] == [item.label for item in items]
    for (name, _), item in zip(read.samples, items, strict=True):
        assert Path(name).read_bytes() == item.source
    assert isinstance(read[0][0], Image.Image)


def test_hugging_face_datasets_reads_both(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    path, items = archive
    for form, column, label in (("imagefolder", "image", "label"), ("webdataset", "png", "cls")):
        folder = tmp_path / form
        extracted(path, form, folder)
        options = {"data_dir": str(folder)}
        if form == "webdataset":
            options = {"data_files": str(folder / "*.tar")}
        read = datasets.load_dataset(
            form, split="train", cache_dir=str(tmp_path / "cache"), **options
        ).cast_column(column, datasets.Image(decode=False))
        assert [one[label] for one in read] == [item.label for item in items]
        if form == "webdataset":
            assert [one[column]["bytes"] for one in read] == [item.source for item in items]


def test_options_that_do_not_fit_are_refused(samples, archive, tmp_path):
    for form in ("webdataset", "imagefolder"):
        result = run("extract", archive[0], tmp_path / "out", "--peft", "--as", form)
        assert (result.exit_code, "excludes --as" in result.stderr) == (2, True)
        bare = tmp_path / f"{form}.hello"
        write_archive(bare, samples.draft(projector=samples.projector()))
        result = run("extract", bare, tmp_path / "out", "--as", form)
        assert (result.exit_code, "has no images" in result.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_report_counts_what_was_written(archive, tmp_path):
    result = run("extract", archive[0], tmp_path / "out", "--as", "webdataset", "--json")
    report = json.loads(result.stdout)
    files = list((tmp_path / "out").iterdir())
    assert (report["files"], report["bytes"]) == (2, sum(map(os.path.getsize, files)))
