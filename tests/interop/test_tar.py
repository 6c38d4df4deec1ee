"""Tools that know nothing of us see plain tar files: the same members in the same order."""

import shutil
import subprocess
import tarfile
import zipfile

import fsspec
import pytest


def run(*command, **options):
    return subprocess.run(  # noqa: S603
        list(map(str, command)), capture_output=True, check=True, timeout=60, **options
    ).stdout


@pytest.mark.parametrize("tool", ["tar", "bsdtar"])
def test_tar_lists_and_extracts(tool, archive, members, tmp_path):
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} here")
    listed = run(tool, "-tf", archive, text=True).splitlines()
    assert listed == list(members)
    run(tool, "-xf", archive, "-C", tmp_path)
    for name, data in members.items():
        path = tmp_path / name
        assert path.read_bytes() == data, name
        assert path.stat().st_mode & 0o777 == 0o644
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == set(members)


def test_tar_says_nothing(archive):
    done = subprocess.run(["tar", "-tf", archive], capture_output=True, check=True, timeout=60)  # noqa: S603, S607
    assert done.stderr == b""


@pytest.mark.parametrize("mode", ["r:", "r|"])
def test_tarfile(mode, archive, members):
    with tarfile.open(archive, mode) as tar:
        found = {info.name: tar.extractfile(info).read() for info in tar}
    assert found == members
    assert list(found) == list(members)


def test_tarfile_extracts_what_image_folder_reads(archive, tmp_path):
    from torchvision.datasets import ImageFolder

    from hellofmt.archive import open_archive

    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = ImageFolder(tmp_path / "images")
    with open_archive(archive) as file:
        assert folder.targets == file.index.label.tolist()
        names = [str(path).removeprefix(f"{tmp_path}/") for path, _ in folder.samples]
        assert names == [file.image_name(row) for row in range(len(file))]


def test_image_folder_shifts_labels_behind_a_class_without_images(samples, tmp_path):
    # The documented caveat: only our own reader knows of classes that have no image here.
    from torchvision.datasets import ImageFolder

    from hellofmt.archive import ClassLine, Draft, ImageItem, ImageSet, open_archive, write_archive

    classes = [ClassLine(f"n{i}", (f"class {i}",)) for i in range(3)]
    items = [ImageItem(label, samples.png(samples.pattern(label, 4, 4, 3))) for label in (0, 2)]
    draft = Draft(samples.DATASET, classes, samples.VIEWS, ImageSet("png", items, "files"))
    write_archive(tmp_path / "x.hello", draft)
    run("tar", "-xf", tmp_path / "x.hello", "-C", tmp_path)
    with open_archive(tmp_path / "x.hello") as file:
        assert file.index.label.tolist() == [0, 2]
    assert ImageFolder(tmp_path / "images").targets == [0, 1]


def test_fsspec_reads_members(archive, members):
    filesystem = fsspec.filesystem("tar", fo=str(archive))
    assert sorted(filesystem.find("")) == sorted(members)
    for name, data in members.items():
        assert filesystem.cat_file(name) == data
    filesystem.fo.close()


def test_libmagic_says_tar(archive):
    if shutil.which("file") is None:
        pytest.skip("no libmagic here")
    assert b"tar archive" in run("file", "--brief", archive)
    assert run("file", "--brief", "--mime-type", archive).strip() == b"application/x-tar"


def test_no_zip_tool_opens_it(archive):
    assert not zipfile.is_zipfile(archive)
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(archive)
