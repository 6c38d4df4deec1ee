from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional

from hellofmt.archive import open_archive
from hellofmt.archive.card import base_argument
from hellofmt.archive.format.manifest import UNSET
from hellofmt.errors import BaseModelError, HelloIOError, UserInputError
from hellofmt.projector import Labeler, Projector, load_base
from hellofmt.projector.base.timm_tower import _arch
from hellofmt.teacher import InputRule

NAME = "test_efficientnet"
SIDE = 32
RULE = InputRule((0.5, 0.4, 0.3), (0.5, 0.25, 0.2), size=SIDE, interpolation="bicubic")


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = timm.create_model(NAME, num_classes=7).eval()
        for name, tensor in made.state_dict().items():
            # Statistics as after training: an unfrozen norm, or one in train mode, would show.
            if name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory, network):
    """The same weights as people have them, and in our own file with its input rule."""
    folder = tmp_path_factory.mktemp("weights")
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, folder / "last.ckpt")
    header = {"hellofmt.teacher": json.dumps(RULE.to_json())}
    save_file(network.state_dict(), folder / "ours.safetensors", header)
    return folder


@pytest.fixture(scope="module")
def base(folder):
    return load_base(f"timm:{NAME}={folder / 'ours.safetensors'}")


@pytest.fixture
def views():
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def features(network, views, mean, std, weights=None):
    """Pooled features in float64, by timm's own way to them."""
    double = timm.create_model(NAME, num_classes=7).double().eval()
    double.load_state_dict(network.state_dict() | (weights or {}))
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
    with torch.no_grad():
        maps = double.forward_features((views.double() - mean) / std)
        return functional.normalize(double.forward_head(maps, pre_logits=True), dim=1)


def test_features_are_those_before_the_classifier(folder, base, network, views):
    expected = features(network, views, RULE.mean, RULE.std)
    torch.testing.assert_close(base.encode(views).double(), expected, rtol=0, atol=1e-5)
    said = []
    plain = load_base(f"timm:{NAME}={folder / 'last.ckpt'}", say=said.append)
    config = network.pretrained_cfg
    resized = functional.interpolate(views, size=(160, 160), mode="bicubic", antialias=True)
    expected = features(network, resized, config["mean"], config["std"])
    torch.testing.assert_close(plain.encode(views).double(), expected, rtol=0, atol=1e-5)
    assert "`model.classifier.bias`, `model.classifier.weight` left out" in said[0]
    assert said[1].endswith(
        "input 160 px bicubic, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
        " (timm's data config, the file says nothing)"
    )
    assert plain.spec.tensors == base.spec.tensors
    assert plain.spec.digest != base.spec.digest
    assert (plain.spec.name, plain.spec.pretrained) == (f"timm:{NAME}", UNSET)
    assert not any(p.requires_grad for p in base.visual.parameters())
    assert not base.has_text


@pytest.mark.parametrize("targets", ["paper", "all"])
def test_depthwise_and_pointwise_deltas(base, network, classes, randomise, views, targets):
    projector = randomise(
        Projector.build(base, classes, targets=targets, start="stored", temperature=4.0, seed=1)
    )
    weights = {}
    for delta in projector.deltas:
        name = delta.param.removeprefix("trunk.")
        start = network.state_dict()[name].double()
        product = delta.b.detach().double() @ delta.a.detach().double()
        weights[name] = start + delta.scale * product.reshape(start.shape)
    assert any(w.shape[1] == 1 for w in weights.values())
    assert any(w.shape[2:] == (1, 1) for w in weights.values()) == (targets == "all")
    expected = features(network, views, RULE.mean, RULE.std, weights)
    projector.train()
    assert not any(m.training for m in base.visual.modules())
    got = projector.labeler().embeddings(views).double()
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    # They do something.
    assert float((expected - features(network, views, RULE.mean, RULE.std)).abs().max()) > 1e-2


def test_an_archive_needs_the_weights_alone(
    tmp_path, folder, base, classes, views, write_projector
):
    projector = Projector.build(base, classes, start="stored", temperature=4.0, seed=1)
    write_projector(tmp_path / "x.hello", projector, classes)
    with open_archive(tmp_path / "x.hello") as archive:
        spec = archive.manifest.base
        assert base_argument(spec) == f"timm:{NAME}=FILE"
        with pytest.raises(BaseModelError, match=rf"timm:{NAME}=FILE") as info:
            Labeler.from_file(archive)
        assert info.value.code == "E_BASE_MISSING"
        # The checkpoint says nothing of the input: the archive does.
        for text in (f"timm:{NAME}={folder / 'last.ckpt'}", str(folder / "last.ckpt")):
            labels = Labeler.from_file(archive, text).labels(views)
            torch.testing.assert_close(labels, projector.labeler().labels(views))
        other = timm.create_model(NAME, num_classes=0)
        torch.save(other.state_dict(), tmp_path / "other.pth")
        with pytest.raises(BaseModelError) as info:
            Labeler.from_file(archive, f"timm:{NAME}={tmp_path / 'other.pth'}")
        assert info.value.code == "E_BASE_WEIGHTS"


def test_refused(folder, base, classes, monkeypatch):
    with pytest.raises(UserInputError, match="timm has no network") as info:
        load_base("timm:test_eficientnet=x.pth")
    assert f"`{NAME}`" in info.value.advice
    with pytest.raises(UserInputError, match=r"the file lacks 75 of its names \(`bn1.bias`"):
        load_base(f"timm:test_resnet={folder / 'last.ckpt'}")
    with pytest.raises(UserInputError, match="has no text tower"):
        Projector.build(base, classes, start="text", temperature=4.0, seed=1)
    with pytest.raises(UserInputError, match="pools by `max`, which an archive cannot state"):
        _arch(timm.create_model(NAME, num_classes=0, global_pool="max"), NAME, SIDE)

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(HelloIOError, match=rf"weights of `timm:{NAME}` cannot be downloaded"):
        load_base(f"timm:{NAME}")
