from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from hellofmt import rng
from hellofmt.distillation.candidates import crop_boxes, drawn
from hellofmt.distillation.coverage import coverage_order
from hellofmt.distillation.select import select_images
from hellofmt.distillation.selection import METHODS, SelectSettings, mosaics
from hellofmt.distillation.stored_images import StoredImages
from hellofmt.errors import UserInputError


class Brightness:
    """Logit 0 is the mean of the view: class 0 likes bright crops, the others dark ones."""

    def __init__(self):
        self.seen = []

    def __call__(self, views):
        self.seen.append(views)
        mean = views.mean((1, 2, 3))
        return torch.stack([8 * mean, 8 * (1 - mean), torch.zeros_like(mean)], dim=1)


@pytest.fixture
def labeler(make_projector):
    return make_projector().labeler()


def settings(ipc=2, method="rded", crop="none", **changes):
    return SelectSettings(ipc, method=method, crop=crop, **changes)


def losses(images, labels):
    """Cross-entropy of Brightness for whole images, in float64."""
    logits = Brightness()(torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255)
    truth = torch.from_numpy(labels)
    return torch.nn.functional.cross_entropy(logits, truth, reduction="none").numpy()


def test_whole_images_of_lowest_loss_are_chosen_exactly(stripes, views):
    source = stripes(per_class=6)
    chosen = select_images(source, Brightness(), views(), settings())
    assert chosen.labels.tolist() == [0, 0, 1, 1, 2, 2]
    loss = losses(source.pixels, source.labels)
    for label in range(3):
        members = np.flatnonzero(source.labels == label)
        best = members[np.argsort(loss[members])][:2]
        assert chosen.rows[chosen.labels == label, 0].tolist() == best.tolist()
    stored = StoredImages(chosen, source, views())
    for number, row in enumerate(chosen.rows[:, 0]):
        assert np.array_equal(stored.pixels(number), source.pixels[row])


def test_the_middle_of_a_larger_image_is_chosen_whole(stripes, views):
    source = stripes(per_class=2, size=8)
    wide = np.concatenate([source.pixels] * 2, axis=2)
    source = type(source)(wide, source.labels, source.classes, source.name)
    chosen = select_images(source, Brightness(), views(), settings(1))
    assert chosen.crops.reshape(-1, 4).tolist() == [[0, 4, 8, 8]] * 3


@pytest.mark.parametrize("method", METHODS)
def test_each_image_gives_its_easiest_crop(stripes, views, labeler, method):
    source, plan = stripes(per_class=4), settings(2, method, "easiest")
    chosen = select_images(source, Brightness(), views(), plan, labeler=labeler)
    whole = select_images(source, Brightness(), views(), settings(2, method), labeler=labeler)
    if method != "rded":
        # What of an image is stored does not change which.
        assert np.array_equal(chosen.rows, whole.rows)
    words = rng.words(0, 1, rng.Stream.SELECTION, chosen.rows[:, 0], 15)
    stored = StoredImages(chosen, source, views())
    for number, word in enumerate(words):
        boxes = np.array(crop_boxes(word, 8, 8))
        (box,) = chosen.crops[number]
        assert (boxes == box).all(1).any()
        tried = []
        for top, left, height, width in boxes:
            one = type(chosen)(
                chosen.labels[:1],
                chosen.rows[number : number + 1],
                np.array([[[top, left, height, width]]], np.int32),
            )
            tried.append(StoredImages(one, source, views()).pixels(0))
        labels = np.full(5, chosen.labels[number])
        best = losses(np.stack(tried), labels).argmin()
        assert np.array_equal(stored.pixels(number), tried[best])


def test_the_seed_draws_crops_and_candidates(stripes, views):
    source = stripes(per_class=4)
    one, again, other = (
        select_images(source, Brightness(), views(), settings(4, crop=None, seed=seed))
        for seed in (0, 0, 1)
    )
    assert all(len(set(one.rows[one.labels == c, 0])) == 4 for c in range(3))
    assert np.array_equal(one.crops, again.crops)
    assert not np.array_equal(one.crops, other.crops)
    few = [drawn(source, settings(1, candidates=2, seed=seed)) for seed in (0, 1)]
    assert [[len(rows) for rows in each] for each in few] == [[2] * 3] * 2
    assert not np.array_equal(*few)


def test_crops_are_square_inside_and_spread():
    words = rng.words(3, 1, rng.Stream.SELECTION, np.arange(400), 15)
    table = np.array([crop_boxes(word, 12, 20) for word in words]).reshape(-1, 4)
    assert len(table) == 2000
    top, left, height, width = table.T
    assert np.array_equal(height, width)
    # sqrt(0.08 * 240) = 4.4, and no more than the shorter side.
    assert (height.min(), height.max()) == (4, 12)
    assert top.min() == left.min() == 0
    assert (top + height).max() == 12
    assert (left + width).max() == 20
    # By the formulas, in NumPy's arithmetic.
    area = (0.08 + 0.92 * rng.uniform(words[:, 0::3])) * 240
    assert np.array_equal(height, np.clip(np.rint(np.sqrt(area)), 1, 12).ravel())
    assert np.array_equal(left, rng.below(words[:, 2::3].ravel(), 20 - width + 1))


