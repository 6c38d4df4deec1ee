"""Towers are counted as torch counts them, and what no tower can be is refused."""

from dataclasses import replace

import msgspec
import pytest

from hellofmt.archive.format.manifest import Arch, TextArch
from hellofmt.archive.format.towers import (
    TowerSize,
    arch_problems,
    text_problems,
    text_size,
    vision_size,
)

TRANSFORMER = {"image_size": 18, "layers": 2, "width": 64, "patch_size": 4, "head_width": 32}
RESNET = {"image_size": 64, "layers": [2, 1, 3, 1], "width": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
POOLED = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5}


def arch_of(vision, dim=32):
    return msgspec.convert({"embed_dim": dim, "quick_gelu": False, "vision": vision}, Arch)


def counted(module, run):
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        run()
    statistics = (b for b in module.buffers() if b.is_floating_point())
    return TowerSize(
        sum(p.numel() for p in module.parameters()),
        sum(b.numel() for b in statistics),
        counter.get_total_flops(),
    )


@pytest.mark.parametrize(
    "vision",
    [
        TRANSFORMER,
        TRANSFORMER | {"mlp_ratio": "2.3", "no_ln_pre": True, "ls_init_value": "0.00001"},
        TRANSFORMER | POOLED,
        TRANSFORMER | POOLED | {"pool_type": "avg"},
        RESNET,
    ],
    ids=str,
)
def test_counts_are_those_of_torch(vision):
    import torch

    from hellofmt.projector.base.build import build_clip, text_module

    arch, text = arch_of(vision), TextArch(**TEXT)
    with torch.device("meta"):
        model = build_clip(arch, text).eval()
        side = vision["image_size"]
        size = vision_size(arch)
        views = torch.zeros(1, 3, side, side)
        assert counted(model.visual, lambda: model.visual(views)) == replace(size, attention=0)
        words = torch.zeros(1, 16, dtype=torch.long)
        assert counted(text_module(model), lambda: model.encode_text(words)) == replace(
            text_size(text, 32), attention=0
        )


def test_what_a_timm_model_holds_is_not_told_by_its_name():
    assert vision_size(arch_of({"image_size": 32, "timm_model_name": "convnext_tiny"})) is None


@pytest.mark.parametrize("vision", [TRANSFORMER, TRANSFORMER | POOLED, RESNET], ids=str)
def test_a_possible_tower_has_no_problem(vision):
    assert list(arch_problems(arch_of(vision), vision["image_size"], is_seeded=True)) == []


@pytest.mark.parametrize(
    ("vision", "key"),
    [
        (TRANSFORMER | {"layers": 65}, "layers"),
        (TRANSFORMER | {"width": 8224}, "width"),
        (TRANSFORMER | {"width": 65, "head_width": 32}, "head_width"),
        (TRANSFORMER | {"head_width": 2}, "head_width"),
        (TRANSFORMER | {"head_width": 128}, "head_width"),
        (TRANSFORMER | {"patch_size": 19}, "patch_size"),
        (TRANSFORMER | {"image_size": 4097, "patch_size": 64}, "image_size"),
        (TRANSFORMER | {"mlp_ratio": "0.0"}, "mlp_ratio"),
        (TRANSFORMER | {"mlp_ratio": "-1.0"}, "mlp_ratio"),
        (TRANSFORMER | {"mlp_ratio": "64.5"}, "mlp_ratio"),
        (TRANSFORMER | {"mlp_ratio": "4.0"}, "mlp_ratio"),
        (TRANSFORMER | {"norm_eps": "0.0"}, "norm_eps"),
        (TRANSFORMER | {"pool_type": "tok"}, "pool_type"),
        (TRANSFORMER | {"ls_init_value": "0.1"}, "ls_init_value"),
        (TRANSFORMER | {"attn_pooler_heads": 4}, "attn_pooler_heads"),
        (TRANSFORMER | POOLED | {"attn_pooler_heads": 3}, "attn_pooler_heads"),
        (TRANSFORMER | POOLED | {"attn_pooler_queries": 1025}, "attn_pooler_queries"),
        (TRANSFORMER | {"timm_pool": "token"}, "timm_pool"),
        ({"image_size": 18, "layers": 2, "width": 64}, "patch_size"),
        (TRANSFORMER | {"mlp_ratio": "2.31"}, "mlp_ratio"),
        (TRANSFORMER | {"final_ln_after_pool": True}, "final_ln_after_pool"),
        (TRANSFORMER | {"block_type": "custom", "qk_norm": True}, "block_type"),
        (RESNET | {"layers": [1, 1, 1]}, "layers"),
        (RESNET | {"layers": [1, 1, 1, 1, 1]}, "layers"),
        (RESNET | {"layers": [1, 1, 62, 1]}, "layers"),
        (RESNET | {"image_size": 65}, "image_size"),
        (RESNET | {"width": 7}, "width"),
        (RESNET | {"patch_size": 4}, "patch_size"),
        (RESNET | {"head_width": 512}, "head_width"),
    ],
    ids=str,
)
def test_an_impossible_tower_is_refused(vision, key):
    problems = list(arch_problems(arch_of(vision), vision["image_size"], is_seeded=False))
    assert f"arch.vision.{key}" in [where for where, _ in problems]


