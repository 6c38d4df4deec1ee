from __future__ import annotations

import numpy as np
import pytest
import torch

from hellofmt.errors import UserInputError
from hellofmt.student.average import Average


def test_weights_are_averaged_and_buffers_copied():
    torch.manual_seed(0)
    network = torch.nn.BatchNorm1d(3)
    average = Average(network, 0.9)
    random = np.random.default_rng(0)
    truth = np.zeros(3)
    for step in range(4):
        new = random.normal(size=3)
        with torch.no_grad():
            network.weight.copy_(torch.from_numpy(new))
            network.running_mean.fill_(step)
            network.num_batches_tracked += 1
        average.update_parameters(network)
        # The first weights start the average.
        truth = new if step == 0 else 0.9 * truth + 0.1 * new
    np.testing.assert_allclose(average.module.weight.detach(), truth, rtol=1e-6)
    assert average.module.running_mean.tolist() == [3.0] * 3
    assert int(average.module.num_batches_tracked) == 4


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, float("nan")])
def test_a_decay_out_of_range(decay):
    message = "E_OPTION: decay of the average: expected a number between 0 and 1, got"
    with pytest.raises(UserInputError, match=message):
        Average(torch.nn.Linear(1, 1), decay)
