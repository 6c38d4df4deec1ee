from __future__ import annotations

import pytest
import torch

from hellofmt.distillation.teacher import (
    Teacher,
    check_teacher,
    load_teacher,
    save_teacher,
    teacher_accuracy,
    train_teacher,
)
from hellofmt.errors import UserInputError
from hellofmt.student.networks import build_student


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
    assert teacher_accuracy(trained, unseen, 8, batch_size=7) == check_teacher(trained, unseen, 8)


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
    again = load_teacher(path, "cnn", 3, views())
    view = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(trained(view), again(view))
    with pytest.raises(
        UserInputError, match=r"E_TEACHER: `.*` does not hold a `cnn` for 4 classes"
    ):
        load_teacher(path, "cnn", 4, views())


def test_swapped_classes_are_refused(trained, stripes):
    def swapped(view):
        return trained(view)[:, [1, 2, 0]]

    message = r"E_TEACHER: top-1 of the teacher on 24 real images is 0.0 %; expected more than chan"
    with pytest.raises(UserInputError, match=message):
        check_teacher(swapped, stripes(), 8)


def test_another_number_of_classes_is_refused(stripes, views):
    teacher = Teacher(build_student("cnn", 5, 8), views())
    with pytest.raises(UserInputError, match=r"expected shape \(24, 3\) .* got \(24, 5\)"):
        check_teacher(teacher, stripes(), 8)
