"""Names of trainers and wrappers, peeled until they fit and no further."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hellofmt.checkpoint import Checkpoint
from hellofmt.errors import UserInputError
from hellofmt.weights import find_weights, listed


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


class Wrapped(nn.Module):
    """A network whose names really begin with ``model.module.``."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.module = network(7)


STATE = network().state_dict()
OTHER = network(1).state_dict()


def prefixed(prefix, state=STATE):
    return {prefix + name: tensor for name, tensor in state.items()}


def found(**states):
    return find_weights(network(), Checkpoint(states, {}), "w.pth")


def is_state(match, state=STATE):
    loaded = network(9)
    loaded.load_state_dict(match.state, strict=False)
    return match.fits and all(torch.equal(t, state[n]) for n, t in loaded.state_dict().items())


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.",
        "model._orig_mod.",
        "net.module.backbone.",
        "student.encoder.",
        "_forward_module.model._orig_mod.",
        "any.name.of.a.users.wrapper.",
    ],
)
def test_any_nesting_of_prefixes_is_peeled(prefix):
    match = found(state_dict=prefixed(prefix))
    assert is_state(match)
    assert match.left_out == []


def test_wrappers_inside_a_name_are_peeled():
    state = {
        name.replace("0.", "0._orig_mod.").replace("1.", "1.module."): STATE[name] for name in STATE
    }
    assert is_state(found(s=state))


def test_a_network_that_has_such_children_keeps_them():
    own = Wrapped()
    checkpoint = Checkpoint({"": own.state_dict()}, {})
    match = find_weights(Wrapped(), checkpoint, "w.pth")
    assert match.fits
    assert sorted(match.state) == sorted(own.state_dict())
    # With a wrapper before them as well.
    checkpoint = Checkpoint({"": prefixed("_orig_mod.", own.state_dict())}, {})
    assert find_weights(Wrapped(), checkpoint, "w.pth").fits


def test_averages_are_taken_and_the_plain_weights_named():
    match = found(state_dict=STATE, state_dict_ema=prefixed("module.", OTHER))
    assert is_state(match, OTHER)
    assert (match.where, match.others) == ("state_dict_ema", ("state_dict",))
    both = {**prefixed("online_model."), **prefixed("ema_model.", OTHER), "step": torch.tensor(3)}
    match = found(s=both)
    assert is_state(match, OTHER)
    assert (match.where, match.others) == ("s.ema_model.", ("s.online_model.",))
    # Beside each other in one dictionary.
    assert is_state(found(s={**STATE, **prefixed("ema.", OTHER)}), OTHER)


def test_several_sets_without_a_reason_to_prefer_one_are_refused():
    message = r"E_TEACHER: `w.pth` holds several sets of these weights, `s.a.`, `s.b.`; save the"
    with pytest.raises(UserInputError, match=message):
        found(s={**prefixed("a."), **prefixed("b.", OTHER)})
    # Twice the same is no question.
    assert is_state(found(s={**prefixed("a."), **prefixed("b.")}))


def test_what_no_label_depends_on_is_left_out():
    match = found(s={**prefixed("module."), "n_averaged": torch.tensor(7)})
    assert is_state(match)
    assert match.left_out == ["n_averaged"]
    match = found(s={**prefixed("model."), "criterion.weight": torch.ones(3)})
    assert match.left_out == ["criterion.weight"]
    counted = {name: t for name, t in STATE.items() if not name.endswith("num_batches_tracked")}
    assert found(s=counted).fits


def test_other_names_in_the_place_are_another_network():
    match = found(s={**STATE, "2.weight": torch.ones(3)})
    assert not match.fits
    assert match.unexpected == ["2.weight"]
    match = found(s=prefixed("model.", {n: t for n, t in STATE.items() if n != "0.bias"}))
    assert match.missing == ["0.bias"]
    assert match.unexpected == []


def test_a_head_of_other_classes_is_recognised():
    own, big = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 7))
    match = find_weights(own, Checkpoint({"": big.state_dict()}, {}), "w.pth")
    assert match.head_classes(3) == 7
    assert match.head_classes(5) is None
    wide = nn.Sequential(nn.Linear(4, 7))
    match = find_weights(own, Checkpoint({"": wide.state_dict()}, {}), "w.pth")
    assert match.head_classes(3) is None
    assert ("0.weight", (7, 4), (3, 2)) in match.shapes


def test_integers_are_not_taken_for_weights():
    quantised = {name: t.to(torch.int8) if t.ndim == 2 else t for name, t in STATE.items()}
    message = "E_TEACHER: `0.weight` of `w.pth` is torch.int8; expected torch.float32"
    with pytest.raises(UserInputError, match=message):
        found(s=quantised)
    assert is_state(found(s={name: t.double() for name, t in STATE.items()}))


def test_names_are_sorted_three_and_a_count():
    assert listed(["d", "b", "a", "c"]) == "`a`, `b`, `c` and 1 more"
    assert listed(["b", "a\x1b"]) == "`a\\x1b`, `b`"
