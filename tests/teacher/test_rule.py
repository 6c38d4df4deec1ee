"""The input rule against torchvision's own transforms and Pillow."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from builders import whole_image
from PIL import Image

from hellofmt.errors import UserInputError
from hellofmt.making import Square
from hellofmt.student import build_student
from hellofmt.teacher import InputRule, RuleChange, Teacher


def picture(side=40):
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (side // 4, side // 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def tensor(pixels):
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("size", [24, 56])
@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_views_are_resized_as_pillow_does(name, size):
    image = Image.fromarray(picture())
    truth = image.resize((size, size), getattr(Image.Resampling, name.upper()))
    got = InputRule(size=size, interpolation=name).resized(tensor(picture()))
    assert got.min() >= 0.0
    assert got.max() <= 1.0
    # Pillow rounds to whole numbers between its two passes.
    error = (got - tensor(truth)).abs()
    assert error.mean() < 0.6 / 255
    assert error.max() < 3 / 255


def test_views_of_its_size_are_left_alone():
    views = tensor(picture())
    assert InputRule().resized(views) is views
    assert InputRule(size=40, interpolation="bicubic").resized(views) is views


def test_whole_images_are_cropped_as_the_publisher_does():
    # 28 px of 32: the shorter side goes to 32, the centre 28 remain.
    rule = InputRule(size=28, interpolation="bicubic", crop=0.875)
    # Smooth: our crop begins at a whole pixel, and the publisher's in the middle of one.
    smooth = Image.fromarray(picture()[:3, :3]).resize((40, 40), Image.Resampling.BICUBIC)
    got = whole_image(np.asarray(smooth), rule.whole(8)).astype(int)
    truth = smooth.resize((32, 32), Image.Resampling.BICUBIC).crop((2, 2, 30, 30))
    assert np.abs(got - np.asarray(truth, int)).max() <= 12
    assert np.abs(got - np.asarray(truth, int)).mean() <= 3
    wide = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    got = whole_image(wide, InputRule(size=20, crop=0.5).whole(8))
    assert np.array_equal(got, wide[10:30, 20:40])
    # Without a crop of its own, as students are evaluated.
    assert InputRule(size=20).whole(224) == Square(224, 7 / 8)
    assert InputRule(size=20).whole(64) == Square(64, 1.0)


def test_a_teacher_prepares_views_itself():
    network = build_student("cnn", 3, 16).eval()
    rule = InputRule((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), size=16, interpolation="bicubic")
    views = torch.rand(2, 3, 8, 8)
    mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    truth = network((rule.resized(views) - mean) / std)
    torch.testing.assert_close(Teacher(network, rule)(views), truth)
    torch.testing.assert_close(Teacher(network, rule, [2, 0])(views), truth[:, [2, 0]])


def test_large_inputs_go_in_parts(monkeypatch):
    network, calls = build_student("cnn", 3, 16).eval(), []
    network.register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    teacher = Teacher(network, InputRule(size=16))
    views = torch.rand(5, 3, 8, 8)
    whole = teacher(views)
    monkeypatch.setattr("hellofmt.teacher.network._CALL_PIXELS", 2 * 16 * 16)
    torch.testing.assert_close(teacher(views), whole)
    assert calls == [5, 2, 2, 1]


def test_the_rule_reads_back_from_json():
    rule = InputRule((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 64, "bicubic", 0.9, "mine")
    assert InputRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule
    assert InputRule.from_json(InputRule().to_json()) == InputRule()


@pytest.mark.parametrize(
    "change",
    [
        {"std": [0.0, 1, 1]},
        {"mean": [0.5, 0.5]},
        {"mean": [float("nan"), 0, 0]},
        {"size": 1 << 20},
        {"crop": 1.5},
        {"interpolation": "area"},
        {"mean": None},
        {"size": "x"},
    ],
)
def test_a_rule_out_of_range_is_refused(change):
    with pytest.raises(UserInputError, match="E_TEACHER: input rule"):
        InputRule.from_json({**InputRule().to_json(), **change})


def test_changes_keep_what_they_do_not_name():
    rule = InputRule(size=224, crop=0.9, source="a library")
    assert RuleChange().of(rule) is rule
    got = RuleChange(mean=(0.0, 0.0, 0.0)).of(rule)
    assert (got.mean, got.std, got.size, got.crop) == ((0.0,) * 3, rule.std, 224, 0.9)
    assert got.text().endswith("(a library; mean from the user)")


@pytest.mark.parametrize(
    "change",
    [RuleChange(mean=(123.675, 116.28, 103.53)), RuleChange(std=(58.395, 57.12, 57.375))],
)
def test_numbers_of_images_from_0_to_255_are_refused(change):
    with pytest.raises(UserInputError, match=r"E_OPTION: mean and std .* divide .* by 255"):
        change.of(InputRule())


def test_digests_see_the_rule():
    from hellofmt.runs import digest_of

    network = build_student("cnn", 3, 8)
    rules = [InputRule(), InputRule(size=8), InputRule(crop=0.5), InputRule(mean=(0.5, 0.5, 0.5))]
    digests = {digest_of(Teacher(network, rule)) for rule in rules}
    assert len(digests | {digest_of(Teacher(network, InputRule(), [1, 0, 2]))}) == 5
    assert digest_of(Teacher(network, InputRule(source="x"))) in digests
