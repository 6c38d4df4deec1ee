"""One rule for every command that reads images: the same notes, counts and refusals."""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from PIL import Image

from hellofmt.sources import decode_centre
from hellofmt_cli.data import read_images, share_findings

DEEP = "images that lie deeper than their class folder"
FIT = ("--base", "seeded", "--teacher", "cnn", "--teacher-epochs", "1", "--steps", "1")


def image(kind="PNG", seed=0, mode="RGB", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def awkward(tmp_path):
    """Fourteen images among everything that people have beside them.

    Both classes hold the same, so that any teacher of them is refused, after all were read.
    """
    root = tmp_path / "awkward"
    exif = Image.Exif()
    exif[0x0112] = 6
    for key in ("n01443537", "n01629819"):
        folder = root / key / "images"
        folder.mkdir(parents=True)
        for number in range(4):
            (folder / f"{key}_{number}.png").write_bytes(image(seed=number))
        (root / key / f"{key}_boxes.txt").write_text("0.JPEG 0 10 63 58")
        (root / key / "jpeg.png").write_bytes(image("JPEG"))
        (root / key / "turned.jpg").write_bytes(image("JPEG", exif=exif))
        (root / key / "alpha.png").write_bytes(image(mode="RGBA"))
    (root / ".ipynb_checkpoints").mkdir()
    (root / "__MACOSX").mkdir()
    (folder / "._0.png").write_bytes(b"\0\5\x16\7")
    (root / "README").write_text("x")
    return root


@pytest.fixture
def commands(tmp_path, invoke):
    """Run each command on a folder: to its end, or only until it has listed the images."""

    def run(root, *options, to_end=False):
        taken = tmp_path / "taken.hello"
        if not to_end:
            # None of them gets further than this file, for which none asked to be replaced.
            taken.write_bytes(b"")
        small = tmp_path / "small"
        for number, key in enumerate(sorted(p.name for p in root.iterdir() if p.name[0] == "n")):
            (small / key).mkdir(parents=True, exist_ok=True)
            (small / key / "1.png").write_bytes(image(seed=number))
        archive = tmp_path / "small.hello"
        if not archive.exists():
            invoke("pack", small, "-o", archive)
        pack = tmp_path / "packed.hello"
        fit = ("-o", taken, "--workers", "0", "--force" if to_end else "--name=x", *FIT, *options)
        arch = "cnn" if to_end else "none:x"
        teach = ("--arch", arch, "--epochs", "1", "-o", tmp_path / "teacher", "--workers", "0")
        student = ("--labels", "hard", "--student", "cnn", "--steps", "1")
        return {
            "pack": invoke("pack", root, "-o", pack, "--reencode", "png", "--force", *options),
            "teach": invoke("teach", root, *teach, *options),
            "fit": invoke("fit", root, *fit),
            # In a work folder of its own, where no check of a teacher is kept.
            "distill": invoke("distill", root, "--ipc", "1", *fit, "--work", tmp_path / "work"),
            "train": invoke("train", archive, "--eval", root, *student),
        }

    return run


def warnings(result):
    lines = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    return [line for line in lines if "too few images to hold one out" not in line]


def test_all_commands_read_and_say_the_same(awkward, commands):
    done = commands(awkward, to_end=True)
    assert [line.removeprefix("Warning: ") for line in warnings(done["pack"])] == [
        f"hidden entries skipped: 3, such as `{awkward}/.ipynb_checkpoints`",
        f"files that are not images skipped: 3, such as `{awkward}/README`",
        f"{DEEP}: 8, such as `{awkward}/n01443537/images/n01443537_0.png`",
        "2 of 14 images of another type than their names say: read by content",
        "2 of 14 images with an EXIF orientation: ignored, pixels stay as they are stored",
        "2 of 14 images with an alpha channel: dropped, the colours under it show",
    ]
    for name, result in done.items():
        assert result.exit_code == (2 if name in ("fit", "distill") else 0), result.stderr
        assert warnings(result) == warnings(done["pack"]), name
    assert "holds   14 images of 2 classes" in done["pack"].stdout
    for name in ("teach", "fit", "distill"):
        assert "data: 14 images of 2 classes, 8 x 8 pixels" in done[name].stderr, name
    assert "% of 14 images" in done["train"].stdout


def add_bmp(root):
    (root / "n01443537" / "x.bmp").write_bytes(image("BMP"))


def add_loop(root):
    (root / "n01443537" / "self").symlink_to(".")


def add_stray(root):
    (root / "preview.png").write_bytes(image())


def add_empty(root):
    (root / "empty").mkdir()


def add_cut(root):
    (root / "n01443537" / "cut.png").write_bytes(image()[:-80])


def add_deep(root):
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(root / "n01443537" / "deep.png")


def add_latin(root):
    shutil.copytree(root / "n01443537" / "images", root / "caf\udce9")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (add_bmp, "n01443537/x.bmp` is not an image in PNG, JPEG or WebP"),
        (add_loop, "n01443537/self` are the same folder: its images would count twice"),
        (add_stray, "images that lie in no class folder: 1, such as `"),
        (add_empty, "class folders without an image: 1: "),
        (add_cut, "cannot read image `"),
        (add_deep, "n01443537/deep.png` has mode I;16; expected 8 bits per channel"),
        (add_latin, r"class 0: not UTF-8: caf\udce9"),
    ],
)
def test_all_commands_refuse_the_same(awkward, commands, spoil, message):
    spoil(awkward)
    done = commands(awkward, to_end=spoil in (add_cut, add_deep))
    errors = {name: result.stderr.splitlines()[-1] for name, result in done.items()}
    if spoil is add_latin:
        # What is measured on has the classes of the archive, in which this one is not.
        assert r"1 of 3 classes of `awkward` are not in the class list of 2: caf\udce9" in (
            errors.pop("train")
        )
        done.pop("train")
    assert len(set(errors.values())) == 1, errors
    assert message in errors["pack"]
    assert {result.exit_code for result in done.values()} == {2}


