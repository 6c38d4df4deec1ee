"""A distillation within a budget: what it writes, and how that was chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hellofmt.archive import decode_image, encode_image, open_archive
from hellofmt.archive.format.limits import DEFAULT_LIMITS
from hellofmt.distillation import (
    DistillSettings,
    Selection,
    SelectSettings,
    StoredImages,
    budget,
    planned,
    write_distilled,
)
from hellofmt.distillation.budget import affordable, filled
from hellofmt.errors import UserInputError

SIDE = 48


@pytest.fixture
def scene(stripes, views, make_projector, monkeypatch):
    """Images that a codec has something to do with, their views, and a label function."""
    monkeypatch.setattr(budget, "_SAMPLE", 24)
    source = stripes(per_class=40, size=SIDE)
    x = np.linspace(0, 1, SIDE)
    for number, image in enumerate(source.pixels):
        wave = np.sin(9 * x[:, None] + number) * np.cos(7 * x + number / 3)
        image[...] = np.clip(image * 0.5 + 60 + 60 * wave[..., None], 0, 255)
    return source, views(SIDE), make_projector()


def spending(budget, **changes):
    return DistillSettings(SelectSettings(0, **changes), storage="int8", budget=budget)


def selection_of(ipc, source):
    rows = np.concatenate([np.flatnonzero(source.labels == c)[:ipc] for c in range(3)])
    crops = np.tile(np.array([0, 0, SIDE, SIDE], np.int32), (len(rows), 1, 1))
    return Selection(source.labels[rows], rows[:, None], crops)


@pytest.mark.parametrize("size", [35_000, 110_000])
def test_the_file_is_as_large_as_its_budget(scene, tmp_path, size):
    source, views, projector = scene
    settings = affordable(source, views, spending(size), projector)
    selection = selection_of(settings.select.ipc, source)
    full = filled(selection, source, views, settings, projector)
    write_distilled(tmp_path / "x.hello", selection, projector, source, views, full)
    written = (tmp_path / "x.hello").stat().st_size
    assert 0.95 * size < written <= size
    with open_archive(tmp_path / "x.hello") as file:
        assert file.manifest.dataset.ipc == settings.select.ipc > 1
        assert file.manifest.images.codec == full.codec
        assert {*file.index.height} == {SIDE}
    # A larger one is not written.
    with pytest.raises(UserInputError, match=r"E_OPTION: the archive would take .* its budget is"):
        write_distilled(
            *(tmp_path / "y.hello", selection, projector, source, views),
            DistillSettings(None, codec=full.codec, quality=100, storage="int8", budget=size),
        )
    assert not (tmp_path / "y.hello").exists()


def test_drifts_are_shares_of_what_labels_tell(scene, monkeypatch):
    source, views, projector = scene
    seen, drifts = {}, {}

    def spend(room, classes, most, ways):
        seen.update(classes=classes, most=most)
        drifts.update({(way.codec, way.quality): way.drift for way in ways})
        return budget.Spending(1, ways[0])

    monkeypatch.setattr(budget, "spend", spend)
    affordable(source, views, spending(10**6), projector)
    assert (seen["classes"], seen["most"]) == (3, 40)
    assert drifts["png", None] == drifts["webp", 100] == 0
    assert 0 < drifts["jpeg", 95] < drifts["jpeg", 20]
    # In float64 and by hand: every image is seen once, in one batch.
    rows = np.arange(24) * len(source) // 24
    before = source.pixels[rows]
    files = [encode_image(image, "webp", quality=10) for image in before]
    after = np.stack([decode_image(data, "webp", DEFAULT_LIMITS) for data in files])
    logits = projector.labeler().logits

    def labels(pixels):
        batch = budget.ViewBatches(budget.unlabelled(pixels, source), views, 24, 1).batch(0).views
        return torch.softmax(logits(batch).double(), 1).numpy()

    p, q = labels(before), labels(after)
    told = (p * np.log(p / p.mean(0))).sum(1).mean()
    lost = (p * np.log(p / q)).sum(1).mean()
    assert drifts["webp", 10] == pytest.approx(lost / told, rel=1e-6)


def test_the_least_budget_is_enough(scene):
    source, views, projector = scene
    with pytest.raises(UserInputError) as refused:
        affordable(source, views, spending(9_000), projector)
    words = str(refused.value)
    assert "E_OPTION: budget of 9,000 bytes; expected at least " in words
    least = int(words.partition("at least ")[2].partition(":")[0].replace(",", ""))
    settings = affordable(source, views, spending(least), projector)
    assert settings.select.ipc == 1
    with pytest.raises(UserInputError, match="E_OPTION: budget"):
        planned(source, views, spending(least + budget._TEXTS - 1), projector)
    assert planned(source, views, spending(least + budget._TEXTS), projector).ipc == 1


def test_more_candidates_than_asked_for_are_looked_at_if_it_takes_them(scene):
    source, views, projector = scene
    settings = affordable(source, views, spending(10**6, candidates=5), projector)
    assert (settings.select.ipc, settings.select.candidates) == (40, 40)
    assert (settings.codec, settings.quality) == ("webp", 100)


def test_quality_is_the_highest_that_fits(scene, monkeypatch):
    source, views, projector = scene
    selection = selection_of(12, source)
    settings = DistillSettings(
        SelectSettings(12), storage="int8", codec="jpeg", quality=5, budget=70_000
    )
    # Found on few, corrected on all.
    monkeypatch.setattr(budget, "_SAMPLE", 3)
    found = filled(selection, source, views, settings, projector).quality
    room = 70_000 - budget.front_bytes(36, source, views, settings, projector)

    def size(quality):
        files = StoredImages(selection, source, views, "jpeg", quality).files()
        return sum(512 + -(-len(data) // 512) * 512 for data in files)

    assert size(found) <= room < size(found + 1)
    poor = DistillSettings(SelectSettings(12), storage="int8", codec="jpeg", budget=40_000)
    with pytest.raises(UserInputError, match="36 images do not fit at the lowest quality of jpeg"):
        filled(selection, source, views, poor, projector)


@pytest.mark.parametrize(
    "changes",
    [
        {"select": SelectSettings(2)},
        {"select": None},
        {"codec": "webp"},
        {"codec": "jpeg", "quality": 50},
    ],
)
def test_a_budget_comes_with_nothing_that_it_chooses(make, changes):
    choice = {"select": SelectSettings(0), "budget": 10**6, **changes}
    with pytest.raises(
        UserInputError, match="E_OPTION: a budget chooses number, codec and quality"
    ):
        make(**choice)


def test_the_same_budget_is_the_same_archive(make, tmp_path):
    choice = {"select": SelectSettings(0, 2), "storage": "int8", "budget": 45_000}
    report = make(work=tmp_path / "work", **choice)
    assert report.settings.select.ipc == 5
    assert [cost.stage for cost in report.costs if cost.stage == "budget"]
    assert (tmp_path / "x.hello").stat().st_size <= 45_000
    again = make("y.hello", work=tmp_path / "work", **choice)
    assert again.id == report.id
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "work").iterdir()) == [
        *("budget", "fit", "select")
    ]
    with pytest.raises(UserInputError, match=r"E_OPTION: budget of 9,999 bytes; expected at least"):
        make("z.hello", **{**choice, "budget": 9_999})
