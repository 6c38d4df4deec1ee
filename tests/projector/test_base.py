from __future__ import annotations

import hashlib
import json
import math

import msgspec
import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file

from hellofmt.archive import Draft, base_digest, open_archive, write_archive
from hellofmt.archive.manifest import UNSET, Arch, Preprocess, TextArch, VisionArch
from hellofmt.errors import BaseModelError, LimitError, SpecError, UserInputError
from hellofmt.projector import Labeler, Projector, base_of, load_base, seeded_base
from hellofmt.projector.base import _arch_of_config, _describe, _normal_arch
from hellofmt.rng import words

# 64 and 4.0 are open_clip's defaults, which an architecture may leave out.
VISION = {"image_size": 16, "layers": 2, "width": 64, "patch_size": 4}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CONFIG = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}


# Seeded bases.


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
    "base": "sha256:18894cf61672101f4483b5c62134912fdf54c1c8e282878e7d31420bb5c17e95",
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


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"width": 2**40}, "`width` is 1099511627776; expected at most 8192"),
        ({"layers": 10**6}, "`layers` is 1000000; expected at most 256"),
        ({"layers": [10**6, 1]}, "`layers` is 1000001"),
        ({"image_size": 10**5}, "`image_size` is 100000"),
        ({"image_size": 2048, "patch_size": 1}, "`positions` is"),
        ({"mlp_ratio": "1000.0"}, "`mlp_ratio` is 1000"),
        ({"width": 8192, "layers": 200}, r"`parameters` is \d+; expected at most 1073741824"),
    ],
)
def test_an_architecture_of_absurd_size_is_refused_before_it_is_built(vit, changes, text):
    arch = msgspec.structs.replace(
        vit.spec.arch, vision=msgspec.structs.replace(vit.spec.arch.vision, **changes)
    )
    with pytest.raises(LimitError, match=text) as info:
        seeded_base(arch, vit.spec.preprocess, seed=0)
    assert info.value.code == "E_LIMIT_BASE"


def test_a_text_tower_of_absurd_size_is_refused(vit):
    text = TextArch(context_length=8, vocab_size=2**40, width=16, heads=2, layers=1)
    with pytest.raises(LimitError, match=r"`text.vocab_size` is 1099511627776"):
        seeded_base(vit.spec.arch, vit.spec.preprocess, seed=0, text=text)


@pytest.mark.parametrize("seed", [-1, 2**53])
def test_a_seed_that_a_manifest_cannot_state_is_refused(vit, seed):
    with pytest.raises(UserInputError, match=r"expected 0 <= seed < 2\*\*53"):
        seeded_base(vit.spec.arch, vit.spec.preprocess, seed=seed)


def test_text_rows_need_names_and_prompts(text_vit):
    for names, prompts in (([], ["{}"]), (["a"], [])):
        with pytest.raises(UserInputError, match="a head from text needs class names and prompts"):
            text_vit.text_rows(names, prompts)


def test_prompts_are_filled_and_never_formatted(text_vit):
    rows = text_vit.text_rows(["cat"], ["{0.__class__} {}"])
    torch.testing.assert_close(rows, text_vit.text_rows(["{0.__class__} cat"], ["{}"]))


def test_many_texts_are_embedded_in_parts(text_vit):
    names = [f"class {i}" for i in range(150)]
    rows = text_vit.text_rows(names, ["a {}", "the {}"])
    alone = text_vit.text_rows(names[149:], ["a {}", "the {}"])
    torch.testing.assert_close(rows[149:], alone, rtol=0, atol=1e-6)


# open_clip bases.


def save(path, model, config=CONFIG, preprocess=None):
    path.mkdir()
    document = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (path / "open_clip_config.json").write_text(json.dumps(document))
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    return path


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return CLIP(**CONFIG).eval()


@pytest.fixture
def directory(tmp_path, clip):
    return save(tmp_path / "clip", clip)


def test_a_directory_is_what_open_clip_computes(directory, clip):
    base = load_base(f"local-dir:{directory}")
    views = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        expected = clip.encode_image((views - mean) / std, normalize=True)
        tokens = open_clip.SimpleTokenizer(context_length=16)(["a photo of a dog."])
        text = clip.encode_text(tokens, normalize=True)
    torch.testing.assert_close(base.encode(views), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        base.text_rows(["dog"], ["a photo of a {}."]), text, rtol=0, atol=1e-6
    )
    assert base.logit_scale == pytest.approx(float(clip.logit_scale.detach()))
    assert msgspec.to_builtins(base.spec.arch) == {
        "embed_dim": 32,
        "quick_gelu": False,
        "vision": VISION,
    }
    assert (base.spec.kind, base.spec.name, base.spec.pretrained) == ("open_clip", "clip", UNSET)
    assert base.spec.preprocess.size == 16
    assert not any(p.requires_grad for p in base.visual.parameters())
    # The path of the directory itself is the same base.
    assert load_base(directory).spec == base.spec


