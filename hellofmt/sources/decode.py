"""The one way to 8-bit RGB, for every image that does not come from an archive.

One rule for each kind of awkward file, the same for every command and every source:

=========================  =======================================================================
broken, empty, cut short   unreadable: refused by name, or left out with ``--skip-unreadable``
more than 8 bits           unreadable: Pillow cuts 16-bit colours to their high byte and clips
                           16-bit grey to white without a word
not PNG, JPEG or WebP      unreadable, whatever its name says
PNG called ``.jpg``, ...   read by its content
grey, black and white      one channel becomes three equal ones
palette, CMYK              converted to RGB by Pillow
alpha                      dropped; the colours under it show
several frames             the first
EXIF orientation           ignored, as torchvision's ``ImageFolder`` and the readers of an archive
                           ignore it: pixels stay as they are stored
colour profile, gamma      ignored for the same reason
=========================  =======================================================================

Whatever is converted or ignored is counted by kind (``KINDS``), so that a command says each in a
line.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from hellofmt.archive.format.images import DECODE_ERRORS
from hellofmt.errors import UserInputError, printable
from hellofmt.sources.content import fact_of

if TYPE_CHECKING:
    from collections import Counter

    from numpy.typing import NDArray

ORIENTED: Final = "with an EXIF orientation: ignored, pixels stay as they are stored"
"""How an image is counted whose camera says that it lies on its side."""

_ALPHA: Final = "with an alpha channel: dropped, the colours under it show"
_PROFILE: Final = "with a colour profile other than sRGB: ignored, values stay as they are stored"
_FRAMES: Final = "with several frames: all but the first dropped"
_GREY: Final = "in grey: converted to RGB"
_OTHER: Final = "in another colour space: converted to RGB"
_MODES: Final = {
    "1": "in black and white: converted to RGB",
    "L": _GREY,
    "P": "with a palette: converted to RGB",
    "CMYK": "in CMYK: converted to RGB",
}
MISNAMED: Final = "of another type than their names say: read by content"
"""How an image is counted whose extension is that of another format."""

SHRUNK: Final = "with a side longer than asked for: shrunk to it"
"""How an image is counted that was resampled to be packed."""

KINDS: Final = (ORIENTED, _ALPHA, _PROFILE, _FRAMES, *_MODES.values(), _OTHER, MISNAMED, SHRUNK)
"""Everything that can be said of an image that was read."""

GREY: Final = frozenset({_GREY, _MODES["1"]})
"""How an image is counted that one channel holds."""

_ORIENTATION: Final = 0x0112
# What every encoder of sRGB writes, 1 / 2.2 in hundred-thousandths.
_GAMMA: Final = 0.45455
# Pillow's name of how pixels lie in the file; BMP's BGR;16 has five or six bits a channel.
_DEEP: Final = re.compile(r"(?:L|LA|RGB|RGBA|RGBX|CMYK|I);16.*")


def to_rgb(image: object, name: object, converted: Counter[str] | None = None) -> NDArray[np.uint8]:
    """Convert one image to 8-bit RGB, (H, W, 3), perhaps not writable, or refuse it.

    A PIL image, loaded or not, or a uint8 array (H, W), (H, W, 1) or (H, W, 3). An image that was
    loaded by somebody else no longer tells whether 16-bit colours were cut; pass the file to
    ``decode_rgb`` where there is one. ``converted`` counts the image under each thing that was
    changed.
    """
    if isinstance(image, Image.Image):
        rgb, kinds = convert(image, name)
        pixels = np.asarray(rgb)
    else:
        pixels, kinds = _from_array(image, name)
    if converted is not None:
        converted.update(kinds)
    return pixels


def open_image(data: bytes, name: object) -> Image.Image:
    """Open a PNG, JPEG or WebP file, by its content and not its name, without its pixels."""
    try:
        return Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
    except UnidentifiedImageError:
        # Its own text names a buffer of ours.
        fact = f"neither PNG nor JPEG nor WebP{fact_of(data)}"
        raise _unreadable(name, fact) from None
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise _unreadable(name, error) from error


def is_grey(converted: Counter[str]) -> bool:
    """Whether what was counted for one image is that it is grey, which loses nothing."""
    return not converted.keys().isdisjoint(GREY)


def convert(image: Image.Image, name: object) -> tuple[Image.Image, list[str]]:
    """A PIL image as 8-bit RGB, and what was changed; see ``to_rgb``."""
    # Depth first: once the pixels are loaded, Pillow has forgotten it.
    raw = [_raw_mode(tile) for tile in getattr(image, "tile", ())]
    deep = [mode for mode in raw if _DEEP.fullmatch(mode)]
    if image.mode.startswith(("I", "F")) or deep:
        shown = image.mode if image.mode.startswith(("I", "F")) else f"{image.mode} of 16 bits"
        raise UserInputError.make(
            "E_DATA", f"image `{printable(name)}` has mode {shown}; expected 8 bits per channel"
        )
    kinds: list[str] = []
    try:
        if getattr(image, "n_frames", 1) > 1:
            kinds.append(_FRAMES)
        image.load()
        if _orientation(image) not in (None, 1):
            kinds.append(ORIENTED)
        # Its description is in ASCII or in UTF-16.
        profile = image.info.get("icc_profile", b"").replace(b"\0", b"")
        if (profile and b"sRGB" not in profile) or image.info.get("gamma", _GAMMA) != _GAMMA:
            kinds.append(_PROFILE)
        if image.has_transparency_data:
            kinds.append(_ALPHA)
            # Straight to RGB, Pillow warns about palettes with transparency.
            image = image.convert("RGBA")
        elif image.mode != "RGB":
            kinds.append(_MODES.get(image.mode, _OTHER))
        # Of an image in RGB, Pillow would make a copy.
        return image if image.mode == "RGB" else image.convert("RGB"), kinds
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise _unreadable(name, error) from error


def _raw_mode(tile: Any) -> str:
    """How the pixels of a tile lie in the file, such as ``RGB;16B``."""
    arguments = tile[3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return str(cast("object", first))


def _orientation(image: Image.Image) -> object:
    """The EXIF orientation, or None; damaged EXIF data is none, since nothing of it is used."""
    try:
        return image.getexif().get(_ORIENTATION)
    except DECODE_ERRORS:
        return None


def _from_array(image: object, name: object) -> tuple[NDArray[np.uint8], list[str]]:
    """Pixels, and what was changed."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        pixels = cast("NDArray[np.uint8]", image)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if pixels.ndim == 3 and pixels.shape[2] in (1, 3) and pixels.size:
            kinds = [_GREY] if pixels.shape[2] == 1 else []
            return np.broadcast_to(pixels, (*pixels.shape[:2], 3)), kinds
    what = type(image).__name__
    if hasattr(image, "dtype") and hasattr(image, "shape"):
        array = cast("Any", image)
        what += f" {array.dtype} {tuple(array.shape)}"
    raise UserInputError.make(
        "E_DATA",
        f"image `{printable(name)}`: expected a PIL image or a uint8 array (H, W, 3), got"
        f" {printable(what)}",
    )


def _unreadable(name: object, reason: object) -> UserInputError:
    return UserInputError.make(
        "E_DATA", f"cannot read image `{printable(name)}`: {printable(reason)}"
    )
