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
        "hard": "hard",
    }
    assert all(name == r.name for name, r in RECIPES.items())


def test_published_constants():
    assert recipe("hello").hard_weight == 0.1
    rded = recipe("rded")
    assert (rded.temperature, rded.schedule, rded.learning_rate) == (20.0, "half_cosine", 1e-3)
    assert (rded.weight_decay, rded.epochs) == (0.01, 300)


def test_unknown_recipe():
    with pytest.raises(UserInputError, match="E_OPTION: unknown recipe `x`; expected one of hello"):
        recipe("x")
