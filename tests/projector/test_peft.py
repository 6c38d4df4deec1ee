"""PEFT's adapters, with files written by hand; and PEFT itself as the oracle where installed."""

import importlib
import json

import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file

from hellofmt.errors import HelloIOError, UserInputError
from hellofmt.projector import Labeler, Projector, load_base, read_peft, write_peft
from hellofmt.projector.base.arch import arch_of_config
from hellofmt.projector.labeler import parameter_shapes
from hellofmt.projector.lowrank import Delta, merge_

BLOCK = "transformer.resblocks.0"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "peft_version": "0.21.2"}


def matrices(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) / 3 for shape in shapes]


@pytest.fixture
def tensors():
    """An adapter of one attention, one MLP weight and the patch convolution of `vit`."""
    a_in, b_in, a_out, b_out, a_fc, b_fc, a_conv, b_conv = matrices(
        0, (4, 64), (192, 4), (4, 64), (64, 4), (4, 64), (256, 4), (4, 3, 4, 4), (64, 4, 1, 1)
    )
    start = f"base_model.model.visual.{BLOCK}"
    return {
        f"{start}.attn.lora_A.weight": a_in,
        f"{start}.attn.lora_B.weight": b_in,
        f"{start}.attn.base_layer.out_proj.lora_A.weight": a_out,
        f"{start}.attn.base_layer.out_proj.lora_B.weight": b_out,
        f"{start}.mlp.c_fc.lora_A.weight": a_fc,
        f"{start}.mlp.c_fc.lora_B.weight": b_fc,
        "base_model.model.visual.conv1.lora_A.weight": a_conv,
        "base_model.model.visual.conv1.lora_B.weight": b_conv,
    }


@pytest.fixture
def write(tmp_path, tensors):
    """Write an adapter by hand; the directory."""

    def made(config=None, values=tensors, name="adapter"):
        folder = tmp_path / name
        folder.mkdir()
        text = config if isinstance(config, str) else json.dumps(CONFIG | (config or {}))
        (folder / "adapter_config.json").write_text(text)
        save_file(values, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        return folder

    return made


def product(delta):
    """s B A in float64."""
    return delta.scale * (delta.b.detach().double() @ delta.a.detach().double())


def test_an_adapter_is_read_as_deltas_of_parameters(vit, write, tensors):
    deltas = read_peft(write(), parameter_shapes(vit.visual))
    start = "base_model.model.visual."
    expected = {
        "conv1.weight": (2.0, f"{start}conv1"),
        f"{BLOCK}.attn.in_proj_weight": (2.0, f"{start}{BLOCK}.attn"),
        # PEFT adds it twice.
        f"{BLOCK}.attn.out_proj.weight": (4.0, f"{start}{BLOCK}.attn.base_layer.out_proj"),
        f"{BLOCK}.mlp.c_fc.weight": (2.0, f"{start}{BLOCK}.mlp.c_fc"),
    }
    assert [delta.param for delta in deltas] == sorted(expected)
    for delta in deltas:
        scale, key = expected[delta.param]
        a, b = (tensors[f"{key}.lora_{side}.weight"].flatten(1).double() for side in "AB")
        torch.testing.assert_close(product(delta), scale * (b @ a), rtol=0, atol=1e-6)


def test_a_convolution_s_delta_is_the_two_convolutions(vit, write, tensors):
    """PEFT runs B(A(x)) beside the layer; flattened, that is one kernel."""
    (delta,) = [
        d for d in read_peft(write(), parameter_shapes(vit.visual)) if d.param == "conv1.weight"
    ]
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    key = "base_model.model.visual.conv1.lora_{}.weight"
    inner = torch.nn.functional.conv2d(x, tensors[key.format("A")], stride=4)
    expected = 2.0 * torch.nn.functional.conv2d(inner, tensors[key.format("B")])
    kernel = product(delta).float().reshape(64, 3, 4, 4)
    got = torch.nn.functional.conv2d(x, kernel, stride=4)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, (2.0, 4.0, 2.0, 2.0)),
        ({"use_rslora": True}, (4.0, 8.0, 4.0, 4.0)),
        ({"lora_alpha": 2}, (0.5, 1.0, 0.5, 0.5)),
        ({"alpha_pattern": {r"resblocks\.0\.attn": 16}}, (4.0, 8.0, 2.0, 2.0)),
        ({"alpha_pattern": {r"^visual\.transformer\..*c_fc$": 1}}, (2.0, 4.0, 0.25, 2.0)),
        ({"alpha_pattern": {r"resblocks\.\d+.mlp.c_fc|conv1": 1}}, (2.0, 4.0, 0.25, 0.25)),
        # A pattern must match up to the end, and from a point.
        ({"alpha_pattern": {"resblocks.0": 1, "fc": 1, "v1": 1}}, (2.0, 4.0, 2.0, 2.0)),
        # The first one that matches.
        ({"alpha_pattern": {"c_fc": 1, "mlp.c_fc": 3}}, (2.0, 4.0, 0.25, 2.0)),
        ({"r": 3, "rank_pattern": {"attn|c_fc|conv1": 4}}, (2.0, 4.0, 2.0, 2.0)),
        # What changes nothing.
        (
            {"lora_dropout": 0.1, "target_modules": ["attn"], "use_dora": False},
            (2.0, 4.0, 2.0, 2.0),
        ),
        ({"auto_mapping": {"base_model_class": "CLIP"}}, (2.0, 4.0, 2.0, 2.0)),
        ({"a_key_of_a_later_release": None}, (2.0, 4.0, 2.0, 2.0)),
        ({"init_lora_weights": "gaussian"}, (2.0, 4.0, 2.0, 2.0)),
    ],
)
def test_scales_are_peft_s(vit, write, config, scales):
    found = {d.param: d.scale for d in read_peft(write(config), parameter_shapes(vit.visual))}
    names = (f"{BLOCK}.attn.in_proj_weight", f"{BLOCK}.attn.out_proj.weight")
    names += (f"{BLOCK}.mlp.c_fc.weight", "conv1.weight")
    assert found == pytest.approx(dict(zip(names, scales, strict=True)))


