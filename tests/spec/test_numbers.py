"""Words, probes, seeded weights and views as the specification's text alone gives them."""

import json
from pathlib import Path

import numpy as np
import pytest

from hellofmt import rng
from hellofmt.archive.format.manifest import UNSET, Arch, Preprocess, VisionArch
from hellofmt.archive.format.probes import probe_images
from hellofmt.archive.format.views import Views

VIEWS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "views"
SIZES = [(40, 40), (64, 48), (7, 31), (1, 1), (300, 20), (33, 35), (128, 96)]


def views(**changes):
    return {
        "antialias": True,
        "crop_ratio": ["0.75", "1.3333333333333333"],
        "crop_scale": ["0.08", "1.0"],
        "flip": "0.5",
        "interpolation": "bilinear",
        "mean": ["0.5"] * 3,
        "mix": "cutmix",
        "mix_alpha": "1.0",
        "mix_probability": "0.75",
        "shuffle": 2,
        "size": 32,
        "std": ["0.5"] * 3,
    } | changes


@pytest.fixture(scope="module")
def mini(load_beside):
    return load_beside("mini_numbers")


def test_words_and_their_known_answers(mini):
    assert [mini.word(0, 0, 0, 0, j) for j in range(4)] == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    ]  # fmt: skip
    assert [mini.word(1, 2, 3, 4, j) for j in range(20, 24)] == [
        0x6A2477450FC371DA, 0xF5D1DAB0D6BCBCA8, 0x8D37DE6B3B8E8FD7, 0x2C3319E4AD372F52,
    ]  # fmt: skip
    coordinates = (2**64 - 1, 2**32 - 1, 9, 10**12)
    words = rng.words(*coordinates, 9, start=3)
    assert words.tolist() == [mini.word(*coordinates, j) for j in range(3, 12)]
    assert rng.uniform(words).tolist() == [mini.uniform(w) for w in words.tolist()]
    assert rng.below(words, 1000).tolist() == [mini.below(w, 1000) for w in words.tolist()]


@pytest.mark.parametrize("size", [1, 8, 9])
def test_probe_pictures(mini, size):
    assert probe_images(size, 2).tolist() == [mini.probe(p, size) for p in range(2)]


def test_seeded_weights(mini):
    from hellofmt.projector import seeded_base

    vision = VisionArch(image_size=8, head_width=8, layers=1, patch_size=4, width=16)
    preprocess = Preprocess(
        antialias=True, interpolation="bicubic", mean=["0.5"] * 3, size=8,
        std=["0.5"] * 3,
    )  # fmt: skip
    base = seeded_base(Arch(embed_dim=16, quick_gelu=False, vision=vision), preprocess, seed=11)
    state = {k: v for k, v in base.visual.state_dict().items() if v.is_floating_point()}
    for number, name in enumerate(sorted(state)):
        wanted = np.array(mini.seeded(11, number, name, tuple(state[name].shape)), np.float32)
        np.testing.assert_array_equal(state[name].numpy().ravel(), wanted, err_msg=name)


@pytest.mark.parametrize(
    "rules",
    [
        views(),
        views(mix="none", mix_alpha=UNSET, mix_probability=UNSET, shuffle=1),
        views(mix="mixup", mix_alpha="0.2", mix_probability="1.0"),
        views(mix_alpha="3.5", shuffle=8, size=9),
        views(crop_ratio=["0.01", "0.02"], crop_scale=["0.9", "1.0"]),
        views(crop_ratio=["50.0", "9000.5"], crop_scale=["0.5", "0.5"]),
    ],
    ids=["cutmix", "plain", "mixup", "beta", "tall", "wide"],
)
def test_rows_of_the_view_table(mini, rules):
    from hellofmt.loading import view_table

    seed = 2**63 + 17
    heights, widths = np.array(SIZES).T
    made = mini.Views(rules, seed, SIZES)
    for epoch in range(6):
        table = view_table(
            Views(**rules), seed=seed, epochs=epoch, indices=np.arange(len(SIZES)),
            heights=heights, widths=widths, count=len(SIZES),
        )  # fmt: skip
        assert table.tolist() == [made.row(epoch, row) for row in range(len(SIZES))]


