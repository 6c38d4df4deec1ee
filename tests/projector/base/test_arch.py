from __future__ import annotations

import msgspec
import open_clip
import pytest
import torch
from open_clip.model import CLIP

from hellofmt.archive.format.manifest import UNSET, Arch, VisionArch
from hellofmt.errors import UserInputError
from hellofmt.projector.base.arch import arch_of_config, normal_arch
from hellofmt.projector.base.build import build_clip

# 64 and 4.0 are open_clip's defaults, which an architecture may leave out.
VISION = {"image_size": 16, "layers": 2, "width": 64, "patch_size": 4}
TEXT = {"context_length": 16, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
CONFIG = {"embed_dim": 32, "vision_cfg": VISION}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"scaled_cosine_attn": True},
            "option `scaled_cosine_attn`, which an archive cannot state",
        ),
        ({"norm_kwargs": {"bias": True}}, "option `norm_bias`"),
        ({"timm_model_name": "convnext_tiny", "timm_pool": None}, "option `timm_pool`"),
        ({"attentional_pool": "cascade"}, "cannot be stated in an archive: .*attentional_pool"),
        ({"image_size": [16, 32]}, "architecture cannot be stated in an archive"),
        ({"act_kwargs": {"approximate": "fast"}}, "architecture cannot be stated in an archive"),
    ],
)
def test_options_that_an_archive_cannot_state_are_refused(change, text):
    with pytest.raises(UserInputError, match=text) as info:
        arch_of_config(CONFIG | {"vision_cfg": VISION | change})
    assert info.value.code == "E_OPTION"


def test_a_null_projection_is_not_the_default():
    """open_clip's `timm_proj: null` is timm's classifier; an absent key is a linear layer."""
    vision = {"timm_model_name": "eva02_base_patch16_clip_224", "image_size": 224}
    stated = [
        arch_of_config({"embed_dim": 8, "vision_cfg": vision | extra}).vision.timm_proj
        for extra in ({"timm_proj": None}, {"timm_proj": "linear"}, {}, {"timm_proj": "none"})
    ]
    assert stated == ["", UNSET, UNSET, "none"]


def test_plain_blocks_have_no_options_of_custom_ones():
    plain = {"block_type": "default", "qk_norm": True}
    custom = {"block_type": "custom", "qk_norm": True, "scale_fc": False}
    for extra, expected in ((plain, VISION), (custom, VISION | {"qk_norm": True})):
        arch = arch_of_config(CONFIG | {"vision_cfg": VISION | extra})
        assert msgspec.to_builtins(arch.vision) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"block_type": "custom"},
        {"qk_norm": True, "scale_heads": True},
        {"scale_attn_inner": True, "scale_attn": True, "scale_fc": True},
    ],
)
def test_a_stated_architecture_builds_the_blocks_of_its_config(options):
    config = CONFIG | {"vision_cfg": VISION | options}
    theirs = CLIP(**config, text_cfg=TEXT).visual
    assert repr(build_clip(arch_of_config(config), None).visual) == repr(theirs)


@pytest.mark.parametrize(
    "name",
    ["RN50", "RN50x4-quickgelu", "ViT-B-32", "ViT-L-14-336-quickgelu", "ViT-g-14", "coca_ViT-B-32"],
)
def test_a_stated_architecture_builds_open_clip_s_model(name):
    arch = arch_of_config(open_clip.get_model_config(name))
    with torch.device("meta"):
        theirs = open_clip.create_model(name, load_weights=False, device="meta").visual
        ours = build_clip(arch, None).visual
    assert repr(ours) == repr(theirs)
    shapes = [{n: t.shape for n, t in one.state_dict().items()} for one in (ours, theirs)]
    assert shapes[0] == shapes[1]
    # Another spelling of the same architecture compares equal.
    again = msgspec.convert(msgspec.to_builtins(arch), Arch)
    assert normal_arch(again) == normal_arch(arch)


def test_defaults_may_be_left_out_of_an_architecture():
    full = VISION | {"mlp_ratio": 4.0, "head_width": 64, "pool_type": "tok", "patch_dropout": 0.5}
    full |= {"norm_kwargs": {"eps": 1e-5}, "output_tokens": True, "attentional_pool": False}
    assert arch_of_config(CONFIG | {"vision_cfg": full}) == arch_of_config(CONFIG)
    eps = arch_of_config(CONFIG | {"vision_cfg": VISION | {"norm_kwargs": {"eps": 1e-6}}})
    assert eps.vision.norm_eps == "0.000001"
    spelt = Arch(
        embed_dim=32, quick_gelu=False, vision=VisionArch(**VISION, mlp_ratio="4.0", head_width=64)
    )
    assert normal_arch(spelt) == normal_arch(arch_of_config(CONFIG))