@pytest.mark.parametrize(
    ("version", "mha_fix", "factor"),
    [
        ("0.15.0", "auto", 2),
        (None, "auto", 2),
        ("0.21.2", "off", 1),
        ("0.99.0", "on", 2),
        ("0.99.0", "off", 1),
    ],
)
def test_the_double_out_proj_follows_release_and_option(vit, write, version, mha_fix, factor):
    folder = write({"peft_version": version})
    found = read_peft(folder, parameter_shapes(vit.visual), mha_fix=mha_fix)
    scales = {d.param: d.scale for d in found}
    assert scales[f"{BLOCK}.attn.out_proj.weight"] == 2.0 * factor
    assert scales[f"{BLOCK}.attn.in_proj_weight"] == 2.0


@pytest.mark.parametrize("version", ["0.21.3", "0.22.0.dev0", "1.0.0", "newest"])
def test_a_release_that_was_not_measured_needs_the_option(vit, write, version):
    with pytest.raises(UserInputError, match=f"PEFT {version} wrote this adapter.*mha_fix") as info:
        read_peft(write({"peft_version": version}), parameter_shapes(vit.visual))
    assert info.value.code == "E_OPTION"


def test_an_unknown_fix_is_refused(vit, write):
    with pytest.raises(UserInputError, match="mha_fix: expected auto, on or off, got maybe"):
        read_peft(write(), parameter_shapes(vit.visual), mha_fix="maybe")


def test_fan_in_fan_out_transposes_the_product():
    """A weight that lies (in, out): the delta is (B A)^T."""
    a, b = matrices(3, (4, 10), (6, 4))
    from hellofmt.projector.peft.read import _matrices

    got_a, got_b = _matrices("m", {"A": a, "B": b}, (10, 6), {"fan_in_fan_out": True})
    torch.testing.assert_close(got_b @ got_a, (b @ a).T)
    with pytest.raises(UserInputError, match="are not a delta of the base's weight"):
        _matrices("m", {"A": a, "B": b}, (10, 6), {})


