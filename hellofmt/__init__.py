"""Distilled datasets that ship a label function instead of labels.

The public names are few and loaded on first use (PEP 562): ``import hellofmt`` and ``hello
inspect`` must answer at once, so neither may import torch. Everything else is public only through
the ``__all__`` of its room. No room is called like a name here: once ``hellofmt.x`` were imported
as a module, the function ``hellofmt.x`` could no longer be called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from hellofmt.errors import HelloError
from hellofmt.version import VERSION

if TYPE_CHECKING:
    from hellofmt.archive import HelloFile
    from hellofmt.archive import open_archive as open
    from hellofmt.archive import verify_archive as verify
    from hellofmt.distillation import distill, fit_projector
    from hellofmt.loading import (
        HelloDataset,
        HelloLoader,
        HelloSampler,
        soft_batches,
        webdataset_samples,
    )
    from hellofmt.projector import Labeler, Projector
    from hellofmt.sources import pack_archive as pack

__version__ = VERSION

__all__ = [
    "HelloDataset",
    "HelloError",
    "HelloFile",
    "HelloLoader",
    "HelloSampler",
    "Labeler",
    "Projector",
    "__version__",
    "distill",
    "fit_projector",
    "open",
    "pack",
    "soft_batches",
    "verify",
    "webdataset_samples",
]

_LAZY: Final = {
    "HelloDataset": ("hellofmt.loading", "HelloDataset"),
    "HelloFile": ("hellofmt.archive", "HelloFile"),
    "HelloLoader": ("hellofmt.loading", "HelloLoader"),
    "HelloSampler": ("hellofmt.loading", "HelloSampler"),
    "Labeler": ("hellofmt.projector", "Labeler"),
    "Projector": ("hellofmt.projector", "Projector"),
    "distill": ("hellofmt.distillation", "distill"),
    "fit_projector": ("hellofmt.distillation", "fit_projector"),
    "open": ("hellofmt.archive", "open_archive"),
    "pack": ("hellofmt.sources", "pack_archive"),
    "soft_batches": ("hellofmt.loading", "soft_batches"),
    "verify": ("hellofmt.archive", "verify_archive"),
    "webdataset_samples": ("hellofmt.loading", "webdataset_samples"),
}


def __getattr__(name: str) -> Any:
    """The public name, imported now and kept."""
    if name not in _LAZY:
        raise AttributeError(f"module `hellofmt` has no attribute `{name}`")
    module, attribute = _LAZY[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
