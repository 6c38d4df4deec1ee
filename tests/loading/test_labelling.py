from __future__ import annotations

import pickle  # noqa: TID251

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from hellofmt.errors import UserInputError
from hellofmt.loading import HelloDataset


class Means(nn.Module):
    """Logits that NumPy can check: 10 times the mean of each channel, less its class."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.eval()

    def forward(self, views):
        assert torch.is_inference_mode_enabled()
        self.calls.append(tuple(views.shape))
        return 10 * views.mean((2, 3)) - torch.arange(3)


def expected_logits(dataset, rows, epoch):
    views, _ = dataset.draw(rows, epoch)
    return 10 * views.numpy().astype(np.float64).mean((2, 3)) - np.arange(3)


def softmax(logits, temperature):
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("with_projector", "temperature", "expected"),
    [(True, None, 2.0), (True, 5.0, 5.0), (False, 5.0, 5.0)],
)
def test_soft_labels_are_the_functions(archive_of, with_projector, temperature, expected):
    path = archive_of(mix="cutmix", mix_probability="0.5", with_projector=with_projector)
    function = Means()
    dataset = HelloDataset(path, label_function=function, temperature=temperature, seed=3)
    for epoch in range(2):
        items = dataset.__getitems__(list(range(11)))
        labels = torch.stack([label for _, label in items]).numpy()
        truth = softmax(expected_logits(dataset, np.arange(11), epoch), expected)
        assert np.abs(labels - truth).max() < 1e-6
    # One call per batch, of whole views.
    assert function.calls == [(11, 3, 16, 16)] * 2
    # The views are those that the projector's labels would be of.
    dataset.set_epoch(0)
    assert torch.equal(dataset[4][0], HelloDataset(path, labels="hard", seed=3)[4][0])


def test_logits_are_the_functions_in_any_worker(mixing):
    fresh = HelloDataset(mixing, labels="logits", label_function=Means())
    # What a spawned worker gets.
    pickled = pickle.loads(pickle.dumps(fresh))  # noqa: S301
    for dataset, workers in ((fresh, 0), (fresh, 2), (pickled, 0)):
        dataset.set_epoch(0)
        loader = DataLoader(dataset, batch_size=4, num_workers=workers)
        logits = torch.cat([labels for _, labels in loader]).double().numpy()
        assert np.abs(logits - expected_logits(fresh, np.arange(11), 0)).max() < 1e-5


def test_labels_of_a_function_may_be_differentiated_through(mixing):
    label = HelloDataset(mixing, label_function=Means())[0][1]
    weight = torch.ones(3, requires_grad=True)
    (weight * label).sum().backward()
    assert torch.equal(weight.grad, label)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"labels": "hard"}, "E_OPTION: `label_function`; expected labels='soft' or 'logits'"),
        ({"labels": "none"}, "E_OPTION: `label_function`; expected labels='soft' or 'logits'"),
        ({"stored": "x"}, "E_OPTION: `label_function` and `stored`; expected one of them"),
        ({}, "E_OPTION: `temperature`: the archive has no projector and so no temperature"),
    ],
)
def test_what_does_not_go_together_is_refused(archive_of, options, expected):
    path = archive_of(with_projector=False)
    with pytest.raises(UserInputError, match=expected):
        HelloDataset(path, label_function=Means(), **options)


def test_a_network_in_train_mode_is_refused(mixing):
    with pytest.raises(UserInputError, match="E_OPTION: the label function is in train mode"):
        HelloDataset(mixing, label_function=Means().train())


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda v: v.mean((2, 3))[:, :2], r"expected shape \(1, 3\), got \(1, 2\)"),
        (lambda v: v.mean((2, 3)) / 0.0 * 0.0, "expected finite numbers, got others"),
    ],
)
def test_what_the_function_returns_is_checked(mixing, function, expected):
    dataset = HelloDataset(mixing, label_function=function)
    with pytest.raises(
        UserInputError, match=f"E_TEACHER: logits of the label function: {expected}"
    ):
        dataset[0]