def test_an_adapter_of_the_image_tower_alone(vit, write, tensors):
    inner = {name.replace("visual.", ""): t for name, t in tensors.items()}
    whole = read_peft(write(name="whole"), parameter_shapes(vit.visual))
    mapping = {"auto_mapping": {"base_model_class": "VisionTransformer"}}
    alone = read_peft(write(mapping, inner), parameter_shapes(vit.visual))
    assert [d.param for d in alone] == [d.param for d in whole]
    # Without the tower's name in front, a whole model's modules are those of its text tower.
    folder = write({"auto_mapping": {"base_model_class": "CLIP"}}, inner, name="text")
    with pytest.raises(UserInputError, match="is outside the image tower"):
        read_peft(folder, parameter_shapes(vit.visual))


KEY = "base_model.model.visual.conv1.lora_{}.weight"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"use_dora": True}, "`use_dora` is set; expected an adapter without it"),
        ({"lora_bias": True}, "`lora_bias` is set"),
        ({"modules_to_save": ["head"]}, "`modules_to_save` is set"),
        ({"layer_replication": [[0, 1]]}, "`layer_replication` is set"),
        ({"a_key_of_a_later_release": 1}, "`a_key_of_a_later_release` is set"),
        ({"peft_type": "LOHA"}, "`peft_type` is LOHA; expected LORA"),
        ({"bias": "all"}, "`bias` is all; expected none"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights` is pissa, which changes the base"),
        ({"init_lora_weights": 1}, "`init_lora_weights` is 1"),
        ({"use_rslora": "yes"}, "`use_rslora`: expected true or false"),
        ({"r": "4"}, "`r`: expected a number from above 0 to 1e6"),
        ({"r": True}, "`r`: expected a number"),
        ({"lora_alpha": 0}, "`lora_alpha`: expected a number from above 0"),
        ({"lora_alpha": 1e5}, r"`conv1.weight` has scale 25000; expected at most 1000"),
        ({"r": 8}, "has rank 4; expected 8 from `adapter_config.json`"),
        ({"rank_pattern": {"c_fc": 2}}, r"c_fc` has rank 4; expected 2"),
        ({"alpha_pattern": [1]}, "`alpha_pattern`: expected an object"),
        ({"alpha_pattern": {"a": None}}, "`alpha_pattern`: expected a number"),
        ({"alpha_pattern": {"(a+)+b": 1}}, r"has the pattern `\(a\+\)\+b`; expected names"),
        ({"alpha_pattern": {".*a.*": 1}}, "has the pattern"),
        ({"alpha_pattern": {f".*a{i}": 1 for i in range(65)}}, "65 patterns with `.\\*`"),
        ("[]", "`adapter_config.json` is not an object"),
        ("{", "`adapter_config.json` cannot be read"),
        ('{"r": 4, "r": 4}', "cannot be read: duplicate key"),
        ('{"r": NaN}', "cannot be read: NaN is not JSON"),
        ("[" * 100_000, "cannot be read"),
        (" " * (1 << 20) + "{}", "is larger than 1048576 bytes"),
    ],
)
def test_configurations_that_are_not_plain_lora_are_refused(vit, write, config, text):
    with pytest.raises(UserInputError, match=text) as info:
        read_peft(write(config), parameter_shapes(vit.visual))
    assert info.value.code == "E_DATA"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({KEY.format("B"): None}, "`visual.conv1` has only one of lora_A and lora_B"),
        (
            {KEY.format("A"): torch.zeros(4, 3, 2, 2)},
            r"not a delta of .*expected \(64, 3, 4, 4\)",
        ),
        ({KEY.format("B"): torch.zeros(64, 3, 1, 1)}, "are not a delta of the base's weight"),
        ({KEY.format("A"): torch.full((4, 3, 4, 4), float("nan"))}, "is not of finite floating"),
        ({KEY.format("A"): torch.zeros(4, 3, 4, 4, dtype=torch.int8)}, "is not of finite floating"),
        (
            {
                KEY.format("A"): torch.zeros(300, 3, 4, 4),
                KEY.format("B"): torch.zeros(64, 300, 1, 1),
            },
            "`conv1.weight` has rank 300; expected from 1 to 256",
        ),
        (
            {"base_model.model.visual.conv1.lora_magnitude_vector": torch.ones(4)},
            "is neither a lora_A nor a lora_B",
        ),
        (
            {
                "base_model.model.visual.nothing.lora_A.weight": torch.zeros(4, 8),
                "base_model.model.visual.nothing.lora_B.weight": torch.zeros(8, 4),
            },
            "the image tower has no weight `nothing.weight`",
        ),
        (
            {
                f"base_model.model.visual.{BLOCK}.attn.out_proj.lora_A.weight": torch.zeros(4, 64),
                f"base_model.model.visual.{BLOCK}.attn.out_proj.lora_B.weight": torch.zeros(64, 4),
            },
            "out_proj.weight` is adapted twice",
        ),
    ],
)
def test_tensors_that_are_no_deltas_of_the_base_are_refused(vit, write, tensors, change, text):
    values = {n: t for n, t in (tensors | change).items() if t is not None}
    with pytest.raises(UserInputError, match=text) as info:
        read_peft(write(values=values), parameter_shapes(vit.visual))
    assert info.value.code == "E_DATA"


