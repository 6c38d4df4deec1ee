from __future__ import annotations

import json
import logging
import os

import msgspec
import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file

from hellofmt.archive import Draft, open_archive, write_archive
from hellofmt.archive.format.manifest import UNSET
from hellofmt.errors import BaseModelError, HelloIOError, UserInputError
from hellofmt.projector import Labeler, Projector, base_of, load_base
from hellofmt.projector.base.arch import arch_of_config

# 64 and 4.0 are open_clip's defaults, which an architecture may leave out.
VISION = {"image_size": 16, "layers": 2, "width": 64, "patch_size": 4}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CONFIG = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
ARCH = arch_of_config(CONFIG)


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
    bases = [load_base(directory), load_base(other), load_base(tmp_path / "bin")]
    bases.append(load_base(clip, arch=bases[0].spec.arch))
    assert len({b.spec.digest for b in bases}) == 1
    assert len({b.text_digest for b in bases}) == 1
    assert bases[0].text_digest is not None


def test_a_loaded_model_is_copied_and_not_changed(clip):
    clip.half().train()
    base = load_base(clip, arch=ARCH)
    assert next(clip.parameters()).dtype == torch.float16
    assert next(clip.parameters()).requires_grad
    assert clip.training
    assert next(base.visual.parameters()).dtype == torch.float32
    assert base.has_text


def test_an_image_tower_alone_has_no_text(clip):
    base = load_base(clip.visual, arch=ARCH)
    assert not base.has_text
    assert base.spec.tensors == load_base(clip, arch=ARCH).spec.tensors


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
    from hellofmt.archive.format.manifest import Dataset

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
        with pytest.raises(BaseModelError, match="pass `base` local-dir:PATH") as info:
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
    expected = "pass `base` open_clip:ViT-B-32:laion2b_s34b_b79k"
    with pytest.raises(BaseModelError, match=expected):
        Labeler.from_file(path)


def test_quick_gelu_of_a_directory_is_part_of_its_architecture(tmp_path, clip, directory, classes):
    quick = save(tmp_path / "quick", clip, CONFIG | {"quick_gelu": True})
    assert load_base(quick).spec.arch.quick_gelu
    projector = Projector.build(load_base(directory), classes, temperature=1.0, seed=0)
    path = write(tmp_path / "p.hello", projector, classes)
    with pytest.raises(BaseModelError, match="`quick_gelu` False against True"):
        Labeler.from_file(path, quick)


def test_a_checkpoint_that_is_no_state_dict_is_said_to_be_one(tmp_path, capfd, caplog):
    # A training checkpoint of open_clip with a number of NumPy, as its logger leaves them.
    path = tmp_path / "epoch_1.pt"
    torch.save({"epoch": np.float64(1), "state_dict": {}}, path)
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(UserInputError) as info:
        load_base(f"open_clip:RN50:{path}")
    text = str(info.value)
    assert f"base `open_clip:RN50:{path}`: `{path}` holds `numpy" in text
    assert "scalar` beside its tensors" in text
    assert "save its weights alone: `from safetensors.torch import" in text
    assert "weights_only" not in text
    assert "\x1b" not in text
    # A checkpoint of another network, which open_clip also logs about.
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserInputError, match=r"other.safetensors` cannot be loaded: Error"):
        load_base(f"open_clip:RN50:{tmp_path / 'other.safetensors'}")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert logging.getLogger().handlers == handlers


def test_a_pipe_as_a_checkpoint_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HelloIOError, match="E_READ: not a regular file"):
        load_base(f"open_clip:RN50:{tmp_path / 'pipe'}")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("open_clip:RN50", "unknown model or no weights; expected"),
        ("open_clip:no-such-model:tag", "unknown model or no weights"),
        ("open_clip:hf-hub:someone/model", "unknown model or no weights"),
        (
            "open_clip:RN50:no-such-tag",
            "no such file, and no weights that open_clip has; expected a check",
        ),
        ("open_clip:RN50:opnai", "one of openai, yfcc15m, cc12m; did you mean `openai`"),
        ("open_clip:RN51:openai", "did you mean `RN50`"),
        ("openclip:RN50:openai", "nor a kind of base; .* did you mean `open_clip`"),
        ("seeded:3", "a generated base is for a new projector; an archive that has one needs no"),
        ("seded", "nor a kind of base; .* did you mean `seeded`"),
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
    with pytest.raises(BaseModelError, match="pass `base` open_clip:tiny-test:plain"):
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
    with pytest.raises(BaseModelError, match="pass `base` hf-hub:someone/model"):
        Labeler.from_file(path)
    Labeler.from_file(path, "hf-hub:someone/model")


def test_a_preprocessing_that_an_archive_cannot_state_is_refused(tmp_path, clip):
    odd = save(tmp_path / "odd", clip, preprocess={"interpolation": "random"})
    with pytest.raises(UserInputError, match="preprocessing cannot be stated"):
        load_base(odd)


def test_a_loaded_model_is_asked_for_its_architecture(clip, monkeypatch):
    for arch, problem in ((None, "`arch` is missing"), ("no-such", "`arch` `no-such` is unknown")):
        with pytest.raises(UserInputError, match=problem) as info:
            load_base(clip, arch=arch)
        assert info.value.code == "E_OPTION"
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-test", CONFIG)
    assert load_base(clip, arch="tiny-test").spec == load_base(clip, arch=ARCH).spec


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"quick_gelu": True}, "computes other features than the stated architecture"),
        ({"vision_cfg": VISION | {"head_width": 32}}, "computes other features"),
        (
            {"vision_cfg": VISION | {"layers": 3}},
            r"tensor `transformer.resblocks.2.* has shape None",
        ),
        (
            {"vision_cfg": VISION | {"patch_size": 8}},
            r"tensor `conv1.weight` has shape \(64, 3, 4, 4",
        ),
    ],
)
def test_a_loaded_model_of_another_architecture_is_refused(clip, change, text):
    with pytest.raises(BaseModelError, match=text) as info:
        load_base(clip, arch=arch_of_config(CONFIG | change))
    assert info.value.code == "E_BASE_CONFIG"
