"""A batch of views is a function of (seed, number) alone, and shows what torchvision would draw."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from builders import mixed_views, striped_source
from torchvision.transforms.v2 import functional as transforms

import hellofmt_kernels
from hellofmt import rng
from hellofmt.loading import normalise
from hellofmt.loading.views.crops import CropDraws
from hellofmt.making import HardBatches, ViewBatches
from hellofmt.making.views import draw
from hellofmt.runs.order import Order
from hellofmt.sources import ArrayImages


@pytest.fixture
def batches():
    return ViewBatches(striped_source(), mixed_views(), 40, seed=2)


def same(a, b):
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def test_a_batch_is_a_function_of_its_number(batches):
    third = batches.batch(2)
    assert third.views.shape == (40, 3, 8, 8)
    assert third.views.dtype == torch.float32
    assert same(list(batches.stream(end=3))[2], third)
    assert same(next(ViewBatches(striped_source(), mixed_views(), 40, seed=2).stream(2)), third)
    assert not torch.equal(third.views, batches.batch(3).views)
    assert not torch.equal(
        third.views, ViewBatches(striped_source(), mixed_views(), 40, seed=3).batch(2).views
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(batches, workers):
    before = torch.get_rng_state()
    made = list(batches.stream(1, end=4, workers=workers))
    assert len(made) == 3
    assert all(same(made[k], batches.batch(k + 1)) for k in range(3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_change_nothing(batches, as_rank, world):
    from hellofmt.runs import ranks

    whole, parts = batches.batch(1), []
    for rank in range(world):
        as_rank(rank, world)
        parts.append(batches.batch(1, ranks.share(40)))
    assert torch.equal(torch.cat([part.views for part in parts]), whole.views)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert torch.equal(torch.cat([part.shares for part in parts]), whole.shares)
    assert {part.unmixed for part in parts} == {whole.unmixed}


def test_unmixed_views_are_whole_images_of_their_class():
    source = striped_source()
    plain = mixed_views(mix="none", scale=("1.0", "1.0"))
    batch = ViewBatches(source, plain, 24, seed=0).batch(0)
    rows = Order(0, 24).positions(0, 24)[:, 0]
    assert batch.hard(3).argmax(1).tolist() == source.labels[rows].tolist()
    assert batch.unmixed == 24
    truth = torch.from_numpy(source.pixels[rows]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(batch.views, truth, rtol=0, atol=1e-6)


def test_patches_are_shuffled():
    source = random_source(12)
    views = msgspec.structs.replace(
        mixed_views(mix="none", scale=("1", "1")), size=50, shuffle=2, crop_ratio=["1.4", "1.4"]
    )
    batch = ViewBatches(source, views, 12, seed=4).batch(0)
    place = Order(4, 12).positions(0, 12)
    word = rng.words(4, 0, rng.Stream.VIEWS, place[:, 0], 4)[:, 3]
    seen = set()
    for view, row, number in zip(batch.views, place[:, 0], rng.below(word, 4), strict=True):
        # Of two cells a permutation swaps both or none.
        moves = int(number) % 2, int(number) // 2
        rolled = np.roll(source.pixels[row], (25 * moves[0], 35 * moves[1]), (0, 1))
        whole = torch.from_numpy(rolled).permute(2, 0, 1).float() / 255
        truth = transforms.resize(whole, [50, 50], antialias=True)
        torch.testing.assert_close(view, truth, rtol=0, atol=0.008)
        seen.add(moves)
    assert len(seen) > 2


def random_source(count=30, height=50, width=70):
    random = np.random.default_rng(1)
    rough = random.integers(0, 256, (count, 5, 7, 3), np.uint8)
    pixels = np.repeat(np.repeat(rough, height // 5, 1), width // 7, 2)
    lines = striped_source().classes
    return ArrayImages(pixels, np.arange(count) % 3, lines)


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_views_are_torchvision_s_and_partners_come_from_the_same_eight(mix):
    source = random_source()
    views = msgspec.structs.replace(mixed_views(mix=mix), size=16, flip="0.5", mix_probability="1")
    batch = ViewBatches(source, views, 20, seed=4).batch(1)
    place = Order(4, 30).positions(20, 20)
    draws = CropDraws(views, seed=4, epochs=place[:, 1], rows=place[:, 0])
    alone = []
    for i, row in enumerate(place[:, 0].tolist()):
        top, left, h, w = draws.box(i, 50, 70)
        image = torch.from_numpy(source.pixels[row]).permute(2, 0, 1).float() / 255
        square = transforms.resized_crop(image, top, left, h, w, [16, 16], antialias=True)
        alone.append(square.flip(-1) if draws.flips[i] else square)
    alone = torch.stack(alone)
    shown = 0
    for i in range(20):
        near = [j for j in range(i - i % 8, min(i - i % 8 + 8, 20)) if j != i]
        own, other = batch.labels[i].tolist()
        assert own == source.labels[place[i, 0]]
        share = float(batch.shares[i])
        if share == 1:
            torch.testing.assert_close(batch.views[i], alone[i], rtol=0, atol=0.008)
            continue
        shown += 1

        def error(j, i=i, share=share):
            if mix == "mixup":
                mixed = share * alone[i] + (1 - share) * alone[j]
                return float((batch.views[i] - mixed).abs().max())
            from_own = (batch.views[i] - alone[i]).abs().amax(0) < 0.008
            from_other = (batch.views[i] - alone[j]).abs().amax(0) < 0.008
            # Every pixel is of one of both, and the partner's are its share.
            area = round((1 - share) * 256)
            return 1 - float((from_own | from_other).float().mean()) + (from_other.sum() < area)

        best = min(near, key=error)
        assert error(best) < 0.01
        assert other == source.labels[place[best, 0]]
    assert shown > 10
    hard = batch.hard(3)
    torch.testing.assert_close(hard.sum(1), torch.ones(20))
    assert batch.unmixed == 20 - shown


def test_the_kernel_draws_the_same(batches):
    for mix in ("cutmix", "mixup"):
        source = ViewBatches(striped_source(), mixed_views(mix=mix), 24, seed=1)
        plan = source._plan(0, None)
        squares = torch.randint(0, 256, (24, 8, 8, 3), dtype=torch.uint8)
        kernel = hellofmt_kernels.views(squares, torch.from_numpy(plan.table), 8)
        torch.testing.assert_close(draw(squares, plan.table, 8), kernel, rtol=0, atol=1e-5)


def test_a_teacher_s_batches_are_normalised_and_can_be_skipped(batches):
    stream = HardBatches(batches, 4)
    images, hard = list(stream)[2]
    third = batches.batch(2)
    torch.testing.assert_close(images, normalise(third.views, batches.views))
    assert torch.equal(hard, third.hard(3))
    rest = list(stream.after(2))
    assert len(rest) == 2
    assert torch.equal(rest[0][0], images)


class Broken:
    """A source that cannot read its last image."""

    def __init__(self, source, error):
        self._source, self._error = source, error

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def read(self, row):
        if row == len(self) - 1:
            raise self._error
        return self._source.read(row)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_told_whole(workers):
    error = FileNotFoundError(2, "No such file or directory", "a/b.jpg")
    broken = ViewBatches(Broken(striped_source(), error), mixed_views(), 40, seed=2)
    with pytest.raises(FileNotFoundError) as caught:
        list(broken.stream(end=2, workers=workers))
    assert (caught.value.errno, caught.value.filename) == (2, "a/b.jpg")
