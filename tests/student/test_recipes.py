from __future__ import annotations

import pytest

from hellofmt.errors import UserInputError
from hellofmt.student.recipes import RECIPES, recipe


def test_names_and_kinds_of_label():
    assert {name: r.labels for name, r in RECIPES.items()} == {
        "hello": "logits",
        "rded": "soft",
        "sre2l": "soft",
        "kl": "soft",
        "strong": "soft",
        "hard": "hard",
    }
    assert all(name == r.name for name, r in RECIPES.items())


def test_published_constants():
    assert recipe("hello").hard_weight == 0.1
    rded = recipe("rded")
    assert (rded.temperature, rded.schedule, rded.learning_rate) == (20.0, "half_cosine", 1e-3)
    assert (rded.weight_decay, rded.epochs) == (0.01, 300)
    hello = recipe("hello")
    assert (hello.schedule, hello.batch_sizes, hello.temperature) == (
        "half_cosine",
        rded.batch_sizes,
        None,
    )
    sre2l = recipe("sre2l")
    assert (sre2l.temperature, sre2l.schedule, sre2l.batch_size) == (20.0, "cosine", 1024)
    strong = recipe("strong")
    assert (strong.muon, strong.batch_size, strong.epochs) == (True, 50, 1000)
    assert [name for name, plan in RECIPES.items() if plan.muon] == ["strong"]


def test_the_smoothed_rate_falls_to_nothing_after_five_sixths():
    rates = [recipe("strong").rate(step, 12) for step in range(13)]
    assert rates[:11] == [recipe("rded").rate(step, 12) for step in range(11)]
    # 0.5 (1 + cos(5 pi / 12)) of what is left of the run.
    assert rates[11:] == pytest.approx([0.6294095 / 12, 0.0])


@pytest.mark.parametrize(
    ("ipc", "classes", "size"),
    [
        (1, 10, 10),
        (10, 10, 50),
        (50, 10, 100),
        (1, 100, 20),
        (10, 100, 100),
        (50, 1000, 200),
        (1, 200, 100),
        (50, 200, 100),
        (20, 10, 50),
        (200, 10, 100),
        # At most as many as there are images.
        (1, 5, 5),
        (10, 3, 30),
    ],
)
def test_batches_of_rded(ipc, classes, size):
    assert recipe("rded").batch_size_for(ipc * classes, classes) == size


def test_batches_of_others_do_not_depend_on_the_data_but_on_its_size():
    assert recipe("kl").batch_size_for(1000, 100) == 100
    assert recipe("kl").batch_size_for(30, 10) == 30
    assert recipe("sre2l").batch_size_for(10_000, 1000) == 1024
    # Less than one image for every class.
    assert recipe("rded").batch_size_for(50, 1000) == 20


@pytest.mark.parametrize(
    ("network", "rate"),
    [
        ("resnet18", 1e-3),
        ("vgg11", 5e-4),
        ("efficientnet_b0", 2e-3),
        ("mobilenet_v2", 2.5e-3),
        ("swin_v2_t", 1e-4),
        ("timm:vit_tiny_patch16_224", 1e-4),
        ("levit_128s", 1e-3),
    ],
)
def test_learning_rates_of_rded(network, rate):
    assert recipe("rded").learning_rate_for(network) == rate
    assert recipe("kl").learning_rate_for(network) == 1e-3


def test_settled_recipes_hold_what_is_used():
    plan = recipe("rded").settled("vgg11", 100, 10)
    assert (plan.batch_size, plan.learning_rate) == (50, 5e-4)
    assert plan.settled("resnet18", 1000, 10) == plan


def test_when_students_are_measured():
    rded = recipe("rded").settled("resnet18", 100, 10)
    # 300 passes of two steps; every tenth pass of the last fifth.
    assert rded.evaluation_steps(600, 100) == [500, 520, 540, 560, 580, 600]
    assert recipe("kl").evaluation_steps(50, 100) == list(range(5, 51, 5))
    assert recipe("kl").evaluation_steps(3, 100) == [1, 2, 3]
    sre2l = recipe("sre2l").settled("resnet18", 1000, 10)
    assert sre2l.evaluation_steps(35, 1000) == [10, 20, 30, 35]
    # Shorter than the first measurement.
    assert rded.evaluation_steps(7, 100) == [7]


def test_unknown_recipe():
    with pytest.raises(UserInputError, match="E_OPTION: unknown recipe `x`; expected one of hello"):
        recipe("x")
