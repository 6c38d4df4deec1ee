"""The interface that a file and a sharded set share: images by row, verified before use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from hellofmt.archive.format.classes import Classes
from hellofmt.archive.format.manifest import UNSET, Images, Manifest
from hellofmt.archive.format.record import Record, parse_record
from hellofmt.archive.read.checks import check_dimensions
from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from hellofmt.archive.format.classes import Classes
    from hellofmt.archive.format.index import Index
    from hellofmt.archive.format.limits import Limits
    from hellofmt.archive.storage.cache import DigestCache
    from hellofmt.archive.storage.source import Source


class Archive(ABC):
    """An open archive, one file or a set of shards: read-only, usable from threads and workers.

    Attributes:
        path: the path or URL that opened it.
        id: ``sha256:...``, which fixes every byte.
        manifest: the archive's description of itself.
        extras: free text under ``x_`` keys, never interpreted.
        limits: limits it was opened with.
        size_bytes: length of the file, or of all files.
        storage_options: options that were passed to the storage of a URL.
        cache: the cache of bytes from a network; None for a local file or without a cache.
    """

    path: str
    id: str
    manifest: Manifest
    extras: Mapping[str, str]
    limits: Limits
    size_bytes: int
    storage_options: Mapping[str, Any]
    cache: DigestCache | None

    @property
    def shards(self) -> Sequence[Archive]:
        """The files of a sharded set in order; a single file, shard or not, returns itself."""
        return [self]

    @property
    @abstractmethod
    def content_id(self) -> str:
        """Identity of the content, equal for files that differ only in compression; never a pin."""

    @property
    @abstractmethod
    def classes(self) -> Classes:
        """The classes in label order; read and verified at first use.

        Raises:
            CorruptError: the section changed since it was written.
            SpecError: its lines are invalid (E_CLASSES).
        """

    @property
    def record(self) -> Record | None:
        """How the archive was made, in its maker's words; None where that is not recorded.

        Raises:
            CorruptError: the section changed since it was written.
            SpecError: it is not a record (E_JSON, E_SCHEMA).
        """
        if not self.has_section("record"):
            return None
        return parse_record(self.section("record"), newer=self.manifest.is_newer)

    @property
    @abstractmethod
    def index(self) -> Index | None:
        """The index of images; None without images; read and verified at first use.

        Raises:
            CorruptError: the section changed since it was written.
            SpecError: its tensors or rows are invalid (E_TENSOR, E_INDEX).
            LimitError: an image is above the limits.
        """

    @abstractmethod
    def has_section(self, name: str) -> bool:
        """Tell whether the archive has a section called ``name``."""

    @abstractmethod
    def section_sizes(self) -> dict[str, int]:
        """Return stored bytes per section, in file order, without headers and padding."""

    @abstractmethod
    def section(self, name: str) -> bytes:
        """Return the raw bytes of a section, after checking digest, compression and content.

        Raises:
            CorruptError: it changed (E_DIGEST_INDEX), or its frame is damaged (E_ZSTD).
            SpecError: the format forbids its content (E_TENSOR, E_CLASSES, E_SCHEMA).
            UserInputError: there is no such section (E_OPTION).
        """

    @abstractmethod
    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the tensors of a section by name; BF16 as float32, which is exact.

        Arrays may be read-only.

        Raises:
            HelloError: as ``section``; the section has no tensors (E_OPTION).
        """

    @abstractmethod
    def image_name(self, row: int) -> str:
        """Return ``images/<label>/<number>.<extension>``, the name of an image, packed or not.

        Raises:
            UserInputError: no such row (E_OPTION).
        """

    @abstractmethod
    def read_images(self, rows: Sequence[int], *, exact: bool = False) -> list[bytes]:
        """Read the stored bytes of many images, in any order, neighbours at once.

        ``exact`` reads nothing between them, even where that would save a request.

        Raises:
            HelloError: as ``read_image``, for the first row that fails.
        """

    @abstractmethod
    def check_image(self, row: int, block: bytes) -> bytes:
        """Verify header, digest and padding of an image and return the stored bytes.

        ``block`` is the whole member; of a packed archive the pixels of the row.

        Raises:
            HelloError: as ``read_image``, except for reading.
        """

    @abstractmethod
    def close(self) -> None:
        """Close every file; reading afterwards is a ``HelloIOError``."""

    # What follows is about the bytes of one file: a set has it in each of its ``shards``.

    @property
    def source(self) -> Source:
        """The source of the bytes."""
        raise self._one_per_shard("source")

    @property
    def manifest_bytes(self) -> bytes:
        """The stored manifest, including keys of newer versions that this reader ignores."""
        raise self._one_per_shard("stored manifest")

    @property
    def pixels_start(self) -> int:
        """Byte offset of the first pixel of a packed archive.

        Raises:
            UserInputError: the archive is not packed, or a set (E_OPTION).
            SpecError: the section's header is not the one that the manifest implies (E_TENSOR).
        """
        raise self._one_per_shard("offset of the pixels")

    @property
    def images_end(self) -> int:
        """Byte offset of the end of the last image."""
        raise self._one_per_shard("offset of the end")

    def section_offset(self, name: str) -> int:
        """Return the byte offset of a section's payload.

        Raises:
            UserInputError: there is no such section, or the archive is a set (E_OPTION).
        """
        raise self._one_per_shard(f"offset of `{name}`")

    def checked(
        self,
        blocks: list[bytes],
        ranges: list[tuple[int, int]],
        check: Callable[[list[bytes]], bytes],
    ) -> bytes:
        """Return ``check(blocks)``; remote bytes that it refuses are fetched once more.

        ``blocks`` are the bytes of ``ranges``, (offset, length) pairs; ``check`` returns the
        verified bytes or raises a ``CorruptError`` or ``SpecError``.

        Raises:
            HelloError: ``check`` refused the bytes.
            HelloIOError: the server shows that the file was replaced (E_READ); or reading failed.
        """
        raise self._one_per_shard("range of bytes")

    def _one_per_shard(self, what: str) -> UserInputError:
        text = f"{printable(what)}: each shard of a set has its own; open one"
        return UserInputError.make("E_OPTION", text)

    def __len__(self) -> int:
        """Return the number of images."""
        return 0 if self.manifest.images is UNSET else self.manifest.images.count

    def row_of(self, row: int) -> tuple[Images, Index]:
        """Return the manifest's entry for the images and the index.

        Raises:
            UserInputError: there are no images, or no such row (E_OPTION).
        """
        images, index = self.manifest.images, self.index
        if images is UNSET or index is None:
            raise UserInputError.make("E_OPTION", "the archive has no images")
        if not 0 <= row < images.count:
            text = f"row; expected 0 to {images.count - 1}, got {row}"
            raise UserInputError.make("E_OPTION", text)
        return images, index

    def read_image(self, row: int) -> bytes:
        """Read the stored bytes of an image and verify header, digest and padding.

        Of a packed archive they are its pixels, row by row.

        Raises:
            CorruptError: the image changed (E_DIGEST_MEMBER, E_PADDING).
            SpecError: its header is wrong (E_HEADER).
            HelloIOError: reading failed.
            UserInputError: there is no such row (E_OPTION).
        """
        return self.read_images([row])[0]

    def plain_images(self, rows: Sequence[int]) -> list[bytes]:
        """Read images as files that any viewer opens: the stored bytes, or PNG of packed pixels.

        Raises:
            HelloError: as ``read_image``.
        """
        images, files = self.manifest.images, self.read_images(rows)
        if images is UNSET or images.shape is UNSET:
            return files
        import numpy as np

        from hellofmt.archive.format.images import encode_image

        shape = images.shape
        return [encode_image(np.frombuffer(file, np.uint8).reshape(shape), "png") for file in files]

    def decode_image(self, row: int) -> NDArray[np.uint8]:
        """Verify and decode an image: uint8 (H, W, 3) RGB; grey is replicated.

        Raises:
            HelloError: as ``read_image``.
            CorruptError: it cannot be decoded (E_IMAGE).
            SpecError: it is outside the codec's profile, or its dimensions differ from the index.
        """
        return self.decode_images([row])[0]

    def decode_images(self, rows: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Decode many images, reading neighbours at once; see ``decode_image``."""
        files = self.read_images(rows)
        return [self.decode_bytes(int(row), data) for row, data in zip(rows, files, strict=True)]

    def decode_bytes(self, row: int, data: bytes) -> NDArray[np.uint8]:
        """Decode the bytes of an image that ``read_image`` has read and so verified.

        Raises:
            HelloError: as ``decode_image``, except for reading.
        """
        import numpy as np

        from hellofmt.archive.format.images import decode_parsed, parse_image

        images, index = self.row_of(row)
        name = self.image_name(row)
        if images.shape is not UNSET:
            pixels = np.frombuffer(data, np.uint8).reshape(images.shape)
        else:
            shape = parse_image(data, images.codec, member=name)
            # The index is within the limits.
            check_dimensions(shape, int(index.height[row]), int(index.width[row]), name)
            pixels = decode_parsed(data, images.codec, shape, member=name)
        return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
