from __future__ import annotations

from types import SimpleNamespace

import builders
import numpy as np
import pytest

from hellofmt.archive import ClassLine
from hellofmt.archive.format.manifest import TextArch
from hellofmt.distillation.settings import ProjectorSettings
from hellofmt.errors import UserInputError
from hellofmt.projector import seeded_base
from hellofmt.sources import ArrayImages


def test_numbers_are_no_names(stripes, tiny_base):
    source = stripes()
    for keys in (("0", "1", "2"), ("n01440764", "n01443537", "n01484850")):
        lines = tuple(ClassLine(key, (key,)) for key in keys)
        numbered = ArrayImages(source.pixels, source.labels, lines)
        message = f"E_DATA: class names are missing: all 3 are numbers such as `{keys[0]}`"
        with pytest.raises(UserInputError, match=message):
            ProjectorSettings(start="text").build(tiny_base, numbered)
        ProjectorSettings(start="stored").build(tiny_base, numbered)


@pytest.mark.parametrize(
    ("settings", "classes", "has_text", "start", "rank"),
    [
        # 64 (200 + 128) values are fewer than 200 * 128; for 100 classes they are not.
        ({}, 200, True, "text", 64),
        ({}, 100, True, "stored", None),
        ({}, 200, False, "stored", None),
        ({"head_rank": 3}, 100, True, "text", 3),
        ({"head_rank": 3}, 100, False, "stored", 3),
        ({"start": "text"}, 200, True, "text", None),
        ({"start": "stored", "head_rank": 3}, 200, True, "stored", 3),
    ],
)
def test_a_head_that_nobody_chose_is_the_smaller_one(settings, classes, has_text, start, rank):
    text = TextArch(context_length=8, vocab_size=49408, width=16, heads=2, layers=1)
    base = seeded_base(
        builders.vit(dim=128),
        builders.preprocess(),
        seed=0,
        text=text if has_text else None,
    )
    lines = tuple(ClassLine(f"k{i}", (f"name {chr(97 + i % 26)}",)) for i in range(classes))
    source = ArrayImages(np.zeros((classes, 8, 8, 3), np.uint8), np.arange(classes), lines)
    head = ProjectorSettings(rank=2, **settings).build(base, source).head
    assert ("text" if head.text_digest is not None else "stored") == start
    assert (None if head.delta is None else head.delta.a.shape[0]) == rank
    assert head.weight.requires_grad == (start == "stored" and rank is None)


def test_classes_of_one_name_keep_their_keys_and_are_said(stripes, tiny_base):
    names = [("n02012849", "crane"), ("n03126707", "crane"), ("n01440764", "tench")]
    given = stripes()
    lines = [ClassLine(key, (name,)) for key, name in names]
    source = ArrayImages(given.pixels, given.labels, lines)
    base = SimpleNamespace(has_text=True, embed_dim=32)
    (note,) = ProjectorSettings(start="text").notes(base, source)
    assert note == "classes that share a name start with equal rows of the head: `crane`"
    assert ProjectorSettings(start="text").notes(base, stripes()) == []
    assert ProjectorSettings(start="stored").notes(base, source) == []
    assert ProjectorSettings().notes(tiny_base, source) == []