def test_numbers_are_places_for_all_commands(tmp_path, awkward, commands):
    for place, key in enumerate(("n01443537", "n01629819")):
        shutil.copytree(awkward / key, tmp_path / "numbered" / str(place))
    (tmp_path / "list.txt").write_text("n01443537\tgoldfish\nn01629819\tsalamander\n")
    commands(awkward)
    done = commands(tmp_path / "numbered", "--classes", tmp_path / "list.txt")
    note = (
        "Warning: the classes of `numbered` are numbers, taken as places in the class list: `0` is"
        " `n01443537` (goldfish)"
    )
    told = {
        name: [w for w in warnings(result) if "as places" in w] for name, result in done.items()
    }
    # The archive of the other folder has no names.
    assert told.pop("train") == [note.replace("goldfish", "n01443537")]
    assert set(map(tuple, told.values())) == {(note,)}


def test_the_order_of_numbered_folders_is_said(tmp_path, awkward, commands):
    for key in ("9", "10"):
        shutil.copytree(awkward / "n01443537", tmp_path / "numbered" / key)
    commands(awkward)
    done = commands(tmp_path / "numbered")
    done.pop("train")
    for name, result in done.items():
        (note,) = [line for line in warnings(result) if "ImageFolder" in line]
        assert note.endswith("label 0 is `10`"), name


def test_of_several_processes_the_first_says_what_it_read_itself(tmp_path, monkeypatch, capsys):
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / label / "1.png")
    monkeypatch.setattr("hellofmt.runs.current", lambda: SimpleNamespace(world=2))
    with click.Context(click.Command("teach")):
        decode_centre(read_images(str(tmp_path), None), 0, 8)
    assert capsys.readouterr().err.splitlines() == [
        "Warning: 1 of 1 images read in grey: converted to RGB",
        "Warning: only what the first of 2 processes met is named",
    ]


def test_what_any_process_left_out_is_named_by_the_first(awkward, in_ranks, capfd):
    names = sorted(str(path) for path in awkward.rglob("n*_[01].png"))
    for name in names:
        Path(name).write_bytes(b"")

    def work(rank):
        with click.Context(click.Command("x")):
            source = read_images(str(awkward), None, skips_unreadable=True)
            for row in range(rank, len(source), 2):
                decode_centre(source, row, 8)
            share_findings()
        return source.conversion_notes()

    mine, theirs = in_ranks(2, work)
    assert mine == theirs
    assert mine[-5:] == [
        "images that cannot be read, left out: 4",
        *(f"left out: `{name}`" for name in names),
    ]
    assert "only what the first" not in capfd.readouterr().err


def test_pictures_of_one_pixel_have_views_that_networks_take(tmp_path, invoke):
    for key in ("a", "b"):
        (tmp_path / "dots" / key).mkdir(parents=True)
        Image.new("RGB", (1, 1)).save(tmp_path / "dots" / key / "0.png")
    done = invoke("fit", tmp_path / "dots", *FIT, "-o", tmp_path / "x.hello")
    assert "data: 2 images of 2 classes, 1 x 1 pixels; views of 4" in done.stderr
    # Nobody can tell two black dots apart.
    assert (done.exit_code, "E_TEACHER" in done.stderr) == (2, True)
