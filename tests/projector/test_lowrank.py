from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from hellofmt.archive.format.label_function import Adapter, Target
from hellofmt.errors import SpecError
from hellofmt.projector.lowrank import Delta, initial_matrix, merge_, read_deltas
from hellofmt.projector.targets import DeltaShape, delta_shapes
from hellofmt.rng import uniform, words


def shapes_of(module):
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def random_delta(param, shape, seed=0, scale=0.7):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(shape.a, generator=generator) / 3
    b = torch.randn(shape.b, generator=generator) / 3
    return Delta(param, a, b, scale)


def explicit(delta, weight):
    """W + s * reshape(B A) in float64."""
    product = delta.b.detach().numpy().astype(np.float64) @ delta.a.detach().numpy()
    return weight.detach().numpy() + delta.scale * product.reshape(tuple(weight.shape))


@pytest.mark.parametrize(
    ("shape", "a", "b"),
    [
        pytest.param((6, 8), (3, 8), (6, 3), id="linear"),
        pytest.param((6, 4, 3, 3), (3, 36), (6, 3), id="flattened convolution"),
        pytest.param((6, 4, 3, 3), (6, 12), (18, 6), id="convolution form"),
    ],
)
def test_delta_is_the_explicit_sum(shape, a, b):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    delta = random_delta("w", DeltaShape("w", shape, a, b))
    np.testing.assert_allclose(
        delta(weight).detach().numpy(), explicit(delta, weight), rtol=0, atol=1e-6
    )


def test_convolution_form_is_that_of_loralib():
    # In loralib: (lora_B @ lora_A).view(weight.shape), so the entry at (o, i, y, x) is at row
    # o k + i // (I / k) ..., by row-major order of a (O k) x (I k) matrix.
    o, i, k = 4, 6, 3
    delta = random_delta(
        "w", DeltaShape("w", (o, i, k, k), (2 * k, i * k), (o * k, 2 * k)), scale=1
    )
    product = (delta.b @ delta.a).detach().numpy()
    weight = delta(torch.zeros(o, i, k, k)).detach().numpy()
    for where in [(0, 0, 0, 0), (1, 2, 0, 2), (3, 5, 2, 1)]:
        flat = int(np.ravel_multi_index(where, (o, i, k, k)))
        assert weight[where] == pytest.approx(product[flat // (i * k), flat % (i * k)], abs=1e-6)


# One parameter of every kind that an encoder computes with.
KINDS = {
    "vit": [
        ("conv1.weight", "all"),
        ("transformer.resblocks.0.attn.in_proj_weight", "all"),
        ("transformer.resblocks.1.attn.out_proj.weight", "all"),
        ("transformer.resblocks.0.mlp.c_fc.weight", "all"),
        ("transformer.resblocks.1.mlp.c_proj.weight", "all"),
        ("proj", "all"),
    ],
    "resnet": [
        ("conv1.weight", "paper"),
        ("layer2.0.conv2.weight", "paper"),
        ("layer2.0.conv2.weight", "all"),
        ("layer1.0.conv1.weight", "all"),
        ("layer3.0.downsample.0.weight", "all"),
        ("attnpool.q_proj.weight", "all"),
        ("attnpool.v_proj.weight", "all"),
        ("attnpool.c_proj.weight", "all"),
    ],
}


@pytest.mark.parametrize(
    ("tower", "param", "form"), [(t, p, f) for t, pairs in KINDS.items() for p, f in pairs]
)
def test_merged_and_parametrised_towers_equal_the_explicit_weight(tower, param, form, request):
    import copy

    base = request.getfixturevalue(tower)
    shape = next(s for s in delta_shapes(shapes_of(base.visual), form, 4) if s.param == param)
    delta = random_delta(param, shape, seed=7, scale=0.5)
    size = base.spec.preprocess.size
    x = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))

    truth = copy.deepcopy(base.visual).double()
    with torch.no_grad():
        parameter = truth.get_parameter(param)
        parameter.copy_(torch.from_numpy(explicit(delta, base.visual.get_parameter(param))))
        expected = truth(x.double())
        merged = copy.deepcopy(base.visual)
        merge_(merged, [delta])
        weight = delta(base.visual.get_parameter(param))
        fitted = torch.func.functional_call(base.visual, {param: weight}, (x,))
        unchanged = base.visual(x)
    scale = float(expected.abs().max())
    assert float((merged(x) - expected).abs().max()) < 1e-5 * scale
    assert float((fitted - expected).abs().max()) < 1e-5 * scale
    # The delta is really used, once: a path around the parameter would leave the output as it was.
    assert float((unchanged - expected).abs().max()) > 1e-3 * scale


def test_initial_factors_are_lora_s_from_counter_words():
    shape = DeltaShape("w", (5, 6), (2, 6), (5, 2))
    delta = Delta.start(shape, seed=9, index=4)
    u = uniform(words(9, 2**32 - 1, 8, 4, 12)).reshape(2, 6)
    np.testing.assert_array_equal(
        delta.a.detach().numpy(), ((2 * u - 1) / math.sqrt(6)).astype(np.float32)
    )
    assert not delta.b.any()
    # The bound of nn.init.kaiming_uniform_(a=sqrt(5)).
    reference = torch.empty(400, 50)
    nn.init.kaiming_uniform_(reference, a=math.sqrt(5))
    ours = initial_matrix((400, 50), seed=0, index=0)
    assert float(ours.abs().max()) == pytest.approx(float(reference.abs().max()), rel=1e-2)
    assert float(ours.std()) == pytest.approx(float(reference.std()), rel=2e-2)


def test_a_delta_of_no_parameter_is_refused(vit):
    target = Target(
        a=[2, 64], b=[192, 2], param="transformer.resblocks.0.attn.in_proj_weight", scale="1.0",
        shape=[192, 64], storage="float32",
    )  # fmt: skip
    tensors = {
        f"{target.param}::A": np.zeros((2, 64), np.float32),
        f"{target.param}::B": np.zeros((192, 2), np.float32),
    }
    shapes = shapes_of(vit.visual)
    (delta,) = read_deltas(Adapter(targets=[target]), tensors, shapes)
    assert delta.param == target.param
    for change in ({"param": "layer1.0.conv2.weight"}, {"shape": [64, 192]}):
        wrong = Adapter(targets=[msgspec.structs.replace(target, **change)])
        with pytest.raises(SpecError, match="the base has no such parameter") as info:
            read_deltas(wrong, tensors, shapes)
        assert info.value.code == "E_TENSOR"