def test_files_that_are_missing_or_no_safetensors(vit, write, tmp_path):
    shapes = parameter_shapes(vit.visual)
    folder = write()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserInputError, match=r"`adapter_model\.safetensors` cannot be read"):
        read_peft(folder, shapes)
    save_file({}, weights)
    with pytest.raises(UserInputError, match="0 tensors; expected from 1 to 4096"):
        read_peft(folder, shapes)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(UserInputError, match=r"`adapter_model\.bin` is a pickle"):
        read_peft(folder, shapes)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError):
        read_peft(folder, shapes)
    with pytest.raises(FileNotFoundError):
        read_peft(tmp_path / "nowhere", shapes)


def test_a_projector_of_an_adapter_is_stored_and_read(
    text_vit, write, classes, write_projector, tmp_path
):
    projector = Projector.from_peft(write(), text_vit, classes, temperature=2.0)
    # The zero-shot head, untouched.
    names = [line.names[0] for line in classes]
    rows = text_vit.text_rows(names, ["a photo of a {}."])
    assert torch.equal(projector.head.merged(), rows)
    assert projector.head.bias is None
    write_projector(tmp_path / "p.hello", projector, classes)
    views = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    read = Labeler.from_file(tmp_path / "p.hello").logits(views)
    torch.testing.assert_close(read, projector(views).detach(), rtol=0, atol=1e-5)
    assert float((read - projector.head(text_vit.encode(views)).detach()).abs().max()) > 1e-3


# Writing.


@pytest.mark.parametrize("mha_fix", ["auto", "off"])
def test_what_is_written_is_read_back(vit, classes, randomise, tmp_path, mha_fix):
    targets = ["transformer:3:0.5", "*.1.mlp.c_fc*:2", "*.0.attn.out_proj*:5:2", "conv1*"]
    projector = randomise(
        Projector.build(
            vit, classes, targets=targets, rank=4, start="stored", temperature=1.0, seed=0
        )
    )
    projector.to_peft(tmp_path / "adapter", mha_fix=mha_fix)
    back = read_peft(tmp_path / "adapter", parameter_shapes(vit.visual), mha_fix=mha_fix)
    assert [d.param for d in back] == [d.param for d in projector.deltas]
    for ours, theirs in zip(projector.deltas, back, strict=True):
        torch.testing.assert_close(product(theirs), product(ours), rtol=0, atol=1e-6)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3
    assert sorted(config["rank_pattern"].values()) == [2, 4, 5]
    # Half of what is meant, where PEFT adds it twice.
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    key = f"base_model.model.visual.{BLOCK}.attn.base_layer.out_proj.lora_B.weight"
    out = next(d for d in projector.deltas if d.param == f"{BLOCK}.attn.out_proj.weight")
    factor = out.scale * (0.5 if mha_fix == "auto" else 1.0)
    torch.testing.assert_close(tensors[key], factor * out.b.detach())


