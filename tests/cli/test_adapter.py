"""Adapters of PEFT on the command line: into a projector, and out of one."""

import json

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

from hellofmt.archive import open_archive
from hellofmt.projector import Labeler, Projector, load_base, read_peft
from hellofmt.projector.labeler import parameter_shapes

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 4},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
BLOCK = "transformer.resblocks.0"


@pytest.fixture
def directory(tmp_path):
    """A model in open_clip's form."""
    torch.manual_seed(0)
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    save_file(CLIP(**CONFIG).state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def adapter(tmp_path):
    """An adapter written by hand: one MLP weight and one attention."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "peft_version": "0.21.2"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "mlp.c_fc": ((2, 64), (256, 2)),
        "attn": ((2, 64), (192, 2)),
        "attn.base_layer.out_proj": ((2, 64), (64, 2)),
    }
    tensors = {
        f"base_model.model.visual.{BLOCK}.{module}.lora_{side}.weight": 0.1
        * torch.randn(shape, generator=generator)
        for module, pair in shapes.items()
        for side, shape in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def class_list(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("n1\ttench, Tinca tinca\nn2\tgoldfish\nn3\tcock\n")
    return path


@pytest.fixture
def projector(invoke_json, adapter, directory, class_list, tmp_path):
    path = tmp_path / "p.hello"
    document = invoke_json(
        "pack", "--adapter", adapter, "--base", directory, "--classes", class_list, "-o", path,
        "--prompt", "a {}.", "--temperature", "2.5", "--precision", "float32",
    )  # fmt: skip
    assert document["images"] == 0
    assert document["classes"] == 3
    return path


def test_an_adapter_becomes_a_projector(projector, adapter, directory):
    with open_archive(projector) as file:
        head = file.manifest.functions[0].head
        assert (head.start, head.temperature, head.bias) == ("text", "2.5", False)
        assert head.text.prompts == ["a {}."]
        assert file.manifest.dataset.name == "adapter"
        assert file.manifest.dataset.method == "peft"
        scales = {t.param: t.scale for t in file.manifest.functions[0].adapter.targets}
    assert scales == {
        f"{BLOCK}.attn.in_proj_weight": "2.0",
        f"{BLOCK}.attn.out_proj.weight": "4.0",
        f"{BLOCK}.mlp.c_fc.weight": "2.0",
    }
    base = load_base(directory)
    classes = [open_archive(projector).classes]
    names = [names[0] for names in classes[0].names]
    assert names == ["tench", "goldfish", "cock"]
    views = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    deltas = read_peft(adapter, parameter_shapes(base.visual))
    visual = base.visual
    adapted = {d.param: d(visual.get_parameter(d.param)).detach() for d in deltas}
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        x = torch.func.functional_call(visual, adapted, ((views - mean) / std,))
        x = torch.nn.functional.normalize(x, dim=-1)
        rows = base.text_rows(names, ["a {}."])
        expected = torch.tensor(base.logit_scale).exp() * x @ rows.T
    got = Labeler.from_file(projector, directory).logits(views)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_projector_becomes_an_adapter(projector, adapter, directory, invoke_json, tmp_path):
    target = tmp_path / "out"
    document = invoke_json("extract", projector, target, "--peft", "--base", directory)
    assert document["files"] == 2
    assert document["bytes"] == sum(p.stat().st_size for p in target.iterdir())
    shapes = parameter_shapes(load_base(directory).visual)
    for before, after in zip(read_peft(adapter, shapes), read_peft(target, shapes), strict=True):
        assert before.param == after.param
        torch.testing.assert_close(
            after.scale * after.b @ after.a, before.scale * before.b @ before.a
        )
    # Without the fix the stored out_proj is twice as large.
    invoke_json(
        "extract", projector, tmp_path / "off", "--peft", "--base", directory, "--peft-mha-fix",
        "off",
    )  # fmt: skip
    off = {d.param: d for d in read_peft(tmp_path / "off", shapes, mha_fix="off")}
    on = {d.param: d for d in read_peft(target, shapes, mha_fix="off")}
    name = f"{BLOCK}.attn.out_proj.weight"
    torch.testing.assert_close(off[name].b, 2 * on[name].b)


def test_wrong_uses_are_refused(invoke, adapter, directory, class_list, packed, tmp_path):
    output = tmp_path / "o.hello"
    needed = ["--adapter", adapter, "--base", directory, "--classes", class_list]
    for arguments, code, text in (
        ([], 2, "expected SOURCE, --projector, or --adapter alone"),
        ([tmp_path, *needed], 2, "expected SOURCE, --projector, or --adapter alone"),
        (needed[:2], 2, "--adapter needs --base and --classes"),
        ([*needed, "--projector", packed], 2, "expected SOURCE, --projector, or --adapter alone"),
        ([*needed, "--shards", "2"], 2, "--adapter makes a projector"),
        ([*needed[2:], "--adapter", tmp_path], 9, "adapter_config.json"),
    ):
        result = invoke("pack", *arguments, "-o", output)
        assert result.exit_code == code, arguments
        assert text in result.stderr
        assert not output.exists()
    # An archive without a projector has no adapter.
    result = invoke("extract", packed, tmp_path / "out", "--peft")
    assert result.exit_code == 2
    assert "has no projector" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_projector_of_another_base_is_refused(projector, directory, invoke, tmp_path):
    result = invoke("extract", projector, tmp_path / "out", "--peft")
    assert result.exit_code == 8
    assert "E_BASE_MISSING" in result.stderr
    assert Projector.from_file(open_archive(projector), directory).head.bias is None
