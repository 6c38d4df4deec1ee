from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from hellofmt.student.evaluate import evaluate, predict, prepare_images


class MeanColour(nn.Module):
    """Logits are the mean of each channel; a parameter so that it has a device."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.modes = []

    def forward(self, images):
        self.modes.append(self.training)
        return images.mean((2, 3)) * self.scale


def solid(colours, size=8):
    return np.stack([np.full((size, size, 3), c, np.uint8) for c in colours])


def test_logits_see_normalised_pixels_in_eval_mode(views):
    network = MeanColour().train()
    logits = predict(network, solid([(255, 0, 51)] * 3), views(), batch_size=2)
    truth = torch.tensor([(1 - 0.5) / 0.25, (0 - 0.4) / 0.5, (0.2 - 0.3) / 0.2])
    torch.testing.assert_close(logits, truth.expand(3, 3))
    assert network.modes == [False, False]
    assert network.training


def test_accuracy_is_in_percent(views):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 255)]
    labels = np.array([0, 1, 2, 0], np.int64)
    assert evaluate(MeanColour(), solid(colours), labels, views()) == 75.0


def test_images_of_the_right_size_are_untouched():
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    got = prepare_images(image, 8)
    assert torch.equal(got, torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255)


@pytest.mark.parametrize(("size", "short"), [(16, 16), (70, 80)])
def test_other_images_are_resized_and_cropped(size, short):
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    wide = transforms.resize(tensor, [short, short * 160 // 120], antialias=True)
    left, top = round((wide.shape[2] - size) / 2), round((short - size) / 2)
    truth = wide[:, top : top + size, left : left + size]
    torch.testing.assert_close(prepare_images([image], size)[0], truth)


def test_nothing_to_evaluate(views):
    empty = np.empty((0, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="images: expected at least one, got none"):
        predict(MeanColour(), empty, views())
    with pytest.raises(ValueError, match="images: expected at least one, got none"):
        prepare_images(empty, 8)
    with pytest.raises(ValueError, match=r"labels: expected one per image \(2\), got 1"):
        evaluate(MeanColour(), solid([(0, 0, 0)] * 2), np.zeros(1, np.int64), views())