def test_half_an_attention_is_written_with_zeros_for_the_other(vit, tmp_path):
    a, b = matrices(1, (2, 64), (192, 2))
    write_peft(tmp_path / "x", vit, [Delta(f"{BLOCK}.attn.in_proj_weight", a, b)])
    back = {d.param: product(d) for d in read_peft(tmp_path / "x", parameter_shapes(vit.visual))}
    assert not back[f"{BLOCK}.attn.out_proj.weight"].any()
    torch.testing.assert_close(
        back[f"{BLOCK}.attn.in_proj_weight"].float(), b @ a, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("tower", "param", "a", "b", "text"),
    [
        (
            "vit",
            "proj",
            (2, 32),
            (64, 2),
            "`proj` is not the weight of a module that PEFT can wrap",
        ),
        ("resnet", "conv1.weight", (6, 9), (12, 6), "uses the convolution form of the delta"),
        (
            "resnet",
            "attnpool.q_proj.weight",
            (2, 256),
            (256, 2),
            "`attnpool.q_proj` is used by its weight alone",
        ),
    ],
)
def test_deltas_that_peft_has_no_form_for_are_refused(request, tmp_path, tower, param, a, b, text):
    base = request.getfixturevalue(tower)
    delta = Delta(param, *matrices(0, a, b))
    with pytest.raises(UserInputError, match=text) as info:
        write_peft(tmp_path / "x", base, [delta])
    assert info.value.code == "E_DATA"
    assert not list(tmp_path.iterdir())


def test_nothing_to_write_and_an_existing_target_are_refused(vit, tmp_path):
    with pytest.raises(UserInputError, match="there is no delta to write"):
        write_peft(tmp_path / "x", vit, [])
    delta = Delta("conv1.weight", *matrices(0, (2, 48), (64, 2)))
    with pytest.raises(HelloIOError, match="exists; name a new one") as info:
        write_peft(tmp_path, vit, [delta])
    assert info.value.code == "E_TARGET"


# PEFT itself.

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 4},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def peft(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # It asks for the variable when it is imported.
    return importlib.import_module("peft")


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return CLIP(**MODEL).eval()


def adapted_by_us(base, deltas, views):
    import copy

    visual = copy.deepcopy(base.visual)
    merge_(visual, deltas)
    with torch.no_grad():
        return visual(views)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_s_own_adapters_are_read_as_peft_computes_them(peft, clip, tmp_path, rslora):
    base = load_base(clip, arch=arch_of_config(MODEL))
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=r"visual\..*\.(attn|c_fc|c_proj)|visual\.conv1",
        rank_pattern={r"visual\.transformer\.resblocks\.1\.mlp\.c_fc": 2},
        alpha_pattern={"resblocks.1.mlp.c_fc": 5, r"resblocks\.\d+\.attn": 3},
        use_rslora=rslora,
    )
    model = peft.get_peft_model(clip, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "adapter")
    x = torch.randn(3, 3, 16, 16, generator=generator)
    with torch.no_grad():
        expected = model.base_model.model.visual(x)
    deltas = read_peft(tmp_path / "adapter", parameter_shapes(base.visual))
    assert len(deltas) == 9
    got = adapted_by_us(base, deltas, x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    # The doubling is real: without it the adapter is another function.
    plain = read_peft(tmp_path / "adapter", parameter_shapes(base.visual), mha_fix="off")
    assert float((adapted_by_us(base, plain, x) - expected).abs().max()) > 1e-2
    # Merged by PEFT: the same, doubled too.
    with torch.no_grad():
        merged = model.merge_and_unload().visual(x)
    torch.testing.assert_close(got, merged, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_peft_loads_what_we_write(peft, clip, classes, randomise, tmp_path):
    base = load_base(clip, arch=arch_of_config(MODEL))
    targets = ["transformer:3:0.5", "*.1.mlp.c_fc*:2", "*.0.attn.out_proj*:5:2", "conv1*"]
    projector = randomise(
        Projector.build(
            base, classes, targets=targets, rank=4, start="stored", temperature=1.0, seed=0
        )
    )
    projector.to_peft(tmp_path / "adapter")
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = adapted_by_us(base, list(projector.deltas), x)
    model = peft.PeftModel.from_pretrained(clip, tmp_path / "adapter").eval()
    with torch.no_grad():
        got = model.base_model.model.visual(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert float((base.visual(x) - expected).abs().max()) > 1e-2