@pytest.mark.parametrize("crop", ["none", "easiest"])
@pytest.mark.parametrize("method", METHODS)
def test_the_first_images_of_each_class_are_the_choice_for_fewer(
    stripes, views, labeler, method, crop
):
    source = stripes(per_class=40)

    def chosen(ipc, factor):
        plan = settings(ipc, method, crop, factor=factor)
        return select_images(source, Brightness(), views(), plan, labeler=labeler)

    for factor in (1, 2):
        ten = chosen(10, factor)
        for ipc in (1, 5):
            few, first = chosen(ipc, factor), np.arange(30) % 10 < ipc
            for name in ("labels", "rows", "crops"):
                assert np.array_equal(getattr(few, name), getattr(ten, name)[first]), name
    # Cell k of image i is number 4 i + k.
    if crop == "none" and method != "rded":
        assert np.array_equal(chosen(8, 1).rows.ravel(), chosen(2, 2).rows.ravel())


def test_coverage_sees_whole_images_through_the_label_function(stripes, views, labeler):
    source = stripes(per_class=20)
    chosen = select_images(
        source, Brightness(), views(), settings(3, "coverage", factor=2), labeler=labeler
    )
    rows = np.concatenate(drawn(source, settings(3, "coverage", factor=2)))
    seen = labeler.embeddings(torch.from_numpy(source.pixels[rows]).permute(0, 3, 1, 2) / 255)
    for label in range(3):
        mine = source.labels[rows] == label
        order = rows[mine][coverage_order(seen[mine].numpy(), 12)]
        assert chosen.rows[chosen.labels == label].ravel().tolist() == order.tolist()


def test_the_precision_of_a_teacher_is_not_that_of_embeddings(stripes, views, labeler):
    source = stripes(per_class=20)

    def chosen():
        return select_images(
            source, Brightness(), views(), settings(9, "coverage"), labeler=labeler
        )

    whole = chosen()
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(chosen().rows, whole.rows)


def test_random_images_are_only_as_many_as_are_needed(stripes, views):
    source, plan = stripes(per_class=9), settings(2, "random", factor=2)
    chosen = select_images(source, None, views(), plan)
    assert [len(rows) for rows in drawn(source, plan)] == [8] * 3
    assert all(len(set(chosen.rows[chosen.labels == c].ravel())) == 8 for c in range(3))
    other = select_images(source, None, views(), settings(2, "random", factor=2, seed=1))
    assert not np.array_equal(chosen.rows, other.rows)


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


@pytest.mark.parametrize("method", METHODS)
def test_images_that_cannot_be_read_are_not_chosen(stripes, views, labeler, method):
    source = stripes(per_class=14)
    lost = np.zeros(42, bool)
    lost[[0, 5]] = True
    source.unreadable = lambda: lost
    source.skips_unreadable = True
    chosen = select_images(source, Brightness(), views(), settings(12, method), labeler=labeler)
    assert not {0, 5} & set(chosen.rows.ravel().tolist())
    with pytest.raises(UserInputError, match=r"E_DATA: class `rows` has too few candidates that"):
        select_images(source, Brightness(), views(), settings(13, method), labeler=labeler)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_choice_goes_on_from_what_is_kept(stripes, views, tmp_path, monkeypatch, workers):
    source, plan = stripes(per_class=10), settings(crop="easiest")
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
    # One of three classes was kept, each of two batches.
    assert len(rest.seen) == 4
    for name, array in vars(truth).items():
        assert np.array_equal(array, vars(again)[name]), name


def test_small_crops_are_scored_on_the_mean_colour(stripes, views):
    teacher = Brightness()
    select_images(stripes(), teacher, views(), settings(1, factor=2))
    border = teacher.seen[0].clone()
    border[:, :, 2:6, 2:6] = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    truth = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1).expand_as(border)
    torch.testing.assert_close(border, truth)
    assert teacher.seen[0].shape[-2:] == (8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ipc": 0}, "E_OPTION: `ipc` and `factor`: expected at least 1, got 0, 1"),
        ({"factor": 3}, "E_OPTION: `factor`: expected a divisor of the view size 8, got 3"),
        ({"ipc": 9}, "E_DATA: class `rows` has 8 candidates; expected at least 9 for 9 images"),
        ({"ipc": 3, "candidates": 2}, "class `rows` has 2 candidates; expected at least 3"),
        ({"method": "herding"}, "E_OPTION: `method` and `crop`: expected .*, got `herding` and"),
        ({"crop": "hard"}, "E_OPTION: `method` and `crop`: expected one of random, .* and `hard`"),
        (
            {"method": "coverage"},
            "E_OPTION: `coverage` needs `labeler`, .* got None",
        ),
    ],
)
def test_impossible_choices(stripes, views, changes, message):
    with pytest.raises(UserInputError, match=message):
        select_images(stripes(), Brightness(), views(), settings(**changes))


def test_a_balanced_choice_says_what_it_needs(stripes, views, labeler, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserInputError, match=r"E_OPTION: .*hellofmt\[balanced\]"):
        select_images(stripes(), None, views(), settings(method="balanced"), labeler=labeler)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("crop", ["none", "easiest"])
def test_the_teacher_scores_what_the_settings_say(stripes, views, labeler, method, crop):
    for candidates in (5, 300):
        plan = settings(1, method, crop, candidates=candidates)
        teacher = Brightness()
        select_images(stripes(), teacher, views(), plan, labeler=labeler)
        count = sum(map(len, drawn(stripes(), plan)))
        assert count * plan.scored == sum(map(len, teacher.seen))