def test_containers_and_classes_of_the_same_weights_agree(tmp_path, directory, clip):
    custom = CustomTextCLIP(**CONFIG)
    custom.visual.load_state_dict(clip.visual.state_dict())
    custom.text.load_state_dict(
        {n: t for n, t in clip.state_dict().items() if not n.startswith(("visual", "logit"))}
    )
    other = save(tmp_path / "custom", custom, CONFIG | {"custom_text": True})
    torch.save(clip.state_dict(), tmp_path / "clip.bin")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "open_clip_config.json").write_text(
        (directory / "open_clip_config.json").read_text()
    )
    (tmp_path / "clip.bin").rename(tmp_path / "bin" / "open_clip_pytorch_model.bin")
    bases = [load_base(directory), load_base(other), load_base(tmp_path / "bin"), load_base(clip)]
    assert len({b.spec.digest for b in bases}) == 1
    assert len({b.text_digest for b in bases}) == 1
    assert bases[0].text_digest is not None


def test_a_loaded_model_is_copied_and_not_changed(clip):
    clip.half().train()
    base = load_base(clip)
    assert next(clip.parameters()).dtype == torch.float16
    assert next(clip.parameters()).requires_grad
    assert clip.training
    assert next(base.visual.parameters()).dtype == torch.float32
    assert base.has_text


def test_an_image_tower_alone_has_no_text(clip):
    base = load_base(clip.visual)
    assert not base.has_text
    assert base.spec.tensors == load_base(clip).spec.tensors


def test_a_name_with_a_checkpoint_file(tmp_path, clip, directory, monkeypatch, classes):
    config = json.loads((directory / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-test", config)
    checkpoint = directory / "open_clip_model.safetensors"
    base = load_base(f"open_clip:tiny-test:{checkpoint}")
    assert base.spec.name == "tiny-test"
    assert base.spec.pretrained is UNSET
    assert base.spec.tensors == load_base(directory).spec.tensors
    # The path of a checkpoint is enough where an archive tells the name; a file's preprocessing
    # is only guessed by open_clip, so the archive's holds.
    preprocess = msgspec.structs.replace(base.spec.preprocess, mean=["0.25"] * 3)
    fitted = load_base(f"open_clip:tiny-test:{checkpoint}", preprocess=preprocess)
    projector = Projector.build(fitted, classes, head_rank=2, rank=2, temperature=1.0, seed=0)
    path = write(tmp_path / "p.hello", projector, classes)
    for source in (checkpoint, f"open_clip:tiny-test:{checkpoint}"):
        labeler = Labeler.from_file(path, source)
        views = torch.rand(2, 3, 16, 16)
        torch.testing.assert_close(
            labeler.logits(views), projector.labeler().logits(views), rtol=0, atol=1e-5
        )


def write(path, projector, classes):
    from hellofmt.archive import default_views
    from hellofmt.archive.manifest import Dataset

    dataset = Dataset(name="x", version="1", license="CC0-1.0", method="test", sources=[])
    part = projector.part("float32")
    draft = Draft(dataset=dataset, classes=classes, views=default_views(16), projector=part)
    write_archive(path, draft)
    return path


def test_an_archive_of_an_open_clip_base(tmp_path, directory, clip, classes):
    projector = Projector.build(
        load_base(directory), classes, head_rank=2, rank=2, temperature=1.0, seed=0
    )
    path = write(tmp_path / "p.hello", projector, classes)
    views = torch.rand(2, 3, 16, 16)
    expected = projector.labeler().logits(views)
    with open_archive(path) as file:
        for source in (directory, f"local-dir:{directory}", clip, load_base(directory)):
            assert base_of(file, source).spec == file.manifest.base
            got = Labeler.from_file(file, source).logits(views)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        digest = file.manifest.base.digest
        with pytest.raises(BaseModelError, match='pass base="local-dir:PATH"') as info:
            base_of(file)
        assert info.value.code == "E_BASE_MISSING"
        assert info.value.exit_code == 8
        assert digest in str(info.value)
        with torch.no_grad():
            clip.visual.proj[0, 0] += 1e-3
        with pytest.raises(BaseModelError, match="E_BASE_WEIGHTS"):
            base_of(file, clip)


def test_the_error_without_a_base_tells_what_to_type(tmp_path, directory, classes):
    base = load_base(directory)
    spec = msgspec.structs.replace(base.spec, name="ViT-B-32", pretrained="laion2b_s34b_b79k")
    import dataclasses

    base = dataclasses.replace(base, spec=spec)
    projector = Projector.build(base, classes, head_rank=2, rank=2, temperature=1.0, seed=0)
    path = write(tmp_path / "p.hello", projector, classes)
    expected = 'pass base="open_clip:ViT-B-32:laion2b_s34b_b79k"'
    with pytest.raises(BaseModelError, match=expected):
        Labeler.from_file(path)


def test_quick_gelu_of_a_directory_is_part_of_its_architecture(tmp_path, clip, directory, classes):
    quick = save(tmp_path / "quick", clip, CONFIG | {"quick_gelu": True})
    assert load_base(quick).spec.arch.quick_gelu
    assert load_base(CLIP(**CONFIG, quick_gelu=True)).spec.arch.quick_gelu
    projector = Projector.build(load_base(directory), classes, temperature=1.0, seed=0)
    path = write(tmp_path / "p.hello", projector, classes)
    with pytest.raises(BaseModelError, match="`quick_gelu` False against True"):
        Labeler.from_file(path, quick)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("open_clip:RN50", "unknown model or no weights; expected"),
        ("open_clip:no-such-model:tag", "unknown model or no weights"),
        ("open_clip:hf-hub:someone/model", "unknown model or no weights"),
        ("open_clip:RN50:no-such-tag", "open_clip cannot load base `RN50`"),
    ],
)
def test_sources_that_name_no_base_are_refused(source, text):
    with pytest.raises(UserInputError, match=text) as info:
        load_base(source)
    assert info.value.code == "E_OPTION"


