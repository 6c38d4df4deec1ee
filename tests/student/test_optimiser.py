from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from hellofmt.student.optimiser import MuonAndAdamW, optimiser_of
from hellofmt.student.recipes import recipe

STRONG = replace(recipe("strong"), learning_rate=0.01, weight_decay=0.5)


def network(*, channels_last):
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 6, 3),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(6 * 4, 5),
        nn.Linear(5, 3),
    )
    return made.to(memory_format=torch.channels_last) if channels_last else made


def orthogonal(matrix):
    """Five Newton-Schulz iterations, from the formula of the Muon post."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("channels_last", [False, True])
def test_steps_are_those_of_an_independent_float64_program(channels_last):
    made = network(channels_last=channels_last)
    optimiser = optimiser_of(made, STRONG)
    rate, decay = STRONG.learning_rate, STRONG.weight_decay
    begun = {name: p.detach().clone() for name, p in made.named_parameters()}
    wanted = {name: p.double().numpy().copy() for name, p in begun.items()}
    first = {name: np.zeros_like(value) for name, value in wanted.items()}
    second = {name: np.zeros_like(value) for name, value in wanted.items()}
    for step in range(1, 4):
        for name, parameter in made.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            g = parameter.grad.double().numpy()
            if name in {"1.weight", "5.weight"}:
                first[name] = 0.95 * first[name] + 0.05 * g
                ahead = (0.05 * g + 0.95 * first[name]).reshape(len(g), -1)
                move = 0.2 * max(ahead.shape) ** 0.5 * orthogonal(ahead).reshape(g.shape)
            else:
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g**2
                spread = np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8
                move = first[name] / (1 - 0.9**step) / spread
            kept = 1 - rate * decay if parameter.ndim > 1 else 1.0
            wanted[name] = kept * wanted[name] - rate * move
        optimiser.step()
    for name, parameter in made.named_parameters():
        moved = (parameter.detach() - begun[name]).double().numpy()
        expected = wanted[name] - begun[name].double().numpy()
        # Muon iterates in bfloat16, which keeps 8 bits.
        tolerance = 0.03 if name in {"1.weight", "5.weight"} else 1e-5
        assert np.linalg.norm(moved - expected) < tolerance * np.linalg.norm(expected), name


@pytest.mark.parametrize(
    ("name", "muons", "adamws"),
    [
        ("resnet18", {"layer1.0.conv1.weight"}, {"conv1.weight", "bn1.weight", "fc.weight"}),
        # The second of each block is depthwise.
        (
            "mobilenet_v2",
            {"features.2.conv.0.0.weight"},
            {"features.0.0.weight", "features.2.conv.1.0.weight", "classifier.1.weight"},
        ),
        (
            "vit_b_32",
            {"encoder.layers.encoder_layer_0.self_attention.in_proj_weight"},
            {"class_token", "conv_proj.weight", "encoder.pos_embedding", "heads.head.weight"},
        ),
    ],
)
def test_what_is_muons_and_what_is_adamws(name, muons, adamws):
    with torch.device("meta"):
        made = getattr(models, name)()
    names = {p: n for n, p in made.named_parameters()}
    groups = [{names[p] for p in g["params"]} for g in optimiser_of(made, STRONG).param_groups]
    assert muons <= groups[0]
    assert adamws <= groups[1] | groups[2]
    assert sum(map(len, groups)) == len(names)


def test_a_parameter_without_a_gradient_stays_and_a_closure_is_refused():
    made = network(channels_last=False)
    optimiser = optimiser_of(made, STRONG)
    assert isinstance(optimiser, MuonAndAdamW)
    before = made[1].weight.detach().clone()
    optimiser.step()
    assert torch.equal(made[1].weight, before)
    with pytest.raises(ValueError, match="closure: expected None"):
        optimiser.step(lambda: 0.0)
