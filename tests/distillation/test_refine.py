from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from hellofmt.distillation.refine import RefineSettings, refine_gflop, refine_images
from hellofmt.distillation.select import select_images
from hellofmt.distillation.selection import SelectSettings
from hellofmt.distillation.stored_images import StoredImages
from hellofmt.errors import UserInputError


def constant(view):
    return torch.zeros(len(view), 3)


@pytest.fixture
def chosen(stripes, views):
    source = stripes(per_class=8, size=16)
    settings = SelectSettings(2, 2, "random")
    return source, select_images(source, constant, views(), settings)


def cut(chosen, views):
    """Pixels as they are stored without refining."""
    source, selection = chosen
    stored = StoredImages(selection, source, views())
    return np.stack([stored.pixels(number) for number in range(len(stored))])


def shrunk(images):
    """Whole images at the size of a view, as Pillow shrinks them."""
    small = [
        np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR))
        for image in images
    ]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def fitted(make_projector):
    projector = make_projector()
    with torch.no_grad():
        for delta in projector.deltas:
            delta.b.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return projector


def test_stored_pixels_move_towards_the_features_of_their_crops(chosen, fitted, views):
    source, selection = chosen
    steps = []
    done = refine_images(
        selection,
        source,
        fitted,
        views(),
        RefineSettings(steps=30, batch_size=16),
        on_step=lambda k, n: steps.append((k, n)),
    )
    assert steps == [(k + 1, 60) for k in range(60)]
    assert done.after < 0.7 * done.before
    # Measured again from the outside: features of whole images and of enlarged cells.
    large = shrunk(source.pixels[selection.rows.ravel()])

    def distance(pixels):
        cells = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        parts = [cells[:, :, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4)]
        small = functional.interpolate(
            torch.stack(parts, 1).flatten(0, 1), size=8, mode="bilinear", antialias=True
        )
        with torch.no_grad():
            wanted, got = (
                functional.normalize(
                    torch.func.functional_call(
                        fitted.encoder,
                        {
                            f"visual.{d.param}": d(fitted.encoder.visual.get_parameter(d.param))
                            for d in fitted.deltas
                        },
                        (x,),
                    ),
                    dim=1,
                )
                for x in (large, small)
            )
        return float((wanted - got).square().mean())

    assert distance(cut(chosen, views)) == pytest.approx(done.before, rel=0.02)
    assert distance(done.selection.pixels) == pytest.approx(done.after, rel=0.02)
    assert np.array_equal(done.selection.rows, selection.rows)
    assert done.selection.pixels.dtype == np.uint8


def test_stored_pixels_move_towards_the_labels_of_their_crops(chosen, fitted, views):
    source, selection = chosen
    settings = RefineSettings(steps=30, objective="labels")
    done = refine_images(selection, source, fitted, views(), settings)
    assert done.after < 0.5 * done.before
    assert not np.array_equal(done.selection.pixels, cut(chosen, views))
    # Measured again by a labeler, which merges by itself.
    large = shrunk(source.pixels[selection.rows.ravel()])
    labeler = fitted.labeler()

    def divergence(pixels):
        cells = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        parts = [cells[:, :, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4)]
        small = functional.interpolate(
            torch.stack(parts, 1).flatten(0, 1), size=8, mode="bilinear", antialias=True
        )
        wanted, got = (
            (labeler.logits(x).double() / fitted.temperature).softmax(1) for x in (large, small)
        )
        return float((wanted * (wanted / got).log()).sum(1).mean())

    assert divergence(cut(chosen, views)) == pytest.approx(done.before, rel=0.02)
    assert divergence(done.selection.pixels) == pytest.approx(done.after, rel=0.05, abs=1e-6)


def test_cells_do_not_feel_each_other(chosen, fitted, views):
    source, selection = chosen
    one = refine_images(selection, source, fitted, views(), RefineSettings(steps=3, batch_size=64))
    two = refine_images(selection, source, fitted, views(), RefineSettings(steps=3, batch_size=5))
    different = np.abs(one.selection.pixels.astype(int) - two.selection.pixels)
    assert different.max() <= 1
    assert one.after == pytest.approx(two.after, rel=1e-2)


def test_impossible_refinements(chosen, stripes, fitted, views):
    source, selection = chosen
    whole = select_images(stripes(), constant, views(), SelectSettings(1, method="random"))
    with pytest.raises(UserInputError, match=r"E_OPTION: .* expected factor 2 or more, got 1"):
        refine_images(whole, stripes(), fitted, views())
    with pytest.raises(UserInputError, match="E_OPTION: refining steps: expected at least 1, got"):
        refine_images(selection, source, fitted, views(), RefineSettings(steps=0))
    with pytest.raises(UserInputError, match="E_OPTION: refining objective: expected `features` o"):
        refine_images(selection, source, fitted, views(), RefineSettings(objective="pixels"))


def test_work_is_proportional_to_cells_and_grows_with_steps(make_projector):
    projector = make_projector()
    one, ten = (refine_gflop(projector, cells, 8, RefineSettings(steps=2)) for cells in (1, 10))
    assert ten == pytest.approx(10 * one)
    assert one < refine_gflop(projector, 1, 8, RefineSettings(steps=4)) < 2 * one
    assert all(p.grad is None for p in projector.parameters())
