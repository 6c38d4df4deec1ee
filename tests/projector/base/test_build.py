from __future__ import annotations

import hashlib
import json
import math

import msgspec
import numpy as np
import pytest
import torch

from hellofmt.archive.format.manifest import VisionArch
from hellofmt.errors import BaseModelError, UserInputError
from hellofmt.projector import seeded_base
from hellofmt.projector.base import build
from hellofmt.rng import words

# 64 and 4.0 are open_clip's defaults, which an architecture may leave out.
VISION = {"image_size": 16, "layers": 2, "width": 64, "patch_size": 4}


def test_uniform_1_is_pinned(vit, resnet, text_vit):
    """A change here would change the weights behind every archive with a seeded base."""
    digests = {
        "vit": vit.spec.tensors,
        "resnet": resnet.spec.tensors,
        "text": text_vit.text_digest,
        "base": vit.spec.digest,
    }
    assert digests == GOLDEN


GOLDEN = {
    "vit": "sha256:c3c8ace55153c2e2bf6f8c9b8079b37cda78ad734fa996e96c4d8b9cbcb8ab8a",
    "resnet": "sha256:9df6ff3afd742e50bbdf97a99615932ac328a8c2b8250bb41339c025b4a7355f",
    "text": "sha256:c36fd8de9908dbe39f151716d5e02f03063642f80f038f8544c8ea33218244de",
    "base": "sha256:62bae99e1b7cd9590ad899d7555332631c233ddcc30156f852a3fcb697b25b69",
}


def test_uniform_1_by_hand(vit):
    """The rule once more, element by element, with exact arithmetic up to the last product."""
    state = vit.visual.state_dict()
    names = sorted(state)
    for name, fan in (
        ("class_embedding", 64),
        ("conv1.weight", 3 * 4 * 4),
        ("positional_embedding", 64),
        ("proj", 32),
        ("transformer.resblocks.1.attn.in_proj_weight", 64),
        ("transformer.resblocks.0.mlp.c_proj.weight", 256),
    ):
        flat, t = state[name].flatten(), names.index(name)
        for j in (0, 1, 5, flat.numel() - 1):
            (word,) = words(3, 0, 5, t, 1, start=j)
            u = (int(word) >> 11) / 2**53
            assert float(flat[j]) == np.float32((2 * u - 1) * math.sqrt(3 / fan)), (name, j)
        assert float(flat.abs().max()) <= math.sqrt(3 / fan)
        assert float(flat.std()) == pytest.approx(fan**-0.5, rel=0.15)
    assert (state["ln_post.weight"] == 1).all()
    assert (state["transformer.resblocks.0.attn.in_proj_bias"] == 0).all()
    assert vit.logit_scale == pytest.approx(math.log(1 / 0.07))


def test_batch_norm_of_a_seeded_resnet_is_the_identity_map(resnet):
    state = resnet.visual.state_dict()
    assert (state["bn1.running_var"] == 1).all()
    assert (state["bn1.running_mean"] == 0).all()
    assert (state["bn1.weight"] == 1).all()
    # Numbers of integer counters are skipped: conv1 follows all of attnpool and bn.
    names = sorted(n for n, t in state.items() if t.is_floating_point())
    (word,) = words(4, 0, 5, names.index("conv1.weight"), 1)
    u = (int(word) >> 11) / 2**53
    assert float(state["conv1.weight"].flatten()[0]) == np.float32((2 * u - 1) * math.sqrt(3 / 27))


def test_text_tower_counts_on_after_the_image_tower(text_vit, vit):
    assert text_vit.spec.tensors == vit.spec.tensors
    assert text_vit.spec.digest == vit.spec.digest
    (model,) = (
        c.cell_contents
        for c in text_vit.texts.__closure__
        if isinstance(c.cell_contents, torch.nn.Module)
    )
    first = len(vit.visual.state_dict())
    tower = {n: t for n, t in model.state_dict().items() if not n.startswith(("visual.", "logit_"))}
    t = first + sorted(tower).index("text_projection")
    (word,) = words(3, 0, 5, t, 1, start=7)
    u = (int(word) >> 11) / 2**53
    assert float(tower["text_projection"].flatten()[7]) == np.float32(
        (2 * u - 1) * math.sqrt(3 / 32)
    )


