"""Outputs by class keys; ImageNet's order against torchvision's own list of names."""

from __future__ import annotations

import pytest
import torchvision

from hellofmt.errors import UserInputError
from hellofmt.teacher.classes import columns_of, imagenet_keys

# Of the Keras-style index of ImageNet-1K: the first, both cranes, the last.
KNOWN = {0: "n01440764", 134: "n02012849", 517: "n03126707", 999: "n15075141"}


def test_imagenets_order_is_that_of_published_networks():
    name, keys = imagenet_keys(1000)
    assert name == "imagenet-1k"
    assert len(set(keys)) == 1000
    assert keys == sorted(keys)
    assert {place: keys[place] for place in KNOWN} == KNOWN
    published = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    assert [published[place] for place in (0, 134, 999)] == ["tench", "crane bird", "toilet tissue"]
    assert imagenet_keys(17) is None
    assert imagenet_keys(21841)[0] == "imagenet-22k"


def test_keys_pick_outputs():
    keys = ["n15075141", "n01440764"]
    columns, note = columns_of("t", 1000, keys, None)
    assert columns == [999, 0]
    assert note == "teacher `t`: 2 of its 1,000 outputs, by imagenet-1k"
    assert columns_of("t", 2, keys, None) == (None, "")
    assert columns_of("t", 3, keys, ["x", *keys])[0] == [1, 2]
    assert columns_of("t", 2, keys, keys) == (None, "")
    assert columns_of("t", 2, keys, keys[::-1])[0] == [1, 0]


@pytest.mark.parametrize(
    ("outputs", "keys", "named", "message"),
    [
        (5, ["a", "b"], None, "has 5 outputs for 2 classes of the data; `teacher_classes` FILE"),
        (1000, ["a", "b"], None, "has 1,000 outputs for 2 classes of the data"),
        (1000, ["n01440764", "dog"], None, "lacks 1 of 2 classes by imagenet-1k: `dog`"),
        (3, [*"abcdefg"], [*"abz"], "lacks 5 of 7 .* list: `c`, `d`, `e` and 2 more"),
        (3, ["a"], ["a", "b"], "2 in the list; expected 3, one per output"),
        (3, ["a"], ["a", "b", "a"], "more than one output is `a`"),
    ],
)
def test_what_cannot_be_mapped_is_refused(outputs, keys, named, message):
    with pytest.raises(UserInputError, match=f"E_TEACHER: .*teacher `t`.*{message}"):
        columns_of("t", outputs, keys, named)
