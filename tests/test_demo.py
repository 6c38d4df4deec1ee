"""The demo end to end, with a few steps of everything: parts join, claims are arithmetic."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hellofmt.archive import open_archive, verify_archive
from hellofmt.distillation import FitSettings
from hellofmt.errors import CorruptError, HelloError, NotHelloError
from hellofmt.rng import Stream, below, words
from hellofmt_cli.demo import demo
from hellofmt_cli.demo_picture import draw_report
from hellofmt_cli.demo_report import bytes_sentence, report_text, write_json
from hellofmt_cli.demo_run import run_demo
from hellofmt_cli.demo_settings import DemoSettings, split_data

QUICK = DemoSettings(
    ipcs=(1, 2),
    seeds=(0, 1),
    held_out=1600,
    teacher_steps=12,
    fit=FitSettings(steps=4, batch_size=16, learning_rate=8e-3),
    steps=3,
    processes=0,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    said = []
    result = run_demo(out, QUICK, say=said.append)
    return out, result, said


def test_the_result_has_the_documented_form(run):
    out, result, _ = run
    write_json(out / "result.json", result)
    document = json.loads((out / "result.json").read_text())
    assert document == result
    assert document["schema"] == "hello.demo/1"
    for key in ("accuracy", "spread"):
        assert set(document[key]) == {"ipc1", "ipc2", "full"}
        assert set(document[key]["ipc1"]) == {"hard", "random", "hello", "teacher"}
    assert document["seeds"] == [0, 1]
    assert (document["steps"], document["measured_on"]) == (3, "test")
    assert document["seconds"] > 0


def test_the_archives_verify_and_their_bytes_add_up(run):
    out, result, _ = run
    for ipc in (1, 2):
        path = out / f"digits-ipc{ipc}.hello"
        assert verify_archive(path).images == 10 * ipc
        account = result["bytes"][f"ipc{ipc}"]
        assert sum(account["parts"].values()) == account["total"] == path.stat().st_size
        assert account["stored_labels"] == 3 * 50 * 10 * 2
        assert account["epochs"] == pytest.approx(150 / (10 * ipc), abs=0.05)
        assert account["teacher_float16"] == 2 * 94_986


def read_everything(path):
    with open_archive(path) as file:
        for name in file.section_sizes():
            if name != "pixels":
                file.section(name)
        for row in range(len(file)):
            file.decode_image(row)
        return file.images_end


def test_any_changed_bit_or_cut_is_noticed(run, tmp_path):
    whole = (run[0] / "digits-ipc1.hello").read_bytes()
    path = tmp_path / "damaged.hello"
    path.write_bytes(whole)
    payload_end = read_everything(path)
    raw = words(0, 0, Stream.NOISE, 0, 2100)
    unseen = []
    with path.open("r+b", buffering=0) as file:
        for bit in below(raw[:2000], 8 * len(whole)).tolist():
            at = bit // 8
            os.pwrite(file.fileno(), bytes([whole[at] ^ 1 << bit % 8]), at)
            # The trailer is no part that reading needs; verify reads it too.
            ways = [verify_archive] + ([read_everything] if at < payload_end else [])
            for read in ways:
                try:
                    read(path)
                except HelloError as error:
                    if error.exit_code in (3, 4, 5):
                        continue
                unseen.append((bit, read.__name__))
            os.pwrite(file.fileno(), whole[at : at + 1], at)
        assert unseen == []
        for length in sorted(below(raw[2000:], len(whole)).tolist(), reverse=True):
            os.truncate(path, length)
            with pytest.raises((NotHelloError, CorruptError)):
                open_archive(path)


def test_the_stored_images_are_training_images(run):
    out, _, _ = run
    data = split_data(QUICK)
    train = zip(data.train.pixels, data.train.labels, strict=True)
    known = {image.tobytes(): int(label) for image, label in train}
    with open_archive(out / "digits-ipc2.hello") as file:
        for row in range(len(file)):
            assert known[file.decode_image(row).tobytes()] == int(file.index.label[row])


def test_the_parts_of_the_split_do_not_touch():
    test = split_data(DemoSettings())
    validation = split_data(replace(DemoSettings(), validate=True))
    assert (len(test.train), len(test.measured)) == (1297, 500)
    assert (len(validation.train), len(validation.measured)) == (997, 300)
    # Some scans are identical in pixels, so the parts are compared as sets of what is left out.
    pixels = np.concatenate([validation.train.pixels, validation.measured.pixels])
    assert sorted(p.tobytes() for p in pixels) == sorted(p.tobytes() for p in test.train.pixels)


def test_each_step_says_what_happens(run):
    _, result, said = run
    steps = [line for line in said if line.startswith("[")]
    assert [line[:5] for line in steps] == [f"[{k}/6]" for k in range(1, 6)]
    assert any(f"{result['projector']['accuracy']:.1f} %" in line for line in said)


def test_one_fit_serves_every_archive_and_no_work_is_left(run):
    out, _, said = run
    assert sum("fit: finished earlier" in line for line in said) == 3
    assert sorted(path.name for path in out.iterdir() if path.suffix not in {".json", ".png"}) == [
        "data.npz",
        "digits-ipc1-random.hello",
        "digits-ipc1.hello",
        "digits-ipc2-random.hello",
        "digits-ipc2.hello",
        "teacher.safetensors",
    ]


def test_the_picture_is_drawn(run):
    out, result, _ = run
    draw_report(out, result)
    with Image.open(out / "report.png") as picture:
        assert picture.width > 1000
        assert np.asarray(picture.convert("L")).std() > 20


def test_the_table_has_a_row_for_each_number_of_images(run):
    _, result, _ = run
    lines = report_text(result).splitlines()
    assert lines[0].count("|") == 7
    assert "labels from the .hello file" in lines[0]
    assert lines[2].split("|")[1].strip() == "1"
    mean, spread = result["accuracy"]["ipc2"]["hello"], result["spread"]["ipc2"]["hello"]
    assert lines[3].split("|")[4].strip() == f"{mean:.1f} ± {spread:.1f}"


@pytest.mark.parametrize(("payload", "words"), [(100, "is smaller than"), (9000, "be SMALLER")])
def test_the_byte_sentence_is_honest_both_ways(payload, words):
    account = {"payload": payload, "stored_labels": 3000, "teacher_float16": 190_000}
    assert words in bytes_sentence({"bytes": {"ipc1": account}})


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hellofmt_cli.demo_picture", None)
    result = CliRunner().invoke(demo, ["--output", str(tmp_path / "out")])
    assert "pip install 'hellofmt[demo]'" in str(result.exception)
    assert not (tmp_path / "out").exists()
