from __future__ import annotations

import numpy as np
import pytest
import torch

from hellofmt import rng
from hellofmt.distillation.select import (
    SelectSettings,
    crop_boxes,
    mosaics,
    scored_crops,
    select_images,
)
from hellofmt.distillation.stored_images import StoredImages
from hellofmt.errors import UserInputError

WHOLE = (1.0, 1.0)


class Brightness:
    """Logit 0 is the mean of the view: class 0 likes bright crops, the others dark ones."""

    def __init__(self):
        self.seen = []

    def __call__(self, views):
        self.seen.append(views)
        mean = views.mean((1, 2, 3))
        return torch.stack([8 * mean, 8 * (1 - mean), torch.zeros_like(mean)], dim=1)


def settings(**changes):
    return SelectSettings(**{"ipc": 2, "crops": 1, "crop_scale": WHOLE, **changes})


def test_whole_images_of_lowest_loss_are_chosen_exactly(stripes, views):
    source = stripes(per_class=6)
    teacher = Brightness()
    chosen = select_images(source, teacher, views(), settings())
    assert chosen.labels.tolist() == [0, 0, 1, 1, 2, 2]
    logits = Brightness()(torch.from_numpy(source.pixels).permute(0, 3, 1, 2).double() / 255)
    loss = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(source.labels), reduction="none"
    ).numpy()
    for label in range(3):
        members = np.flatnonzero(source.labels == label)
        best = members[np.argsort(loss[members])][:2]
        mine = chosen.labels == label
        assert chosen.rows[mine, 0].tolist() == best.tolist()
        np.testing.assert_allclose(chosen.losses[mine, 0], loss[best], rtol=1e-5)
    stored = StoredImages(chosen, source, views())
    for number, row in enumerate(chosen.rows[:, 0]):
        assert np.array_equal(stored.pixels(number), source.pixels[row])


def test_each_image_gives_its_best_crop(stripes, views):
    source = stripes(per_class=4)
    plan = settings(ipc=4, crops=5, crop_scale=(0.2, 0.6))
    chosen = select_images(source, Brightness(), views(), plan)
    assert all(len(set(chosen.rows[chosen.labels == c, 0])) == 4 for c in range(3))
    one = select_images(source, Brightness(), views(), settings(ipc=4, crop_scale=(0.2, 0.6)))
    assert chosen.losses.sum() < one.losses.sum()
    again = select_images(source, Brightness(), views(), plan)
    assert np.array_equal(chosen.crops, again.crops)
    other = select_images(
        source, Brightness(), views(), settings(ipc=4, crops=5, crop_scale=(0.2, 0.6), seed=1)
    )
    assert not np.array_equal(chosen.crops, other.crops)


def test_crops_are_square_inside_and_spread():
    plan = SelectSettings(ipc=1, crop_scale=(0.25, 1.0), seed=3)
    words = rng.words(3, 1, rng.Stream.SELECTION, np.arange(400), 15)
    table = np.array([crop_boxes(word, 12, 20, plan) for word in words]).reshape(-1, 4)
    assert len(table) == 2000
    top, left, height, width = table.T
    assert np.array_equal(height, width)
    # sqrt(0.25 * 240) = 7.7, and no more than the shorter side.
    assert (height.min(), height.max()) == (8, 12)
    assert top.min() == left.min() == 0
    assert (top + height).max() == 12
    assert (left + width).max() == 20
    # By the formulas, in NumPy's arithmetic.
    area = (0.25 + 0.75 * rng.uniform(words[:, 0::3])) * 240
    assert np.array_equal(height, np.clip(np.rint(np.sqrt(area)), 1, 12).ravel())
    assert np.array_equal(left, rng.below(words[:, 2::3].ravel(), 20 - width + 1))


def test_the_first_images_of_each_class_are_the_choice_for_fewer(stripes, views):
    source = stripes(per_class=9)
    chosen = select_images(source, Brightness(), views(), settings(factor=2))
    ranked = select_images(source, Brightness(), views(), settings(ipc=8))
    for label in range(3):
        rows = ranked.rows[ranked.labels == label, 0]
        mine = chosen.rows[chosen.labels == label]
        assert mine.shape == (2, 4)
        # Cell k of image i is crop 4 i + k; losses at 4 px rank like those at 8 px here.
        assert sorted(mine.ravel().tolist()) == sorted(rows.tolist())
        losses = chosen.losses[chosen.labels == label]
        assert (np.diff(losses.ravel()) >= 0).all()
    few = select_images(source, Brightness(), views(), settings(factor=2, ipc=1))
    for name in ("labels", "rows", "losses", "crops"):
        assert np.array_equal(getattr(few, name), getattr(chosen, name)[::2]), name


