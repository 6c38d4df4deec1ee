"""Accuracy, and how whole images are shown, against torchvision on the same pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from hellofmt.archive import ClassLine
from hellofmt.errors import UserInputError
from hellofmt.making import CentreSquares
from hellofmt.sources import ArrayImages, open_source
from hellofmt.student.evaluate import evaluate, evaluation_square

LINES = [ClassLine(str(label), (str(label),)) for label in range(3)]


class MeanColour(nn.Module):
    """Logits are the mean of each channel; a parameter so that it has a device."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.modes, self.seen = [], []

    def forward(self, images):
        self.modes.append(self.training)
        self.seen.append(images)
        return images.mean((2, 3)) * self.scale


def solid(colours, labels, size=8):
    pixels = np.stack([np.full((size, size, 3), c, np.uint8) for c in colours])
    return ArrayImages(pixels, np.array(labels), LINES)


def test_accuracy_is_in_percent_of_normalised_pixels_in_eval_mode(views):
    colours = [(255, 0, 51), (0, 255, 0), (0, 0, 255), (0, 0, 255)]
    network = MeanColour().train()
    assert evaluate(network, solid(colours, [0, 1, 2, 0]), views(), batch_size=3) == 75.0
    assert network.modes == [False, False]
    assert network.training
    truth = torch.tensor([(1 - 0.5) / 0.25, (0 - 0.4) / 0.5, (0.2 - 0.3) / 0.2])
    torch.testing.assert_close(network.seen[0][0].mean((1, 2)), truth)


@pytest.mark.parametrize(("size", "short"), [(16, 16), (70, 80)])
def test_whole_images_are_resized_and_cropped(size, short):
    y, x = np.mgrid[:128, :128]
    image = 127 + 60 * np.sin(x / 9)[..., None] + 60 * np.cos(y / 7)[..., None] * [1, 0.5, -1]
    image = image.astype(np.uint8)
    source = ArrayImages(image[None].repeat(3, 0), np.arange(3), LINES)
    (got,) = CentreSquares(source, (evaluation_square(size),))(np.array([1]))
    wide = transforms.resize(torch.from_numpy(image).permute(2, 0, 1), [short], antialias=True)
    truth = transforms.center_crop(wide, [size, size]).permute(1, 2, 0)
    # Theirs is cropped after it is resized, and so looks beyond the border of the crop.
    assert (got[0].int() - truth.int()).abs().float().mean() < 1
    same = np.zeros((3, size, size, 3), np.uint8)
    same[:] = np.arange(size, dtype=np.uint8)[:, None, None]
    (kept,) = CentreSquares(ArrayImages(same, np.arange(3), LINES), (evaluation_square(size),))(
        np.array([0])
    )
    assert np.array_equal(kept[0], same[0])


def test_images_that_are_left_out_do_not_count(tmp_path, views):
    for label, colour in enumerate([(255, 0, 0), (0, 255, 0), (255, 0, 0)]):
        (tmp_path / str(label)).mkdir()
        Image.new("RGB", (8, 8), colour).save(tmp_path / str(label) / "1.png")
        (tmp_path / str(label) / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    source = open_source(tmp_path, skips_unreadable=True)
    assert evaluate(MeanColour(), source, views()) == pytest.approx(200 / 3)
    # A part in which nothing of class 1 can be read; then nothing at all.
    assert evaluate(MeanColour(), source.subset(np.array([0, 3, 4])), views()) == 50.0
    with pytest.raises(UserInputError, match=r"E_DATA: .*: no image to measure on can be read"):
        evaluate(MeanColour(), source.subset(np.array([1, 3])), views())


def test_nothing_to_evaluate(views):
    empty = solid([(0, 0, 0)] * 3, [0, 1, 2]).subset(np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="images: expected at least one, got none"):
        evaluate(MeanColour(), empty, views())
