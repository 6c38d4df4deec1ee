from __future__ import annotations

import itertools

import pytest
import torch

from hellofmt_kernels import VIEW_COLUMNS, WEIGHT_ONE, ViewColumn, validate_view_rows, views


def noise(count, height, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=g, dtype=torch.uint8)


def test_permutation_numbers_are_lexicographic(make_plain_rows):
    images = torch.zeros(1, 3, 3, 3, dtype=torch.uint8)
    images[0, :, :, 0] = torch.arange(9).view(3, 3)
    orders = list(itertools.permutations(range(3)))
    rows = make_plain_rows(36, 3, 3)
    rows[:, ViewColumn.SHUFFLE] = 3
    rows[:, ViewColumn.PERMUTATION] = torch.arange(36)
    got = (views(images, rows, 3)[:, 0] * 255).round().to(torch.int64)
    for number in range(36):
        columns, lines = orders[number // 6], orders[number % 6]
        want = torch.arange(9).view(3, 3)[list(lines)][:, list(columns)]
        assert got[number].equal(want)


BAD_ROWS = {
    ViewColumn.IMAGE: (2, "view image 2; expected 0 to 1"),
    ViewColumn.TOP: (1, "view crop (top, height) [1, 6]; expected within 0 to 6 px, not empty"),
    ViewColumn.LEFT: (-1, "view crop (left, width) [-1, 9]; expected within 0 to 9 px, not empty"),
    ViewColumn.HEIGHT: (0, "view crop (top, height) [0, 0]; expected within"),
    ViewColumn.WIDTH: (10, "view crop (left, width) [0, 10]; expected within"),
    ViewColumn.FLIP: (2, "view flip 2; expected 0 or 1"),
    ViewColumn.PARTNER_IMAGE: (-1, "partner image -1; expected 0 to 1"),
    ViewColumn.PARTNER_TOP: (1, "partner crop (top, height) [1, 6]; expected within"),
    ViewColumn.PARTNER_LEFT: (1, "partner crop (left, width) [1, 9]; expected within"),
    ViewColumn.PARTNER_HEIGHT: (7, "partner crop (top, height) [0, 7]; expected within"),
    ViewColumn.PARTNER_WIDTH: (0, "partner crop (left, width) [0, 0]; expected within"),
    ViewColumn.PARTNER_FLIP: (-1, "partner flip -1; expected 0 or 1"),
    ViewColumn.WEIGHT: (65537, "weight 65537; expected 0 to 65536"),
    ViewColumn.SHUFFLE: (9, "shuffle factor 9; expected 0 to 8"),
    ViewColumn.PERMUTATION: (
        36,
        "(shuffle factor, permutation number) [3, 36]; expected a number below factor! squared",
    ),
}


@pytest.mark.parametrize("column", BAD_ROWS)
def test_bad_rows_are_refused(column, make_plain_rows):
    value, message = BAD_ROWS[column]
    rows = make_plain_rows(3, 6, 9)
    rows[1, ViewColumn.WEIGHT] = 5
    rows[1, ViewColumn.SHUFFLE] = 3
    assert validate_view_rows(rows, (2, 6, 9)) == []
    rows[1, column] = value
    assert [problem[: len(message)] for problem in validate_view_rows(rows, (2, 6, 9))] == [message]
    with pytest.raises(ValueError, match="rows") as caught:
        views(noise(2, 6, 9), rows, 4)
    assert message in str(caught.value)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_shuffle_must_divide_the_image(factor, make_plain_rows):
    rows = make_plain_rows(2, 6, 9)
    rows[1, ViewColumn.SHUFFLE] = factor
    want = f"`rows`: shuffle factor {factor}; expected a divisor of 6 and 9 px"
    with pytest.raises(ValueError, match="rows") as caught:
        views(noise(1, 6, 9), rows, 4)
    assert str(caught.value) == want


def test_a_negative_shuffle_is_refused(make_plain_rows):
    rows = make_plain_rows(1, 4, 4)
    rows[0, ViewColumn.SHUFFLE] = -1
    assert validate_view_rows(rows, (1, 4, 4)) == ["shuffle factor -1; expected 0 to 8"]


def test_the_table_is_twenty_columns_in_this_order():
    names = (
        "IMAGE TOP LEFT HEIGHT WIDTH FLIP PARTNER_IMAGE PARTNER_TOP PARTNER_LEFT PARTNER_HEIGHT "
        "PARTNER_WIDTH PARTNER_FLIP Y0 X0 Y1 X1 WEIGHT SHUFFLE PERMUTATION SPARE"
    )
    assert [column.name for column in ViewColumn] == names.split()
    assert [int(column) for column in ViewColumn] == list(range(VIEW_COLUMNS))
    assert WEIGHT_ONE == 2**16
