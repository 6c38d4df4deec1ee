from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from hellofmt.archive.format.manifest import Adapter, Target
from hellofmt.errors import SpecError, UserInputError
from hellofmt.projector import Encoder, LoadedBase, Projector
from hellofmt.projector.lowrank import Delta, initial_matrix, merge_, read_deltas
from hellofmt.projector.targets import (
    DeltaShape,
    TargetRule,
    check_shapes,
    delta_shapes,
    parse_target,
)
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


def test_presets_choose_by_parameter(vit, resnet):
    paper = delta_shapes(shapes_of(resnet.visual), "paper", 8)
    assert [s.param for s in paper] == [
        "conv1.weight",
        "conv2.weight",
        "conv3.weight",
        "layer1.0.conv2.weight",
        "layer2.0.conv2.weight",
        "layer3.0.conv2.weight",
        "layer4.0.conv2.weight",
    ]
    assert (paper[0].b, paper[0].a) == ((4 * 3, 8 * 3), (8 * 3, 3 * 3))
    transformer = delta_shapes(shapes_of(vit.visual), "transformer", 2)
    assert [s.param.removeprefix("transformer.resblocks.") for s in transformer] == [
        f"{i}.{name}"
        for i in range(2)
        for name in (
            "attn.in_proj_weight",
            "attn.out_proj.weight",
            "mlp.c_fc.weight",
            "mlp.c_proj.weight",
        )
    ]
    everything = {s.param for s in delta_shapes(shapes_of(vit.visual), "all", 2)}
    assert everything == {s.param for s in transformer} | {"conv1.weight", "proj"}
    assert {s.param for s in delta_shapes(shapes_of(vit.visual), ["proj", "*c_fc*"], 2)} == {
        "proj",
        "transformer.resblocks.0.mlp.c_fc.weight",
        "transformer.resblocks.1.mlp.c_fc.weight",
    }
    assert delta_shapes(shapes_of(vit.visual), [], 2) == []


def test_rules_give_each_parameter_its_rank_and_scale(vit):
    rules = [
        "transformer:2",
        "*.1.*:3:-0.5",
        TargetRule("proj", scale=0.25),
        "*.attn.out_proj.*::2",
    ]
    found = {s.param: (s.a[0], s.scale) for s in delta_shapes(shapes_of(vit.visual), rules, 5)}
    block = "transformer.resblocks"
    assert found == {
        f"{block}.0.attn.in_proj_weight": (2, 1.0),
        f"{block}.0.attn.out_proj.weight": (5, 2.0),
        f"{block}.0.mlp.c_fc.weight": (2, 1.0),
        f"{block}.0.mlp.c_proj.weight": (2, 1.0),
        f"{block}.1.attn.in_proj_weight": (3, -0.5),
        f"{block}.1.attn.out_proj.weight": (5, 2.0),
        f"{block}.1.mlp.c_fc.weight": (3, -0.5),
        f"{block}.1.mlp.c_proj.weight": (3, -0.5),
        "proj": (5, 0.25),
    }
    shape = next(s for s in delta_shapes(shapes_of(vit.visual), rules, 5) if s.param == "proj")
    assert Delta.start(shape, seed=0, index=0).scale == 0.25


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("all", TargetRule("all")),
        ("*.weight:16", TargetRule("*.weight", 16)),
        ("a:16:0.5", TargetRule("a", 16, 0.5)),
        ("a::-3", TargetRule("a", None, -3.0)),
        ("a:", TargetRule("a")),
    ],
)
def test_a_target_is_pattern_rank_scale(text, rule):
    assert parse_target(text) == rule


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"target ``: expected `PATTERN\[:RANK\[:SCALE\]\]`"),
        (":8", "expected `PATTERN"),
        ("a:8:1:2", "expected `PATTERN"),
        ("a:eight", "expected `PATTERN"),
        ("a:-8", "expected `PATTERN"),
        ("a:1_0", "expected `PATTERN"),
        ("a:8:nan", "expected `PATTERN"),
        ("a:8:1e3", "expected `PATTERN"),
        ("a:0", "rank: expected at least 1, got 0"),
        ("a:8:0", "scale is 0; expected not 0, and at most 1000"),
        ("a:8:1001", "scale is 1001; expected not 0"),
    ],
)
def test_targets_that_cannot_be_parsed_are_refused(text, problem):
    with pytest.raises(UserInputError, match=problem) as info:
        parse_target(text)
    assert info.value.code == "E_OPTION"


def test_weights_that_are_no_maps_get_no_delta():
    parameters = {
        "trunk.attn_pool.latent": (1, 1, 24),
        "attn_pool.query": (6, 24),
        "trunk.blocks.0.attn.relative_position_bias_table": (9, 2),
        "trunk.stages.0.layer_scale.gamma": (24, 1, 1),
        "trunk.pos_embed": (1, 16, 24),
        "trunk.stem.weight": (24, 3, 3, 3),
        "trunk.depthwise.weight": (24, 1, 3, 3),
    }
    assert [s.param for s in delta_shapes(parameters, "all", 8)] == [
        "trunk.depthwise.weight",
        "trunk.stem.weight",
    ]
    assert [s.param for s in delta_shapes(parameters, "paper", 8)] == ["trunk.stem.weight"]


