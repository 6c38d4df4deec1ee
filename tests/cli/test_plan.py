"""`hello plan`: the page and the document, against the plan and against what is known by hand."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from hellofmt.ledger import DATASETS, plan
from hellofmt_cli.byte_sizes import ByteSize

PLAN_KEYS = [
    "schema",
    "dataset",
    "classes",
    "images",
    "epochs",
    "budget",
    "labels",
    "base",
    "precision",
    "rank",
    "head_rank",
    "values",
    "label_functions",
    "rivals",
    "smaller",
    "teacher_parameters",
    "data_sets_per_base",
    "moved",
    "work",
    "assumptions",
]


def test_document_field_by_field(invoke_json):
    document = invoke_json("plan", "--dataset", "imagenet-1k", "--ipc", 50)
    made = plan(1000, 50_000, 300)
    assert list(document) == PLAN_KEYS
    assert document["schema"] == "hello.plan/1"
    assert document["dataset"] == "imagenet-1k"
    assert (document["classes"], document["images"], document["epochs"]) == (1000, 50_000, 300)
    assert document["budget"] is None
    assert document["labels"] == 15_000_000
    assert document["base"] == {
        "name": "RN50",
        "size": 224,
        "embed_dim": 1024,
        "parameters": 38_316_896,
        "buffers": 53_248,
        "text_parameters": 63_690_241,
        "gflop_per_label": 12.222939136,
    }
    assert (document["precision"], document["rank"], document["head_rank"]) == ("int8", 8, 128)
    assert document["values"] == 816_856
    assert document["label_functions"][2] == {
        "precision": "int8",
        "values_bytes": 816_856,
        "adapter": 613_176,
        "head": 263_964,
        "probes": 8_080,
        "base_public": 885_220,
        "base_charged": 39_255_364,
    }
    assert document["rivals"][0] == {
        "name": "float16 labels",
        "bytes": 30_000_000_000,
        "bytes_per_epoch": 100_000_000.0,
        "ratio_public": 885_220 / 30e9,
        "ratio_charged": 39_255_364 / 30e9,
        "break_even_public": 1,
        "break_even_charged": 1,
    }
    assert [list(rival.values()) for rival in document["rivals"]] == [
        [
            r.name,
            r.size_bytes,
            r.epoch_bytes,
            r.public,
            r.charged,
            r.break_even_public,
            r.break_even_charged,
        ]
        for r in made.rivals
    ]
    assert document["rivals"][-1]["break_even_public"] is None
    assert document["smaller"] == []
    assert document["teacher_parameters"] == 11_689_512
    assert document["data_sets_per_base"] == made.data_sets
    assert document["moved"] == {
        "stored_per_epoch": 100_000_000,
        "stored": 30_000_000_000,
        "function_once": 885_220,
        "base_once": 38_370_144,
    }
    assert document["work"] == {
        "gflop": 15_000_000 * 12_222_939_136 / 1e9,
        "device_tflops": 989.0,
        "utilisation": 0.4,
        "device_hours": made.device_hours,
        "bandwidth": 3.0,
        "read_hours": made.read_hours,
    }
    assert document["assumptions"] == list(made.assumptions)


def test_every_option_reaches_the_plan(invoke_json):
    options = {
        "classes": 500,
        "images": 1234,
        "epochs": 7,
        "base": "ViT-B/16",
        "precision": "int4",
        "rank": 4,
        "head-rank": 9,
        "teacher-parameters": 10_000_000,
        "device-tflops": 100.0,
        "utilisation": 0.5,
        "bandwidth": 0.5,
    }
    document = invoke_json("plan", *[word for k, v in options.items() for word in (f"--{k}", v)])
    names = {key.replace("-", "_"): value for key, value in options.items()}
    made = plan(**names)
    assert document["dataset"] is None
    assert document["values"] == made.values
    assert document["label_functions"][3]["base_public"] == made.function.public
    assert document["rivals"][0]["ratio_public"] == made.rivals[0].public
    assert document["rivals"][-1]["bytes"] == 10_000_000
    assert document["work"]["device_hours"] == made.device_hours
    assert document["work"]["read_hours"] == made.read_hours
    full = invoke_json("plan", "--dataset", "imagenet-1k", "--head-rank", "full")
    assert full["head_rank"] is None


@pytest.mark.parametrize("name", DATASETS)
def test_presets(name, invoke_json):
    preset = DATASETS[name]
    document = invoke_json("plan", "--dataset", name)
    found = document["classes"], document["images"], document["epochs"]
    assert found == (
        preset.classes,
        preset.images or preset.ipc * preset.classes,
        preset.epochs,
    )
    if preset.note:
        assert document["assumptions"][0] == preset.note


def test_options_win_over_a_preset(invoke_json):
    words = ("--dataset", "laion-400m", "--classes", 3, "--ipc", 2, "--epochs", 5)
    document = invoke_json("plan", *words)
    assert (document["classes"], document["images"], document["epochs"]) == (3, 6, 5)
    assert invoke_json("plan", "--dataset", "cifar-10", "--images", 77)["images"] == 77


def test_page(invoke):
    page = invoke("plan", "--dataset", "imagenet-1k", "--ipc", 50).stdout
    words = "imagenet-1k: 1,000 classes, 50,000 images, 300 epochs: 15,000,000 labels"
    assert re.search(f"data set +{words}\n", page)
    assert re.search(r"base +RN50, 12\.22 GFLOP per label\n", page)
    assert re.search(r"label function +816,856 values, rank 8, head rank 128\n", page)
    assert re.search(r"int8 +816,856 +885,220 +39,255,364\n", page)
    assert re.search(r"float16 labels +27\.94 GiB +0\.00295 % +1 +0\.131 % +1\n", page)
    assert re.search(r"int8 teacher +11\.15 MiB +7\.57 % +- +336 % +-\n", page)
    verdict = page.split("With a public base the label function is the smallest.\n")[1]
    assert verdict.startswith(
        "Smaller once the base is charged:\n  float16 teacher\n  int8 teacher\n\n"
    )
    assert re.search(r"image tower +3\.6\n +and text rows +3\.9\n +and text tower +9\.4\n", page)
    assert "95.37 MiB in each epoch, 27.94 GiB in all, 10 s to read" in page
    assert "864.47 KiB once, and 36.59 MiB for the base where it is not at hand" in page
    assert "183 PFLOP, 7.7 min of one device" in page
    for sentence in plan(1000, 50_000, 300).assumptions:
        assert f"  - {sentence}\n" in page


def test_where_stored_labels_are_smaller_it_says_so(invoke):
    page = invoke("plan", "--dataset", "cifar-10").stdout
    assert (
        "Stored float16 labels are smaller here, up to 311 epochs: few images or classes.\n"
        "Smaller than the label function:\n  float16 labels\n  pruned and quantised labels, 40x\n"
    ) in page
    assert "the label function is the smallest" not in page
    assert re.search(r"label function +568,024 values, rank 8, full head\n", page)
    page = invoke("plan", "--dataset", "cifar-10", "--epochs", 312).stdout
    assert "Stored float16 labels are smaller here" not in page


def test_the_smallest_with_and_without_its_base(invoke):
    words = ("--dataset", "imagenet-1k", "--teacher-parameters", 10**9)
    page = invoke("plan", *words, "--epochs", 10**6).stdout
    assert (
        "With a public base the label function is the smallest.\nSo it is with the base charged.\n"
    ) in page
    page = invoke("plan", "--dataset", "imagenet-1k", "--teacher-parameters", 1000).stdout
    assert re.search(r"image tower +never\n", page)


@pytest.mark.parametrize(
    ("hours", "text"),
    [(0.001, "3.6 s"), (0.5, "30 min"), (9.94, "9.9 h"), (100.4, "100 h"), (3200.0, "3,200 h")],
)
def test_hours(hours, text):
    from hellofmt_cli.plan import _hours

    assert _hours(hours) == text


@pytest.mark.parametrize(
    ("gflop", "text"),
    [
        (12.2229, "12.2 GFLOP"),
        (999.4, "999 GFLOP"),
        (999.6, "1 TFLOP"),
        (4.5e11, "450 EFLOP"),
        (4.5e13, "45,000 EFLOP"),
    ],
)
def test_operations(gflop, text):
    from hellofmt_cli.plan import _gflop

    assert _gflop(gflop) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "E_OPTION: give --dataset, or --classes with --ipc or --images"),
        (["--ipc", 3], "E_OPTION: give --dataset, or --classes with --ipc or --images"),
        (["--classes", 3], "E_OPTION: give one of --ipc and --images"),
        (["--classes", 3, "--ipc", 1, "--images", 3], "E_OPTION: give one of --ipc and --images"),
        (
            ["--dataset", "cifar-10", "--head-rank", "x\x1b"],
            "expected full or a number, got x\\x1b",
        ),
        (["--dataset", "cifar-10", "--base", "mine"], "E_OPTION: base: expected one of RN50, "),
        (["--dataset", "cifar-10", "--utilisation", 2], "at most 1, got 2"),
    ],
)
def test_errors_are_one_line(arguments, text, invoke):
    result = invoke("plan", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    document = json.loads(invoke("plan", *arguments, "--json").stdout)
    assert (document["code"], document["exit"]) == ("E_OPTION", 2)


@pytest.mark.parametrize("option", ["--dataset", "--precision"])
def test_choices(option, invoke):
    result = invoke("plan", option, "other")
    assert result.exit_code == 2
    assert "'other' is not one of" in result.stderr


@pytest.mark.parametrize("option", ["--classes", "--ipc", "--images", "--epochs", "--rank"])
def test_none_of_something_is_refused_by_its_option(option, invoke):
    result = invoke("plan", option, 0)
    assert result.exit_code == 2
    assert f"'{option}': 0 is not in the range x>=1" in result.stderr


def test_a_budget_buys_images(invoke, invoke_json, tmp_path):
    document = invoke_json(*words("plan --bytes 2MB --classes 10 --view-size 32"))
    spent, function = document["budget"], document["label_functions"][2]["base_public"]
    assert (spent["bytes"], spent["ipc"] * 10) == (2_000_000, document["images"])
    most = spent["ipc"] * 10 * spent["bytes_per_image"]
    assert 0.95 < (function + 16_384 + most) / 2_000_000 <= 1.001
    assert spent["assumptions"][1].endswith("what those of CIFAR-10 at 32 pixels do")
    page = invoke(*words("plan --bytes 2MB --classes 10 --view-size 32")).stdout
    assert page.startswith(
        f"2,000,000 bytes buy  {spent['ipc']} images per class, {spent['codec']}"
    )
    # Of images that are there their weight is known.
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        for number in range(5):
            pixels = np.full((24, 24, 3), 20 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / str(label) / f"{number}.png")
    document = invoke_json("plan", "--bytes", "1MiB", tmp_path)
    assert (document["classes"], document["images"]) == (2, 10)
    assert (document["budget"]["codec"], document["budget"]["quality"]) == ("webp", 100)
    # A flat image is one block.
    assert document["budget"]["bytes_per_image"] == 512 + 512 + 48


def words(text):
    return text.split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--bytes 2MB --ipc 3 --classes 4", "--bytes chooses the number of images"),
        ("--bytes 2MB", "give DATA, --dataset or --classes"),
        ("--classes 4 --ipc 3 photos", "DATA is read for --bytes only"),
        ("--bytes 2MO --classes 4", "'2MO'; expected bytes such as 500kB, 2MB or 1.5MiB"),
        ("--bytes 0.5 --classes 4", "'0.5'; expected bytes such as"),
        ("--bytes 1kB --classes 4", "1,000 bytes: expected at least about "),
    ],
)
def test_a_budget_that_cannot_be_planned(invoke, options, message):
    done = invoke("plan", *options.split())
    assert done.exit_code != 0
    assert message in done.stderr


def test_the_least_budget_is_enough(invoke, invoke_json):
    refused = invoke(*words("plan --bytes 1kB --classes 4")).stderr
    least = refused.partition("at least about ")[2].partition(":")[0].replace(",", "")
    assert invoke_json(*words(f"plan --bytes {least} --classes 4"))["budget"]["ipc"] == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500kB", 500_000),
        ("2MB", 2_000_000),
        ("1.5MiB", 1_572_864),
        ("3 GB", 3_000_000_000),
        ("12345", 12_345),
        ("7b", 7),
        ("0.0015kb", 1),
    ],
)
def test_sizes_are_read_as_people_type_them(text, size):
    assert ByteSize().convert(text, None, None) == size