def test_digests_are_those_of_the_specification(vit):
    lines = []
    for name, tensor in sorted(vit.visual.state_dict().items()):
        data = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        lines.append(f"{name}|F32|{'x'.join(map(str, tensor.shape))}|{data}\n")
    tensors = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert vit.spec.tensors == f"sha256:{tensors}"
    document = {
        "arch": {
            "embed_dim": 32,
            "quick_gelu": False,
            "vision": {"head_width": 32, **VISION},
        },
        "preprocess": msgspec.to_builtins(vit.spec.preprocess),
        "tensors": vit.spec.tensors,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(b"hello/base/1\n" + text.encode()).hexdigest()
    assert vit.spec.digest == f"sha256:{digest}"


def test_a_tensor_without_a_clause_is_refused(vit):
    vision = msgspec.structs.replace(vit.spec.arch.vision, ls_init_value="0.1")
    arch = msgspec.structs.replace(vit.spec.arch, vision=vision)
    with pytest.raises(BaseModelError, match=r"no clause for tensor `.*ls_1.gamma`") as info:
        seeded_base(arch, vit.spec.preprocess, seed=0)
    assert info.value.code == "E_BASE_CONFIG"


def test_an_architecture_that_open_clip_cannot_build_is_refused(vit):
    odd_heads = msgspec.structs.replace(vit.spec.arch.vision, width=65)
    unknown = VisionArch(timm_model_name="no_such_model", image_size=16)
    for vision in (odd_heads, unknown):
        bad = msgspec.structs.replace(vit.spec.arch, vision=vision)
        with pytest.raises(BaseModelError, match="open_clip cannot build") as info:
            seeded_base(bad, vit.spec.preprocess, seed=0)
        assert info.value.code == "E_BASE_CONFIG"


def test_a_tower_that_makes_no_vector_is_refused(vit, monkeypatch):
    # Schema and rules leave no such architecture; another version of open_clip might.
    real = build.build_clip

    def tokens(arch, text):
        model = real(arch, text)
        model.visual.pool_type = "none"
        return model

    monkeypatch.setattr(build, "build_clip", tokens)
    with pytest.raises(BaseModelError, match=r"features of shape \(1, 17, 32\)") as info:
        seeded_base(vit.spec.arch, vit.spec.preprocess, seed=0)
    assert info.value.code == "E_BASE_CONFIG"


def test_want_of_memory_says_so_and_keeps_its_cause(vit, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(build, "build_clip", full)
    with pytest.raises(BaseModelError, match="there is not enough memory for it") as info:
        seeded_base(vit.spec.arch, vit.spec.preprocess, seed=0)
    assert isinstance(info.value.__cause__, MemoryError)


@pytest.mark.parametrize("seed", [-1, 2**53])
def test_a_seed_that_a_manifest_cannot_state_is_refused(vit, seed):
    with pytest.raises(UserInputError, match=r"expected 0 <= seed < 2\*\*53"):
        seeded_base(vit.spec.arch, vit.spec.preprocess, seed=seed)


@pytest.mark.parametrize(
    "change",
    [
        {"norm_eps": "0.1"},
        {"act_approximate": "tanh"},
        {"no_ln_pre": True},
        {"pool_type": "tok"},
        {"final_ln_after_pool": True},
        {"mlp_ratio": "2.0"},
        {"head_width": 64},
        {"attentional_pool": True},
    ],
    ids=str,
)
def test_every_key_of_an_architecture_changes_the_function(vit, change):
    views = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    # Averages, because the final norm of a single token may stand before or after its choice.
    plain = msgspec.structs.replace(vit.spec.arch.vision, pool_type="avg")
    other = msgspec.structs.replace(plain, **change)
    one, two = (
        seeded_base(
            msgspec.structs.replace(vit.spec.arch, vision=vision), vit.spec.preprocess, seed=3
        )
        for vision in (plain, other)
    )
    assert float((one.encode(views) - two.encode(views)).abs().max()) > 1e-5
    assert one.spec.digest != two.spec.digest
