from __future__ import annotations

import msgspec
import pytest
import torch

from hellofmt.errors import SpecError, UserInputError
from hellofmt.projector import LoadedBase, Projector
from hellofmt.projector.base import Encoder
from hellofmt.projector.lowrank import Delta
from hellofmt.projector.targets import TargetRule, check_shapes, delta_shapes, parse_target


def shapes_of(module):
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


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
    depthwise, stem = delta_shapes(parameters, "paper", 8)
    # Flattened it costs 8 x (24 + 9) values; the convolution form 24 x (72 + 3).
    assert (depthwise.b, depthwise.a, depthwise.count) == ((24, 8), (8, 9), 264)
    assert (stem.param, stem.b[1]) == ("trunk.stem.weight", 24)


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
