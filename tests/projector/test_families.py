"""Every family of image towers that open_clip builds: load, adapt, fit, merge, store, rebuild.

Each tower is the family's own code at toy width, with random weights everywhere (also where a
library starts with ones or 1e-6, which would hide an adapted weight behind a closed gate), and is
compared with an explicit float64 ``W + s * reshape(B A)``. The real sizes are in the slow test.
"""

import copy
import functools
import importlib.util
import json
import sys
from pathlib import Path

import open_clip
import open_clip.timm_model
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from timm.models.vitamin import VitCfg, VitConvCfg
from torch.nn import functional

from hellofmt.projector import Labeler, LoadedBase, Projector, load_base
from hellofmt.projector.base.pinned import _embedded_base

DIM = 24
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
MULTIMODAL = TEXT | {"width": DIM, "attn_pooler_heads": 1}
VIT = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4}
VITAMIN = VitCfg(
    embed_dim=(8, 12, 24),
    depths=(1, 1, 1),
    stem_width=8,
    conv_cfg=VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6),
    head_type="1d",
)

# name: (vision_cfg, quick_gelu, what makes timm's model small)
FAMILIES = {
    "clip resnet": ({"image_size": 32, "layers": [1, 2, 1, 1], "width": 8}, False, None),
    "clip vit": (VIT, False, None),
    "clip vit, quickgelu": (VIT, True, None),
    "clip vit, layer scale": (VIT | {"ls_init_value": 1e-4, "mlp_ratio": 4.9231}, False, None),
    "clip vit, custom blocks": (
        VIT
        | dict.fromkeys(
            ("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), True
        ),
        False,
        None,
    ),
    "clip vit, block_type custom": (VIT | {"block_type": "custom"}, False, None),
    "clipa": (
        VIT
        | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
        | {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}},
        False,
        None,
    ),
    "coca": (
        VIT
        | {"attentional_pool": True, "attn_pooler_queries": 6, "attn_pooler_heads": 2}
        | {"output_tokens": True},
        False,
        None,
    ),
    "siglip": (
        {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"},
        False,
        {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3},
    ),
    "eva01": (
        {"timm_model_name": "eva_giant_patch14_224", "timm_pool": "token", "timm_proj": None},
        False,
        {"img_size": 28, "embed_dim": 24, "depth": 2, "num_heads": 3},
    ),
    "eva02": (
        {"timm_model_name": "eva02_base_patch16_clip_224", "timm_pool": "token", "timm_proj": None},
        False,
        {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3},
    ),
    "perception encoder": (
        {"timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map", "timm_proj": None},
        False,
        {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3},
    ),
    "convnext": (
        {
            "timm_model_name": "convnext_base",
            "timm_pool": "",
            "timm_proj": "linear",
            "timm_drop": 0.0,
            "timm_drop_path": 0.1,
        },
        False,
        {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24)},
    ),
    "mobileclip-b": (
        {"timm_model_name": "vit_base_mci_224", "timm_pool": "token", "timm_proj": None},
        False,
        {"img_size": 32, "depth": 1},
    ),
    "mobileclip-s": (
        {"timm_model_name": "fastvit_mci0", "timm_pool": "avg", "timm_proj": None},
        False,
        {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 32)},
    ),
    "swin": (
        {"timm_model_name": "swin_base_patch4_window7_224", "timm_pool": "", "timm_proj": "linear"},
        False,
        {"img_size": 56, "embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
    ),
    "vitamin": (
        {"timm_model_name": "vitamin_small_224", "timm_pool": "", "timm_proj": "linear"},
        False,
        {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 3, "embed_cfg": VITAMIN},
    ),
    "timm vit, averaged": (
        {"timm_model_name": "vit_medium_patch16_gap_256", "timm_pool": "", "timm_proj": "linear"},
        False,
        {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3},
    ),
    "timm vit, relative positions": (
        {
            "timm_model_name": "vit_relpos_medium_patch16_cls_224",
            "timm_pool": "",
            "timm_proj": "linear",
        },
        False,
        {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3},
    ),
}


