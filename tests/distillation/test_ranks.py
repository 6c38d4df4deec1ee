"""Two processes over gloo choose the same images as one, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hellofmt.distillation import select
from hellofmt.distillation.select import select_images
from hellofmt.distillation.selection import METHODS, SelectSettings
from hellofmt.runs import ranks

CHOICES = [SelectSettings(2, 2, method, "easiest") for method in METHODS]


class Teacher:
    """Counts the crops that it is shown."""

    def __init__(self):
        self.seen = 0

    def __call__(self, views):
        self.seen += len(views)
        mean = views.mean((1, 2, 3))
        return torch.stack([8 * mean, 8 * (1 - mean), torch.zeros_like(mean)], dim=1)


def made(source, projector, views):
    """Every choice, and the crops that a process scored itself."""
    teacher, labeler = Teacher(), projector.labeler()
    chosen = [select_images(source, teacher, views, each, labeler=labeler) for each in CHOICES]
    return [vars(selection) for selection in chosen], teacher.seen


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_choose_the_same_images_as_one(
    stripes, views, make_projector, in_ranks, monkeypatch
):
    # Several batches of a class, and messages of a few rows.
    monkeypatch.setattr(select, "_UNIT", 7)
    monkeypatch.setattr(ranks, "_MESSAGE_BYTES", 40)
    arguments = stripes(per_class=10), make_projector(), views()
    one, crops = made(*arguments)
    two = in_ranks(2, lambda _: made(*arguments))
    for got, _ in two:
        for mine, theirs in zip(one, got, strict=True):
            assert sorted(mine) == sorted(theirs)
            for name, array in mine.items():
                assert np.array_equal(array, theirs[name]), name
    # One class of three for the first.
    assert [crops, two[0][1], two[1][1]] == [600, 200, 400]


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_one_process_gathers_from_nobody(dtype):
    array = np.arange(6, dtype=dtype)
    assert ranks.sum_rows_(array) is array
    assert array.tolist() == [0, 1, 2, 3, 4, 5]