def test_a_checkpoint_alone_is_refused_with_what_to_type(directory):
    path = directory / "open_clip_model.safetensors"
    with pytest.raises(UserInputError, match=f'expected "open_clip:NAME:{path}"'):
        load_base(path)


def test_a_directory_without_weights_is_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    with pytest.raises(UserInputError, match="open_clip cannot load base"):
        load_base(tmp_path)


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
        _arch_of_config(CONFIG | {"vision_cfg": VISION | change})
    assert info.value.code == "E_OPTION"


def test_a_null_projection_is_not_the_default():
    """open_clip's `timm_proj: null` is timm's classifier; an absent key is a linear layer."""
    vision = {"timm_model_name": "eva02_base_patch16_clip_224", "image_size": 224}
    stated = [
        _arch_of_config({"embed_dim": 8, "vision_cfg": vision | extra}).vision.timm_proj
        for extra in ({"timm_proj": None}, {"timm_proj": "linear"}, {}, {"timm_proj": "none"})
    ]
    assert stated == ["", UNSET, UNSET, "none"]


def test_plain_blocks_have_no_options_of_custom_ones():
    plain = {"block_type": "default", "qk_norm": True}
    custom = {"block_type": "custom", "qk_norm": True, "scale_fc": False}
    for extra, expected in ((plain, VISION), (custom, VISION | {"qk_norm": True})):
        arch = _arch_of_config(CONFIG | {"vision_cfg": VISION | extra})
        assert msgspec.to_builtins(arch.vision) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"block_type": "custom"},
        {"qk_norm": True, "scale_heads": True},
        {"scale_attn_inner": True, "scale_attn": True, "scale_fc": True},
    ],
)
def test_custom_blocks_are_read_off_their_modules(options):
    config = CONFIG | {"vision_cfg": VISION | options}
    model = CLIP(**config)
    assert _normal_arch(_describe(model, model.visual)) == _normal_arch(_arch_of_config(config))


@pytest.fixture
def tagged(monkeypatch, directory):
    """A model with a tag in open_clip's own lists, whose download is a file that is here."""
    checkpoint = directory / "open_clip_model.safetensors"
    entry = {"url": "none", "mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"}
    tags = {"plain": entry, "quick": entry | {"quick_gelu": True}}
    for name, quick_gelu in (("tiny-test", False), ("tiny-test-quickgelu", True)):
        config = CONFIG | {"quick_gelu": quick_gelu}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(checkpoint))
    return checkpoint


def test_a_name_with_a_tag(tagged, tmp_path, classes):
    base = load_base("open_clip:tiny-test:plain")
    assert (base.spec.name, base.spec.pretrained) == ("tiny-test", "plain")
    assert base.spec.preprocess.mean == ["0.1", "0.2", "0.3"]
    assert base.spec.preprocess.interpolation == "bilinear"
    projector = Projector.build(base, classes, head_rank=2, rank=2, temperature=1.0, seed=0)
    path = write(tmp_path / "p.hello", projector, classes)
    with pytest.raises(BaseModelError, match='pass base="open_clip:tiny-test:plain"'):
        Labeler.from_file(path)
    Labeler.from_file(path, "open_clip:tiny-test:plain")


