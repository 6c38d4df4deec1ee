"""Verified samples for pipelines built on webdataset: what its own tar reader would give, checked.

webdataset reads a ``.hello`` archive as the tar it is, but verifies nothing, skips what it cannot
read, and its ``.decode()`` runs pickles. Here the same samples come from our reader: every byte is
held to its digest, a fault is an error and never a skipped sample, and there is nothing in a sample
but one image and its class. webdataset itself is not imported.

Rows are dealt out like cards, not cut into blocks: they are sorted by class, so a worker with a
block of them would see few classes. Shuffling is left to the pipeline (``webdataset.shuffle``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils.data import IterableDataset, get_worker_info

from hellofmt.archive.images import encode_image
from hellofmt.archive.layout import EXTENSIONS
from hellofmt.archive.manifest import UNSET
from hellofmt.archive.reader import HelloFile, open_archive
from hellofmt.archive.source import display_name
from hellofmt.errors import TrustError, UserInputError
from hellofmt.loading.worker_errors import errors_arrive_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["WebdatasetSamples", "webdataset_samples"]

# Images read at once: over a network one request per run of neighbours instead of one per image.
_BATCH_ROWS: Final = 64


def webdataset_samples(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | HelloFile,
    *,
    expect: str | None = None,
    rank: int | None = None,
    num_replicas: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> WebdatasetSamples:
    """The images of an archive as webdataset samples, each verified when it is read.

    A sample is ``{"__key__": "images/0003/000042", "__url__": ..., "jpg": bytes, "cls": b"3"}``
    with ``png``, ``jpg`` or ``webp`` for the image; images of a packed archive come as PNG. The
    class is bytes, as in every undecoded sample, because webdataset's ``decode`` takes nothing else
    and makes it an int; without ``decode``, ``int(sample["cls"])`` does. Every pass
    gives each row once over all ranks and all workers of their loaders; the parts of two of them
    differ by at most one sample.

    Args:
        source: an archive, a URL, the files of a sharded set or their pattern, see
            ``hellofmt.open``.
        expect: the ``id`` it must have.
        rank: this process of ``num_replicas``; by default as torch.distributed says.
        num_replicas: processes that share the rows.
        storage_options: of a URL.
        cache_dir: folder that keeps what came from a URL.

    Returns:
        An iterable data set: the first stage of a ``webdataset.DataPipeline``, or for a DataLoader.

    Raises:
        OSError: the archive is missing or cannot be opened.
        HelloError: the archive is refused, see ``hellofmt.open``.
        UserInputError: no images (E_DATA), or not a rank of so many (E_OPTION).

    Example:
        >>> import hellofmt, webdataset
        >>> pipeline = webdataset.DataPipeline(
        ...     hellofmt.webdataset_samples("my.hello", expect="sha256:..."),
        ...     webdataset.shuffle(1000),
        ...     webdataset.decode("pil"),
        ...     webdataset.to_tuple("jpg", "cls"),
        ... )  # doctest: +SKIP
    """
    if not isinstance(source, HelloFile):
        source = open_archive(
            source, expect=expect, storage_options=storage_options, cache_dir=cache_dir
        )
    elif expect is not None and expect != source.id:
        raise TrustError.make("E_PIN", f"id of the archive; expected {expect}, got {source.id}")
    return WebdatasetSamples(source, rank=rank, num_replicas=num_replicas)


class WebdatasetSamples(IterableDataset[dict[str, Any]]):
    """The samples of an open archive; see ``webdataset_samples``.

    Attributes:
        file: the archive.
    """

    def __init__(
        self, file: HelloFile, *, rank: int | None = None, num_replicas: int | None = None
    ) -> None:
        """Of an open archive; see ``webdataset_samples``."""
        if file.manifest.images is UNSET:
            raise UserInputError.make("E_DATA", "the archive has no images; expected images")
        if (rank is None) != (num_replicas is None) or not 0 <= (rank or 0) < (num_replicas or 1):
            raise UserInputError.make(
                "E_OPTION",
                "`rank`, `num_replicas`; expected 0 <= rank < num_replicas or neither, "
                f"got {rank}, {num_replicas}",
            )
        self.file = file
        self._place = None if rank is None or num_replicas is None else (rank, num_replicas)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples of this rank and worker, in the order of the archive.

        Yields:
            One sample per image.

        Raises:
            HelloError: an image cannot be read or is not what its digest says.
        """
        rank, ranks = self._place or _distributed()
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        rows = range(rank * workers + worker, len(self.file), ranks * workers)
        for start in range(0, len(rows), _BATCH_ROWS):
            yield from self._samples(rows[start : start + _BATCH_ROWS])

    def _samples(self, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The samples of some rows, read at once."""
        file, index = self.file, self.file.index
        images = file.manifest.images
        if images is UNSET or index is None:
            return
        packed = images.layout == "packed"
        extension = EXTENSIONS["png" if packed else images.codec]
        url = display_name(file.path)
        with errors_arrive_whole():
            if packed:
                images_bytes = [encode_image(each, "png") for each in file.decode_images(rows)]
            else:
                images_bytes = file.read_images(rows)
        for row, image in zip(rows, images_bytes, strict=True):
            yield {
                "__key__": file.image_name(row).removesuffix(f".{extension}"),
                "__url__": url,
                extension: image,
                "cls": b"%d" % index.label[row],
            }


def _distributed() -> tuple[int, int]:
    """Rank and number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
