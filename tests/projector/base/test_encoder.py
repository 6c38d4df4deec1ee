from __future__ import annotations

import pytest
import torch

from hellofmt.errors import UserInputError


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