def test_weights_of_quick_gelu_are_refused_in_a_model_without_it(tagged):
    """open_clip warns and computes another function."""
    with pytest.raises(UserInputError, match='expected "open_clip:tiny-test-quickgelu:quick"'):
        load_base("open_clip:tiny-test:quick")
    assert load_base("open_clip:tiny-test-quickgelu:quick").spec.arch.quick_gelu
    # A checkpoint file says nothing of its activation; the name decides.
    assert not load_base(f"open_clip:tiny-test:{tagged}").spec.arch.quick_gelu


def test_a_base_from_the_hub(monkeypatch, directory, clip, tmp_path, classes):
    config = json.loads((directory / "open_clip_config.json").read_text())
    weights = str(directory / "open_clip_model.safetensors")
    monkeypatch.setattr(open_clip.factory, "_get_hf_config", lambda *_, **__: config)
    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", lambda *_, **__: weights)
    base = load_base("hf-hub:someone/model")
    assert base.spec.digest == load_base(directory).spec.digest
    assert base.spec.name == "hf-hub:someone/model"
    projector = Projector.build(base, classes, start="stored", rank=2, temperature=1.0, seed=0)
    path = write(tmp_path / "p.hello", projector, classes)
    with pytest.raises(BaseModelError, match='pass base="hf-hub:someone/model"'):
        Labeler.from_file(path)
    Labeler.from_file(path, "hf-hub:someone/model")


def test_a_preprocessing_that_an_archive_cannot_state_is_refused(tmp_path, clip):
    odd = save(tmp_path / "odd", clip, preprocess={"interpolation": "random"})
    with pytest.raises(UserInputError, match="preprocessing cannot be stated"):
        load_base(odd)


def test_a_tower_that_tells_nothing_needs_its_architecture():
    with pytest.raises(UserInputError, match="cannot read the architecture off Linear"):
        load_base(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "name",
    ["RN50", "RN50x4-quickgelu", "ViT-B-32", "ViT-L-14-336-quickgelu", "ViT-g-14", "coca_ViT-B-32"],
)
def test_an_architecture_reads_the_same_off_config_and_modules(name):
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = open_clip.create_model(name, load_weights=False, device="meta")
    stated, read = _arch_of_config(config), _describe(model, model.visual)
    assert _normal_arch(stated) == _normal_arch(read)
    assert stated.embed_dim == config["embed_dim"]
    assert stated.quick_gelu == config.get("quick_gelu", False)


def test_defaults_may_be_left_out_of_an_architecture():
    full = VISION | {"mlp_ratio": 4.0, "head_width": 64, "pool_type": "tok", "patch_dropout": 0.5}
    full |= {"norm_kwargs": {"eps": 1e-5}, "output_tokens": True, "attentional_pool": False}
    assert _arch_of_config(CONFIG | {"vision_cfg": full}) == _arch_of_config(CONFIG)
    eps = _arch_of_config(CONFIG | {"vision_cfg": VISION | {"norm_kwargs": {"eps": 1e-6}}})
    assert eps.vision.norm_eps == "0.000001"
    spelt = Arch(
        embed_dim=32, quick_gelu=False, vision=VisionArch(**VISION, mlp_ratio="4.0", head_width=64)
    )
    assert _normal_arch(spelt) == _normal_arch(_arch_of_config(CONFIG))


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


# Embedded bases.


def test_embedded_tensors_are_checked_against_the_architecture(tmp_path, vit, classes):
    projector = Projector.build(vit.embedded(), classes, start="stored", temperature=1.0, seed=0)
    path = write(tmp_path / "p.hello", projector, classes)
    with open_archive(path) as file:
        base = base_of(file)
        assert base.spec == file.manifest.base
        for name, tensor in vit.visual.state_dict().items():
            assert torch.equal(base.visual.state_dict()[name], tensor), name

        class Broken:
            manifest = file.manifest

            def __init__(self, change):
                self.change = change

            def tensors(self, name):
                return self.change(dict(file.tensors(name)))

        def without(tensors):
            del tensors["proj"]
            return tensors

        for change in (without, lambda t: t | {"proj": np.zeros((64, 31), np.float32)}):
            with pytest.raises(SpecError, match=r"1 tensors differ .* first `proj`") as info:
                base_of(Broken(change))
            assert info.value.code == "E_TENSOR"
        with pytest.raises(BaseModelError, match="E_BASE_WEIGHTS"):
            base_of(Broken(lambda t: t | {"proj": t["proj"] + np.float32(1)}))


def test_preprocessing_decides_the_digest(vit):
    spec = vit.spec
    other = msgspec.structs.replace(spec.preprocess, antialias=False)
    assert isinstance(other, Preprocess)
    assert base_digest(spec.arch, other, spec.tensors) != spec.digest
