from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from hellofmt.errors import HelloIOError, StateError, UserInputError
from hellofmt.teacher import TEACHER_RECIPE, train_teacher, trajectory
from hellofmt.teacher.trajectory import (
    maturity,
    read_trajectory,
    train_trajectory,
    weak_checkpoints,
)


def tree(root):
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


@pytest.fixture
def teach(stripes, views):
    def run(folder, **changes):
        arguments = {
            "network": "cnn",
            "steps": 6,
            "checkpoints": 3,
            "batch_size": 6,
            "held_out": stripes(per_class=4, seed=3),
            **changes,
        }
        return train_trajectory(stripes(), views(), folder, **arguments)

    return run


def test_the_trajectory_is_the_run_of_train_teacher(teach, stripes, views, tmp_path):
    done = teach(tmp_path / "t")
    assert [c.step for c in done.checkpoints] == [2, 4, 6]
    view = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = train_teacher(stripes(), views(), steps=6, batch_size=6)
    assert torch.equal(done.load(-1)(view), plain(view))
    assert not torch.equal(done.load(0)(view), plain(view))
    again = read_trajectory(tmp_path / "t")
    assert again == done
    assert sorted(tree(tmp_path / "t")) == [
        "checkpoint-1-step-2.safetensors",
        "checkpoint-2-step-4.safetensors",
        "checkpoint-3-step-6.safetensors",
        "teacher.json",
    ]
    pool = done.pool(1.0)
    logits = torch.stack([done.load(k)(view) for k in range(3)])
    torch.testing.assert_close(pool(view), logits.mean(0))


class Killed(BaseException):
    pass


def test_a_killed_run_continues_with_the_same_bits(teach, tmp_path):
    def kill(done, _total):
        if done == 5:
            raise Killed

    teach(tmp_path / "whole")
    with pytest.raises(Killed):
        teach(tmp_path / "killed", on_step=kill)
    assert "teacher.json" not in tree(tmp_path / "killed")
    steps = []
    teach(tmp_path / "killed", on_step=lambda done, _total: steps.append(done))
    # Continued from the second checkpoint.
    assert steps == [5, 6]
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_a_finished_run_is_read_and_another_refused(teach, tmp_path):
    first = teach(tmp_path / "t")

    def never(_done, _total):
        raise AssertionError

    assert teach(tmp_path / "t", on_step=never) == first
    with pytest.raises(HelloIOError, match=r"E_TARGET: `.*` holds a teacher of other data or sett"):
        teach(tmp_path / "t", seed=1)


def test_slow_steps_are_kept_by_the_clock(teach, tmp_path, monkeypatch):
    monkeypatch.setattr(
        trajectory.resume, "Checkpoint", partial(trajectory.resume.Checkpoint, seconds=0.0)
    )

    def kill(done, _total):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        teach(tmp_path / "t", on_step=kill)
    steps = []
    teach(tmp_path / "t", on_step=lambda done, _total: steps.append(done))
    assert steps == [5, 6]


def test_bfloat16_is_another_run(teach, tmp_path):
    full, rounded = teach(tmp_path / "full"), teach(tmp_path / "rounded", bfloat16=True)
    view = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = full.load(-1)(view), rounded.load(-1)(view)
    assert b.dtype == torch.float32
    torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)
    assert not torch.equal(a, b)
    assert full.run != rounded.run
    with pytest.raises(HelloIOError, match=r"E_TARGET: `.*` holds a teacher of other data or sett"):
        teach(tmp_path / "full", bfloat16=True)


def test_the_state_of_another_run_is_refused(teach, tmp_path):
    def kill(done, _total):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        teach(tmp_path / "t", on_step=kill)
    with pytest.raises(StateError, match=r"E_STATE_DIGEST: `.*` is the state of another run"):
        teach(tmp_path / "t", seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "E_OPTION: steps and checkpoints: expected at least 1, got 0 and 3"),
        (
            {"recipe": TEACHER_RECIPE.__class__("bad", "ce", learning_rate=float("inf"))},
            "E_OPTION: loss: expected a finite number, got nan at step 1; a lower learning rate",
        ),
    ],
)
def test_impossible_runs(teach, tmp_path, changes, message):
    with pytest.raises(UserInputError, match=message):
        teach(tmp_path / "t", **changes)


@pytest.mark.parametrize("text", ["[]", "{", '{"schema": "hello.teacher/2", "network": "cnn"}'])
def test_a_document_of_something_else(tmp_path, text):
    (tmp_path / "teacher.json").write_text(text)
    with pytest.raises(UserInputError, match=r"E_TEACHER: `.*` does not describe a teacher"):
        read_trajectory(tmp_path)


def test_a_file_cannot_point_outside_its_folder(teach, tmp_path):
    teach(tmp_path / "t")
    path = tmp_path / "t" / "teacher.json"
    document = json.loads(path.read_text())
    document["checkpoints"][0]["file"] = "../../secret.safetensors"
    path.write_text(json.dumps(document))
    with pytest.raises(UserInputError, match=r"E_TEACHER: `.*` does not describe a teacher"):
        read_trajectory(tmp_path / "t")


@pytest.mark.parametrize(
    ("ipc", "classes", "fraction"),
    [
        (1, 1000, 0.25),
        (9, 1000, 0.25),
        (10, 1000, 0.5),
        (50, 1000, 0.9),
        (200, 1000, 1.0),
        (1, 100, 0.6),
        (10, 100, 0.9),
        (50, 100, 1.0),
        (100, 10, 1.0),
    ],
)
def test_small_sets_want_weak_teachers(ipc, classes, fraction):
    assert maturity(ipc, classes) == fraction


def test_the_three_nearest_checkpoints():
    accuracies = [10.0, 20.0, 30.0, 38.0, 40.0]
    assert weak_checkpoints(accuracies, 0.5) == [0, 1, 2]
    assert weak_checkpoints(accuracies, 1.0) == [2, 3, 4]
    assert weak_checkpoints([5.0, 5.0], 0.1) == [0, 1]


def test_a_folder_without_a_name_is_not_the_current_one(teach, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HelloIOError, match="E_TARGET: the folder of the teacher has an empty name"):
        teach("")
    assert not any(tmp_path.iterdir())


def linear(_name, classes, size, seed=0):
    """A network without batch normalisation, which alone counts the rows of a process."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * size * size, classes))


def test_two_processes_train_the_same_teacher(teach, tmp_path, in_ranks):
    one = teach(tmp_path / "one", build=linear)
    # On two machines: the second has no folder, and needs none.
    first, second = in_ranks(2, lambda rank: teach(tmp_path / f"two-{rank}", build=linear))
    assert first == second
    assert sorted(tree(tmp_path / "two-0")) == sorted(tree(tmp_path / "one"))
    assert not (tmp_path / "two-1").exists()
    for number in range(3):
        a, b = one.load(number, linear), first.load(number, linear)
        for mine, theirs in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert [c.accuracy for c in first.checkpoints] == [c.accuracy for c in one.checkpoints]
