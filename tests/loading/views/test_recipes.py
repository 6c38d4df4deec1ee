from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from hellofmt.errors import UserInputError
from hellofmt.loading import view_recipe, view_table
from hellofmt.loading.views.recipes import VIEW_RECIPES
from hellofmt.loading.views.table import ViewColumn


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_rdeds_views(factor):
    views = view_recipe("rded", 224, factor)
    assert views.crop_scale == [["1.0"], ["0.5"], ["0.3333333333333333"]][factor - 1] + ["1.0"]
    assert (views.size, views.shuffle, views.mix, views.mix_alpha) == (224, factor, "cutmix", "1.0")
    assert views.mix_probability == "1.0"
    assert views.mean == ["0.485", "0.456", "0.406"]


def test_crops_are_those_of_torchvisions_defaults():
    crop = v2.RandomResizedCrop(32)
    for name in ("sre2l", "sre2l-mixup", "plain", "hello"):
        views = view_recipe(name, 32)
        assert [float(v) for v in views.crop_scale] == list(crop.scale)
        assert [float(v) for v in views.crop_ratio] == list(crop.ratio)
        assert views.antialias == crop.antialias
        assert views.interpolation == crop.interpolation
    mixed = view_recipe("sre2l-mixup", 32)
    assert (mixed.mix, mixed.mix_alpha) == ("mixup", "0.8")


@pytest.mark.parametrize("name", VIEW_RECIPES)
def test_every_recipe_makes_views(name):
    views = view_recipe(name, 16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert views.std == ["0.25"] * 3
    sides = np.full(50, 20)
    table = view_table(
        views, seed=0, epochs=0, indices=np.arange(50), heights=sides, widths=sides, count=50
    )
    mixed = (table[:, ViewColumn.Y1] > 0) | (table[:, ViewColumn.WEIGHT] < 65536)
    assert bool(mixed.any()) == (name != "plain")
    area = torch.from_numpy(table[:, ViewColumn.HEIGHT] * table[:, ViewColumn.WIDTH]) / 400
    assert area.min() < 0.3 or name == "rded"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("fkd", 32), "unknown view recipe `fkd`; expected one of hello, rded, sre2l"),
        (("sre2l", 32, 2), "expected size >= 1 and a factor from 1 to 1, got 32 and 2"),
        (("rded", 32, 9), "expected size >= 1 and a factor from 1 to 8, got 32 and 9"),
        (("rded", 0), "expected size >= 1 and a factor from 1 to 8, got 0 and 1"),
    ],
)
def test_recipes_out_of_range_are_refused(arguments, expected):
    with pytest.raises(UserInputError, match=f"E_OPTION: .*{expected}"):
        view_recipe(*arguments)
