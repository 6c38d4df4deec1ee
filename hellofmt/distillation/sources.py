"""Sources: the real images that a data set is distilled from, as plain arrays.

Teacher, fit and selection all read the same object: uint8 pixels of one shape, labels, class lines.
Arrays rather than a lazy dataset, because every stage visits every image many times and the sets
this runs on by itself fit in memory; larger ones are the business of a fit over shards. An image
folder follows ``torchvision.datasets.ImageFolder``: class folders in sorted order are labels 0, 1,
2, ... Nothing is skipped: an unreadable file or an empty class stops with its name, since a data
set that silently lost images looks exactly like a method that works badly. What is changed on the
way (grey made RGB, an alpha channel dropped) is counted and said.

WebDataset shards are listed with the standard library and read undecoded: webdataset's own
``.decode()`` unpickles, and its reader skips what it cannot read.
"""

from __future__ import annotations

import inspect
import io
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import torchvision
from PIL import Image, UnidentifiedImageError

from hellofmt import rng
from hellofmt.archive import ClassLine
from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "IMAGE_EXTENSIONS",
    "ArrayImages",
    "digits",
    "read_image_folder",
    "read_shards",
    "read_source",
    "read_torchvision",
    "stratified_split",
]

IMAGE_EXTENSIONS: Final = frozenset({".png", ".jpg", ".jpeg", ".webp"})
"""File names that count as images in a folder, lower case; other files are refused."""

_TORCHVISION: Final = "torchvision:"
_LABEL_DIGITS: Final = 6
_DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory.

    Attributes:
        pixels: uint8 (N, H, W, 3), RGB.
        labels: int64 (N,), each in [0, number of classes).
        classes: one line per class, in label order.
        name: of the data set, for the manifest.
        notes: what was changed while reading, one sentence each.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[ClassLine, ...]
    name: str = "images"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check shapes, label range and that no class is empty.

        Raises:
            UserInputError: E_DATA, with what is wrong and what was expected.
        """
        if self.pixels.ndim != 4 or self.pixels.shape[3] != 3 or self.pixels.dtype != np.uint8:
            raise UserInputError.make(
                "E_DATA",
                "pixels: expected uint8 (N, H, W, 3),"
                f" got {self.pixels.dtype} {tuple(self.pixels.shape)}",
            )
        if self.labels.shape != (len(self.pixels),) or self.labels.dtype != np.int64:
            raise UserInputError.make(
                "E_DATA",
                f"labels: expected int64 ({len(self.pixels)},),"
                f" got {self.labels.dtype} {tuple(self.labels.shape)}",
            )
        count = len(self.classes)
        if count < 2:
            raise UserInputError.make(
                "E_DATA", f"a data set needs at least two classes; got {count}"
            )
        if self.labels.size and not 0 <= self.labels.min() <= self.labels.max() < count:
            raise UserInputError.make(
                "E_DATA",
                f"labels: expected 0 to {count - 1},"
                f" got {self.labels.min()} to {self.labels.max()}",
            )
        empty = np.flatnonzero(np.bincount(self.labels, minlength=count) == 0)
        if empty.size:
            raise UserInputError.make(
                "E_DATA", f"class `{printable(self.classes[int(empty[0])].key)}` has no images"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def subset(self, rows: NDArray[np.int64]) -> ArrayImages:
        """The images of these rows, in this order, with the same classes.

        Raises:
            UserInputError: a class would be empty (E_DATA).
        """
        return ArrayImages(self.pixels[rows], self.labels[rows], self.classes, self.name)


def stratified_split(
    labels: NDArray[np.int64], held_out: int, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows so that every class keeps its share: ``(rest, held out)``, both ascending.

    Each class gives ``held_out * its share`` rows, rounded by largest remainder (ties to the lower
    class), chosen by the counter generator.

    Args:
        labels: int64 (N,).
        held_out: rows of the second part, 0 <= held_out <= N.
        seed: of the choice.

    Returns:
        Two int64 arrays of rows.

    Raises:
        ValueError: ``held_out`` is out of range.
    """
    n = len(labels)
    if not 0 <= held_out <= n:
        raise ValueError(f"held_out: expected 0 to {n}, got {held_out}")
    counts = np.bincount(labels)
    # Integers only: the split is part of every published number and may not hang on a rounding.
    quota, remainder = np.divmod(counts * held_out, max(n, 1))
    short = held_out - int(quota.sum())
    quota[np.argsort(-remainder, kind="stable")[:short]] += 1
    keys = rng.words(seed, 0, rng.Stream.SELECTION, 0, n)
    chosen: list[NDArray[np.int64]] = []
    for label, take in enumerate(quota):
        rows = np.flatnonzero(labels == label)
        chosen.append(rows[np.argsort(keys[rows], kind="stable")[:take]])
    out = np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(n), out).astype(np.int64), out.astype(np.int64)


