from hellofmt.archive import HelloFile
from hellofmt.archive import open_archive as open
from hellofmt.archive import verify_archive as verify
from hellofmt.distillation import distill, fit_projector
from hellofmt.errors import HelloError
from hellofmt.loading import (
    HelloDataset,
    HelloLoader,
    HelloSampler,
    soft_batches,
    webdataset_samples,
)
from hellofmt.projector import Labeler, Projector
from hellofmt.sources import pack_archive as pack
from hellofmt.version import VERSION as __version__

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
