"""A record in words: every fact stands in a line."""

import json
from pathlib import Path

import pytest

from hellofmt.archive import open_archive
from hellofmt.archive.record_text import record_rows, result_line, spread

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"
EVERYTHING = VECTORS / "everything.hello"


@pytest.fixture
def record():
    with open_archive(EVERYTHING) as file:
        return json.loads(file.section("record"))


def test_every_fact_stands_in_a_line(record):
    rows = dict(record_rows(record))
    assert rows["made by"] == "hello distill drawn --teacher teacher --base seeded --ipc 1"
    assert rows["with"] == "hellofmt 1.0, torch 2.10 on cpu; seeds: fit 0"
    assert rows["from"] == "drawn: 600 images of 3 classes, 200 each"
    assert rows["teacher"] == "97.5 % of 60 held-out images"
    assert rows["network"].startswith("cnn from hello teach; input as views are, mean 0.5 0.5 0.5")
    assert rows["fitted"] == (
        "kl, 300 steps of 128 views, rank 2 on all; 96.0 % of 60 held-out images"
    )
    assert rows["fidelity"] == "agreement 93.75 %, KL 0.0125 on 1,024 new views"
    assert rows["images chosen"] == (
        "1 per class of up to 300 candidates by lowest loss, the best of 5 crops, png"
    )
    # statistics of 41.2, 39.5, 42.75 by hand: mean 41.15, standard deviation 1.6256.
    assert rows["student"] == (
        "cnn, kl, 300 steps of 50 views: 41.1 ± 1.6 % with 3 seeds, of 600 images of drawn"
    )


def test_functions_are_told_apart(record):
    one = record["functions"][0]
    rows = dict(record_rows({"functions": [one, one | {"name": "weak", "rank": 4}]}))
    assert "rank 2 on" in rows["fitted of default"]
    assert "rank 4 on" in rows["fitted of weak"]


def test_one_seed_has_no_spread_and_baselines_are_named(record):
    result = record["results"][0] | {"accuracy": ["30.0"], "seeds": [7]}
    assert spread([30.0]) == "30.0 %"
    line = result_line(result | {"labels": "hard", "recipe": "hard", "images": "random"})
    assert line.startswith("cnn, hard labels, random images, 300 steps of 50 views: 30.0 %")
    line = result_line(result | {"ipc": 5, "views_per_image": 2})
    assert ", 5 per class, 2 views each, 300 steps" in line