def test_the_transformer_preset_knows_timm_s_names():
    names = ["attn.qkv", "attn.q_proj", "attn.proj", "mlp.fc1", "mlp.fc2", "mlp.w12", "norm1"]
    parameters = {f"trunk.blocks.0.{n}.weight": (8, 8) for n in names} | {
        "trunk.attn_pool.mlp.fc1.weight": (8, 8),
        "trunk.blocks.0.attn.rel_pos.mlp.fc1.weight": (8, 8),
        "trunk.patch_embed.proj.weight": (8, 3, 4, 4),
        "trunk.head.weight": (8, 8),
    }
    found = [s.param for s in delta_shapes(parameters, "transformer", 2)]
    assert found == sorted(f"trunk.blocks.0.{n}.weight" for n in names[:-1])
    # MLP blocks without attention are ConvNeXt's.
    with pytest.raises(UserInputError, match="no weight for `transformer`"):
        delta_shapes({"stages.0.blocks.0.mlp.fc1.weight": (8, 8)}, "transformer", 2)


def test_rank_is_cut_where_the_product_is_full():
    (shape,) = delta_shapes({"w": (3, 100)}, "all", 8)
    assert (shape.a, shape.b, shape.count) == ((3, 100), (3, 3), 309)


@pytest.mark.parametrize(
    ("targets", "rank", "text"),
    [
        ("paper", 8, "no weight for `paper`"),
        (["proj", "layer9.*"], 8, r"no weight for `layer9.\*`"),
        (["positional_embedding"], 8, "no weight for `positional_embedding`"),
        ("lora", 8, "unknown preset `lora`; expected one of paper, transformer, all"),
        ("all", 0, "rank: expected at least 1, got 0"),
    ],
)
def test_targets_that_mean_nothing_are_refused(vit, targets, rank, text):
    with pytest.raises(UserInputError, match=text) as info:
        delta_shapes(shapes_of(vit.visual), targets, rank)
    assert info.value.code == "E_OPTION"


def test_an_inner_dimension_that_readers_refuse_is_not_made():
    with pytest.raises(UserInputError, match="inner dimension of `w` is 300; expected at most 256"):
        delta_shapes({"w": (512, 512, 3, 3)}, "paper", 100)


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


@pytest.mark.parametrize(
    ("a", "b", "code", "text"),
    [
        # A matmul bomb: two factors of 4 MB, a product of 4 TB.
        ((1, 10**6), (10**6, 1), "E_TENSOR", "do not multiply to that of the base parameter"),
        ((4, 36), (4, 8), "E_TENSOR", "do not multiply"),
        ((4, 36), (8, 5), "E_RANK", "inner dimension of A is 4 and of B 5"),
        ((2000, 36), (8, 2000), "E_RANK", "expected equal, from 1 to 1024"),
        ((36,), (8,), "E_TENSOR", "do not multiply"),
    ],
)
def test_factors_are_checked_against_the_real_parameter(a, b, code, text):
    with pytest.raises(SpecError, match=text) as info:
        check_shapes("w", (8, 4, 3, 3), a, b, member="__hello__/adapter")
    assert info.value.code == code


def test_both_convolution_forms_are_accepted():
    check_shapes("w", (8, 4, 3, 3), (2, 36), (8, 2), member="x")
    check_shapes("w", (8, 4, 3, 3), (6, 12), (24, 6), member="x")


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


def test_the_paper_s_parameter_counts(vit):
    """816,856 values for ImageNet-1K, 629,720 for ImageNet-100: HeLlO, arXiv 2408.08201."""
    from open_clip import create_model

    from hellofmt.archive.format.classes import ClassLine
    from hellofmt.archive.format.manifest import Arch, VisionArch

    with torch.device("meta"):
        model = create_model("RN50", load_weights=False, device="meta")
    visual = model.visual.eval().requires_grad_(requires_grad=False)
    assert sum(p.numel() for p in visual.parameters()) == 38_316_896
    buffers = {n: b for n, b in visual.named_buffers() if b.is_floating_point()}
    assert sum(b.numel() for b in buffers.values()) == 53_248
    arch = Arch(embed_dim=1024, quick_gelu=False, vision=VisionArch(layers=[3, 4, 6, 3], width=64))
    spec = msgspec.structs.replace(vit.spec, arch=arch)
    base = LoadedBase(
        spec=spec,
        encoder=Encoder(visual, spec.preprocess),
        text_digest="sha256:" + 64 * "0",
        texts=lambda texts: torch.ones(len(texts), 1024),
    )
    for count, head_rank, total in ((1000, 128, 816_856), (100, 64, 629_720)):
        projector = Projector.build(
            base,
            [ClassLine(str(i), (str(i),)) for i in range(count)],
            targets="paper",
            rank=8,
            head_rank=head_rank,
            temperature=20.0,
            seed=0,
        )
        encoder = sum(p.numel() for d in projector.deltas for p in d.parameters())
        assert (len(projector.deltas), encoder) == (19, 557_784)
        assert projector.trained_count() == total
        # No bias, and the scale of the base: neither would fit into the paper's count.
        assert projector.head.bias is None
        assert not projector.head.logit_scale.requires_grad
    assert total - encoder == 64 * (1024 + 100)
