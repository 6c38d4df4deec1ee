"""The run that is kept for Weights & Biases, by a stand-in of its library."""

import sys
import types

import pytest
import torch

from hellofmt.errors import UserInputError
from hellofmt.student import Curve, Recipe
from hellofmt_cli.curves import Log


def filled(steps):
    curve = Curve(Recipe("kl", "kl", learning_rate=0.1), 4)
    points = [
        curve.add(step, torch.tensor(step / 8), 50.0 if step == 4 else None) for step in steps
    ]
    return curve, points


def test_a_run_is_kept_offline_with_every_point(tmp_path, monkeypatch, capsys):
    begun, logged, finished = [], [], []

    class Run:
        offline, dir = True, "log/wandb/run-1/files"
        config = types.SimpleNamespace(update=finished.append)

        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            finished.append("finished")

    module = types.ModuleType("wandb")
    module.Settings = dict
    module.init = lambda **options: begun.append(options) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    # Two points are of before the state that this run continues from.
    curve, points = filled([1, 2, 3])
    log = Log(str(tmp_path), curve, "title", "project")
    log.add(points[-1])
    log.add(curve.add(4, torch.tensor(0.5), 50.0))
    log.finish({"schema": "hello.train/1"})
    assert [(one["project"], one["mode"], one["dir"]) for one in begun] == [
        ("project", "offline", tmp_path)
    ]
    assert [step for step, _ in logged] == [1, 2, 3, 4]
    assert [values["loss"] for _, values in logged] == [0.125, 0.25, 0.375, 0.5]
    assert ["accuracy" in values for _, values in logged] == [False, False, False, True]
    assert finished == [{"schema": "hello.train/1"}, "finished"]
    assert "`wandb sync log/wandb/run-1` sends the run" in capsys.readouterr().err


def test_what_is_not_installed_is_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserInputError, match=r"needs `wandb`; `pip install 'hellofmt\[wandb\]'`"):
        Log(str(tmp_path), filled([])[0], "title", "project")
