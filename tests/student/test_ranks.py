"""Two processes over gloo train as one does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hellofmt.errors import UserInputError
from hellofmt.loading import HelloDataset
from hellofmt.runs import ranks
from hellofmt.student.networks import build_student
from hellofmt.student.recipes import recipe
from hellofmt.student.train import train_from_dataset


def without_norm(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(8 * 64, 3)
    )


def trained(archive, name, network, batch_size=7, checkpoint=None):
    plan = replace(recipe(name), batch_size=batch_size, learning_rate=3e-3)
    dataset = HelloDataset(archive, labels=plan.labels, seed=1)
    losses = []
    train_from_dataset(
        network,
        dataset,
        plan,
        steps=4,
        seed=1,
        on_step=lambda _, loss: losses.append(float(loss)),
        checkpoint=checkpoint,
    )
    return {key: tensor.numpy() for key, tensor in network.state_dict().items()}, losses


def outcome(rank, archive, case, folder):
    try:
        if case == "norm":
            return trained(archive, "kl", build_student("cnn", 3, 8))
        if case == "few":
            return trained(archive, "kl", without_norm(0), batch_size=1)
        if case == "unseen":
            # Rank 0 alone writes, so only it has a state to continue from.
            path = folder / f"state-{rank}"
            return [trained(archive, "kl", without_norm(0), checkpoint=path) for _ in range(2)]
        # Other weights in each process; rank 0's count.
        return trained(archive, case, without_norm(rank))
    except UserInputError as error:
        return str(error)


@pytest.fixture
def two(archive, tmp_path, in_ranks):
    return lambda case: in_ranks(2, lambda rank: outcome(rank, archive, case, tmp_path))


def difference(a, b):
    return max(abs(a[key] - b[key]).max() for key in a)


@pytest.mark.parametrize("name", ["kl", "hello"])
def test_two_processes_train_the_same_network_as_one(archive, two, name):
    one, losses = trained(archive, name, without_norm(0))
    first, second = two(name)
    # Seven rows: three for one, four for the other.
    assert difference(one, first[0]) < 1e-5
    assert difference(first[0], second[0]) == 0.0
    assert first[1] == pytest.approx(losses, rel=1e-5)
    assert first[1] == second[1]


def test_running_statistics_are_those_of_rank_0_in_the_end(archive, two):
    first, second = two("norm")
    assert difference(first[0], second[0]) == 0.0
    one, _ = trained(archive, "kl", build_student("cnn", 3, 8))
    # Batch normalisation sees a process's own rows: near, not equal.
    assert difference(one, first[0]) > 1e-5


def test_every_process_needs_a_row(two):
    for said in two("few"):
        assert said == ("E_OPTION: batch of 1 views; expected at least one for each of 2 processes")


def test_a_state_on_one_disk_is_enough(two):
    for (first, losses), (second, none_left) in two("unseen"):
        assert difference(first, second) == 0.0
        assert [len(losses), none_left] == [4, []]


def test_one_process_needs_no_partner():
    tensor = torch.ones(2)
    ranks.same_([tensor])
    assert ranks.is_unanimous(lambda: 1 / 0)
    assert ranks.share(7) == slice(0, 7)
    assert float(ranks.sum_gradients([], torch.tensor(3.0))) == 3.0
