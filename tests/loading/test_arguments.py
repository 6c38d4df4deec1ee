"""Arguments of loaders: other libraries' numbers become plain ones, the rest is refused."""

import json
import re

import numpy as np
import pytest
import torch

from hellofmt.archive import Limits
from hellofmt.errors import LimitError, UserInputError
from hellofmt.loading import HelloDataset, HelloLoader, HelloSampler
from hellofmt.loading.arguments import device_of, positive, whole


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_integers_of_any_library_become_plain_ones(value):
    assert type(whole(value, "seed", 0, 64)) is int
    assert whole(value, "seed", 3) == 3


@pytest.mark.parametrize("value", [4, np.float32(4.0), torch.tensor(4.0)])
def test_numbers_of_any_library_become_plain_ones(value):
    assert type(positive(value, "temperature")) is float
    assert positive(value, "temperature") == 4.0


@pytest.mark.parametrize("value", [1.0, "1", None, True, np.array([1, 2]), torch.tensor(1.5), -1])
def test_what_is_no_integer_is_refused(value):
    expected = f"`epoch`: expected 0 <= epoch < 2**32, got {' '.join(repr(value).split())}"
    with pytest.raises(UserInputError, match=re.escape(expected)):
        whole(value, "epoch", 0, 32)


def test_the_first_integer_out_of_range_is_refused():
    assert whole(2**32 - 1, "epoch", 0, 32) == 2**32 - 1
    with pytest.raises(UserInputError, match="got 4294967296"):
        whole(2**32, "epoch", 0, 32)
    with pytest.raises(UserInputError, match="`batch_size`: expected at least 1, got 0"):
        whole(0, "batch_size", 1)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "4", None, True, [1, 2]])
def test_what_is_no_positive_number_is_refused(value):
    with pytest.raises(UserInputError, match="E_OPTION: `t`: expected a finite number > 0, got"):
        positive(value, "t")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", 1.5])
def test_a_device_that_torch_does_not_know_is_refused(device):
    expected = re.escape(
        f"E_OPTION: `device`: expected `cpu`, `cuda`, `cuda:1` or the like, got {device!r}"
    )
    with pytest.raises(UserInputError, match=expected):
        device_of(device)


def test_a_device_that_is_not_here_is_refused(mixing):
    count = torch.cuda.device_count()
    expected = f"`device`: expected one that is here, got cuda:{count}: torch sees {count} CUDA"
    with pytest.raises(UserInputError, match=expected):
        HelloLoader(mixing, batch_size=4, device=f"cuda:{count}")
    dataset = HelloDataset(mixing, device=f"cuda:{count}")
    with pytest.raises(UserInputError, match=expected):
        dataset.labeler()


def test_numpys_integers_give_the_same_batches_and_a_state_for_json(mixing):
    dataset = HelloDataset(mixing, labels="none", seed=np.int64(2**62))
    sampler = HelloSampler(dataset, batch_size=np.int64(4), seed=np.int64(2**62))
    sampler.set_epoch(np.int64(5))
    plain = HelloSampler(dataset, batch_size=4, seed=2**62)
    plain.set_epoch(5)
    assert list(sampler) == list(plain)
    assert json.loads(json.dumps(sampler.state_dict(1))) == plain.state_dict(1)
    other = HelloDataset(mixing, labels="none", seed=2**62)
    dataset.set_epoch(np.int64(5))
    other.set_epoch(5)
    assert torch.equal(dataset[3], other[3])


@pytest.mark.parametrize("argument", ["transform", "target_transform", "label_function"])
def test_what_cannot_be_called_is_refused(mixing, argument):
    # A label function may be a name, too.
    with pytest.raises(UserInputError, match=f"`{argument}`: expected a function, got 7"):
        HelloDataset(mixing, **{argument: 7})


def test_two_equal_keys_are_refused(mixing):
    with pytest.raises(UserInputError, match=r"`as_dict`; expected two keys.*\('a', 'a'\)"):
        HelloDataset(mixing, as_dict=("a", "a"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"labels": "firm"}, "`labels`: expected 'soft', 'logits', 'hard' or 'none', got 'firm'"),
        ({"temperature": 0.0}, "`temperature`: expected a finite number > 0, got 0.0"),
        ({"temperature": float("inf")}, "`temperature`: expected a finite number > 0, got inf"),
        ({"views": "all"}, "`views`: expected 'manifest' or None, got 'all'"),
        ({"seed": 2**64}, "`seed`: expected 0 <= seed < 2"),
        ({"cache": -1}, "`cache`: expected 'auto' or bytes >= 0, got -1"),
        ({"cache": "all"}, "`cache`: expected 'auto' or bytes >= 0, got 'all'"),
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