def digits(size: int = 16) -> ArrayImages:
    """scikit-learn's digits: 1,797 handwritten digits of 43 people, 8 x 8, resized bilinearly.

    Real scans (UCI "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak, 1998; CC BY
    4.0) that come with scikit-learn, so nothing is downloaded. Values 0..16 become 0..255.

    Args:
        size: side in pixels, >= 8.

    Returns:
        The images, grey as three equal channels, classes ``0`` to ``9``.

    Raises:
        UserInputError: scikit-learn is not installed (E_OPTION).
    """
    try:
        # Only the demo needs it, and only its extra installs it.
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserInputError.make(
            "E_OPTION", "the digits come with scikit-learn; `pip install 'hellofmt[demo]'`"
        ) from None
    data: Any = load_digits()
    grey = np.round(np.asarray(data["images"], np.float64) * (255.0 / 16.0)).astype(np.uint8)
    scaled = [
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        for image in grey
    ]
    pixels = np.repeat(np.stack(scaled)[..., None], 3, axis=3)
    classes = tuple(ClassLine(str(i), (_DIGIT_NAMES[i],)) for i in range(10))
    return ArrayImages(pixels, np.asarray(data["target"], np.int64), classes, "digits")


@dataclass
class _Reader:
    """Decodes images to RGB squares and counts what it had to change."""

    size: int | None
    images: list[NDArray[np.uint8]]
    converted: Counter[str]

    def add(self, source: Path | io.BytesIO, name: object) -> None:
        """Decode one file."""
        try:
            with Image.open(source, formats=("PNG", "JPEG", "WEBP")) as image:
                # Pillow drops the low byte of 16-bit colours and says so nowhere else.
                is_deep = any("16" in str(tile.args) for tile in image.tile)
                if is_deep and not image.mode.startswith("I"):
                    _refuse_depth(f"{image.mode} of 16 bits", name)
                image.load()
                self.add_image(image, name)
        except (
            UnidentifiedImageError,
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
        ) as error:
            if isinstance(error, UserInputError):
                raise
            raise UserInputError.make(
                "E_DATA", f"cannot read image `{printable(name)}`: {printable(error)}"
            ) from error

    def add_image(self, image: Image.Image, name: object) -> None:
        """Convert one decoded image.

        Raises:
            UserInputError: more than 8 bits a channel, or another shape without a size (E_DATA).
        """
        if image.mode.startswith(("I", "F")):
            _refuse_depth(image.mode, name)
        has_alpha = "A" in image.mode or "transparency" in image.info
        if image.mode != "RGB" or has_alpha:
            kind = "with an alpha channel" if has_alpha else _MODES.get(image.mode, image.mode)
            self.converted[kind] += 1
        pixels = _square(image.convert("RGB"), self.size)
        if self.images and pixels.shape != self.images[0].shape:
            first = self.images[0].shape
            raise UserInputError.make(
                "E_DATA",
                f"`{printable(name)}` is {pixels.shape[1]} x {pixels.shape[0]} pixels, others are"
                f" {first[1]} x {first[0]}; pass a `size`",
            )
        self.images.append(pixels)

    def notes(self) -> tuple[str, ...]:
        """What was changed."""
        return tuple(
            f"{number:,} of {len(self.images):,} images {kind}: converted to RGB"
            for kind, number in sorted(self.converted.items())
        )


def _refuse_depth(mode: str, name: object) -> NoReturn:
    raise UserInputError.make(
        "E_DATA", f"image `{printable(name)}` has mode {mode}; expected 8 bits per channel"
    )


_MODES = {"L": "in grey", "1": "in black and white", "P": "with a palette", "CMYK": "in CMYK"}


def _square(rgb: Image.Image, size: int | None) -> NDArray[np.uint8]:
    """Pixels; with ``size``, the shorter side resized to it and the centre cropped."""
    if size is not None and rgb.size != (size, size):
        scale = size / min(rgb.size)
        width, height = (max(size, round(side * scale)) for side in rgb.size)
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        rgb = rgb.crop((left, top, left + size, top + size))
    return np.asarray(rgb)


