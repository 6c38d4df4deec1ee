from __future__ import annotations

import pytest
import torch
import torchvision

from hellofmt.errors import UserInputError
from hellofmt.student.networks import ConvNet, SmallCnn, SmallResNet, build_student, is_student


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_the_small_cnn_has_the_documented_size():
    assert parameters(SmallCnn(10)) == 94_986


def test_convnet3_has_the_size_of_the_literature():
    # 3 -> 128 -> 128 -> 128 with affine norms, 128 * 4 * 4 features: 320,010 at 32 px, 10 classes.
    assert parameters(ConvNet(10, 32)) == 320_010


@pytest.mark.parametrize(("size", "first"), [(64, 32), (33, 17), (32, 32)])
def test_resnet10w32_has_the_documented_size_and_strides(size, first):
    assert parameters(SmallResNet(100, 64)) == 1_252_100
    network = build_student("resnet10w32", 5, size).eval()
    sides = []
    for block in network.blocks:
        block.register_forward_hook(lambda _m, _i, out: sides.append(tuple(out.shape[1:])))
    with torch.no_grad():
        assert network(torch.zeros(1, 3, size, size)).shape == (1, 5)
    halves = [-(-first // 2**k) for k in range(4)]
    assert sides == [(32 << k, side, side) for k, side in enumerate(halves)]


def test_resnet10w16_has_the_documented_size():
    assert parameters(build_student("resnet10w16", 100, 64)) == 320_436


def test_convnet_refuses():
    with pytest.raises(ValueError, match="size: expected at least 8 pixels, got 7"):
        ConvNet(4, 7)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = build_student("cnn", 10, 16, seed=5)
    state = torch.random.get_rng_state()
    second = build_student("cnn", 10, 16, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    other = build_student("cnn", 10, 16, seed=6)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("size", [32, 96])
def test_a_name_is_one_network_at_every_size(size):
    stock = build_student("resnet18", 7, size)
    assert stock.conv1.weight.shape == (64, 3, 7, 7)
    torchvision.models.resnet18(num_classes=7).load_state_dict(stock.state_dict())
    network = build_student("resnet18-cifar", 7, size).eval()
    assert network.conv1.weight.shape == (64, 3, 3, 3)
    shapes = []
    network.conv1.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape[-1]))
    network.layer1.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape[-1]))
    with torch.no_grad():
        assert network(torch.zeros(1, 3, size, size)).shape == (1, 7)
    assert shapes == [size, size]


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", ["timm:resnet18", "timm:levit_128s", "vit_tiny_patch16_224"])
def test_networks_of_timm(name, size):
    network = build_student(name, 5, size, seed=3).eval()
    assert type(network).__module__.startswith("timm.")
    with torch.no_grad():
        assert network(torch.zeros(1, 3, size, size)).shape == (1, 5)
    again = build_student(name, 5, size, seed=3)
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    if name.startswith("vit"):
        # 16 px patches of the images there are, not of 224 px ones.
        assert network.pos_embed.shape[1] == 1 + (size // 16) ** 2


def test_transformers_of_torchvision_take_the_side_of_the_images():
    assert build_student("vit_b_32", 5, 64).encoder.pos_embedding.shape[1] == 1 + 4


def test_auxiliary_heads_are_left_out():
    network = build_student("googlenet", 3, 32).train()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_building_leaves_no_trace_of_the_trial():
    network = build_student("resnet10w32", 3, 32)
    assert network.training
    assert {p.device.type for p in network.parameters()} == {"cpu"}
    assert int(network.bn1.num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("convnet3", 4, "size: expected at least 8 pixels, got 4"),
        ("alexnet", 32, r"Given input size: \(256x1x1\)"),
        ("vit_b_16", 40, "Input shape indivisible by patch size!"),
        ("timm:levit_128s", 3, "Expected size"),
    ],
)
def test_sizes_that_a_network_does_not_take(name, size, reason):
    message = rf"E_OPTION: student `{name}` cannot take 10 classes of {size} px images: {reason}"
    with pytest.raises(UserInputError, match=message):
        build_student(name, 10, size)


def test_names_are_known_without_building():
    known = ["cnn", "resnet18", "inception_v3", "vit_tiny_patch16_224", "timm:resnet18"]
    known += ["torchvision:resnet18", "wide_resnet50_2-cifar"]
    assert [is_student(name) for name in known] == [True] * 7
    assert not is_student("torchvision:cnn")
    assert not is_student("vgg11-cifar")
    assert not is_student("timm:hf-hub:someone/network")
    assert not is_student("resnet")


def test_unknown_name():
    known = "cnn, convnet3, resnet10w16, resnet10w32"
    message = rf"E_OPTION: unknown network `res\\x1bnet`; expected {known} or"
    with pytest.raises(UserInputError, match=message):
        build_student("res\x1bnet", 10, 32)