def test_a_mosaic_has_each_crop_in_its_cell():
    # A cell shows its number; channel 2 is the row, so that a transpose shows.
    cells = np.zeros((3, 4, 2, 2, 3), np.uint8)
    cells[..., 0] = np.arange(12).reshape(3, 4, 1, 1)
    cells[:, :, 1, :, 2] = 255
    images = mosaics(cells)
    assert images.shape == (3, 4, 4, 3)
    for i, image in enumerate(images):
        shown = [image[y : y + 2, x : x + 2] for y in (0, 2) for x in (0, 2)]
        assert [int(cell[0, 0, 0]) for cell in shown] == [4 * i + k for k in range(4)]
        assert all(cell[..., 2].tolist() == [[0, 0], [255, 255]] for cell in shown)


def test_images_that_cannot_be_read_are_not_chosen(stripes, views):
    source = stripes(per_class=4)
    lost = np.zeros(12, bool)
    lost[[0, 5]] = True
    source.unreadable = lambda: lost
    chosen = select_images(source, Brightness(), views(), settings(ipc=3))
    assert not {0, 5} & set(chosen.rows.ravel().tolist())
    with pytest.raises(UserInputError, match=r"E_DATA: class `.*` has too few candidates that can"):
        select_images(source, Brightness(), views(), settings(ipc=4))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_choice_goes_on_from_what_is_kept(stripes, views, tmp_path, monkeypatch, workers):
    source, plan = stripes(per_class=10), settings(crops=2, crop_scale=(0.2, 0.6))
    monkeypatch.setattr("hellofmt.distillation.select._UNIT", 5)
    monkeypatch.setattr("hellofmt.runs.progress._SECONDS", 0.0)
    truth = select_images(source, Brightness(), views(), plan)
    path = tmp_path / "select-1.safetensors"

    class Killed(BaseException):
        pass

    class Mortal(Brightness):
        def __call__(self, crops):
            if len(self.seen) == 3:
                raise Killed
            return super().__call__(crops)

    with pytest.raises(Killed):
        select_images(source, Mortal(), views(), plan, workers=workers, path=path)
    rest = Brightness()
    again = select_images(source, rest, views(), plan, workers=workers, path=path)
    # Three of six units were kept.
    assert len(rest.seen) == 3
    for name, array in vars(truth).items():
        assert np.array_equal(array, vars(again)[name]), name


def test_small_crops_are_scored_on_the_mean_colour(stripes, views):
    teacher = Brightness()
    select_images(stripes(), teacher, views(), settings(factor=2, ipc=1))
    border = teacher.seen[0].clone()
    border[:, :, 2:6, 2:6] = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    truth = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1).expand_as(border)
    torch.testing.assert_close(border, truth)
    assert teacher.seen[0].shape[-2:] == (8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ipc": 0}, "E_OPTION: `ipc`, `factor` and `crops`: expected at least 1, got 0, 1, 1"),
        ({"crop_scale": (0.0, 1.0)}, "E_OPTION: `crop_scale`: expected 0 < low <= high <= 1"),
        ({"factor": 3}, "E_OPTION: `factor`: expected a divisor of the view size 8, got 3"),
        ({"ipc": 9}, "E_DATA: class `rows` has 8 candidates; expected at least 9 for 9 images"),
        ({"ipc": 3, "candidates": 2}, "class `rows` has 2 candidates; expected at least 3"),
    ],
)
def test_impossible_choices(stripes, views, changes, message):
    with pytest.raises(UserInputError, match=message):
        select_images(stripes(), Brightness(), views(), settings(**changes))


def test_the_teacher_scores_every_crop_of_every_candidate(stripes, views):
    for candidates in (5, 300):
        plan = settings(ipc=1, candidates=candidates, crops=4)
        teacher = Brightness()
        select_images(stripes(), teacher, views(), plan)
        assert scored_crops(stripes(), plan) == sum(map(len, teacher.seen))