@pytest.mark.parametrize(
    ("vision", "numbers"),
    [
        # Attention: (64^2 + 1)^2 x 2 heads; MLP: (32^2 + 1) x 64 x 256; stem: 256^2 x 258.
        (TRANSFORMER | {"image_size": 64, "patch_size": 1}, 33570818),
        (TRANSFORMER | {"image_size": 32, "patch_size": 1, "width": 256, "head_width": 256,
                        "mlp_ratio": "64.0"}, 16793600),
        (RESNET | {"image_size": 512, "width": 258}, 16908288),
    ],
    ids=str,
)  # fmt: skip
def test_no_view_makes_an_activation_that_fills_the_memory(vision, numbers):
    problems = dict(arch_problems(arch_of(vision), vision["image_size"], is_seeded=True))
    assert problems["arch.vision"].endswith(f"got {numbers}")


def test_attention_is_counted_apart():
    # 2 layers x 17^2 x 2 heads; 2 layers x 16^2 x 2 heads.
    assert vision_size(arch_of(TRANSFORMER)).attention == 2 * 17**2 * 2
    assert text_size(TextArch(**TEXT), 32).attention == 2 * 16**2 * 2
    size = TowerSize(0, 0, 5, 7)
    assert size.work == 1405


def test_a_view_has_the_side_that_the_tower_takes():
    assert list(arch_problems(arch_of(RESNET), 32, is_seeded=True)) == [
        ("preprocess.size", "expected the tower's `image_size`, 64, got 32")
    ]


@pytest.mark.parametrize(
    "vision",
    [
        {"image_size": 32, "timm_model_name": "vit_tiny_patch16_224"},
        TRANSFORMER | {"qk_norm": True},
        TRANSFORMER | {"ls_init_value": "0.00001"},
    ],
    ids=str,
)
def test_what_the_rule_of_seeds_cannot_fill_needs_weights(vision):
    arch, side = arch_of(vision), vision["image_size"]
    assert list(arch_problems(arch, side, is_seeded=False)) == []
    assert [text for _, text in arch_problems(arch, side, is_seeded=True)] == [
        "expected none for kind seeded"
    ]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"vocab_size": 10}, "vocab_size"),
        ({"vocab_size": 49409}, "vocab_size"),
        ({"heads": 3}, "heads"),
        ({"context_length": 256}, "context_length"),
        ({"heads": 8}, "heads"),
        ({"layers": 65}, "layers"),
        ({"width": 8200}, "width"),
    ],
    ids=str,
)
def test_an_impossible_text_tower_is_refused(change, key):
    problems = list(text_problems(TextArch(**{**TEXT, **change})))
    assert [where for where, _ in problems] == [f"text.{key}"]
