"""The towers and the label function as spec/towers.md gives them: no line of hellofmt or open_clip.

The stored probes of the vectors are met from the page alone; every option of the page agrees with
open_clip's towers.
"""

from functools import partial

import pytest
import torch
import zstandard

from hellofmt.archive.format.probes import probe_images

TEXTS = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def mini(load_beside):
    names = ("towers", "labels", "numbers", "reader")
    return {name: load_beside(f"mini_{name}") for name in names}


def rows_of_text(mini, file, shapes):
    """W_start of a head that starts from text, on a seeded text tower."""
    from open_clip import tokenize

    manifest, towers = file["manifest"], mini["towers"]
    base, head = manifest["base"], manifest["functions"][0]["head"]
    text = base["text"]
    lines = file["sections"]["classes"].decode().splitlines()
    names = [line.split("\t")[1].split(", ")[0] for line in lines]
    sentences = [[p.replace("{}", name) for p in head["text"]["prompts"]] for name in names]
    ids = [tokenize(each, text["context_length"]) for each in sentences]

    def drawn(seed, number, name, shape):
        if name != "token_embedding.weight":
            return mini["numbers"].seeded(seed, number, name, shape)
        # 49,408 rows, of which only those in use are drawn.
        out = torch.zeros(shape, dtype=torch.float64)
        for row in torch.cat(ids).unique().tolist():
            at = range(row * shape[1], (row + 1) * shape[1])
            out[row] = torch.tensor(mini["numbers"].seeded(seed, number, name, shape, at))
        return out.tolist()

    shapes_of_text = towers.text_shapes(base["arch"], text)
    tensors = mini["labels"].seeded(shapes_of_text, base["seed"], len(shapes), drawn)
    return mini["labels"].text_rows(
        ids, lambda each: towers.text_tower(each, base["arch"], text, tensors)
    )


@pytest.mark.parametrize("name", ["projector", "everything", "projector-resnet"])
def test_probes_of_a_vector_from_the_page_alone(mini, spec_folder, name):
    file = mini["reader"].read(spec_folder / "vectors" / "valid" / f"{name}.hello")
    for section in file["manifest"]["sections"]:
        if section["encoding"] == "zstd" and section["name"] in ("adapter", "head", "base"):
            raw = zstandard.decompress(file["sections"][section["name"]])
            parsed = mini["reader"].parse_tensors(raw, section["name"], file["manifest"])
            file["tensors"][section["name"]] = parsed
    base = file["manifest"]["base"]
    shapes = mini["towers"].image_shapes(base["arch"])
    if base["kind"] == "embedded":
        image = mini["labels"].stored(file["tensors"]["base"], shapes)
    else:
        image = mini["labels"].seeded(shapes, base["seed"], 0, mini["numbers"].seeded)
    text = rows_of_text(mini, file, shapes) if "text" in base else None
    logits = mini["labels"].values(file["tensors"]["probes"]["logits"], torch.float32)
    logits = logits.reshape(-1, file["manifest"]["classes"])
    pictures = probe_images(base["preprocess"]["size"], len(logits)).tolist()
    resize = partial(mini["numbers"].resized, flip=False)
    made, scale = mini["labels"].probe_logits(file, image, pictures, resize, mini["towers"], text)
    assert ((made - logits) / scale).abs().max() < 1e-4
    assert (logits - logits.mean(0)).abs().max() > 0 or len(logits) == 1


OPTIONS = {
    "plain": {},
    "quick": {"quick_gelu": True},
    "tanh": {"act_approximate": "tanh"},
    "scaled": {"ls_init_value": "0.1"},
    "bare": {"no_ln_pre": True, "norm_eps": "0.25", "mlp_ratio": "2.3"},
    "mean": {"pool_type": "avg", "head_width": 4, "patch_size": 3},
    "late": {"final_ln_after_pool": True, "pool_type": "avg"},
    "resnet": {"layers": [1, 2, 1, 2], "image_size": 64, "width": 2, "head_width": 16},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_image_towers_are_those_of_open_clip(mini, options):
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    vision = {"image_size": 8, "head_width": 8, "layers": 2, "patch_size": 4, "width": 16}
    vision |= {k: v for k, v in options.items() if k != "quick_gelu"}
    arch = {"embed_dim": 6, "quick_gelu": "quick_gelu" in options, "vision": vision}
    stated = {k: float(v) if k in ("mlp_ratio", "ls_init_value") else v for k, v in vision.items()}
    if "norm_eps" in stated:
        stated["norm_kwargs"] = {"eps": float(stated.pop("norm_eps"))}
    if "act_approximate" in stated:
        stated["act_kwargs"] = {"approximate": stated.pop("act_approximate")}
    tower = _build_vision_tower(6, CLIPVisionCfg(**stated), arch["quick_gelu"]).double().eval()
    generator = torch.Generator().manual_seed(1)
    state = {
        k: torch.rand(v.shape, generator=generator, dtype=torch.float64) * 2 - int(k[-3:] != "var")
        for k, v in tower.state_dict().items()
        if v.is_floating_point()
    }
    tower.load_state_dict(state, strict=False)
    if "ls_init_value" not in options:
        assert {k: tuple(v.shape) for k, v in state.items()} == mini["towers"].image_shapes(arch)
    size = vision["image_size"]
    pictures = torch.rand(2, 3, size, size, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        wanted = tower(pictures)
    torch.testing.assert_close(mini["towers"].image_tower(pictures, arch, state), wanted)


@pytest.mark.parametrize("is_quick", [False, True])
def test_the_text_tower_is_that_of_open_clip(mini, is_quick):
    from open_clip import CustomTextCLIP, tokenize

    text = TEXTS | {"layers": 2}
    vision = {"image_size": 8, "layers": 1, "width": 64, "patch_size": 4}
    tower = CustomTextCLIP(6, vision, text, quick_gelu=is_quick).text.double().eval()
    generator = torch.Generator().manual_seed(2)
    state = {
        k: torch.rand(v.shape, generator=generator, dtype=torch.float64) - 0.5
        for k, v in tower.state_dict().items()
    }
    tower.load_state_dict(state)
    arch = {"embed_dim": 6, "quick_gelu": is_quick}
    assert {k: tuple(v.shape) for k, v in state.items()} == mini["towers"].text_shapes(arch, text)
    ids = tokenize(["a fox", "one of many words that are too long for it"], 8)
    assert ids[1, -1] == 49407
    with torch.no_grad():
        wanted = tower(ids)
    torch.testing.assert_close(mini["towers"].text_tower(ids, arch, text, state), wanted)
