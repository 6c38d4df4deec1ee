from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import STRIPES, striped_source

from hellofmt.making import HardBatches, ViewBatches
from hellofmt.sources import ArrayImages
from hellofmt.student.evaluate import evaluate
from hellofmt.student.networks import build_student
from hellofmt.student.optimiser import optimiser_of
from hellofmt.student.recipes import Recipe, recipe
from hellofmt.student.train import loss_of, train_student


def softmax64(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_kl_is_the_mean_divergence_without_a_temperature_factor():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(5, 7)) * 3, softmax64(random.normal(size=(5, 7)) * 2)
    p = softmax64(logits / 4)
    truth = (labels * np.log(labels / p)).sum(1).mean()
    got = loss_of(
        replace(recipe("kl"), temperature=4.0), torch.tensor(logits), torch.tensor(labels)
    )
    assert float(got) == pytest.approx(truth, rel=1e-12)


def test_kl_of_labels_with_zeros_is_finite():
    labels = torch.eye(3)
    got = loss_of(replace(recipe("kl"), temperature=1.0), torch.zeros(3, 3), labels)
    assert float(got) == pytest.approx(math.log(3))


def test_mse_and_cross_entropy_add_up():
    random = np.random.default_rng(1)
    logits, target = random.normal(size=(4, 6)), random.normal(size=(4, 6))
    hard = softmax64(random.normal(size=(4, 6)))
    truth = ((logits - target) ** 2).mean() - 0.1 * (hard * np.log(softmax64(logits))).sum(1).mean()
    tensors = [torch.tensor(x) for x in (logits, target, hard)]
    assert float(loss_of(recipe("hello"), *tensors)) == pytest.approx(truth, rel=1e-12)


def test_hard_labels_as_numbers_or_as_areas():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    whole = torch.tensor([0, 2, 1, 1])
    as_areas = torch.nn.functional.one_hot(whole, 3).float()
    ce = recipe("hard")
    torch.testing.assert_close(loss_of(ce, logits, whole), loss_of(ce, logits, as_areas))


def test_losses_that_lack_something():
    zeros = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="recipe: `kl` needs a temperature, got None"):
        loss_of(recipe("kl"), zeros, zeros)
    with pytest.raises(ValueError, match="recipe: `mse_ce` needs hard labels beside the logits"):
        loss_of(recipe("hello"), zeros, zeros)


def test_a_recipe_chooses_its_schedule():
    plan = Recipe("r", "ce", warmup=0.1)
    assert [plan.rate(step, 40) for step in (0, 4, 22)] == pytest.approx([0.2, 1.0, 0.5])
    half = Recipe("r", "ce", schedule="half_cosine")
    assert half.rate(100, 100) == pytest.approx(0.5, abs=1e-12)


def test_decay_spares_biases_and_norms():
    network = build_student("cnn", 3, 8)
    groups = optimiser_of(network, recipe("hard")).param_groups
    by_decay = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in groups}
    assert by_decay == {0.01: {2, 4}, 0.0: {1}}


def train(stripes, views, *, steps=40, seed=0, bfloat16=False):
    images = ArrayImages(*stripes(), STRIPES)
    batches = HardBatches(ViewBatches(images, views(), 24, seed))
    network = build_student("cnn", 3, 8, seed=seed)
    losses = []
    train_student(
        network,
        batches,
        replace(recipe("hard"), learning_rate=3e-3),
        steps=steps,
        on_step=lambda step, loss: losses.append((step, float(loss))),
        bfloat16=bfloat16,
    )
    return network, losses


def test_a_student_learns_and_can_be_repeated(stripes, views):
    network, losses = train(stripes, views)
    assert [step for step, _ in losses] == list(range(1, 41))
    images = striped_source(per_class=20, seed=9)
    untrained = build_student("cnn", 3, 8, seed=0)
    assert evaluate(network, images, views()) >= 95.0
    assert evaluate(untrained, images, views()) <= 60.0
    again, _ = train(stripes, views)
    assert torch.equal(network.head.weight, again.head.weight)


def test_training_states_its_troubles(stripes, views):
    network = build_student("cnn", 3, 8)
    batch = (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        train_student(network, [batch], recipe("hard"), steps=0)
    with pytest.raises(ValueError, match="batches: expected 3, got 2"):
        train_student(network, [batch, batch], recipe("hard"), steps=3)
    bad = (torch.full((2, 3, 8, 8), math.nan), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="loss: expected a finite number, got nan at step 0"):
        train_student(network, [bad], recipe("hard"), steps=1)


class Watched(torch.nn.Module):
    """Remembers in which dtype its product came out."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 3)
        self.dtypes = set()

    def forward(self, images):
        logits = self.head(images.mean((2, 3)))
        self.dtypes.add(logits.dtype)
        return logits


@pytest.mark.parametrize(("bfloat16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_bfloat16_precision_computes_in_bfloat16_and_keeps_weights_and_loss(bfloat16, dtype):
    torch.manual_seed(0)
    network = Watched()
    images = torch.randn(8, 3, 4, 4)
    target = torch.softmax(torch.randn(8, 3), 1)
    truth = loss_of(replace(recipe("kl"), temperature=2.0), network(images), target)
    network.dtypes.clear()
    losses = []
    train_student(
        network,
        [(images, target)],
        replace(recipe("kl"), temperature=2.0),
        steps=1,
        on_step=lambda _, loss: losses.append(loss),
        bfloat16=bfloat16,
    )
    assert network.dtypes == {dtype}
    assert losses[0].dtype == network.head.weight.dtype == torch.float32
    torch.testing.assert_close(losses[0], truth.detach(), rtol=2e-2 if bfloat16 else 1e-6, atol=0)


def test_a_student_learns_in_bfloat16_precision(stripes, views):
    network, _ = train(stripes, views, bfloat16=True)
    images = striped_source(per_class=20, seed=9)
    assert evaluate(network, images, views()) >= 95.0
