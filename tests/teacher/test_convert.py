from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hellofmt.errors import HelloIOError, UserInputError
from hellofmt.teacher import RuleChange, build_network, convert_weights, load_named_teacher

NAME = "test_efficientnet"
HALF = RuleChange((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 32)


@pytest.fixture(scope="module")
def cnn():
    return build_network("cnn", 3, 16, seed=1).state_dict()


@pytest.fixture(scope="module")
def renamed():
    """A network of timm as another library names it, in timm's order."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = timm.create_model(NAME, num_classes=7).state_dict()
    return state, {
        f"_m{i}.{name.rpartition('.')[2]}": t for i, (name, t) in enumerate(state.items())
    }


def same(path, state):
    found = load_file(path)
    return found.keys() == state.keys() and all(torch.equal(found[n], t) for n, t in state.items())


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: s, ""),
        (lambda s: {f"module.{n}": t for n, t in s.items()}, ""),
        (
            lambda s: {"state_dict": {f"net._orig_mod.{n}": t for n, t in s.items()}},
            "state_dict.net.",
        ),
        # Lightning: weights below `model`, and an average of them that evaluates better.
        (
            lambda s: {
                "epoch": 3,
                "state_dict": {f"model.{n}": 0 * t for n, t in s.items()},
                "state_dict_ema": s,
                "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
            },
            "state_dict_ema",
        ),
    ],
)
@pytest.mark.parametrize("network", [None, "cnn"])
def test_what_trainers_put_around_weights_is_removed(tmp_path, cnn, wrap, said, network):
    torch.save(wrap(cnn), tmp_path / "in.ckpt")
    lines = []
    out = tmp_path / "out.safetensors"
    made = convert_weights(tmp_path / "in.ckpt", out, network=network, say=lines.append)
    assert same(out, cnn)
    assert made.numbers == sum(t.numel() for t in cnn.values())
    assert lines == ([f"{tmp_path}/in.ckpt: `{said}` removed before the names"] if said else [])


def test_names_by_order_and_the_input_in_the_header(tmp_path, renamed):
    state, others = renamed
    torch.save(others, tmp_path / "in.pth")
    lines, out = [], tmp_path / "out.safetensors"
    convert_weights(tmp_path / "in.pth", out, network=f"timm:{NAME}", change=HALF, say=lines.append)
    assert same(out, state)
    (line,) = lines
    assert f"names taken from timm:{NAME} in order, `_m0.weight` as `conv_stem.weight`" in line
    with safe_open(out, framework="pt") as file:
        rule = json.loads(file.metadata()["hellofmt.teacher"])
    assert (rule["mean"], rule["std"], rule["size"]) == ([0.5] * 3, [0.5] * 3, 32)
    keys = [f"n{i}" for i in range(7)]
    teacher = load_named_teacher(f"timm:{NAME}={out}", keys, 32)
    views = torch.rand(2, 3, 32, 32)
    network = timm.create_model(NAME, num_classes=7).eval()
    network.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(teacher(views), network((views - 0.5) / 0.5))


def test_refused(tmp_path, renamed, cnn):
    others = renamed[1]
    out = tmp_path / "out.safetensors"
    # The same shapes in the same order, but weights where biases are.
    swapped = {
        name.replace("bias", "@").replace("weight", "bias").replace("@", "weight"): tensor
        for name, tensor in others.items()
    }
    torch.save(swapped, tmp_path / "in.pth")
    with pytest.raises(UserInputError, match=f"does not hold a `timm:{NAME}`"):
        convert_weights(tmp_path / "in.pth", out, network=f"timm:{NAME}")
    with pytest.raises(UserInputError, match="belong to a network; name it"):
        convert_weights(tmp_path / "in.pth", out, change=HALF)
    torch.save({"a": cnn, "b": {n: 2 * t for n, t in cnn.items()}}, tmp_path / "two.pth")
    with pytest.raises(UserInputError, match="several sets of weights, `a`, `b`"):
        convert_weights(tmp_path / "two.pth", out)
    assert not out.exists()
    out.write_text("kept")
    with pytest.raises(HelloIOError) as info:
        convert_weights(tmp_path / "in.pth", out)
    assert info.value.code == "E_TARGET"
    assert out.read_text() == "kept"
    convert_weights(tmp_path / "in.pth", out, force=True)
    assert load_file(out).keys() == swapped.keys()
