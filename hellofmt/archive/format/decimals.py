"""Decimals of a manifest: of all strings that read as one double, only the shortest is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hellofmt.archive.format.canonical import decimal_string
from hellofmt.archive.format.manifest import UNSET, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hellofmt.archive.format.manifest import UnsetType

__all__ = ["decimal_faults"]


def _decimals(manifest: Manifest) -> Iterator[tuple[str, str | UnsetType]]:
    """Path and text of every decimal of a manifest."""
    views, base = manifest.views, manifest.base
    lists = [
        ("views.crop_ratio", views.crop_ratio),
        ("views.crop_scale", views.crop_scale),
        ("views.mean", views.mean),
        ("views.std", views.std),
    ]
    yield "views.flip", views.flip
    yield "views.mix_alpha", views.mix_alpha
    yield "views.mix_probability", views.mix_probability
    if base is not UNSET:
        lists += [
            ("base.preprocess.mean", base.preprocess.mean),
            ("base.preprocess.std", base.preprocess.std),
        ]
        for name in ("mlp_ratio", "norm_eps"):
            yield f"base.arch.vision.{name}", getattr(base.arch.vision, name)
    for loc, texts in lists:
        for i, text in enumerate(texts):
            yield f"{loc}.{i}", text
    for i, function in enumerate(manifest.functions or ()):
        yield f"functions.{i}.head.scale", function.head.scale
        yield f"functions.{i}.head.temperature", function.head.temperature
        for j, target in enumerate(function.adapter.targets):
            yield f"functions.{i}.adapter.targets.{j}.scale", target.scale


def decimal_faults(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Path and fault of every decimal that is not the shortest of its double."""
    for loc, text in _decimals(manifest):
        if text is not UNSET:
            shortest = decimal_string(float(text))
            if text != shortest:
                yield loc, f"expected {shortest}, the shortest for this number, got {text}"
