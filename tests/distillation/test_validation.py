from __future__ import annotations

import numpy as np

from hellofmt.distillation.validation import split_validation


def test_the_validation_part_is_cut_by_class(stripes):
    source = stripes(per_class=40)
    rest, held_out = split_validation(source)
    assert np.bincount(held_out.labels).tolist() == [2, 2, 2]
    assert len(rest) + len(held_out) == 120
    assert not {p.tobytes() for p in rest.pixels} & {p.tobytes() for p in held_out.pixels}
    few = stripes(per_class=9)
    assert split_validation(few) == (few, few)
