from __future__ import annotations

import numpy as np
import pytest

from hellofmt.archive import ClassLine
from hellofmt.distillation.validation import split_validation
from hellofmt.sources import ArrayImages


def test_the_validation_part_is_cut_by_class(stripes):
    source = stripes(per_class=40)
    rest, held_out = split_validation(source)
    assert np.bincount(held_out.labels).tolist() == [2, 2, 2]
    assert len(rest) + len(held_out) == 120
    assert not {p.tobytes() for p in rest.pixels} & {p.tobytes() for p in held_out.pixels}
    few = stripes(per_class=9)
    assert split_validation(few) == (few, few)


@pytest.mark.parametrize(
    ("classes", "per_class", "held_out"),
    [(3, 20_000, 2_000), (600, 100, 2_400), (600, 20, 600), (6_000, 100, 20_000)],
)
def test_of_many_classes_four_each_are_held_out(classes, per_class, held_out):
    labels = np.repeat(np.arange(classes), per_class)
    lines = tuple(ClassLine(f"{k}", (f"{k}",)) for k in range(classes))
    source = ArrayImages(np.zeros((len(labels), 1, 1, 3), np.uint8), labels, lines)
    rest, measured = split_validation(source)
    assert (len(rest), len(measured)) == (len(labels) - held_out, held_out)
