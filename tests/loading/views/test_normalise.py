from __future__ import annotations

import numpy as np
import pytest
import torch

from hellofmt.errors import UserInputError
from hellofmt.loading.views.normalise import normalise


def test_normalise_subtracts_the_mean_and_divides_by_std(views_of):
    batch = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    got = normalise(batch, views_of())
    mean = np.array([0.485, 0.456, 0.406])[:, None, None]
    std = np.array([0.229, 0.224, 0.225])[:, None, None]
    assert np.abs(got.numpy() - (batch.numpy().astype(np.float64) - mean) / std).max() < 1e-6
    with pytest.raises(UserInputError, match=r"E_OPTION: `views\.std` is out of range"):
        normalise(batch, views_of(std=["0.1", "0.0", "0.1"]))