def read_image_folder(
    path: str | os.PathLike[str],
    size: int | None = None,
    *,
    classes: Sequence[str] | Sequence[ClassLine] | None = None,
) -> ArrayImages:
    """Images of a folder with one sub-folder per class, by ``ImageFolder``'s rule.

    Args:
        path: folder of class folders; hidden entries are ignored.
        size: side in pixels that every image is resized and cropped to (bilinear, antialiased,
            centre); None needs images of one shape.
        classes: folder names, or class lines whose keys they are, in label order; None sorts.

    Returns:
        The images, sorted by class and then by file name.

    Raises:
        FileNotFoundError: the folder does not exist.
        NotADirectoryError: it is not a folder.
        UserInputError: E_DATA: no class folder, one class, an empty class, a file that is not an
            image, an unreadable image, unequal shapes without ``size``, or other classes than
            expected.
    """
    root = Path(path)
    found = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise UserInputError.make(
            "E_DATA", f"`{printable(root)}` has no class folders; expected one folder per class"
        )
    lines = _lines(found if classes is None else classes)
    names = [line.key for line in lines]
    if sorted(names) != found:
        odd = sorted(set(names) ^ set(found))[0]
        raise UserInputError.make(
            "E_DATA",
            f"classes of `{printable(root)}` differ from the data set's,"
            f" first in `{printable(odd)}`; expected {len(names)} classes, got {len(found)}",
        )
    reader = _Reader(size, [], Counter())
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(p for p in (root / name).iterdir() if not p.name.startswith("."))
        if not files:
            raise UserInputError.make("E_DATA", f"class `{printable(name)}` has no images")
        for file in files:
            if file.suffix.lower() not in IMAGE_EXTENSIONS:
                raise UserInputError.make(
                    "E_DATA",
                    f"`{printable(file)}` is not an image;"
                    f" expected {', '.join(sorted(IMAGE_EXTENSIONS))}",
                )
            reader.add(file, file)
            labels.append(label)
    return _array_images(reader, labels, lines, root.resolve().name)


def _lines(classes: Sequence[str] | Sequence[ClassLine]) -> tuple[ClassLine, ...]:
    return tuple(c if isinstance(c, ClassLine) else ClassLine(c, (c,)) for c in classes)


def _array_images(
    reader: _Reader, labels: list[int], lines: tuple[ClassLine, ...], name: str
) -> ArrayImages:
    pixels = np.stack(reader.images)
    return ArrayImages(pixels, np.array(labels, np.int64), lines, name, reader.notes())


def read_shards(
    paths: Sequence[str | os.PathLike[str]],
    size: int | None = None,
    *,
    classes: Sequence[ClassLine] | None = None,
) -> ArrayImages:
    """Images of WebDataset shards: ``KEY.png`` (or jpg, jpeg, webp) and ``KEY.cls``, a number.

    Args:
        paths: uncompressed tar files, in order.
        size: as for ``read_image_folder``.
        classes: class lines in label order; None numbers them up to the largest label.

    Returns:
        The images, in the order of the shards. Other members of a sample are not read.

    Raises:
        OSError: a shard cannot be read.
        UserInputError: E_DATA: not a tar file, a sample without its image or label, a label that is
            no class, an unreadable image, an empty class, or fewer than two classes.
    """
    reader = _Reader(size, [], Counter())
    labels: list[int] = []
    for path in paths:
        sample: dict[str, bytes] = {}
        current = ""
        for name, data in _shard_members(Path(path)):
            folder, _, base = name.rpartition("/")
            key, _, extension = base.partition(".")
            if f"{folder}/{key}" != current:
                _add_sample(reader, labels, sample, f"{path}:{current}")
                current, sample = f"{folder}/{key}", {}
            sample[f".{extension.lower()}"] = data
        _add_sample(reader, labels, sample, f"{path}:{current}")
    if not labels:
        raise UserInputError.make(
            "E_DATA", f"`{printable(paths[0])}` has no samples of an image and a `.cls`"
        )
    if classes is not None and max(labels) >= len(classes):
        raise UserInputError.make(
            "E_DATA", f"label {max(labels)} of a shard; expected less than {len(classes)}"
        )
    names = [str(number) for number in range(max(labels) + 1)]
    lines = _lines(names if classes is None else classes)
    return _array_images(reader, labels, lines, Path(paths[0]).name.split(".")[0])


