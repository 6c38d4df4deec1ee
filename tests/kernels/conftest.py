from __future__ import annotations

import itertools
import os

import pytest
import torch

from hellofmt_kernels import VIEW_COLUMNS, WEIGHT_ONE, ViewColumn


def torchvision_views(images, rows, size, *, antialias=True, mean=(0,) * 3, std=(1,) * 3, dtype):
    """One sample at a time with torchvision's functional transforms, in a chosen float dtype."""
    from torchvision.transforms.v2 import functional

    def finished(image, top, left, height, width, flip, factor, number):
        pixels = functional.to_dtype(images[image].permute(2, 0, 1), dtype, scale=True)
        if factor > 1:
            orders = list(itertools.permutations(range(factor)))
            for dim, rank in ((2, number // len(orders)), (1, number % len(orders))):
                cells = pixels.chunk(factor, dim=dim)
                pixels = torch.cat([cells[k] for k in orders[rank]], dim=dim)
        view = functional.resized_crop(
            pixels,
            top,
            left,
            height,
            width,
            [size, size],
            interpolation=functional.InterpolationMode.BILINEAR,
            antialias=antialias,
        )
        return functional.horizontal_flip(view) if flip else view

    out = []
    for row in rows.tolist():
        shuffle = (row[ViewColumn.SHUFFLE], row[ViewColumn.PERMUTATION])
        view = finished(*row[:6], *shuffle)
        y0, x0, y1, x1, weight = row[12:17]
        has_box = y0 < y1 and x0 < x1
        if has_box or weight < WEIGHT_ONE:
            partner = finished(*row[6:12], *shuffle)
            view = (weight * view + (WEIGHT_ONE - weight) * partner) / WEIGHT_ONE
            if has_box:
                view[:, y0:y1, x0:x1] = partner[:, y0:y1, x0:x1]
        view = view - torch.tensor(mean, dtype=dtype)[:, None, None]
        out.append(view / torch.tensor(std, dtype=dtype)[:, None, None])
    return torch.stack(out) if out else torch.empty(0, 3, size, size, dtype=dtype)


def plain_rows(count, height, width):
    """Rows that show the first image whole: a start for tests that change one column."""
    rows = torch.zeros(count, VIEW_COLUMNS, dtype=torch.int32)
    rows[:, [ViewColumn.HEIGHT, ViewColumn.PARTNER_HEIGHT]] = height
    rows[:, [ViewColumn.WIDTH, ViewColumn.PARTNER_WIDTH]] = width
    rows[:, ViewColumn.WEIGHT] = WEIGHT_ONE
    return rows


def random_rows(count, images, height, width, size, seed=0, factor=0):
    """Random crops and flips; of every four rows one plain, one CutMix, one MixUp, one of both."""
    g = torch.Generator().manual_seed(seed)

    def whole(low, high):
        return torch.randint(low, high, (count,), generator=g, dtype=torch.int32)

    rows = plain_rows(count, height, width)
    for first in (0, 6):
        rows[:, first] = whole(0, images)
        rows[:, first + 3] = whole(1, height + 1)
        rows[:, first + 4] = whole(1, width + 1)
        rows[:, first + 1] = whole(0, 1 << 30) % (height - rows[:, first + 3] + 1)
        rows[:, first + 2] = whole(0, 1 << 30) % (width - rows[:, first + 4] + 1)
        rows[:, first + 5] = whole(0, 2)
    kind = torch.arange(count) % 4
    boxes = torch.stack([whole(0, size + 1) for _ in range(4)], dim=1)
    boxes = torch.stack(
        (
            boxes[:, :2].amin(1),
            boxes[:, 2:].amin(1),
            boxes[:, :2].amax(1),
            boxes[:, 2:].amax(1),
        ),
        dim=1,
    )
    rows[:, 12:16] = torch.where((kind % 2 == 1)[:, None], boxes, 0)
    rows[:, ViewColumn.WEIGHT] = torch.where(kind >= 2, whole(0, WEIGHT_ONE + 1), WEIGHT_ONE)
    if factor:
        orders = len(list(itertools.permutations(range(factor)))) ** 2
        rows[:, ViewColumn.SHUFFLE] = torch.where(kind < 3, factor, 0).to(torch.int32)
        rows[:, ViewColumn.PERMUTATION] = whole(0, orders)
    return rows


@pytest.fixture(scope="session")
def make_torchvision_views():
    return torchvision_views


@pytest.fixture(scope="session")
def make_plain_rows():
    return plain_rows


@pytest.fixture(scope="session")
def make_random_rows():
    return random_rows


IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items):
    """Triton decides on import whether it interprets or compiles: one process cannot do both."""
    for item in items:
        if item.get_closest_marker("interp") and not IS_INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1 before import"))
        if item.get_closest_marker("aot") and IS_INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="TRITON_INTERPRET=1 is set: no compiler"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
