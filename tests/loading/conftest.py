from __future__ import annotations

import pytest

from hellofmt.archive.manifest import Views


def make_views(**changes):
    values = {
        "antialias": True,
        "crop_ratio": ["0.75", "1.3333333333333333"],
        "crop_scale": ["0.08", "1.0"],
        "flip": "0.5",
        "interpolation": "bilinear",
        "mean": ["0.485", "0.456", "0.406"],
        "mix": "none",
        "mix_alpha": "1.0",
        "mix_probability": "1.0",
        "shuffle": 1,
        "size": 16,
        "std": ["0.229", "0.224", "0.225"],
    }
    return Views(**{**values, **changes})


@pytest.fixture(scope="session")
def views_of():
    return make_views
