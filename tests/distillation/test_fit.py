from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import linear_teacher

from hellofmt.distillation.fidelity import fidelity
from hellofmt.distillation.fit import FitSettings, default_steps, fit_loss, fit_projector
from hellofmt.errors import StateError
from hellofmt.runs.results import read_result
from hellofmt.runs.resume import Checkpoint
from hellofmt.teacher import teacher_accuracy


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


@pytest.fixture
def projector(make_projector):
    return make_projector()


def test_a_projector_learns_a_teacher_and_the_base_stays(projector, stripes, views):
    source, unseen = stripes(), stripes(per_class=20, seed=5)

    base = {name: t.clone() for name, t in projector.base.visual.state_dict().items()}
    before = fidelity(projector, linear_teacher, unseen, views(), count=256)
    losses = []
    after = fit_projector(
        projector,
        linear_teacher,
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


class Killed(BaseException):
    pass


def trained(projector):
    return {n: p.detach().clone() for n, p in projector.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("loss", ["kl", "mse_ce"])
def test_a_killed_fit_continues_with_the_same_bits(make_projector, stripes, views, tmp_path, loss):
    settings = FitSettings(loss=loss, steps=7, batch_size=6, learning_rate=5e-3)
    whole, killed, resumed = make_projector(), make_projector(), make_projector()
    arguments = (linear_teacher, stripes(), views(), settings)
    truth = fit_projector(whole, *arguments)
    path = tmp_path / "new" / "state"
    state = {"checkpoint": Checkpoint(path, "a", every=2)}

    def kill(done, _loss):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        fit_projector(killed, *arguments, **state, on_step=kill)
    steps = []
    again = fit_projector(resumed, *arguments, **state, on_step=lambda k, _: steps.append(k))
    assert steps == [5, 6, 7]
    assert again == truth
    for name, tensor in trained(whole).items():
        assert torch.equal(tensor, trained(resumed)[name]), name
    # Slow steps are kept by the clock.
    path.unlink()
    slow = {"checkpoint": Checkpoint(path, "a", seconds=0.0)}
    with pytest.raises(Killed):
        fit_projector(make_projector(), *arguments, **slow, on_step=kill)
    assert read_result(path).facts["step"] == 4
    with pytest.raises(StateError, match=r"E_STATE_DIGEST: .* is the state of another run"):
        fit_projector(make_projector(), *arguments, checkpoint=Checkpoint(path, "b"))
    other = make_projector(rank=2)
    with pytest.raises(StateError, match=r"E_STATE_SHAPE: .* holds \d+ tensors; expected the run"):
        fit_projector(other, *arguments, **state)


def test_mixed_precision_rounds_the_towers_and_nothing_else(
    make_projector, stripes, views, tmp_path
):
    full = FitSettings(steps=6, batch_size=6, learning_rate=5e-3)
    rounded = replace(full, bfloat16=True)
    seen = []

    def teacher(batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return linear_teacher(batch)

    a, b, killed = make_projector(), make_projector(), make_projector()
    truth = fit_projector(a, teacher, stripes(), views(), full)
    assert not any(seen)
    seen.clear()
    got = fit_projector(b, teacher, stripes(), views(), rounded)
    # Six steps, then the fidelity, in float32.
    assert seen == 6 * [True] + (len(seen) - 6) * [False]
    assert got.kl == pytest.approx(truth.kl, rel=0.1)
    assert got.kl != truth.kl
    assert all(t.dtype == torch.float32 for t in trained(b).values())
    state = {"checkpoint": Checkpoint(tmp_path / "state", "a", every=2)}

    def kill(done, _loss):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        fit_projector(killed, linear_teacher, stripes(), views(), rounded, on_step=kill, **state)
    resumed = make_projector()
    assert fit_projector(resumed, linear_teacher, stripes(), views(), rounded, **state) == got
    assert all(torch.equal(t, trained(b)[n]) for n, t in trained(resumed).items())


@pytest.mark.parametrize("loss", ["kl", "mse_ce"])
def test_shares_of_a_batch_add_up_to_its_loss(loss):
    random = np.random.default_rng(3)
    mine, teacher = (torch.tensor(random.normal(size=(9, 4)), requires_grad=True) for _ in "ab")
    hard = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 0, 1, 2, 3, 0]]
    hard[[1, 5, 6]] = 0.25
    settings = FitSettings(loss=loss)
    whole = fit_loss(settings, mine, teacher.detach(), hard)
    (truth,) = torch.autograd.grad(whole, mine)
    total, gradient = 0.0, 0.0
    for part in (slice(0, 2), slice(2, 7), slice(7, 9)):
        share = fit_loss(
            settings, mine[part], teacher.detach()[part], hard[part], rows=9, unmixed_rows=6
        )
        total += share.item()
        gradient = gradient + torch.autograd.grad(share, mine)[0]
    assert total == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(gradient, truth)


@pytest.mark.parametrize(
    ("images", "batch_size", "steps"), [(1297, 128, 507), (30_000, 128, 4000), (3, 128, 2)]
)
def test_default_steps_are_fifty_epochs_but_at_most_4000(images, batch_size, steps):
    assert default_steps(images, batch_size) == steps


def test_fidelity_on_the_way_changes_nothing(make_projector, stripes, views):
    settings = FitSettings(steps=4, batch_size=4)
    seen = []
    quiet, watched = make_projector(), make_projector()
    fit_projector(quiet, linear_teacher, stripes(), views(), settings)
    fit_projector(
        watched,
        linear_teacher,
        stripes(),
        views(),
        settings,
        evaluations=2,
        on_fidelity=lambda done, got: seen.append((done, got.views)),
    )
    assert seen == [(2, 256)]
    assert all(torch.equal(t, trained(watched)[n]) for n, t in trained(quiet).items())


def test_the_networks_of_a_fit_are_compiled_where_that_is_asked_for(
    projector, stripes, views, monkeypatch
):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    for wanted in (False, True):
        settings = FitSettings(steps=1, batch_size=4, compile=wanted)
        fit_projector(projector, linear_teacher, stripes(), views(), settings)
        assert compiled == [projector, linear_teacher] * wanted
