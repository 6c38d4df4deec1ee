"""``hello train``: accuracy of a student trained from an archive and nothing else."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import builders
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from hellofmt.archive import ClassLine, Dataset, Draft, open_archive, write_archive
from hellofmt.loading import HelloDataset
from hellofmt.projector import Projector, seeded_base
from hellofmt.sources import ArrayImages, open_source
from hellofmt.student import evaluate
from hellofmt.teacher import build_network
from hellofmt_cli.baseline import random_images
from hellofmt_cli.main import hello
from hellofmt_cli.train import _verdict

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
    base = builders.tiny_base()
    classes = [ClassLine(key, (key,)) for key in KEYS]
    projector = Projector.build(base, classes, rank=2, start="stored", temperature=3.0, seed=0)
    draft = Draft(
        dataset=builders.dataset("stripes", ipc=4),
        classes=classes,
        views=builders.views(8, ["0.4"] * 3, ["0.3"] * 3),
        images=builders.image_set(pixels, labels),
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


def document_of(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_hard_labels_reach_full_accuracy_on_stripes(archive, folder):
    done = run(
        archive, "--student", "cnn", "--eval", folder, "--labels", "hard", "--steps", "40", "--json"
    )
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    accuracy = document["accuracy"]
    assert (accuracy["last"], accuracy["best"]) == (100.0, 100.0)
    # The first of those that reached it.
    assert accuracy["best_step"] == next(
        m["step"] for m in document["measured"] if m["accuracy"] == 100.0
    )
    assert [m["step"] for m in document["measured"]] == list(range(4, 41, 4))
    assert document["label_kernel"] is None
    assert document["seconds"] > 0
    assert document["versions"]["torch"] == torch.__version__
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
    done = run(*options, "--epochs", "1", "--labels", "sofft")
    assert (done.exit_code, "`--labels`: expected soft" in done.stderr) == (2, True)
    assert "got `sofft`; did you mean `soft`?" in done.stderr
    done = run(*options, "--epochs", "1", "--labels", str(tmp_path / "absent"))
    assert done.exit_code == 9


def test_the_precision_of_labels_is_said_recorded_and_compared(archive, folder, tmp_path):
    options = ["--student", "cnn", "--eval", folder, "--steps", "1"]
    copy = str(tmp_path / "copy.hello")
    done = run(archive, *options, "--json", "--label-dtype", "bfloat16", "--record", copy)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["label_dtype"], document["bfloat16"]) == ("bfloat16", False)
    assert "labels: made in bfloat16\n" in done.stderr
    done = run(copy, *options)
    assert "labels: made in float32\n" in done.stderr
    assert "differs in label dtype (bfloat16 recorded, none here)" in done.stdout
    done = run(copy, *options, "--label-dtype", "bfloat16", "--labels", "hard")
    assert (done.exit_code, "--label-dtype needs --labels soft" in done.stderr) == (2, True)


def test_a_pool_of_views_is_said_recorded_and_compared(archive, folder, tmp_path):
    options = ["--student", "cnn", "--eval", folder, "--epochs", "3", "--views-per-image", "2"]
    done = run(archive, *options, "--json", "--record", str(tmp_path / "copy.hello"))
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["views_per_image"] == 2
    # 8 images, 2 views, 2 classes, 2 bytes.
    line = "labels: pool of {} an image, {}; --views-per-image {} makes every view a new one\n"
    assert line.format("2 views", "64 bytes", 3) in done.stderr
    done = run(str(tmp_path / "copy.hello"), *options[:-1], "1")
    assert done.exit_code == 0, done.output
    assert "the nearest differs in views per image (2 recorded, 1 here)" in done.stdout
    # By default a pool, if it serves a view twice.
    for views, said in ([], True), (["--views-per-image", "40"], False):
        done = run(archive, "--student", "cnn", "--eval", folder, "--epochs", "40", *views)
        assert (line.format("32 views", "1.00 KiB (1,024 bytes)", 40) in done.stderr) is said


@pytest.mark.parametrize("views", ["0", "-1", "many", "1.5"])
def test_a_number_of_views_that_is_none_is_refused(archive, folder, views):
    done = run(archive, "--student", "cnn", "--eval", folder, "--views-per-image", views)
    assert done.exit_code == 2
    assert "--views-per-image" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "2", "--epochs", "2"], "`--steps` and `--epochs`: expected one, got both"),
        (["--labels", "hard", "--recipe", "kl"], "`--recipe` with hard labels: expected none"),
        (["--recipe", "none"], "unknown recipe `none`"),
        (["--ema", "1"], "'--ema': 1.0 is not in the range 0<x<1"),
        (["--student", "resnet"], "unknown network `resnet`"),
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


SHORT = ["--student", "cnn", "--recipe", "rded", "--steps", "8", "--json"]


def result(*arguments):
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_recipes_are_settled_for_data_and_network(archive, folder):
    document = result(archive, "--eval", folder, *SHORT)
    # Four images in each of two classes: all of them; no pass is the tenth of the last fifth.
    assert (document["batch_size"], document["learning_rate"]) == (8, 1e-3)
    assert document["temperature"] == 20.0
    assert [m["step"] for m in document["measured"]] == [8]
    assert document["label_kernel"] == "reference"
    other = result(archive, "--eval", folder, *SHORT, "--student", "mobilenet_v2", "--steps", "1")
    assert other["learning_rate"] == 2.5e-3


def test_a_checkpoint_is_continued_and_a_finished_run_reported_again(archive, folder, tmp_path):
    options = [archive, "--eval", folder, *SHORT, "--recipe", "kl", "--checkpoint-every", "3"]
    whole = result(*options)
    path = tmp_path / "state.safetensors"
    first = result(*options, "--checkpoint", str(path))
    state = path.read_bytes()
    again = result(*options, "--checkpoint", str(path))
    assert path.read_bytes() == state
    for other in (first, again):
        assert other["measured"] == whole["measured"]
        assert other["accuracy"] == whole["accuracy"]
    assert again["seconds"] == first["seconds"]
    done = run(*options, "--checkpoint", str(path), "--seed", "1")
    assert done.exit_code == 2
    assert "E_STATE_DIGEST" in done.output


def test_the_average_is_what_is_measured(archive, folder):
    options = [archive, "--eval", folder, "--student", "cnn", "--labels", "hard", "--steps", "40"]
    plain = result(*options, "--json")
    # It hardly moves, so its weights stay those of the first step.
    lazy = result(*options, "--json", "--ema", "0.999999")
    assert plain["accuracy"]["last"] == 100.0
    assert lazy["accuracy"]["last"] <= 75.0
    assert (plain["ema"], lazy["ema"]) == (None, 0.999999)


def test_the_trained_weights_have_the_names_of_their_library(archive, folder, tmp_path):
    out = tmp_path / "student.safetensors"
    options = ["--student", "resnet18-cifar", "--steps", "2", "-o", str(out)]
    made = document_of(archive, "--eval", folder, *options)
    network = build_network("resnet18-cifar", 2, 8, seed=1)
    network.load_state_dict(load_file(out))
    images = open_source(folder)
    accuracy = evaluate(network.eval(), images, HelloDataset(archive).views)
    assert accuracy == pytest.approx(made["accuracy"]["last"], abs=0.01)
    again = run(archive, "--eval", folder, *options)
    assert (again.exit_code, again.stdout) == (10, "")
    assert "exists; `--force` replaces it" in again.stderr


def test_the_curve_is_written(archive, folder, tmp_path, monkeypatch):
    events = []

    class Writer:
        def __init__(self, folder, purge_step):
            events.append((Path(folder).name, purge_step))

        def add_scalar(self, name, value, step):
            events.append((name, value, step))

        def close(self):
            events.append("closed")

    log = tmp_path / "log"
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: name == "tensorboard" or found(name)
    )
    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    document = result(
        archive,
        "--eval",
        folder,
        "--student",
        "cnn",
        "--steps",
        "20",
        "--json",
        "--curve",
        str(log),
    )
    rows = [line.split(",") for line in (log / "curve.csv").read_text().splitlines()]
    assert rows[0] == ["step", "loss", "learning_rate", "accuracy"]
    assert [int(row[0]) for row in rows[1:]] == list(range(1, 21))
    points = json.loads((log / "curve.json").read_text())
    assert [p["loss"] for p in points] == [float(row[1]) for row in rows[1:]]
    assert [(p["step"], round(p["accuracy"], 2)) for p in points if p["accuracy"] is not None] == [
        (m["step"], m["accuracy"]) for m in document["measured"]
    ]
    assert [row[3] == "" for row in rows[1:]] == [p["accuracy"] is None for p in points]
    added = {"runs", "recorded", "copy"}
    kept = {key: value for key, value in document.items() if key not in added}
    assert json.loads((log / "result.json").read_text()) == kept
    with Image.open(log / "curve.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 100
    assert events[0] == ("log", 1)
    assert events[-1] == "closed"
    assert ("loss", points[3]["loss"], 4) in events
    assert ("accuracy", points[-1]["accuracy"], 20) in events
    assert sum(event[0] == "accuracy" for event in events) == len(document["measured"])


def test_what_is_not_installed_is_named_once(archive, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    done = run(archive, "--eval", folder, *SHORT, "--curve", str(tmp_path / "log"))
    assert done.exit_code == 0, done.output
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    assert warnings == [
        "Warning: no curve.png without `matplotlib`; `pip install 'hellofmt[log]'`",
        "Warning: no TensorBoard events without `tensorboard`; `pip install 'hellofmt[log]'`",
    ]
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == [
        "curve.csv",
        "curve.json",
        "result.json",
    ]


def test_a_teacher_labels_online(archive, folder, tmp_path):
    from hellofmt.archive import open_archive
    from hellofmt.student import build_student
    from hellofmt.teacher import write_teacher

    with open_archive(archive) as file:
        views = file.manifest.views
    out = tmp_path / "teacher"
    write_teacher(out, "cnn", build_student("cnn", 2, 8), views=views, classes=KEYS)
    document = result(archive, "--eval", folder, *SHORT, "--labels", str(out))
    assert (document["labels"], document["label_kernel"]) == (str(out), "function")


@pytest.mark.slow
def test_two_processes_report_once(archive, folder, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What torchrun sets for its processes, without a third one to start them.
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    state, log = tmp_path / "state.safetensors", tmp_path / "log"
    arguments = [archive, "--eval", folder, *SHORT, "--checkpoint", str(state)]
    arguments += ["--curve", str(log)]
    processes = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "hellofmt", "train", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", **place, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    output = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    document = json.loads(output[0][0])
    assert output[1][0] == ""
    assert document["processes"] == 2
    assert state.exists()
    added = {"runs", "recorded", "copy"}
    kept = {key: value for key, value in document.items() if key not in added}
    assert json.loads((log / "result.json").read_text()) == kept


def test_a_worker_that_dies_is_one_line(archive, folder, monkeypatch):
    def die(_dataset, _indices):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(HelloDataset, "__getitems__", die)
    options = ["--student", "cnn", "--eval", folder, "--labels", "hard", "--workers", "1"]
    done = run(archive, *options, "--steps", "2")
    assert done.exit_code == 9
    assert re.fullmatch(
        r"train: cnn, 2 steps of 8 views\n"
        r"Error: E_READ: a DataLoader worker .*; pass `--workers 0` or a smaller `--batch-size`\n",
        done.output,
    )


def test_a_result_is_recorded_in_a_copy_and_held_against_the_next(archive, folder, tmp_path):
    words = ("--student", "cnn", "--steps", "4", "--eval", folder)
    before = Path(archive).read_bytes()
    one, two, hard = (str(tmp_path / f"{name}.hello") for name in ("one", "two", "hard"))
    first = document_of(archive, *words, "--record", one)
    assert first["recorded"] is None
    assert first["copy"]["path"] == one
    with open_archive(archive) as old, open_archive(one, expect=first["copy"]["id"]) as new:
        assert new.content_id == old.content_id
        (result,) = new.record.results
    assert Path(archive).read_bytes() == before
    assert [float(text) for text in result.accuracy] == [first["accuracy"]["last"]]
    assert (result.student, result.recipe, result.steps, result.seeds) == ("cnn", "kl", 4, [0])
    assert (result.labels, result.images, result.batch_size) == ("soft", "archive", 8)
    assert (result.evaluated.images, result.evaluated.name) == (20, "eval")
    again = document_of(one, *words)
    assert again["recorded"] == {
        "accuracy": [first["accuracy"]["last"]],
        "tolerance": again["recorded"]["tolerance"],
        "reproduced": True,
        "differs": [],
    }
    document_of(one, *words, "--seed", "1", "--record", two)
    control = document_of(two, *words, "--labels", "hard", "--record", hard)
    assert control["recorded"]["reproduced"] is None
    assert control["recorded"]["differs"] == [
        "function (default recorded, none here)",
        "labels (soft recorded, hard here)",
        "recipe (kl recorded, hard here)",
    ]
    with open_archive(hard) as file:
        assert [(r.labels, r.seeds) for r in file.record.results] == [
            ("soft", [0, 1]),
            ("hard", [0]),
        ]


def test_several_seeds_are_runs_of_one_result(archive, folder, tmp_path):
    words = ("--student", "cnn", "--steps", "2", "--eval", folder)
    copy = str(tmp_path / "copy.hello")
    both = document_of(archive, *words, "--seeds", "2", "--seed", "3", "--record", copy)
    alone = [document_of(archive, *words, "--seed", seed)["accuracy"] for seed in ("3", "4")]
    assert [run["last"] for run in both["runs"]] == [one["last"] for one in alone]
    assert [run["seed"] for run in both["runs"]] == [3, 4]
    with open_archive(copy) as file:
        (result,) = file.record.results
    assert result.seeds == [3, 4]
    assert [float(text) for text in result.accuracy] == [one["last"] for one in alone]
    text = run(copy, *words, "--seeds", "2", "--seed", "3").stdout
    assert re.search(r"accuracy, last +[\d.]+ ± [\d.]+ %: [\d.]+ % with seed 3, ", text)
    assert re.search(r"verdict +recorded .* % \(2 seeds\), here .* %: reproduced", text)
    refused = run(archive, *words, "--seeds", "2", "--curve", str(tmp_path / "c"))
    assert (refused.exit_code, "`--curve` is of one run" in refused.stderr) == (2, True)


def test_what_is_said_of_a_recorded_result():
    recorded = {"accuracy": [41.2, 39.5, 42.9], "tolerance": 8.4, "reproduced": True, "differs": []}
    assert _verdict(recorded, [40.8]) == "recorded 41.2 ± 1.7 % (3 seeds), here 40.8 %: reproduced"
    far = recorded | {"reproduced": False, "differs": ["device (cpu recorded, cuda here)"]}
    assert _verdict(far, [30.2]) == (
        "recorded 41.2 ± 1.7 % (3 seeds), here 30.2 %: not reproduced, 11.0 points lower, where 95"
        " % of new seeds are within 8.4; differs in device (cpu recorded, cuda here)"
    )
    other = {"reproduced": None, "differs": ["steps (1 recorded, 2 here)"]}
    assert _verdict(other, [1.0]) == (
        "no recorded result is of such a run; the nearest differs in steps (1 recorded, 2 here)"
    )


def test_a_copy_that_exists_is_refused_before_the_training(archive, folder, tmp_path):
    target = tmp_path / "mine.hello"
    target.write_bytes(b"mine")
    for path in (target, archive):
        words = ("--student", "cnn", "--steps", "4", "--eval", folder, "--record", str(path))
        done = CliRunner().invoke(hello, ["train", archive, *words])
        assert (done.exit_code, "E_TARGET" in done.stderr) == (10, True)
        assert "steps of" not in done.stderr
    assert target.read_bytes() == b"mine"


def test_random_images_take_the_place_of_the_archives(archive, folder, tmp_path):
    pixels, labels = stripes(6, 2)
    real = tmp_path / "real"
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (real / KEYS[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(real / KEYS[label] / f"{i:02}.png")
    words = ("--student", "cnn", "--steps", "2", "--eval", folder)
    copy = str(tmp_path / "copy.hello")
    document = document_of(archive, *words, "--random", str(real), "--record", copy)
    assert (document["trained_on"], document["batch_size"]) == ("random", 8)
    with open_archive(copy) as file:
        assert [result.images for result in file.record.results] == ["random"]
    same = run(archive, *words, "--random", folder)
    assert (same.exit_code, "--random and --eval hold the same images" in same.stderr) == (2, True)
    for file in sorted((real / "rows").iterdir())[3:]:
        file.unlink()
    few = run(archive, *words, "--random", str(real))
    assert few.exit_code == 2
    assert "class `rows` has 3 real images; expected at least 4" in few.stderr


def test_random_images_are_drawn_by_class_and_seed(archive):
    pixels, labels = stripes(9, 3)
    classes = tuple(ClassLine(key, (key,)) for key in KEYS)
    source = ArrayImages(pixels, labels, classes)
    with open_archive(archive) as file:
        one, again, other = (random_images(source, file, seed) for seed in (0, 0, 1))
    assert [label for _, label in one] == [0] * 4 + [1] * 4
    rows = [int(np.flatnonzero((pixels == image).all((1, 2, 3)))[0]) for image, _ in one]
    assert len(set(rows)) == 8
    assert [labels[row] for row in rows] == [label for _, label in one]
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(one, again, strict=True))
    assert not all(np.array_equal(a, b) for (a, _), (b, _) in zip(one, other, strict=True))