def _shard_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the images and labels of a shard; a cut or damaged one is an error."""
    wanted = IMAGE_EXTENSIONS | {".cls"}
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                size = info.size if info.isreg() else 0
                end = info.offset_data + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                suffix = "." + PurePosixPath(info.name).name.partition(".")[2].lower()
                stream = tar.extractfile(info) if info.isreg() and suffix in wanted else None
                if stream is not None:
                    yield info.name, stream.read()
    except (tarfile.TarError, EOFError) as error:
        raise UserInputError.make(
            "E_DATA", f"`{printable(path)}` is not a whole tar file: {printable(error)}"
        ) from error
    # tarfile stops silently at a damaged header; a real end is zeros to the last byte.
    with path.open("rb") as stream:
        stream.seek(end)
        tail = stream.read()
    if not tail or tail.count(0) != len(tail):
        raise UserInputError.make(
            "E_DATA", f"`{printable(path)}` is not a whole tar file: its end is not zeros"
        )


def _add_sample(reader: _Reader, labels: list[int], sample: dict[str, bytes], where: str) -> None:
    if not sample:
        return
    images = sorted(set(sample) & IMAGE_EXTENSIONS)
    text = sample.get(".cls", b"").strip()
    if len(images) != 1 or not (text.isdigit() and len(text) <= _LABEL_DIGITS):
        raise UserInputError.make(
            "E_DATA",
            f"sample `{printable(where)}`: expected one image and a `.cls` with a number,"
            f" got {', '.join(sorted(sample))}",
        )
    reader.add(io.BytesIO(sample[images[0]]), where + images[0])
    labels.append(int(text))


def read_torchvision(
    text: str, size: int | None = None, *, classes: Sequence[ClassLine] | None = None
) -> ArrayImages:
    """A torchvision data set that is on disk already: ``NAME:ROOT``, or ``NAME:ROOT:SPLIT``.

    Nothing is downloaded. Some of its data sets (CIFAR) come as pickles, which torchvision
    reads after checking their published digest.

    Args:
        text: such as ``CIFAR10:data``, ``STL10:data:test``; the training split if none is named.
        size: as for ``read_image_folder``.
        classes: instead of the data set's own names.

    Returns:
        The images.

    Raises:
        UserInputError: unknown name (E_OPTION), not on disk, or no images with one class each
            (E_DATA).
    """
    name, _, rest = text.partition(":")
    root, _, split = rest.partition(":")
    kind: Any = getattr(torchvision.datasets, name, None)
    if not (isinstance(kind, type) and issubclass(kind, torchvision.datasets.VisionDataset)):
        raise UserInputError.make(
            "E_OPTION",
            f"torchvision has no data set `{printable(name)}`; expected `torchvision:NAME:ROOT`",
        )
    known = inspect.signature(kind).parameters
    kwargs: dict[str, Any] = {}
    if "train" in known:
        kwargs["train"] = split != "test"
    elif "split" in known:
        kwargs["split"] = split or "train"
    try:
        dataset: Any = kind(root, **kwargs)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserInputError.make(
            "E_DATA", f"cannot read torchvision's `{name}`: {printable(error)}"
        ) from error
    reader = _Reader(size, [], Counter())
    labels: list[int] = []
    try:
        for number in range(len(dataset)):
            image, label = dataset[number]
            reader.add_image(image, f"{name} image {number}")
            labels.append(int(label))
    except (TypeError, AttributeError) as error:
        raise UserInputError.make(
            "E_DATA",
            f"torchvision's `{name}` does not give images with one class each: {printable(error)}",
        ) from error
    own = getattr(dataset, "classes", None) or [str(n) for n in range(max(labels) + 1)]
    lines = _lines([str(key) for key in own] if classes is None else classes)
    return _array_images(reader, labels, lines, name.lower())


def read_source(
    paths: str | Sequence[str],
    size: int | None = None,
    *,
    classes: Sequence[ClassLine] | None = None,
) -> ArrayImages:
    """Real images by what a user types.

    Args:
        paths: a folder of class folders, WebDataset shards (``.tar``), or
            ``torchvision:NAME:ROOT[:SPLIT]``.
        size: side in pixels that every image is resized and cropped to; None needs one shape.
        classes: class lines in label order.

    Returns:
        The images.

    Raises:
        UserInputError: see ``read_image_folder``, ``read_shards`` and ``read_torchvision``.
        OSError: a source is missing or cannot be read.
    """
    texts = [paths] if isinstance(paths, str) else list(paths)
    if len(texts) == 1 and texts[0].startswith(_TORCHVISION):
        return read_torchvision(texts[0].removeprefix(_TORCHVISION), size, classes=classes)
    if texts and all(Path(text).suffix == ".tar" for text in texts):
        return read_shards(texts, size, classes=classes)
    if len(texts) != 1:
        raise UserInputError.make("E_DATA", "several sources; expected one folder, or .tar shards")
    return read_image_folder(texts[0], size, classes=classes)
