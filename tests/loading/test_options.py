from __future__ import annotations

import pytest

from hellofmt.archive import Limits
from hellofmt.errors import LimitError, UserInputError
from hellofmt.loading import HelloDataset, HelloLoader


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"labels": "firm"}, "`labels`: expected 'soft', 'logits', 'hard' or 'none', got firm"),
        ({"temperature": 0.0}, "`temperature`: expected a finite number > 0, got 0.0"),
        ({"temperature": float("inf")}, "`temperature`: expected a finite number > 0, got inf"),
        ({"views": "all"}, "`views`: expected 'manifest' or None, got all"),
        ({"seed": 2**64}, "`seed`: expected 0 <= seed < 2"),
        ({"cache": -1}, "`cache`: expected 'auto' or bytes >= 0, got -1"),
        ({"cache": "all"}, "`cache`: expected 'auto' or bytes >= 0, got all"),
        ({"storage_options": {"key": 1}}, "`storage_options`; expected none: a local file"),
        (
            {"labels": "none", "target_transform": int},
            "`target_transform` with labels='none'; expected labels to transform",
        ),
    ],
)
def test_options_out_of_range_are_refused(mixing, options, expected):
    with pytest.raises(UserInputError, match=f"E_OPTION: {expected}"):
        HelloDataset(mixing, **options)


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"as_dict": ("a",)}, r"\('a',\) with labels='soft'"),
        ({"as_dict": "ab"}, "'ab' with"),
        ({"as_dict": ("a", "b"), "labels": "none"}, r"\('a', 'b'\) with labels='none'"),
    ],
)
def test_keys_that_name_no_pair_are_refused(mixing, options, got):
    with pytest.raises(UserInputError, match=f"E_OPTION: `as_dict`; .* got {got}"):
        HelloDataset(mixing, **options)


def test_limits_are_the_reader_s_and_of_a_batch(mixing):
    with pytest.raises(LimitError, match="E_LIMIT_CLASSES"):
        HelloDataset(mixing, limits=Limits(classes=1))
    side = HelloDataset(mixing, labels="none").views.size
    room = Limits(batch_pixels=2 * side**2)
    dataset = HelloDataset(mixing, labels="none", limits=room)
    assert len(dataset.__getitems__([0, 1])) == 2
    with pytest.raises(LimitError, match=r"E_LIMIT_BATCH_PIXELS.*batch_pixels="):
        dataset.__getitems__([0, 1, 2])
    with pytest.raises(LimitError, match="E_LIMIT_BATCH_PIXELS"):
        HelloLoader(mixing, batch_size=3, labels="none", limits=room)
