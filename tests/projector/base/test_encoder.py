from __future__ import annotations

from dataclasses import replace

import builders
import pytest
import torch

from hellofmt.errors import UserInputError
from hellofmt.projector.base.encoder import Encoder


def test_text_rows_need_names_and_prompts(text_vit):
    for names, prompts in (([], ["{}"]), (["a"], [])):
        with pytest.raises(UserInputError, match="a head from text needs class names and prompts"):
            text_vit.text_rows(names, prompts)


def test_prompts_are_filled_and_never_formatted(text_vit):
    rows = text_vit.text_rows(["cat"], ["{0.__class__} {}"])
    torch.testing.assert_close(rows, text_vit.text_rows(["{0.__class__} cat"], ["{}"]))


def test_many_texts_are_embedded_in_parts(text_vit):
    names = [f"class {i}" for i in range(150)]
    rows = text_vit.text_rows(names, ["a {}", "the {}"])
    alone = text_vit.text_rows(names[149:], ["a {}", "the {}"])
    torch.testing.assert_close(rows[149:], alone, rtol=0, atol=1e-6)


def test_rows_of_the_last_names_are_computed_once(text_vit):
    asked = []
    base = replace(text_vit, texts=lambda texts: asked.append(len(texts)) or text_vit.texts(texts))
    rows = base.text_rows(["cat", "dog"], ["a {}."])
    rows.zero_()
    again = base.text_rows(["cat", "dog"], ["a {}."])
    assert torch.equal(again, text_vit.text_rows(["cat", "dog"], ["a {}."]))
    assert asked == [2]
    base.text_rows(["cat", "dog"], ["the {}."])
    assert asked == [2, 2]


def test_nearest_takes_the_pixel_that_holds_the_centre():
    """In integers: from 62 px to 7 a centre lies on a border, where torch rounds down."""
    views = torch.arange(62.0).expand(1, 3, 62, 62) / 62
    rule = builders.preprocess(7, interpolation="nearest")
    got = Encoder(torch.nn.Identity(), rule).resized(views)
    expected = torch.tensor([(2 * i + 1) * 62 // 14 for i in range(7)]) / 62
    assert torch.equal(got, expected.expand(1, 3, 7, 7))
    assert torch.equal(Encoder(torch.nn.Identity(), rule).resized(views.mT), got.mT)
