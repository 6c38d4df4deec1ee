"""Arguments of loaders: other libraries' numbers become plain ones, the rest is refused."""

import json
import re

import numpy as np
import pytest
import torch

from hellofmt.errors import UserInputError
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
