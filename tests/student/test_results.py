"""Results in a record: joined by what they share, and a new run held against them."""

import math

import msgspec
import numpy as np
import pytest
from scipy import stats

from hellofmt.archive.format.record import Record, Result, SourceRecord
from hellofmt.errors import UserInputError
from hellofmt.student.results import compared, prediction_interval, with_result

EVALUATED = SourceRecord(
    classes=2, digest="sha256:" + "0" * 64, images=500, name="test", per_class=[250, 250]
)


def result(accuracy=("41.2",), seeds=(0,), **changes):
    values = {
        "accuracy": list(accuracy),
        "batch_size": 50,
        "bfloat16": False,
        "device": "cpu",
        "evaluated": EVALUATED,
        "images": "archive",
        "labels": "soft",
        "learning_rate": "0.001",
        "recipe": "kl",
        "seeds": list(seeds),
        "steps": 300,
        "student": "cnn",
        "versions": {"torch": "2.10"},
    }
    return Result(**(values | changes))


@pytest.mark.parametrize("count", [2, 3, 5, 11, 12, 30])
def test_the_interval_is_that_of_one_more_seed(count):
    recorded = list(np.random.default_rng(count).normal(41, 1.7, count))
    t = stats.t.ppf(0.975, count - 1)
    expected = t * np.std(recorded, ddof=1) * math.sqrt(1 + 1 / count)
    assert prediction_interval(recorded, 10**6) == pytest.approx(expected + 0.01, rel=0.005)


def test_one_seed_has_the_interval_of_two_proportions():
    error = stats.norm.ppf(0.975) * math.sqrt(2 * 0.3 * 0.7 / 500) * 100
    assert prediction_interval([30.0], 500) == pytest.approx(error + 0.01, rel=1e-3)


def test_no_spread_leaves_one_image():
    assert prediction_interval([30.0, 30.0], 500) == pytest.approx(0.21)
    assert prediction_interval([100.0], 500) == pytest.approx(0.21)


def test_a_share_of_one_in_twenty_honest_runs_is_refused():
    """The promise of the interval, by simulation: new seeds of the same distribution."""
    random = np.random.default_rng(0)
    runs = [random.normal(41, 1.7, 4) for _ in range(4000)]
    kept = [abs(r[3] - r[:3].mean()) <= prediction_interval(list(r[:3]), 10**6) for r in runs]
    assert np.mean(kept) == pytest.approx(0.95, abs=0.015)


def test_the_mean_of_several_new_seeds_has_a_narrower_interval():
    recorded = [41.2, 39.5, 42.9]
    t = stats.t.ppf(0.975, 2)
    expected = t * np.std(recorded, ddof=1) * math.sqrt(1 / 4 + 1 / 3)
    assert prediction_interval(recorded, 10**6, 4) == pytest.approx(expected + 0.01, rel=1e-3)
    here = compared([result(("41.2", "39.5", "42.9"), (0, 1, 2))], result(("30.0", "50.0"), (3, 4)))
    assert (here.is_reproduced, here.here) == (True, (30.0, 50.0))


def test_a_match_is_judged_by_its_seeds():
    recorded = [result(("41.2", "39.5", "42.9"), (0, 1, 2))]
    good = compared(recorded, result(("40.8",), (7,)))
    assert (good.is_reproduced, good.differs, good.recorded) == (True, (), (41.2, 39.5, 42.9))
    assert compared(recorded, result(("20.0",), (7,))).is_reproduced is False


def test_other_versions_match_and_are_named():
    recorded = [result(("41.2", "39.5"), (0, 1))]
    here = result(("40.0",), (0,), versions={"torch": "2.11"}, device="NVIDIA H200")
    comparison = compared(recorded, here)
    assert comparison.is_reproduced is True
    assert comparison.differs == (
        "device (cpu recorded, NVIDIA H200 here)",
        "versions torch (2.10 recorded, 2.11 here)",
    )


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"steps": 500}, "steps (300 recorded, 500 here)"),
        ({"student": "resnet18"}, "student (cnn recorded, resnet18 here)"),
        ({"recipe": "rded"}, "recipe (kl recorded, rded here)"),
        ({"labels": "hard"}, "labels (soft recorded, hard here)"),
        ({"images": "random"}, "images (archive recorded, random here)"),
        ({"batch_size": 25}, "batch size (50 recorded, 25 here)"),
        ({"ema": "0.99"}, "ema (none recorded, 0.99 here)"),
        ({"ipc": 10}, "ipc (none recorded, 10 here)"),
        (
            {"evaluated": msgspec.structs.replace(EVALUATED, digest="sha256:" + "1" * 64)},
            f"images evaluated (500 of sha256:{'0' * 12} recorded, 500 of sha256:{'1' * 12} here)",
        ),
    ],
)
def test_what_differs_is_named_and_nothing_is_judged(changes, phrase):
    far = result(steps=7, student="other", recipe="hello")
    comparison = compared([far, result()], result(**changes))
    assert comparison.is_reproduced is None
    assert comparison.differs == (phrase,)


def test_nothing_recorded_is_nothing_to_say():
    assert compared([], result()) is None


def test_seeds_of_one_configuration_join():
    record = with_result(None, result(("41.2",), (1,)))
    record = with_result(record, result(("39.5",), (0,)))
    record = with_result(record, result(("30.0",), (0,), labels="hard"))
    first, second = record.results
    assert (first.seeds, first.accuracy) == ([0, 1], ["39.5", "41.2"])
    assert (second.labels, second.seeds) == ("hard", [0])
    again = with_result(record, result(("39.75",), (0,)))
    assert again.results[0].accuracy == ["39.75", "41.2"]
    other = with_result(record, result(("39.0",), (5,), versions={"torch": "2.11"}))
    assert len(other.results) == 3


def test_what_else_is_recorded_stays():
    record = Record(functions=[], results=[result()])
    assert with_result(record, result(steps=1)).functions == []


def test_a_full_record_is_refused():
    full = Record(results=[result(steps=k + 1) for k in range(64)])
    assert len(with_result(full, result(("1.0",), (9,), steps=1)).results) == 64
    with pytest.raises(UserInputError, match="E_DATA: the record is full"):
        with_result(full, result(steps=100))
    seeds = Record(results=[result(["1.0"] * 64, range(64))])
    with pytest.raises(UserInputError, match="E_DATA: the record is full"):
        with_result(seeds, result(seeds=(64,)))
