from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hellofmt.runs.cost import Meter, gflop_of, network_gflop
from hellofmt.runs.results import Result, read_result
from hellofmt.runs.stages import Stages


def test_a_product_is_two_operations_for_each_multiplication():
    a, b = torch.ones(3, 5), torch.ones(5, 7, requires_grad=True)
    assert gflop_of(lambda: a @ b) == 2 * 3 * 5 * 7 / 1e9
    # Backward: one product for the gradient of b.
    assert gflop_of(lambda: a @ b, backward=True) == 4 * 3 * 5 * 7 / 1e9


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))


FORWARD = 2 * (36 * 4 * 27 + 144 * 2)


def test_a_network_is_counted_and_left_as_it_was(network):
    network.train()
    network[1].eval()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    assert network_gflop(network, 8, 10) == pytest.approx(10 * FORWARD / 1e9)
    # The first layer needs no gradient of its input, the last one does.
    whole = FORWARD + 2 * (36 * 4 * 27) + 2 * 2 * (144 * 2)
    got = network_gflop(network, 8, 10, backward=True)
    assert got == pytest.approx(10 * whole / 1e9)
    assert (network.training, network[1].training) == (True, False)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_stages_are_measured_and_remember_what_they_cost(tmp_path):
    def make(_path):
        held = np.ones(5_000_000)
        return Result({"x": held[:3]}, {"gflop": 4.5})

    first, again = Stages(tmp_path), Stages(tmp_path)
    first.run("fit", 1, make)
    (cost,) = first.meter.costs
    assert (cost.stage, cost.gflop) == ("fit", 4.5)
    assert 0 < cost.seconds < 60
    assert cost.peak_bytes > 5_000_000 * 8
    assert (cost.device_peak_bytes is None) == (not torch.cuda.is_available())
    again.run("fit", 1, make)
    assert again.meter.costs == [cost]
    (path,) = tmp_path.iterdir()
    assert read_result(path).facts["cost"]["seconds"] == cost.seconds
    alone = Stages(None)
    alone.run("select", 1, lambda _: Result({}, {}))
    assert [(c.stage, c.gflop) for c in alone.meter.costs] == [("select", None)]


def test_a_stage_that_fails_has_no_cost():
    meter = Meter()
    with pytest.raises(RuntimeError, match="stop"), meter.stage("fit"):
        raise RuntimeError("stop")
    assert meter.costs == []
