from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hellofmt.archive.manifest import Arch, Preprocess, VisionArch
from hellofmt.distillation.fit import FitSettings, fidelity, fit_loss, fit_projector
from hellofmt.distillation.teacher import teacher_accuracy
from hellofmt.projector import Projector, seeded_base


def log_softmax64(x):
    shifted = x - x.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@pytest.fixture
def logits():
    random = np.random.default_rng(0)
    return random.normal(size=(6, 4)) * 3, random.normal(size=(6, 4)) * 3 + 20


def test_kl_carries_the_squared_temperature(logits):
    mine, teacher = logits
    log_p, log_q = log_softmax64(mine / 2), log_softmax64(teacher / 2)
    truth = 4 * (np.exp(log_q) * (log_q - log_p)).sum(1).mean()
    got = fit_loss(
        FitSettings(temperature=2.0), torch.tensor(mine), torch.tensor(teacher), torch.eye(4)
    )
    assert float(got) == pytest.approx(truth, rel=1e-12)


def test_mse_ignores_a_row_constant_unless_raw(logits):
    mine, teacher = logits
    hard = torch.zeros(6, 4, dtype=torch.float64)
    hard[:, 1] = 0.25
    hard[:, 2] = 0.75
    hard[4], hard[5] = torch.eye(4)[3], torch.eye(4)[0]
    arguments = [torch.tensor(mine), torch.tensor(teacher), hard]
    cross_entropy = -(log_softmax64(mine)[4, 3] + log_softmax64(mine)[5, 0]) / 2
    difference = mine - teacher
    raw = (difference**2).mean()
    centred = ((difference - difference.mean(1, keepdims=True)) ** 2).mean()
    plain = FitSettings(loss="mse_ce")
    assert float(fit_loss(plain, *arguments)) == pytest.approx(centred + 0.1 * cross_entropy)
    published = FitSettings(loss="mse_ce", raw_logits=True)
    assert float(fit_loss(published, *arguments)) == pytest.approx(raw + 0.1 * cross_entropy)
    mixed_only = [part[:4] for part in arguments]
    expected = (((mine - teacher) - difference.mean(1, keepdims=True))[:4] ** 2).mean()
    assert float(fit_loss(plain, *mixed_only)) == pytest.approx(expected)


def test_fidelity_of_a_teacher_with_itself_and_with_nothing(stripes, views):
    def teacher(batch):
        return torch.stack([batch[:, 0].mean((1, 2)), batch[:, 1, ::2].mean((1, 2))], 1) * 9

    def uniform(batch):
        return torch.zeros(len(batch), 2)

    same = fidelity(teacher, teacher, stripes(), views(), count=100, batch_size=32)
    assert (same.agreement, same.views) == (100.0, 128)
    assert same.kl == pytest.approx(0.0, abs=1e-9)
    other = fidelity(uniform, teacher, stripes(), views(), count=100, batch_size=32)
    assert other.kl > 1e-3
    assert other.kl < math.log(2)


@pytest.fixture
def projector(stripes):
    vision = VisionArch(image_size=8, layers=1, width=64, patch_size=4, head_width=32)
    preprocess = Preprocess(
        antialias=True,
        interpolation="bicubic",
        mean=["0.4"] * 3,
        resize_mode="squash",
        size=8,
        std=["0.3"] * 3,
    )
    base = seeded_base(Arch(embed_dim=32, quick_gelu=False, vision=vision), preprocess, seed=0)
    return Projector.build(
        base, stripes().classes, targets="all", rank=4, start="stored", temperature=4.0, seed=0
    )


def test_a_projector_learns_a_teacher_and_the_base_stays(projector, stripes, views):
    source, unseen = stripes(), stripes(per_class=20, seed=5)

    def teacher(batch):
        rows = (batch[:, :, ::2] - batch[:, :, 1::2]).mean((1, 2, 3))
        columns = (batch[..., ::2] - batch[..., 1::2]).mean((1, 2, 3))
        return torch.stack([6 * rows, 6 * columns, 1.5 - 4 * (rows + columns)], dim=1)

    base = {name: t.clone() for name, t in projector.base.visual.state_dict().items()}
    before = fidelity(projector, teacher, unseen, views(), count=256)
    losses = []
    after = fit_projector(
        projector,
        teacher,
        source,
        views(),
        FitSettings(steps=60, batch_size=32, learning_rate=5e-3),
        held_out=unseen,
        on_step=lambda step, loss: losses.append((step, float(loss))),
    )
    assert [step for step, _ in losses] == list(range(1, 61))
    assert after.kl < 0.25 * before.kl
    assert after.agreement > 85.0
    assert teacher_accuracy(projector, unseen, 8) > 90.0
    for name, tensor in projector.base.visual.state_dict().items():
        assert torch.equal(tensor, base[name])


def test_fit_states_its_troubles(projector, stripes, views):
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        fit_projector(projector, projector, stripes(), views(), FitSettings(steps=0))

    def broken(batch):
        return torch.full((len(batch), 3), math.nan)

    with pytest.raises(ValueError, match="loss: expected a finite number, got nan at step 0"):
        fit_projector(projector, broken, stripes(), views(), FitSettings(steps=2, batch_size=4))
