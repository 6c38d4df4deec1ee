"""Tiny architectures, bases, views and images that the tests of several rooms share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from hellofmt.archive import (
    Arch,
    ClassLine,
    Dataset,
    Draft,
    ImageItem,
    ImageSet,
    Preprocess,
    Views,
    VisionArch,
    changed_views,
    encode_image,
    write_archive,
)
from hellofmt.archive.format.label_function import Adapter, Head, Target
from hellofmt.sources import ArrayImages

if TYPE_CHECKING:
    from hellofmt.projector import LoadedBase

STRIPES = tuple(ClassLine(key, (key,)) for key in ("rows", "columns", "grey"))

# (C_in, C_out) of the nineteen 3x3 convolutions of CLIP's RN50, stem first.
RN50_CONVOLUTIONS = (
    [(3, 32), (32, 32), (32, 64)]
    + [(64, 64)] * 3
    + [(128, 128)] * 4
    + [(256, 256)] * 6
    + [(512, 512)] * 3
)


def preprocess(size=8, mean="0.4", std="0.3", **changes) -> Preprocess:
    """How views of ``size`` px enter a base; ``mean`` and ``std`` for all channels or for each."""
    each = [[v] * 3 if isinstance(v, str) else list(v) for v in (mean, std)]
    values = {
        "antialias": True,
        "interpolation": "bicubic",
        "mean": each[0],
        "size": size,
        "std": each[1],
    }
    return Preprocess(**{**values, **changes})


def vit(size=8, dim=16, *, width=64, head_width=32, layers=1, patch_size=4) -> Arch:
    """A vision transformer of one layer unless told otherwise."""
    vision = VisionArch(
        image_size=size, layers=layers, width=width, patch_size=patch_size, head_width=head_width
    )
    return Arch(embed_dim=dim, quick_gelu=False, vision=vision)


def tiny_base(size=8, dim=16, seed=0, entrance=None, **architecture) -> LoadedBase:
    """A base generated from ``seed``: a `vit` behind ``entrance``, by default `preprocess`."""
    from hellofmt.projector import seeded_base

    arch = vit(size, dim, **architecture)
    return seeded_base(arch, entrance or preprocess(size), seed=seed)


def views(size=8, mean=("0.5", "0.4", "0.3"), std=("0.25", "0.5", "0.2"), **changes) -> Views:
    """Views of ``size`` px: whole images, neither flipped nor mixed, unless told otherwise."""
    values = {
        "antialias": True,
        "crop_ratio": ["1.0", "1.0"],
        "crop_scale": ["1.0", "1.0"],
        "flip": "0.0",
        "interpolation": "bilinear",
        "mean": list(mean),
        "mix": "none",
        "shuffle": 1,
        "size": size,
        "std": list(std),
    }
    return changed_views(Views(**values), changes)


def mixed_views(size=8, mix="cutmix", probability="0.5", scale=("0.7", "1.0")) -> Views:
    """Views that are cropped a little, half of them mixed."""
    return views(
        size,
        crop_ratio=["0.9", "1.1"],
        crop_scale=list(scale),
        mix=mix,
        mix_probability=probability,
    )


def dataset(name="tiny", **changes) -> Dataset:
    """Facts about a data set."""
    values = {"version": "1", "license": "CC0-1.0", "method": "test", "sources": []}
    return Dataset(name=name, **{**values, **changes})


def stripes(per_class=8, seed=0, size=8):
    """Learnable uint8 images of the classes `STRIPES`: bright rows, bright columns, grey; noise."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 60, (3 * per_class, size, size, 3))
    labels = np.repeat(np.arange(3), per_class)
    pixels[labels == 0, ::2] += 150
    pixels[labels == 1, :, ::2] += 150
    pixels[labels == 2] += 75
    return pixels.astype(np.uint8), labels.astype(np.int64)


def striped_source(per_class=8, seed=0, size=8) -> ArrayImages:
    """The stripes as a source of real images: three classes, bright rows, columns, or grey."""
    return ArrayImages(*stripes(per_class, seed, size), STRIPES, "stripes")


def image_set(pixels, labels, layout="auto") -> ImageSet:
    """The images as an archive stores them, in PNG."""
    pairs = zip(pixels, labels, strict=True)
    return ImageSet("png", [ImageItem(int(c), encode_image(p, "png")) for p, c in pairs], layout)


def write_unfitted(path, images=None, temperature=3.0, **changes):
    """Write an archive of `STRIPES` with an unfitted label function; return its path."""
    from hellofmt.projector import Projector

    projector = Projector.build(
        tiny_base(), STRIPES, targets="all", rank=2, start="stored", temperature=temperature, seed=0
    )
    values = {"dataset": dataset("stripes"), "views": views(), **changes}
    draft = Draft(classes=STRIPES, images=images, projector=projector.part("float32"), **values)
    write_archive(path, draft)
    return path


def linear_teacher(views):
    """Logits (N, 3) that tell `stripes` apart: contrast between rows, between columns, neither."""
    import torch

    rows = (views[:, :, ::2] - views[:, :, 1::2]).mean((1, 2, 3))
    columns = (views[..., ::2] - views[..., 1::2]).mean((1, 2, 3))
    return torch.stack([6 * rows, 6 * columns, 1.5 - 4 * (rows + columns)], dim=1)


def save_clip(folder, size=16):
    """A CLIP of one layer a tower and random weights in ``folder``, in open_clip's form."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": size, "layers": 1, "width": 64, "patch_size": 4},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    torch.manual_seed(0)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")


def paper_adapter(storage="int8") -> Adapter:
    """The paper's low-rank matrices on every 3x3 convolution of RN50."""
    return Adapter(
        targets=[
            Target(
                a=[24, 3 * c_in],
                b=[3 * c_out, 24],
                param=f"conv{i}.weight",
                scale="1.0",
                shape=[c_out, c_in, 3, 3],
                storage=storage,
            )
            for i, (c_in, c_out) in enumerate(RN50_CONVOLUTIONS)
        ]
    )


def paper_head(classes=1000, rank=128, start="text") -> Head:
    """The paper's low-rank delta of a head that starts from text."""
    return Head(
        bias=False,
        link="softmax",
        scale="1.0",
        start=start,
        storage="int8",
        temperature="20.0",
        a=[rank, 1024],
        b=[classes, rank],
    )


def whole_image(image, way):
    """An image, uint8 (H, W, 3), as a network is shown it whole."""
    from hellofmt.making import CentreSquares

    pair = ArrayImages(np.stack([image, image]), np.arange(2), STRIPES[:2])
    return CentreSquares(pair, (way,))(np.zeros(1, np.int64))[0][0].numpy()
