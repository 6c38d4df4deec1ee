"""What ``hello plan --bytes`` says: how many images a budget buys, and how they are stored.

The rule is that of ``hello distill --bytes``, which measures on images and on their labels. Here
there are no labels yet, and perhaps no images; what is assumed instead is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from hellofmt.errors import UserInputError
from hellofmt.ledger import Spending, Way, assumed_ways, spend, ways_of

_FRAMING: Final = 16_384
_SAMPLE: Final = 256
_ANY: Final = 10**6


@dataclass(frozen=True)
class Pictures:
    """The images of a plan: classes, the smallest one, ways to store, and what is assumed."""

    classes: int
    most: int
    ways: list[Way]
    assumed: tuple[str, ...]


def pictures_of(data: tuple[str, ...], classes: int | None, side: int | None) -> Pictures:
    """Encode images of DATA in every way; without DATA take the weights that were measured once."""
    if not data:
        if classes is None:
            raise UserInputError.make("E_OPTION", "give DATA, --dataset or --classes")
        ways, of = assumed_ways(side or 224)
        said = f"images of {side or 224} pixels weigh, and lose of labels, what those {of} do"
        return Pictures(classes, _ANY, ways, (said, "every class has as many images as fit"))
    import numpy as np

    from hellofmt.sources import default_side, open_source, sampled_sizes, sampled_squares

    source = open_source(list(data))
    side = side or default_side(sampled_sizes(source))
    pixels = sampled_squares(source, side, _SAMPLE)
    sizes = [Way(codec, quality, size, 0.0) for codec, quality, size, _ in ways_of(pixels)]
    ways, of = assumed_ways(side, sizes)
    said = f"images weigh what {len(pixels):,} of DATA do at {side} pixels, and lose of labels what"
    most = int(np.bincount(source.labels, minlength=len(source.classes)).min())
    return Pictures(len(source.classes), most, ways, (f"{said} those {of} do",))


def spending_of(budget: int, function: int, pictures: Pictures) -> Spending:
    """The best that is left of a budget buys, beside a label function of so many bytes."""
    front = function + _FRAMING
    best = spend(budget - front, pictures.classes, pictures.most, pictures.ways)
    if not best.ipc:
        least = front + math.ceil(pictures.classes * best.way.size)
        raise UserInputError.make(
            "E_OPTION",
            f"{budget:,} bytes: expected at least about {least:,}: {function:,} for the label"
            f" function, {_FRAMING:,} for texts and headers, and one image for each of"
            f" {pictures.classes:,} classes",
        )
    return best


def describe_spending(budget: int, best: Spending, pictures: Pictures) -> dict[str, Any]:
    """The group ``budget`` of the document; bytes are those that an image adds to the file."""
    return {
        "bytes": budget,
        "ipc": best.ipc,
        "codec": best.way.codec,
        "quality": best.way.quality,
        "bytes_per_image": round(best.way.size),
        "drift": round(best.way.drift, 4),
        "assumptions": [
            f"manifest, record, card and headers take {_FRAMING:,} bytes",
            *pictures.assumed,
        ],
    }
