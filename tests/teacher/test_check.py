from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from hellofmt.errors import UserInputError
from hellofmt.sources import open_source
from hellofmt.student.networks import build_student
from hellofmt.teacher import (
    InputRule,
    Teacher,
    TeacherPool,
    load_teacher,
    save_teacher,
    teacher_accuracy,
    train_teacher,
)
from hellofmt.teacher.check import _recognised_order, check_predictions, predictions


def check_teacher(teacher, source, size):
    predicted = predictions(teacher, source, size)
    return check_predictions(predicted, source.labels, source.classes)


@pytest.fixture(scope="module")
def cache():
    return {}


@pytest.fixture
def trained(cache, stripes, views):
    if "teacher" not in cache:
        cache["teacher"] = train_teacher(stripes(), views(), steps=40, batch_size=24)
    return cache["teacher"]


def test_a_teacher_learns(trained, stripes):
    unseen = stripes(per_class=20, seed=5)
    assert check_teacher(trained, unseen, 8) >= 95.0
    assert teacher_accuracy(trained, unseen, 8) == check_teacher(trained, unseen, 8)


def test_a_teacher_takes_views_and_normalises_them_itself(trained):
    view = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    std = torch.tensor([0.25, 0.5, 0.2]).view(3, 1, 1)
    torch.testing.assert_close(trained(view), trained.network((view - mean) / std))


def test_a_teacher_stays_frozen(trained):
    trained.train()
    assert not any(module.training for module in trained.modules())
    assert not any(p.requires_grad for p in trained.parameters())


def test_a_stored_teacher_is_the_same_function(trained, tmp_path, views):
    path = tmp_path / "teacher.safetensors"
    save_teacher(trained, path)
    again = load_teacher(path, "cnn", 3)
    assert again.rule == InputRule.of_views(views())
    view = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(trained(view), again(view))
    with pytest.raises(
        UserInputError, match=r"E_TEACHER: `.*` does not hold a `cnn` for 4 classes"
    ):
        load_teacher(path, "cnn", 4)


def test_swapped_classes_are_refused(trained, stripes):
    def swapped(view):
        return trained(view)[:, [1, 2, 0]]

    message = (
        r"E_TEACHER: top-1 of the teacher on 24 real images is 0.0 %; expected more than chance,"
        r" 33.3 %, .*; 100.0 % in another order of 3 classes, .*: `rows` is its output 2, not 0"
    )
    with pytest.raises(UserInputError, match=message):
        check_teacher(swapped, stripes(), 8)


def test_another_number_of_classes_is_refused(stripes, views):
    teacher = Teacher(build_student("cnn", 5, 8), InputRule.of_views(views()))
    with pytest.raises(UserInputError, match=r"expected shape \(24, 3\) .* got \(24, 5\)"):
        check_teacher(teacher, stripes(), 8)


def scattered(classes, per_class, right, seed):
    """Labels, and outputs of which a share is right and the rest uniform."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    guess = random.integers(0, classes, len(labels))
    return labels, np.where(random.random(len(labels)) < right, labels, guess)


def test_an_order_is_recognised_although_it_beats_chance():
    labels, outputs = scattered(100, 10, 0.4, 0)
    order = np.arange(100)
    # A fifth stays in place: about 8 % are right, eight times chance.
    order[20:] = np.roll(order[20:], 7)
    found = _recognised_order(order[outputs], labels, 100)
    assert np.mean(found == order) >= 0.9
    labels, outputs = scattered(10, 30, 0.9, 1)
    swapped = np.array([0, 1, 3, 2, 4, 5, 6, 7, 8, 9])
    assert _recognised_order(swapped[outputs], labels, 10).tolist() == swapped.tolist()


def test_a_weak_teacher_is_not_accused():
    for seed in range(40):
        labels, outputs = scattered(100, 5, 0.05, seed)
        assert _recognised_order(outputs, labels, 100) is None
        labels, outputs = scattered(10, 20, 0.3, seed)
        # It cannot tell class 3 from 4.
        confused = np.where(np.isin(outputs, [3, 4]), 3 + (np.arange(200) + seed) % 2, outputs)
        assert _recognised_order(confused, labels, 10) is None
        labels, outputs = scattered(3, 8, 0.0, seed)
        assert _recognised_order(outputs, labels, 3) is None


def test_chance_is_refused_without_an_order(stripes):
    def constant(view):
        return torch.eye(3)[0].expand(len(view), 3)

    message = "is 33.3 %; expected more than chance, 33.3 %, .*; no other order explains it either"
    with pytest.raises(UserInputError, match=message):
        check_teacher(constant, stripes(), 8)


def test_images_that_are_left_out_do_not_count(tmp_path):
    for label, colour in enumerate([(255, 0, 0), (0, 255, 0), (255, 0, 0)]):
        (tmp_path / str(label)).mkdir()
        Image.new("RGB", (8, 8), colour).save(tmp_path / str(label) / "1.png")
        (tmp_path / str(label) / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    source = open_source(tmp_path, skips_unreadable=True)

    def mean_colour(views):
        return views.mean((2, 3))

    part = source.subset(np.array([0, 3, 4]))
    assert predictions(mean_colour, part, 8)[:, -1].tolist() == [0, -1, 0]
    assert teacher_accuracy(mean_colour, part, 8) == check_teacher(mean_colour, part, 8) == 50.0
    with pytest.raises(UserInputError, match="E_DATA: no image to measure the teacher on can be"):
        check_teacher(mean_colour, source.subset(np.array([1, 3])), 8)


def test_a_teacher_of_nothing_finite(stripes):
    def broken(view):
        logits = torch.zeros(len(view), 3)
        logits[5:7, 1] = math.nan
        return logits

    message = "E_TEACHER: logits of the teacher are not finite for 2 of 24 real images"
    with pytest.raises(UserInputError, match=message):
        check_teacher(broken, stripes(), 8)


def test_a_teacher_of_other_images(stripes):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(10, 3))
    message = "E_TEACHER: the teacher cannot run on views of 8 x 8 pixels: .*mat1 and mat2 shapes"
    with pytest.raises(UserInputError, match=message):
        check_teacher(network, stripes(), 8)


def test_a_teacher_that_raises_anything(stripes):
    def picky(_views):
        raise KeyError("size")

    message = "E_TEACHER: the teacher cannot run on views of 8 x 8 pixels: KeyError: 'size'"
    with pytest.raises(UserInputError, match=message):
        check_teacher(picky, stripes(), 8)


def test_each_teacher_of_a_pool_is_checked_for_its_own_order(trained, stripes):
    class Rolled(torch.nn.Module):
        def forward(self, views):
            return trained(views)[:, [1, 2, 0]]

    # Two of three are right, and so is their mean.
    pool = TeacherPool([trained, trained, Rolled()])
    assert teacher_accuracy(pool, stripes(), 8) == 100.0
    with pytest.raises(UserInputError, match=r"E_TEACHER: .* in another order of 3 classes"):
        check_teacher(pool, stripes(), 8)
    assert check_teacher(TeacherPool([trained, trained]), stripes(), 8) == 100.0


def test_a_pool_is_the_mean_of_logits(trained, stripes, views):
    other = Teacher(build_student("cnn", 3, 8, seed=9), InputRule.of_views(views()))
    pool = TeacherPool([trained, other]).train()
    view = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pool(view), (trained(view) + other(view)) / 2)
    assert not any(module.training for module in pool.modules())
    with pytest.raises(ValueError, match="teachers: expected at least one, got none"):
        TeacherPool([])
