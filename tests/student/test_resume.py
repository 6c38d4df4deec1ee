"""A run that was killed ends with the bits of one that was not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hellofmt.errors import StateError, UserInputError
from hellofmt.loading import HelloDataset
from hellofmt.runs.results import read_result
from hellofmt.student.average import Average
from hellofmt.student.networks import build_student
from hellofmt.student.recipes import recipe
from hellofmt.student.train import train_from_dataset

STEPS = 7


class Killed(BaseException):
    pass


class Notes:
    """What a caller wants back: the losses so far."""

    def __init__(self):
        self.losses = []

    def facts(self):
        return {"losses": self.losses}

    def restore(self, facts):
        self.losses = list(facts["losses"])


def network():
    """With dropout and batch normalisation: random numbers and buffers."""
    made = build_student("cnn", 3, 8, seed=2)
    return nn.Sequential(made.features, nn.Dropout(0.5), nn.Flatten(), nn.Linear(128 * 4, 3))


@pytest.fixture
def run(archive):
    def run(path=None, *, kill_after=None, notes=None, lr=3e-3, initial=None, **options):
        torch.manual_seed(options.pop("global_seed", 0))
        plan = replace(recipe("hello"), batch_size=8, learning_rate=lr)
        dataset = HelloDataset(archive, labels="logits", seed=4)
        torch.manual_seed(11)
        student = network() if initial is None else initial
        average = Average(student, 0.9)
        notes = Notes() if notes is None else notes

        def on_step(done, loss):
            notes.losses.append(float(loss))
            if done == kill_after:
                raise Killed

        train_from_dataset(
            student,
            dataset,
            plan,
            steps=STEPS,
            seed=4,
            on_step=on_step,
            average=average,
            checkpoint=path,
            checkpoint_every=2,
            keeper=notes,
            **options,
        )
        return student, average.module, notes.losses

    return run


def same_bits(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


@pytest.mark.parametrize("kill_after", [1, 3, 4, 6])
def test_a_killed_run_continues_with_the_same_bits(run, tmp_path, kill_after):
    student, average, losses = run()
    path = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        run(path, kill_after=kill_after)
    # Kept after every second step, before which it was killed.
    assert path.exists() == (kill_after > 2)
    again, averaged, notes = run(path)
    assert same_bits(again, student)
    assert same_bits(averaged, average)
    assert notes == losses
    assert len(notes) == STEPS


def test_random_numbers_of_the_network_are_the_runs_own(run):
    student, _, losses = run()
    before = torch.random.get_rng_state()
    again, _, _ = run(global_seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert same_bits(student, again)
    # Two steps do not drop the same units; else dropout would be a fixed mask.
    assert len(set(losses)) == STEPS


def test_a_finished_run_is_not_repeated(run, tmp_path):
    path = tmp_path / "deep" / "state.safetensors"
    student, average, losses = run(path)
    again, averaged, notes = run(path)
    assert same_bits(again, student)
    assert same_bits(averaged, average)
    assert notes == losses
    assert read_result(path).facts["step"] == STEPS


def test_a_state_of_another_run_is_refused(run, tmp_path):
    path = tmp_path / "state.safetensors"
    run(path)
    before = path.read_bytes()
    others = [
        {"lr": 1e-3},
        {"labels": "of a teacher"},
        {"bfloat16": True},
        {"initial": build_student("cnn", 3, 8)},
    ]
    for other in others:
        with pytest.raises(StateError, match=r"E_STATE_DIGEST: .* is the state of another run"):
            run(path, **other)
    assert path.read_bytes() == before
    path.write_bytes(before[:-5])
    with pytest.raises(UserInputError, match=r"E_DATA: .* is damaged"):
        run(path)


def test_a_folder_keeps_many_runs(run, tmp_path):
    student, _, _ = run(tmp_path)
    run(tmp_path, lr=1e-3)
    assert len(list(tmp_path.glob("student-*.safetensors"))) == 2
    again, _, _ = run(tmp_path)
    assert same_bits(again, student)
    assert len(list(tmp_path.glob("student-*"))) == 2


@pytest.mark.parametrize("name", ["hard", "strong"])
def test_batches_that_cannot_be_skipped_are_drawn(tmp_path, name):
    from hellofmt.runs.resume import Checkpoint
    from hellofmt.student.train import train_student

    torch.manual_seed(0)
    batches = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])) for _ in range(4)]
    plan = replace(recipe(name), loss="ce")
    whole = train_student(build_student("cnn", 3, 8), batches, plan, steps=4)
    kept = Checkpoint(tmp_path / "s.safetensors", "run", 2)

    def kill(done, _):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        train_student(
            build_student("cnn", 3, 8), batches, plan, steps=4, checkpoint=kept, on_step=kill
        )
    again = train_student(build_student("cnn", 3, 8), batches, plan, steps=4, checkpoint=kept)
    assert same_bits(again, whole)
