"""Options of a ``HelloDataset``: what an item is, checked before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["AUTO_CACHE_BYTES", "AUTO_POOL_BYTES", "LabelKind", "Options"]

#: Bytes of decoded images that ``cache="auto"`` keeps.
AUTO_CACHE_BYTES: Final = 512 << 20

#: Bytes of labels that ``pool="auto"`` keeps.
AUTO_POOL_BYTES: Final = 2 << 30

LabelKind = Literal["soft", "logits", "hard", "none"]
_KINDS: Final = ("soft", "logits", "hard", "none")


def _is_room(value: object) -> bool:
    return value == "auto" or (isinstance(value, int) and value >= 0)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options as ``HelloDataset`` documents them.

    Attributes:
        labels: kind of label.
        temperature: T > 0, or None for the archive's.
        views: ``"manifest"``, or None for whole images.
        seed: 0 <= seed < 2**64.
        cache: bytes of decoded images, or ``"auto"``.
        pool: bytes of labels, or ``"auto"``.
        has_target_transform: whether labels are transformed.
        as_dict: keys of image and label, or None for pairs.
        is_stored: whether labels are read instead of made.
        has_label_function: whether a function makes labels in the place of the projector.

    Raises:
        UserInputError: E_OPTION, an option is out of range or excludes another one.
    """

    labels: LabelKind
    temperature: float | None
    views: Literal["manifest"] | None
    seed: int
    cache: int | Literal["auto"]
    pool: int | Literal["auto"]
    has_target_transform: bool
    as_dict: tuple[str, str] | None
    is_stored: bool
    has_label_function: bool

    def __post_init__(self) -> None:
        """Check every option, and those that exclude each other."""
        checks = [
            (self.labels in _KINDS, "labels", "'soft', 'logits', 'hard' or 'none'", self.labels),
            (self.views in ("manifest", None), "views", "'manifest' or None", self.views),
            (_is_room(self.cache), "cache", "'auto' or bytes >= 0", self.cache),
            (_is_room(self.pool), "pool", "'auto' or bytes >= 0", self.pool),
        ]
        for is_good, name, expected, value in checks:
            if not is_good:
                text = f"expected {expected}, got {printable(value)}"
                raise UserInputError.make("E_OPTION", text, argument=name)
        if self.labels == "none" and self.has_target_transform:
            text = "`target_transform` with labels='none'; expected labels to transform"
            raise UserInputError.make("E_OPTION", text)
        if self.as_dict is not None:
            self._check_keys(self.as_dict)
        if self.is_stored and self.labels != "soft":
            text = f"`stored` labels; expected labels='soft', got {self.labels!r}"
            raise UserInputError.make("E_OPTION", text)
        if self.has_label_function:
            if self.labels not in ("soft", "logits"):
                text = f"`label_function`; expected labels='soft' or 'logits', got {self.labels!r}"
                raise UserInputError.make("E_OPTION", text)
            if self.is_stored:
                text = "`label_function` and `stored`; expected one of them"
                raise UserInputError.make("E_OPTION", text)

    def _check_keys(self, keys: object) -> None:
        """Raise E_OPTION unless ``as_dict`` is two keys and items have a label for the second."""
        names = cast("Sequence[object]", keys) if isinstance(keys, (tuple, list)) else ()
        is_pair = (
            len(names) == 2
            and names[0] != names[1]
            and all(isinstance(name, str) for name in names)
        )
        if not is_pair or self.labels == "none":
            text = "`as_dict`; expected two keys, such as ('pixel_values', 'labels'), and labels"
            text += f" for the second, got {printable(repr(keys))} with labels={self.labels!r}"
            raise UserInputError.make("E_OPTION", text)

    def check_without_projector(self, belongs_to: str) -> None:
        """Check that an archive without a projector can give these labels.

        Args:
            belongs_to: id of the archive with the label function for its images, or empty.

        Raises:
            UserInputError: E_DATA, nothing makes soft labels or logits; E_OPTION, a label function
                makes them but nothing says their temperature.
        """
        if self.labels not in ("soft", "logits") or self.is_stored:
            return
        if not self.has_label_function:
            text = f"{self.labels} labels need a projector, which the archive lacks"
            text += f"; it is in archive {belongs_to}" if belongs_to else "; it has hard ones"
            advice = "`hello pack FILE --projector PROJECTOR` joins them" if belongs_to else ""
            raise UserInputError.make("E_DATA", text, advice=advice)
        if self.labels == "soft" and self.temperature is None:
            text = "the archive has no projector and so no temperature; expected a number > 0"
            raise UserInputError.make("E_OPTION", text, argument="temperature")

    @property
    def cache_bytes(self) -> int:
        """Bytes of decoded images to keep."""
        return AUTO_CACHE_BYTES if self.cache == "auto" else self.cache

    @property
    def pool_bytes(self) -> int:
        """Bytes of labels to keep."""
        return AUTO_POOL_BYTES if self.pool == "auto" else self.pool