@pytest.fixture(params=FAMILIES, ids=lambda name: name.replace(" ", "-"))
def tower(request, tmp_path, monkeypatch):
    """A directory in open_clip's form with a random model of one family, and its config."""
    vision, quick_gelu, small = FAMILIES[request.param]
    vision = {"image_size": 224} | vision
    if small is not None:
        create = open_clip.timm_model.timm.create_model
        monkeypatch.setattr(
            open_clip.timm_model.timm,
            "create_model",
            lambda name, **options: create(name, **options, **small),
        )
        vision["image_size"] = small.get("img_size", 64 if small else 224)
    config = {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": TEXT, "quick_gelu": quick_gelu}
    torch.manual_seed(0)
    if request.param == "coca":
        config["multimodal_cfg"] = MULTIMODAL
        config["text_cfg"] = TEXT | {"embed_cls": True, "output_tokens": True}
    model = (CoCa if "multimodal_cfg" in config else CustomTextCLIP)(**config).eval()
    randomise_(model)
    path = tmp_path / "model"
    path.mkdir()
    document = {"model_cfg": config | {"custom_text": True}, "preprocess_cfg": {}}
    (path / "open_clip_config.json").write_text(json.dumps(document))
    save_file(
        {n: t.contiguous() for n, t in model.state_dict().items()}, path / "model.safetensors"
    )
    (path / "model.safetensors").rename(path / "open_clip_model.safetensors")
    return path, model


def randomise_(model):
    with torch.no_grad():
        for name, tensor in model.visual.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if tensor.ndim < 2 or tensor[0].numel() == 1 or name.endswith("gamma"):
                noise = 0.1 * torch.randn_like(tensor)
                centre = 0.0 if name.endswith(("bias", "running_mean")) else 1.0
                tensor.copy_(centre + noise)


def test_a_family(tower, classes, randomise, write_projector, tmp_path):
    path, model = tower
    base = load_base(f"local-dir:{path}")
    size = base.spec.preprocess.size
    views = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3))

    # Loaded as open_clip computes it, and rebuilt from what an archive says and stores.
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        features = model.encode_image((views - mean) / std)
        expected = functional.normalize(features, dim=-1)
    torch.testing.assert_close(base.encode(views), expected, rtol=0, atol=1e-5)
    embedded = base.embedded()
    stored = {n: t.numpy() for n, t in embedded.stored_tensors().items()}
    rebuilt = _embedded_base(embedded.spec, stored, lambda _: None)
    assert rebuilt.spec == embedded.spec
    torch.testing.assert_close(rebuilt.encode(views), expected, rtol=0, atol=1e-5)

    # Adapted.
    projector = randomise(
        Projector.build(base, classes, start="stored", rank=2, temperature=2.0, seed=0)
    )
    truth = float64_logits(projector, views)
    scale = float(truth.abs().max())
    fitted = projector(views)
    assert float((fitted.detach() - truth).abs().max()) < 1e-5 * scale
    labeler = projector.labeler()
    assert float((labeler.logits(views) - truth).abs().max()) < 1e-5 * scale
    # No adapted weight is inert: every factor moves the logits.
    (
        fitted * torch.randn(fitted.shape, generator=torch.Generator().manual_seed(0))
    ).sum().backward()
    inert = [d.param for d in projector.deltas if not float(d.b.grad.abs().max()) > 0]
    # Position biases of a last block never reach its class token, whose own bias is none.
    assert [name for name in inert if ".1.attn.rel_pos." not in name] == []

    # Stored, read, and its probes computed again.
    write_projector(tmp_path / "p.hello", projector, classes, "float32", 1)
    read = Labeler.from_file(tmp_path / "p.hello", f"local-dir:{path}")
    assert float((read.logits(views) - truth).abs().max()) < 1e-5 * scale


def float64_logits(projector: Projector, views: torch.Tensor) -> torch.Tensor:
    """The label function with explicit weights ``W + s * reshape(B A)``, in float64."""
    base: LoadedBase = projector.base
    visual = copy.deepcopy(base.visual).double()
    for delta in projector.deltas:
        weight = visual.get_parameter(delta.param)
        product = delta.b.detach().double() @ delta.a.detach().double()
        with torch.no_grad():
            weight.add_(delta.scale * product.reshape(weight.shape))
    mean, std = (
        torch.tensor([float(s) for s in values], dtype=torch.float64).view(3, 1, 1)
        for values in (base.spec.preprocess.mean, base.spec.preprocess.std)
    )
    with torch.no_grad():
        x = visual((views.double() - mean) / std)
        x = (x[0] if isinstance(x, tuple) else x).double()
        x = x / x.norm(dim=1, keepdim=True)
        head = projector.head
        z = head.logit_scale.double().exp() * x @ head.weight.double().T
        return z + head.bias.double()


@functools.cache
def benchmark():
    """``benchmarks/bases.py``, which makes the committed table, as a module."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "bases.py"
    spec = importlib.util.spec_from_file_location("bases", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bases"] = module
    spec.loader.exec_module(module)
    return module


# Towers that between them have every key of a config that any listed model has.
SAMPLE = (
    "RN50x4-quickgelu", "ViT-B-32-quickgelu", "ViT-B-16-plus-240", "ViT-M-32-alt", "ViT-g-14",
    "ViT-L-14-CLIPA-336", "coca_ViT-B-32", "EVA02-B-16", "ViT-B-32-SigLIP2-256",
    "convnext_tiny", "MobileCLIP-S1", "PE-Core-T-16-384", "vit_relpos_medium_patch16_cls_224",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SAMPLE)
def test_a_listed_model_is_rebuilt_from_what_an_archive_states(name):
    found = benchmark().sketch(name)
    assert found.fault == ""
    assert found.presets["all"] > 0


def test_the_sample_has_every_key():
    vision = {n: open_clip.get_model_config(n)["vision_cfg"] for n in open_clip.list_models()}
    keys = {k for config in vision.values() for k, v in config.items() if v is not None}
    # Layer scale has a toy tower of its own.
    assert keys - {k for n in SAMPLE for k in vision[n]} <= {"ls_init_value"}
    nulls = {k for c in vision.values() for k, v in c.items() if v is None}
    assert nulls - {k for n in SAMPLE for k, v in vision[n].items() if v is None} == set()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_listed_model_is_rebuilt_from_what_an_archive_states(name):
    assert benchmark().sketch(name).fault == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", benchmark().REAL)
def test_a_tower_of_real_size_serves_the_explicit_weights(name):
    found = benchmark().check(name)
    assert found.fitted < 1e-5
    assert found.merged < 1e-5
    assert found.change > 1e-2
