from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from hellofmt.errors import UserInputError
from hellofmt.projector import Labeler, Projector, load_base, seeded_base

VIEWS = [("vit", 16), ("resnet", 32)]


def float64_logits(projector, views):
    """The label function of the specification, written out once more, in float64."""
    import copy

    base = projector.base
    visual = copy.deepcopy(base.visual).double()
    with torch.no_grad():
        for delta in projector.deltas:
            p = visual.get_parameter(delta.param)
            p.add_(delta.scale * (delta.b.double() @ delta.a.double()).reshape(p.shape))
        x = views.double()
        mean, std = (
            torch.tensor([float(s) for s in values], dtype=torch.float64).view(3, 1, 1)
            for values in (base.spec.preprocess.mean, base.spec.preprocess.std)
        )
        f = visual((x - mean) / std)
        f = f / f.norm(dim=1, keepdim=True)
        head = projector.head
        w = head.weight.double()
        if head.delta is not None:
            w = w + head.delta.scale * (head.delta.b.double() @ head.delta.a.double())
        z = head.logit_scale.double().exp() * f @ w.T
        return z if head.bias is None else z + head.bias.double()


@pytest.mark.parametrize(("tower", "size"), VIEWS)
@pytest.mark.parametrize("targets", ["all", "paper"])
def test_fitting_and_serving_compute_the_label_function(
    tower, size, targets, request, classes, randomise
):
    if (tower, targets) == ("vit", "paper"):
        targets = "transformer"
    base = request.getfixturevalue(tower)
    options = {"targets": targets, "rank": 3, "head_rank": 2, "start": "stored"}
    projector = randomise(Projector.build(base, classes, temperature=3.0, seed=2, **options))
    views = torch.rand(5, 3, size, size, generator=torch.Generator().manual_seed(8))
    expected = float64_logits(projector, views)
    fitted = projector(views)
    labeler = projector.labeler()
    assert float((fitted.detach() - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    served = labeler.logits(views)
    assert float((served - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    for temperature in (None, 0.5):
        labels = labeler.labels(views, temperature)
        truth = torch.softmax(expected / (temperature or 3.0), dim=1)
        assert labels.dtype == torch.float32
        torch.testing.assert_close(labels.double(), truth, rtol=0, atol=1e-6)


def test_text_start_is_open_clip_s_zero_shot_classifier(text_vit, classes):
    """With no delta and no bias, the projector is CLIP: open_clip's own path, to 1e-5."""
    import open_clip
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    prompts = ("a photo of a {}.", "itap of the {}.", "a drawing of a {}.")
    vision = CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=4, image_size=16)
    text = CLIPTextCfg(context_length=16, vocab_size=49408, width=16, heads=2, layers=1)
    clip = CLIP(32, vision, text).eval()
    # Weights by open_clip's names, taken through the public parts of the base.
    clip.visual.load_state_dict(text_vit.visual.state_dict())
    tower = {k: v for k, v in _clip_of(text_vit).state_dict().items() if "visual" not in k}
    clip.load_state_dict(tower, strict=False)
    rows = open_clip.build_zero_shot_classifier(
        clip,
        open_clip.SimpleTokenizer(context_length=16),
        [line.names[0] for line in classes],
        [lambda name, p=p: p.replace("{}", name) for p in prompts],
    ).T
    np.testing.assert_allclose(
        text_vit.text_rows([line.names[0] for line in classes], prompts).numpy(),
        rows.numpy(),
        rtol=0,
        atol=1e-6,
    )
    projector = Projector.build(
        text_vit, classes, start="text", head_rank=2, rank=2, prompts=prompts, bias=False,
        temperature=1.0, seed=0,
    )  # fmt: skip
    views = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        features = clip.encode_image((views - mean) / std, normalize=True)
        expected = clip.logit_scale.exp() * features @ rows.T
        torch.testing.assert_close(projector(views), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(projector.labeler().logits(views), expected, rtol=0, atol=1e-5)
    # Not a constant: the rows really differ.
    assert float(expected.std(dim=1).min()) > 1e-3


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_directory_is_zero_shot_before_it_is_fitted(
    quick_gelu, tmp_path, classes, write_projector
):
    """Saved, loaded by open_clip and by us: its classifier and our stored projector, to 1e-5."""
    import json

    import open_clip
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    torch.manual_seed(5)
    config = {
        "embed_dim": 32,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 4},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 64,
            "heads": 2,
            "layers": 2,
        },
    }
    entrance = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": entrance})
    )
    save_file(CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")

    source = f"local-dir:{folder}"
    model = open_clip.create_model(source).eval()
    prompts = ("a photo of a {}.", "a drawing of the {}.")
    rows = open_clip.build_zero_shot_classifier(
        model, open_clip.get_tokenizer(source), [line.names[0] for line in classes], prompts
    )
    views = torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    x = (views - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(
        3, 1, 1
    )
    with torch.no_grad():
        expected = model.logit_scale.exp() * model.encode_image(x, normalize=True) @ rows
    projector = Projector.build(
        load_base(source), classes, targets="transformer", rank=2, head_rank=2, start="text",
        prompts=prompts, temperature=1.0, seed=0,
    )  # fmt: skip
    torch.testing.assert_close(projector(views).detach(), expected, rtol=0, atol=1e-5)
    write_projector(tmp_path / "p.hello", projector, classes, "int8")
    served = Labeler.from_file(tmp_path / "p.hello", source).logits(views)
    torch.testing.assert_close(served, expected, rtol=0, atol=1e-5)
    assert float(expected.std(dim=1).min()) > 1e-3


def _clip_of(base):
    """The open_clip model behind a base's text function."""
    (model,) = (
        cell.cell_contents
        for cell in base.texts.__closure__
        if isinstance(cell.cell_contents, torch.nn.Module)
    )
    return model


def test_only_factors_and_head_are_trained(trained, views):
    base_before = {n: t.clone() for n, t in trained.base.visual.state_dict().items()}
    optimiser = torch.optim.AdamW(trained.trained_parameters(), lr=1e-2)
    target = torch.eye(4)[torch.arange(6) % 4]
    losses = []
    for _ in range(12):
        loss = functional.cross_entropy(trained(views), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, tensor in trained.base.visual.state_dict().items():
        assert torch.equal(tensor, base_before[name]), name
    for name, parameter in trained.named_parameters():
        is_base = name.startswith("encoder.")
        assert parameter.requires_grad is not is_base
        assert (parameter.grad is None) is is_base
        if not is_base:
            assert parameter.grad.abs().max() > 0, name
    trained_names = sum(1 for p in trained.parameters() if p.requires_grad)
    # 10 deltas of two factors, the stored head, its bias and its scale.
    assert trained_names == 2 * 10 + 3


def test_gradient_of_a_factor_is_the_slope(trained, views):
    weights = torch.linspace(-1, 1, 4)

    def value():
        return (trained(views) @ weights).sum()

    delta = next(d for d in trained.deltas if d.param.endswith("1.attn.in_proj_weight"))
    value().backward()
    with torch.no_grad():
        step = 2e-3
        index = (int(delta.b.grad.abs().max(dim=1).values.argmax()),)
        index = (index[0], int(delta.b.grad[index[0]].abs().argmax()))
        delta.b[index] += step
        above = float(value())
        delta.b[index] -= 2 * step
        below = float(value())
    assert float(delta.b.grad[index]) == pytest.approx((above - below) / (2 * step), rel=2e-2)


def test_batch_norm_stays_in_eval_mode(resnet, classes):
    projector = Projector.build(resnet, classes, start="stored", temperature=1.0, seed=0).train()
    before = {n: b.clone() for n, b in resnet.visual.named_buffers()}
    views = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first = projector(views)
    # Alone or in a batch: batch statistics would make a difference.
    torch.testing.assert_close(projector(views[:1]), first[:1], rtol=1e-4, atol=1e-4)
    for name, buffer in resnet.visual.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_batch_norm_statistics_do_not_move_in_a_fit(resnet, classes):
    """53,248 running statistics of an RN50 would silently join its payload."""
    projector = Projector.build(
        resnet, classes, targets="paper", rank=2, start="stored", temperature=1.0, seed=0
    ).train()
    before = {n: b.clone() for n, b in resnet.visual.named_buffers()}
    factors = [p.detach().clone() for p in projector.deltas.parameters()]
    optimiser = torch.optim.AdamW(projector.trained_parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        views = torch.rand(4, 3, 32, 32, generator=generator)
        loss = functional.cross_entropy(projector.train()(views), torch.arange(4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert any("running_mean" in name for name in before)
    for name, buffer in resnet.visual.named_buffers():
        assert torch.equal(buffer, before[name]), name
    moved = [
        not torch.equal(a, b) for a, b in zip(projector.deltas.parameters(), factors, strict=True)
    ]
    assert all(moved)


def test_two_projectors_share_one_base(vit, classes, randomise, views):
    one, two = (
        randomise(Projector.build(vit, classes, start="stored", temperature=1.0, seed=s), seed=s)
        for s in (1, 2)
    )
    alone = one(views).detach()
    two(views)
    assert torch.equal(one(views).detach(), alone)
    assert float((two(views).detach() - alone).abs().max()) > 1e-2


def test_a_stored_head_of_a_rank_is_the_product_of_two_factors(text_vit, classes, randomise, views):
    # The rows of a text tower would be stored whole beside them.
    projector = randomise(
        Projector.build(text_vit, classes, start="stored", head_rank=2, temperature=4.0, seed=1)
    )
    a, b = projector.head.delta.a.detach().double(), projector.head.delta.b.detach().double()
    x = projector.labeler().embeddings(views).double()
    scale = projector.head.logit_scale.detach().double().exp()
    expected = scale * x @ (b @ a).T + projector.head.bias.detach().double()
    torch.testing.assert_close(projector(views).double(), expected, rtol=0, atol=1e-4)
    assert not projector.head.weight.requires_grad
    # Both factors move from the first step.
    fresh = Projector.build(
        text_vit, classes, targets=[], start="stored", head_rank=2, temperature=4.0, seed=1
    )
    torch.nn.functional.cross_entropy(fresh(views), torch.arange(6) % 4).backward()
    assert bool(fresh.head.delta.b.grad.any())
    assert bool(fresh.head.delta.a.grad.any())


def test_the_same_seed_starts_the_same(vit, classes):
    one, two, other = (
        Projector.build(vit, classes, start="stored", head_rank=2, temperature=1.0, seed=s)
        for s in (5, 5, 6)
    )
    for (name, a), b, c in zip(
        one.named_parameters(), two.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        if name.endswith(".a"):
            assert not torch.equal(a, c), name
    starts = [d.a.flatten()[:4] for d in [*one.deltas, one.head.delta]]
    assert len({tuple(s.tolist()) for s in starts}) == len(starts)


def test_stored_start_takes_the_text_rows_where_there_are_any(text_vit, classes):
    projector = Projector.build(text_vit, classes, start="stored", temperature=1.0, seed=0)
    rows = text_vit.text_rows([line.names[0] for line in classes], ["a photo of a {}."])
    assert torch.equal(projector.head.weight, rows)
    assert projector.head.weight.requires_grad
    part = projector.part()
    # The text tower is not needed to read it, so the archive does not describe one.
    assert part.head.start == "stored"
    assert not hasattr(part.base.text, "width")


def test_a_labeler_does_not_follow_later_training(trained, views):
    labeler = trained.labeler()
    before = labeler.logits(views)
    with torch.no_grad():
        for parameter in trained.trained_parameters():
            parameter.add_(0.1)
    assert torch.equal(labeler.logits(views), before)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"temperature": 0.0}, "temperature: expected from 0.001 to 100000, got 0.0"),
        ({"start": "zeros"}, "head start: expected `text` or `stored`, got `zeros`"),
        ({"start": "text"}, "base `seeded` has no text tower"),
        ({"head_rank": 0}, "head rank: expected from 1 to 256, got 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(vit, classes, arguments, text):
    with pytest.raises(UserInputError, match=text) as info:
        Projector.build(
            vit, classes, **{"start": "stored", "temperature": 1.0, "seed": 0} | arguments
        )
    assert info.value.code == "E_OPTION"


def test_no_classes_and_no_probes_are_refused(vit, trained):
    with pytest.raises(UserInputError, match="classes: expected at least one"):
        Projector.build(vit, [], start="stored", temperature=1.0, seed=0)
    with pytest.raises(UserInputError, match="probes: expected at least 1, got 0"):
        trained.part(probes=0)


@pytest.mark.parametrize(
    ("views", "text"),
    [
        (torch.zeros(3, 16, 16), r"got \(3, 16, 16\) float32"),
        (torch.zeros(0, 3, 16, 16), r"N >= 1, got \(0, 3, 16, 16\) float32"),
        (torch.zeros(1, 1, 16, 16), r"got \(1, 1, 16, 16\) float32"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "got .* uint8"),
        (torch.full((1, 3, 16, 16), -2.1), "expected the view before normalisation, got values"),
        (torch.full((1, 3, 16, 16), float("nan")), "values outside"),
    ],
)
def test_batches_that_are_no_views_are_refused(trained, views, text):
    for call in (trained, trained.labeler().labels, trained.base.encode):
        with pytest.raises(UserInputError, match=text) as info:
            call(views)
        assert info.value.code == "E_DATA"


def test_views_of_another_size_are_resized_with_antialias(trained):
    """Against Pillow-like resampling in float64: torchvision on the full-precision picture."""
    from torchvision.transforms.v2 import functional as transforms

    big = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    small = transforms.resize(
        big.double(), [16, 16], interpolation=transforms.InterpolationMode.BICUBIC, antialias=True
    ).float()
    labeler = trained.labeler()
    torch.testing.assert_close(labeler.logits(big), labeler.logits(small), rtol=0, atol=1e-4)
    assert float((labeler.logits(big) - labeler.logits(big[..., ::3, ::3])).abs().max()) > 1e-2


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("head_rank", [None, 2])
def test_a_part_is_read_back_as_what_its_probes_say(
    trained, vit, classes, randomise, storage, head_rank, views
):
    projector = randomise(
        Projector.build(
            vit, classes, start="stored", rank=4, head_rank=head_rank, temperature=4.0, seed=1
        )
    )
    part = projector.part(storage, probes=2)
    assert part.probe_logits.shape == (2, 4)
    reader = Projector.assembled(
        vit,
        part.adapter,
        {n: t.numpy() for n, t in part.adapter_tensors.items()},
        part.head,
        {n: t.numpy() for n, t in part.head_tensors.items()},
        [line.names[0] for line in classes],
    ).labeler()
    reader.check_probes(part.probe_logits)
    # How far labels move with the storage; float32 not at all.
    allowed = {"float32": 0, "float16": 2e-3, "bfloat16": 1e-2, "int8": 1e-2, "int4": 0.25}[storage]
    moved = float((reader.labels(views) - projector.labeler().labels(views)).abs().max())
    assert moved <= allowed
    assert (moved > 0) is (storage != "float32")


def test_an_untrained_part_stays_trainable(vit, classes):
    projector = Projector.build(vit, classes, start="stored", rank=2, temperature=1.0, seed=0)
    part = projector.part("int8")
    name = part.adapter.targets[0].param
    assert part.adapter_tensors[f"{name}::A"].numpy().any()
    assert not part.adapter_tensors[f"{name}::B"].numpy().any()


def test_a_linear_probe_has_no_targets(vit, classes, views):
    projector = Projector.build(vit, classes, targets=[], start="stored", temperature=1.0, seed=0)
    assert projector.part().adapter.targets == []
    assert projector.trained_count() == 4 * 32 + 4 + 1
    expected = projector.head(vit.encode(views))
    torch.testing.assert_close(projector(views), expected, rtol=0, atol=1e-5)


def test_an_embedded_base_carries_its_tensors(vit, classes):
    part = Projector.build(vit.embedded(), classes, start="stored", temperature=1.0, seed=0).part()
    assert part.base.kind == "embedded"
    state = {n: t for n, t in vit.visual.state_dict().items() if t.is_floating_point()}
    assert part.base_tensors.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(
            part.base_tensors[name].numpy().astype(np.float32), tensor.numpy()
        )
    # Ones and zeros are exact in float16, so they are stored so; random weights are not.
    assert part.base_tensors["ln_post.weight"].dtype == "F16"
    assert part.base_tensors["proj"].dtype == "F32"


def test_building_does_not_move_the_caller_s_random_state(classes, vit):
    torch.manual_seed(0)
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    base = seeded_base(vit.spec.arch, vit.spec.preprocess, seed=8)
    Projector.build(base, classes, start="stored", temperature=1.0, seed=0).part()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
