"""Writes the vectors of views: orders, crops, mixing, pixels and hard labels of the product.

The second reader of the tests meets them, `mini_numbers.py`, which was written from the page alone.
"""

import json

import msgspec
import numpy as np

from hellofmt.archive import Views, changed_views
from hellofmt.loading import render, view_table
from hellofmt.loading.views.exact import beta_quantile
from hellofmt.loading.views.table import mixed_labels
from hellofmt.rng import order, words

RULES = Views(
    antialias=True,
    crop_ratio=["0.75", "1.3333333333333333"],
    crop_scale=["0.08", "1.0"],
    flip="0.5",
    interpolation="bilinear",
    mean=["0.485", "0.456", "0.406"],
    mix="cutmix",
    mix_alpha="1.0",
    mix_probability="1.0",
    shuffle=2,
    size=4,
    std=["0.229", "0.224", "0.225"],
)
# Settings of views, the epoch, and the sides of the pictures. The epochs are chosen such that flips
# differ, rows are mixed and the order is not the identity.
SETTINGS = {
    "plain": ({"mix": "none", "shuffle": 1}, 0, [(6, 6), (5, 9), (12, 7), (1, 1)]),
    "cutmix": ({"mix_alpha": "0.3", "size": 6}, 8, [(6, 6), (9, 5), (12, 7)]),
    "mixup-bicubic": (
        {"interpolation": "bicubic", "mix": "mixup", "mix_alpha": "0.7", "shuffle": 1, "size": 5},
        216,
        [(3, 4), (8, 8), (11, 13)],
    ),
    "bicubic-no-antialias": (
        {"antialias": False, "interpolation": "bicubic", "shuffle": 1, "size": 5},
        8,
        [(3, 4), (8, 8), (11, 13)],
    ),
    "bilinear-no-antialias": (
        {"antialias": False, "mix_alpha": "40.0", "mix_probability": "0.5", "shuffle": 3},
        6,
        [(3, 3), (7, 8), (11, 13)],
    ),
    # Centres of outputs on borders of pixels, which arithmetic in floats gets wrong.
    "nearest": (
        {
            "crop_ratio": ["0.01", "100.0"], "crop_scale": ["1.0", "1.0"],
            "interpolation": "nearest", "mix": "none", "shuffle": 1, "size": 7,
        },
        0,
        [(62, 5), (7, 7), (3, 62)],
    ),
    "narrow-crops": (
        {"crop_ratio": ["50.0", "9000.5"], "crop_scale": ["0.5", "0.5"], "mix": "none", "size": 2},
        8,
        [(9, 9), (2, 300)],
    ),
}  # fmt: skip
SEED, UNIT = 2**63 + 17, 100_000


def picture(row, height, width):
    count = height * width * 3
    return (words(0, 0, 3, row, count) >> np.uint64(56)).astype(np.uint8).reshape(height, width, 3)


def vector(changes, epoch, sides):
    """Views, hard labels and the order of one epoch, of the pictures of these sides."""
    rules = changed_views(RULES, changes)
    rows = np.arange(len(sides))
    heights, widths = np.array(sides).T
    table = view_table(
        rules, seed=SEED, epochs=epoch, indices=rows, heights=heights, widths=widths,
        count=len(sides),
    )  # fmt: skip
    pictures = [picture(row, *side) for row, side in enumerate(sides)]
    pixels = np.rint(render(pictures, table, rules).numpy() * UNIT).astype(int)
    labels = mixed_labels(table, rows, len(sides), size=rules.size)
    views = [
        {
            "own": row[:6], "partner": row[6:12], "box": row[12:16], "weight": row[16],
            "permutation": row[18], "view": view.ravel().tolist(), "label": label.tolist(),
        }
        for row, view, label in zip(table.tolist(), pixels, labels, strict=True)
    ]  # fmt: skip
    return {
        "seed": str(SEED), "epoch": epoch, "rules": msgspec.to_builtins(rules),
        "sides": sides, "order": order(SEED, epoch, len(sides)).tolist(), "views": views,
    }  # fmt: skip


def quantiles():
    """[alpha, u, quantile] of Beta(alpha, alpha); the shortest decimals that name the doubles."""
    pairs = [(a, u) for a in (0.2, 1.0, 3.5, 1000.0) for u in (0.0, 0.001, 0.3, 0.5, 0.9)]
    return [[a, u, float(beta_quantile(np.array([u]), a)[0])] for a, u in pairs]


def make(folder):
    """Write the vectors of views below ``folder``."""
    folder.mkdir()
    for name, setting in SETTINGS.items():
        text = json.dumps(vector(*setting), sort_keys=True)
        (folder / f"{name}.json").write_text(text + "\n")
    (folder / "quantiles.json").write_text(json.dumps(quantiles()) + "\n")