@pytest.mark.parametrize("name", sorted(p.stem for p in VIEWS.glob("*.json") if "qu" not in p.stem))
def test_views_orders_and_hard_labels(mini, load_beside, name):
    """The stored ones, those of the second reader and those of the product are the same."""
    stored = json.loads((VIEWS / f"{name}.json").read_text())
    rules, sides, epoch = stored["rules"], stored["sides"], stored["epoch"]
    made = mini.Views(rules, int(stored["seed"]), sides)
    pictures = [mini.picture(row, *side) for row, side in enumerate(sides)]
    made_views = load_beside("make_views")
    again = made_views.vector(*made_views.SETTINGS[name])
    assert made.order(epoch) == stored["order"]
    for row, (view, product) in enumerate(zip(stored["views"], again["views"], strict=True)):
        numbers = [*view["own"], *view["partner"], *view["box"], view["weight"]]
        assert made.row(epoch, row) == [*numbers, rules["shuffle"], view["permutation"], 0]
        label = made.hard_label(epoch, row, range(len(sides)), len(sides))
        assert view["label"] == pytest.approx(label, abs=1e-6)
        pixels = np.array(made.view(epoch, row, pictures)).ravel() * 100_000
        for given in (view, product):
            np.testing.assert_allclose(given["view"], pixels, atol=1, rtol=0)


def test_a_mixed_bicubic_view_is_clamped_last(mini):
    """Clamped before the mixing, the views of this vector would be others."""
    stored = json.loads((VIEWS / "mixup-bicubic.json").read_text())
    worst = 0.0
    for view in stored["views"]:
        parts = []
        for row, top, left, height, width, flip in (view["own"], view["partner"]):
            lines = mini.picture(row, *stored["sides"][row])[top : top + height]
            lines = [line[left : left + width] for line in lines]
            parts.append(np.clip(mini.resized(lines, stored["rules"], flip), 0, 1))
        own, other = parts
        early = other + view["weight"] / 65536 * (own - other)
        worst = max(worst, np.abs(early.ravel() - np.array(view["view"]) / 100_000).max())
    assert worst > 0.05


def test_quantiles_of_the_vectors(mini):
    for alpha, u, quantile in json.loads((VIEWS / "quantiles.json").read_text()):
        assert mini.beta_quantile(u, alpha) == quantile


def test_the_beta_quantile_is_one(mini):
    from scipy import special  # a test oracle, there through scikit-learn

    for a in (0.2, 0.7, 3.5, 40.0):
        for u in (0.001, 0.2, 0.5, 0.77, 0.999):
            assert mini.beta_quantile(u, a) == pytest.approx(special.betaincinv(a, a, u), abs=1e-11)


def test_the_patch_shuffle_of_a_rendered_view(mini):
    from hellofmt.loading import render

    image = np.arange(9 * 7 * 3, dtype=np.uint8).reshape(9, 7, 3)
    rules = Views(**views(size=7, antialias=UNSET, interpolation="nearest"))
    table = np.array([[0, 0, 0, 7, 7, 0] * 2 + [0, 0, 0, 0, 65536, 3, 31, 0]], np.int32)
    view = (render([image], table, rules)[0] * 255).round().numpy().transpose(1, 2, 0)
    wanted = np.array(mini.shuffled(image.tolist(), 3, 31))[:7, :7]
    np.testing.assert_array_equal(view, wanted)


def test_the_shuffled_order(mini):
    wanted = sorted(range(50), key=lambda row: (mini.word(5, 3, 1, 0, row), row))
    assert rng.order(5, 3, 50).tolist() == wanted
