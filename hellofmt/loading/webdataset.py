"""Verified samples for webdataset pipelines: the same as from its own tar reader, but checked.

webdataset reads a ``.hello`` archive as the tar it is, but verifies nothing, skips what it cannot
read, and its ``.decode()`` runs pickles. Here the same samples come from our reader: every byte is
checked against its digest, a fault is an error and never a skipped sample, and a sample holds
nothing but one image and its class. webdataset itself is not imported.

Rows are dealt out like cards, not cut into blocks: they are sorted by class, so a worker with a
block of them would see few classes. Shuffling is left to the pipeline (``webdataset.shuffle``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from torch.utils.data import IterableDataset, get_worker_info

from hellofmt.archive.format.layout import EXTENSIONS
from hellofmt.archive.format.manifest import UNSET
from hellofmt.archive.read.archive import Archive
from hellofmt.archive.storage.source import display_name
from hellofmt.errors import UserInputError
from hellofmt.loading.division import divider_of
from hellofmt.loading.source import opened
from hellofmt.loading.worker_errors import errors_arrive_whole
from hellofmt.runs.ranks import InheritedPlace, Place

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

# Images read at once: over a network one request per run of neighbours instead of one per image.
_BATCH_ROWS: Final = 64


def webdataset_samples(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Archive,
    *,
    expect: str | None = None,
    rank: int | None = None,
    num_replicas: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> WebdatasetSamples:
    """Read the images of an archive as webdataset samples, each verified when it is read.

    A sample is ``{"__key__": "images/0003/000042", "__url__": ..., "jpg": bytes, "cls": b"3"}``
    with ``png``, ``jpg`` or ``webp`` for the image; images of a packed archive come as PNG. The
    class is bytes, as in every undecoded sample, because webdataset's ``decode`` takes nothing else
    and makes it an int; without ``decode``, ``int(sample["cls"])`` does. Every pass
    gives each row once over all ranks and all workers of their loaders; the parts of two of them
    differ by at most one sample. A loader that Accelerate prepared gets all rows in each process,
    and divides them by itself.

    Args:
        source: archive, URL, files of a sharded set or their pattern, see ``hellofmt.open``.
        expect: ``id`` that the archive must have.
        rank: number of this process among ``num_replicas``; by default torch.distributed's when a
            pass begins.
        num_replicas: number of processes that share the rows.
        storage_options: options of a URL's storage.
        cache_dir: folder that keeps what came from a URL.

    Returns:
        An iterable dataset: the first stage of a ``webdataset.DataPipeline``, or for a DataLoader.

    Raises:
        OSError: the archive is missing or cannot be opened.
        HelloError: the archive is refused, see ``hellofmt.open``.
        UserInputError: E_DATA, the archive has no images; E_OPTION, the rank is out of range, or
            ``source`` is of a wrong kind.

    Example:
        >>> import hellofmt, webdataset
        >>> pipeline = webdataset.DataPipeline(
        ...     hellofmt.webdataset_samples("photos.hello"),
        ...     webdataset.decode("pil"),
        ...     webdataset.to_tuple("png", "cls"),
        ... )
        >>> image, label = next(iter(pipeline))
        >>> image.size, label
        ((16, 16), 0)
    """
    source = opened(source, expect, storage_options, cache_dir)
    return WebdatasetSamples(source, rank=rank, num_replicas=num_replicas)


class WebdatasetSamples(IterableDataset[dict[str, Any]]):
    """The samples of an open archive; see ``webdataset_samples``."""

    def __init__(
        self, file: Archive, *, rank: int | None = None, num_replicas: int | None = None
    ) -> None:
        """Take an open archive; see ``webdataset_samples``."""
        if not isinstance(cast("object", file), Archive):
            text = f"`file`; expected an open archive, got {type(file).__name__}"
            raise UserInputError.make("E_OPTION", text + ": pass it to webdataset_samples")
        if file.manifest.images is UNSET:
            raise UserInputError.make("E_DATA", "the archive has no images; expected images")
        if (rank is None) != (num_replicas is None) or not 0 <= (rank or 0) < (num_replicas or 1):
            raise UserInputError.make(
                "E_OPTION",
                "`rank`, `num_replicas`; expected 0 <= rank < num_replicas or neither, "
                f"got {rank}, {num_replicas}",
            )
        self.file = file
        self._fixed: Place | None = None
        if rank is not None and num_replicas is not None:
            self._fixed = Place(rank, num_replicas)
        self._inherited = InheritedPlace()

    def _place(self) -> Place:
        """Return whose rows are served here: all of them if Accelerate divides them afterwards."""
        if divider_of(self) is not None:
            if self._fixed is not None and self._fixed.world > 1:
                text = "`num_replicas` of samples that Accelerate divides; expected none, got"
                raise UserInputError.make("E_OPTION", f"{text} {self._fixed.world}")
            return Place(0, 1)
        if self._fixed is not None:
            return self._fixed
        return self._inherited.current()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the samples of this rank and worker, in the order of the archive."""
        place = self._place()
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        rows = range(place.rank * workers + worker, len(self.file), place.world * workers)
        for start in range(0, len(rows), _BATCH_ROWS):
            yield from self._samples(rows[start : start + _BATCH_ROWS])

    def _samples(self, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield the samples of some rows, read at once."""
        file, index = self.file, self.file.index
        images = file.manifest.images
        if images is UNSET or index is None:
            return
        packed = images.layout == "packed"
        extension = EXTENSIONS["png" if packed else images.codec]
        url = display_name(file.path)
        with errors_arrive_whole():
            images_bytes = file.plain_images(rows)
        for row, image in zip(rows, images_bytes, strict=True):
            yield {
                "__key__": file.image_name(row).removesuffix(f".{extension}"),
                "__url__": url,
                extension: image,
                "cls": b"%d" % index.label[row],
            }
