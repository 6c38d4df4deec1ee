"""``hello teach``, ``hello fit``, ``hello distill``: from a folder of images to an archive."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys

import click
import numpy as np
import pytest
import torch
from PIL import Image

from hellofmt.archive import open_archive
from hellofmt.student import build_student
from hellofmt_cli import making
from hellofmt_cli.console import console

KEYS = ("columns", "grey", "rows")
FEW = ("--view-flip", "0", "--view-crop", "0.6", "1", "--batch-size", "16")
QUICK = (*FEW, "--base", "seeded", "--rank", "2", "--steps", "3", "--lr", "0.005")
FIT = (*QUICK, "--no-precision-table")


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    root = tmp_path / "stripes"
    for label, key in enumerate(KEYS):
        (root / key).mkdir(parents=True)
        for i in range(12):
            pixels = random.integers(0, 60, (8, 8, 3))
            if key == "rows":
                pixels[::2] += 150
            elif key == "columns":
                pixels[:, ::2] += 150
            else:
                pixels += 75
            Image.fromarray(pixels.astype(np.uint8)).save(root / key / f"{label}{i:02}.png")
    return root


@pytest.fixture
def teacher(images, tmp_path, invoke_json):
    folder = tmp_path / "teacher"
    document = invoke_json(
        "teach", images, "--arch", "cnn", "--epochs", "8", "--checkpoints", "4", "-o", folder, *FEW
    )
    assert document["checkpoints"][-1]["accuracy"] > 80
    return folder


def test_teach_keeps_a_trajectory(teacher, images, invoke, invoke_json):
    steps = [c["step"] for c in json.loads((teacher / "teacher.json").read_text())["checkpoints"]]
    assert steps == sorted(steps)
    assert len(steps) == 4
    again = invoke_json(
        "teach", images, "--arch", "cnn", "--epochs", "8", "--checkpoints", "4", "-o", teacher, *FEW
    )
    assert [c["step"] for c in again["checkpoints"]] == steps
    other = invoke("teach", images, "--arch", "cnn", "--epochs", "9", "-o", teacher, *FEW)
    assert other.exit_code == 10
    assert "E_TARGET" in other.stderr


def test_bfloat16_reaches_teach_and_fit(images, teacher, tmp_path, invoke):
    again = ("teach", images, "--arch", "cnn", "--epochs", "8", "--checkpoints", "4", *FEW)
    other = invoke(*again, "-o", teacher, "--bfloat16")
    assert (other.exit_code, "E_TARGET" in other.stderr) == (10, True)
    work = tmp_path / "work"
    for name, option in (("a", ()), ("b", ("--bfloat16",))):
        path = tmp_path / f"{name}.hello"
        done = invoke(
            "fit", images, "--teacher", teacher, *FIT, *option, "--work", work, "-o", path
        )
        assert done.exit_code == 0, done.stderr
        assert "fit: finished earlier" not in done.stderr
        kind = {"a": "float32", "b": "bfloat16"}[name]
        assert re.search(rf"^trained in +{kind}$", done.stdout, re.MULTILINE)
    with open_archive(tmp_path / "a.hello") as a, open_archive(tmp_path / "b.hello") as b:
        assert a.id != b.id


def test_fit_writes_a_label_function_that_pack_takes(images, teacher, tmp_path, invoke):
    path = tmp_path / "p.hello"
    done = invoke("fit", images, "--teacher", teacher, "-o", path, *QUICK, "--precision", "int8")
    assert done.exit_code == 0, done.stderr
    assert "fit: " in done.stderr
    assert "3 steps of 16 views" in done.stderr
    with open_archive(path) as file:
        assert len(file) == 0
        assert file.classes.keys == list(KEYS)
        assert file.manifest.functions[0].adapter.targets[0].storage == "int8"
    title, header, *rows = done.stdout.partition("\n\n")[2].splitlines()
    assert title == "precisions, on 512 new views"
    assert header.split() == ["bytes", "agreement", "KL"]
    row = re.compile(r"  (\w+) +([\d,]+) +(\d+\.\d\d) %  (\d\.\d{4})(  written)?")
    found = [row.fullmatch(line) for line in rows]
    assert [m[1] for m in found] == ["float32", "float16", "bfloat16", "int8", "int4"]
    assert [m[1] for m in found if m[5]] == ["int8"]
    # Nothing is left beside it.
    assert not (tmp_path / "p.hello.work").exists()
    joined = invoke("pack", images, "--projector", path, "-o", tmp_path / "x.hello")
    assert joined.exit_code == 0, joined.stderr


def test_distill_in_one_command(images, tmp_path, invoke, invoke_json):
    path, work = tmp_path / "x.hello", tmp_path / "work"
    arguments = ("distill", images, "--teacher", "cnn", "--teacher-epochs", "8", "--ipc", "2")
    options = (*FIT, "--factor", "2")
    done = invoke_json(*arguments, *options, "--precision-table", "-o", path, "--work", work)
    with open_archive(path, expect=done["id"]) as file:
        assert len(file) == 6
    assert done["bytes"] == path.stat().st_size
    assert [row["storage"] for row in done["precisions"]][3:] == ["int8", "int4"]
    sizes = {row["storage"]: row["bytes"] for row in done["precisions"]}
    assert sizes["float32"] == pytest.approx(2 * sizes["float16"], rel=0.05)
    assert sizes["int4"] < sizes["int8"]
    assert done["bfloat16"] is False
    assert [cost["stage"] for cost in done["cost"]] == [
        *("teacher", "check", "check-held-out", "fit", "select", "accuracy", "write")
    ]
    assert all(cost["seconds"] > 0 and cost["peak_bytes"] > 1e7 for cost in done["cost"])
    assert all(cost["gflop"] > 0 for cost in done["cost"][:-1])
    kept = sorted(p.name.split("-")[0] for p in work.iterdir())
    assert kept == ["fit", "select", "teacher"]
    # A teacher that another machine trained knows other times of the same files.
    (document,) = work.glob("teacher-*/teacher.json")
    text = document.read_text()
    document.write_text(text.replace(json.loads(text)["run"], "0" * 64))
    again = invoke(*arguments, *options, "-o", tmp_path / "y.hello", "--work", work)
    assert again.exit_code == 0, again.stderr
    for stage in ("fit", "select"):
        assert f"{stage}: finished earlier" in again.stderr
    assert (tmp_path / "y.hello").read_bytes() == path.read_bytes()
    assert re.search(r"cost +teacher \d+ s and [\d,]+ GFLOP; check ", again.stdout)
    assert "peak memory" in again.stdout
    lossy = invoke_json(
        *(*arguments, *options, "-o", tmp_path / "j.hello", "--work", work),
        *("--codec", "jpeg", "--quality", "30"),
    )
    assert (lossy["codec"], lossy["quality"]) == ("jpeg", 30)
    assert lossy["stored"]["kl"] > 0
    assert (done["codec"], done["quality"], done["stored"]) == ("png", None, None)
    words = shlex.join(["hello", "train", str(tmp_path / "y.hello"), "--student", "NAME"])
    assert again.stdout.endswith(f"\nNext: {words} --eval DIR\n")
    assert "\nNote: 300 epochs of stored labels would be smaller, " in again.stdout
    # Killed after its stages, the default folder is found again, used, and then removed.
    work.rename(tmp_path / "z.hello.work")
    last = invoke(*arguments, *options, "-o", tmp_path / "z.hello")
    assert "fit: finished earlier" in last.stderr
    assert (tmp_path / "z.hello").read_bytes() == path.read_bytes()
    assert not (tmp_path / "z.hello.work").exists()


def test_distill_within_so_many_bytes(images, teacher, tmp_path, invoke, invoke_json):
    arguments = ("distill", images, "--teacher", teacher, *FIT)
    refused = invoke(*arguments, "--bytes", "5kB", "-o", tmp_path / "x.hello")
    assert refused.exit_code != 0
    assert "E_OPTION: budget of 5,000 bytes; expected at least " in refused.stderr
    assert "fit: " not in refused.stderr
    least = refused.stderr.partition("at least ")[2].partition(":")[0].replace(",", "")
    size = int(least) + 6_000
    done = invoke_json(*arguments, "--bytes", size, "-o", tmp_path / "x.hello")
    assert done["bytes"] <= done["budget"] == size
    assert done["ipc"] > 1
    with open_archive(tmp_path / "x.hello", expect=done["id"]) as file:
        assert len(file) == 3 * done["ipc"]
    done = invoke(*arguments, "--bytes", "1MB", "-o", tmp_path / "y.hello")
    assert re.search(r"^budget +\d+\.\d % of 1,000,000 bytes: 12 images", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give one of --ipc and --bytes"),
        (("--ipc", "1", "--bytes", "2MB"), "give one of --ipc and --bytes"),
        (("--bytes", "2MB", "--codec", "webp"), "--bytes chooses codec and quality"),
        (("--bytes", "2XB"), "expected bytes such as 500kB, 2MB or 1.5MiB"),
    ],
)
def test_what_does_not_go_with_bytes(invoke, options, message):
    done = invoke("distill", "x", "--teacher", "y", *FIT, *options, "-o", "z")
    assert done.exit_code == 2
    assert message in done.stderr


def test_what_was_converted_is_said_before_what_is_kept(tmp_path, invoke, monkeypatch):
    def fail(*_, **__):
        click.get_current_context().call_on_close(lambda: console.warn("3 images in grey"))
        raise OSError(errno.EIO, os.strerror(errno.EIO), "disk")

    monkeypatch.setattr(making, "_make_archive", fail)
    (tmp_path / "fit-x").write_bytes(b"")
    done = invoke(
        *("fit", "DATA", "--teacher", "cnn", *FIT, "--work", tmp_path, "-o", tmp_path / "x.hello")
    )
    said = [line.partition(":")[0] for line in done.stderr.splitlines()]
    assert said[-3:] == ["Warning", "kept", "Error"]


def test_a_quality_of_png_is_refused_before_anything_is_read(invoke):
    done = invoke(
        "distill", "x", "--teacher", "y", *FIT, *["--ipc", "1", "--quality", "3", "-o", "z"]
    )
    assert done.exit_code == 2
    assert "--quality needs --codec jpeg or webp" in done.stderr


def test_a_full_disk_names_the_file_and_keeps_what_is_finished(
    images, teacher, tmp_path, invoke, tree, monkeypatch
):
    arguments = ("distill", images, "--teacher", teacher, *FIT, "--ipc", "1")
    path, work = tmp_path / "x.hello", tmp_path / "x.hello.work"
    sync, written = os.fsync, []

    def full_after(count):
        def fsync(descriptor):
            if len(written) == count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(descriptor)
            sync(descriptor)

        return fsync

    before = tree(tmp_path)
    monkeypatch.setattr(os, "fsync", full_after(0))
    nothing = invoke(*arguments, "-o", path)
    assert nothing.exit_code == 9
    assert re.search(r"Error: .*x\.hello\.work/fit-\w+\.safetensors: No space left", nothing.stderr)
    assert "kept: " not in nothing.stderr
    assert tree(tmp_path) == before
    # Nor does a work folder that was asked for stay if the run made it and kept nothing.
    monkeypatch.setattr(os, "fsync", full_after(0))
    assert invoke(*arguments, "-o", path, "--work", tmp_path / "kept").exit_code == 9
    assert tree(tmp_path) == before
    monkeypatch.setattr(os, "fsync", full_after(1))
    half = invoke(*arguments, "-o", path)
    assert half.exit_code == 9
    assert re.search(r"Error: .*/select-\w+\.safetensors: No space left", half.stderr)
    assert f"kept: what is finished, in {work}; the same command continues" in half.stderr
    assert [file.name[:4] for file in work.iterdir()] == ["fit-"]
    monkeypatch.setattr(os, "fsync", sync)
    done = invoke(*arguments, "-o", path)
    assert done.exit_code == 0, done.stderr
    assert "fit: finished earlier" in done.stderr
    assert not work.exists()


def test_two_machines_make_the_archive_that_one_makes(images, teacher, tmp_path, run_hello):
    arguments = ["--teacher", teacher, *FIT, "--precision", "float32", "--ipc", "2"]
    one = run_hello("distill", images, *arguments, "-o", tmp_path / "one.hello")
    assert one.returncode == 0, one.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What torchrun sets for its processes, without a third one to start them. Each machine has a
    # disk of its own, with a copy of the data whose times differ.
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    hello = [sys.executable, "-m", "hellofmt", "distill", images.name]
    command = [*hello, *map(str, arguments), "-o", "two.hello"]
    processes: list[subprocess.Popen[str]] = []
    for rank in ("0", "1"):
        disk = tmp_path / rank
        shutil.copytree(images, disk / images.name, copy_function=shutil.copyfile)
        processes.append(
            subprocess.Popen(  # noqa: S603
                command,
                cwd=disk,
                env={**os.environ, "OMP_NUM_THREADS": "1", **place, "RANK": rank}
                | {"LOCAL_RANK": "0"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    output = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    there = [sorted(path.name for path in (tmp_path / rank).iterdir()) for rank in ("0", "1")]
    assert there == [[images.name, "two.hello"], [images.name]]
    (tmp_path / "0" / "two.hello").rename(tmp_path / "two.hello")
    # Only rank 0 speaks.
    assert "label function" in output[0][0]
    assert output[1][0] == ""
    with open_archive(tmp_path / "one.hello") as a, open_archive(tmp_path / "two.hello") as b:
        assert a.read_images(range(6)) == b.read_images(range(6))
        for section in ("adapter", "head"):
            ours, theirs = a.tensors(section), b.tensors(section)
            assert sorted(ours) == sorted(theirs)
            for name, tensor in ours.items():
                # AdamW divides by the gradient's size: 3 steps of 0.005 may turn the sign of one
                # that is nothing but rounding.
                near = np.isclose(tensor, theirs[name], rtol=1e-4, atol=1e-5)
                assert near.mean() > 0.99, name
                np.testing.assert_allclose(tensor, theirs[name], atol=0.03, err_msg=name)
        probes = [file.tensors("probes")["logits"] for file in (a, b)]
        np.testing.assert_allclose(*probes, atol=1e-3)


def without(images, _tmp_path):
    for path in (images / "grey").iterdir():
        path.unlink()


def one_class(images, _tmp_path):
    for key in ("grey", "rows"):
        (images / key).rename(images.parent / key)


def unreadable(images, _tmp_path):
    next((images / "rows").iterdir()).write_bytes(b"no picture")


def swapped(images, _tmp_path):
    (images / "grey").rename(images / "x")
    (images / "rows").rename(images / "grey")
    (images / "x").rename(images / "rows")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (without, (), "class folders without an image: 1: "),
        (one_class, (), "training needs at least two classes; got `"),
        (unreadable, (), "` is not an image in PNG, JPEG or WebP"),
        (swapped, (), "in another order of 2 classes, so its class order differs: `grey` is its"),
        (
            None,
            ("--view-size", "16", "--teacher", "bad:nan"),
            "logits of a view of noise are not finite",
        ),
        (None, ("--rank", "200"), "rank 200 is larger than every adapted weight; expected at most"),
        (None, ("--head-rank", "4"), "head rank 4 is larger than the head of 3 classes"),
        (None, ("--lr", "1e30"), "loss: expected a finite number, got"),
        (
            None,
            ("--teacher", "none"),
            "teacher `none`: no such file or folder; expected",
        ),
        (
            None,
            ("--teacher", "cnn", "--teacher-size", "8"),
            "teacher `cnn` is trained here on the views as they are; expected none of them",
        ),
        (None, ("--base", "seeded:x"), "base `seeded:x`: expected `seeded` or `seeded:NUMBER`"),
        (None, ("--epochs", "2"), "`--steps` and `--epochs`: expected one, got both"),
        (None, ("--ipc", "13"), "class `columns` has 12 candidates; expected at least 13"),
        (None, ("--view-crop", "1", "0.5"), "--view-crop: expected the smaller area first"),
    ],
)
def test_bad_input_is_one_line(
    images, teacher, tmp_path, invoke, tree, monkeypatch, change, options, message
):
    (tmp_path / "bad.py").write_text(
        "import torch\n"
        "class Nan(torch.nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.classes = classes\n"
        "    def forward(self, x):\n"
        "        return torch.full((len(x), self.classes), float('nan'))\n"
        "nan = Nan\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if change is not None:
        change(images, tmp_path)
    before = [name for name in tree(tmp_path) if "__pycache__" not in name]
    chosen = [] if "--teacher" in options else ["--teacher", str(teacher)]
    done = invoke("distill", images, *FIT, "--ipc", "1", *chosen, *options, "-o", "x.hello")
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert [name for name in tree(tmp_path) if "__pycache__" not in name] == before


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("abacus", "Expected one of cpu, cuda"),
        ("meta", "cannot be called on meta tensors"),
        ("cuda:99", r"torch sees \d+ CUDA devices here"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ("teach", "--arch", "cnn", "--epochs", "1", "-o", "t"),
        ("train", "--student", "cnn", "--eval", "x"),
    ],
)
def test_a_device_that_is_not_here_is_one_line(invoke, command, device, why):
    done = invoke(*command, "nowhere", "--device", device)
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.fullmatch(f"Error: E_OPTION: device `{device}`: .*{why}.*\n", done.stderr)


def test_how_a_teacher_sees_images_and_what_it_says_are_options(images, tmp_path, invoke):
    path, classes, work = (tmp_path / name for name in ("w.pth", "classes.txt", "work"))
    torch.save({"model": build_student("cnn", 4, 8).state_dict()}, path)
    classes.write_text("rows\nblue\ngrey\ncolumns\n")
    work.mkdir()
    (work / "earlier").write_bytes(b"")
    seen = ("--teacher-mean", "0", "0", "0.5", "--teacher-std", "1", "1", "0.5")
    more = ("--teacher-size", "16", "--teacher-classes", classes, "--work", work)
    text = f"cnn={path}"
    done = invoke("fit", images, *FIT, *seen, *more, "--teacher", text, "-o", tmp_path / "p.hello")
    assert f"teacher {text}: input 16 px bilinear, mean 0 0 0.5, std 1 1 0.5" in done.stderr
    assert f"teacher `{text}`: 3 of its 4 outputs, by its class list" in done.stderr
    path.write_bytes(b"<html>")
    done = invoke(
        "fit", images, *FIT, "--teacher", text, "--work", work, "-o", tmp_path / "q.hello"
    )
    assert done.exit_code == 2
    assert done.stderr.endswith("w.pth` is a web page, not the weights; download the file itself\n")
    # What cannot succeed is not said to continue.
    assert f"kept: what is finished, in {work}\n" in done.stderr


def test_a_stock_resnet_of_small_images_is_advised_on(images, tmp_path, invoke):
    done = invoke(
        "teach", images, "--arch", "resnet18", "--epochs", "1", "-o", tmp_path / "t", *FEW
    )
    assert "resnet18 shrinks 8 px images by 4 before its first block; resnet18-cifar" in done.stderr


def test_grey_images_are_converted_and_said(images, teacher, tmp_path, invoke):
    for path in (images / "grey").iterdir():
        Image.open(path).convert("L").save(path)
    done = invoke("fit", images, "--teacher", teacher, "-o", tmp_path / "p.hello", *FIT)
    assert done.exit_code == 0, done.stderr
    assert "Warning: 12 of 36 images in grey: converted to RGB" in done.stderr


def test_images_that_cannot_be_held_out_are_called_what_they_are(images, tmp_path, invoke):
    for path in (images / "grey").glob("10[3-9].png"):
        path.unlink()
    arguments = ("fit", images, "--teacher", "cnn", "--teacher-epochs", "8", *FIT)
    done = invoke(*arguments, "-o", tmp_path / "p.hello")
    assert done.exit_code == 0, done.stderr
    assert "Warning: a class has too few images to hold one out: accuracies are of" in done.stderr
    assert "held-out" not in done.stderr + done.stdout
    assert re.search(r"^teacher +[\d.]+ % of the training images$", done.stdout, re.MULTILINE)


def test_the_target_is_not_replaced(images, teacher, tmp_path, invoke):
    path = tmp_path / "p.hello"
    path.write_bytes(b"mine")
    arguments = ("fit", images, "--teacher", teacher, *FIT, "-o", path)
    done = invoke(*arguments)
    assert (done.exit_code, path.read_bytes()) == (10, b"mine")
    assert invoke(*arguments, "--force").exit_code == 0
    assert invoke(*arguments[:-2], "-o", tmp_path / "no" / "p.hello").exit_code == 10
