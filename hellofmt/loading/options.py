"""Options of a ``HelloDataset``: what an item is, checked before anything is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, cast

from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

LabelKind = Literal["soft", "logits", "hard", "none"]
_KINDS: Final = ("soft", "logits", "hard", "none")


def _refuse_unless(is_good: bool, argument: str, expected: str, value: object) -> None:
    if not is_good:
        text = f"expected {expected}, got {printable(value)}"
        raise UserInputError.make("E_OPTION", text, argument=argument)


def bytes_of(value: int | Literal["auto"], argument: str, auto: int) -> int:
    """A number of bytes to keep; ``auto`` where the caller says ``"auto"``.

    Raises:
        UserInputError: E_OPTION, it is neither.
    """
    if value == "auto":
        return auto
    is_good = isinstance(cast("object", value), int) and value >= 0
    _refuse_unless(is_good, argument, "'auto' or bytes >= 0", value)
    return value


def check_options(
    *,
    labels: LabelKind,
    views: Literal["manifest"] | None,
    has_target_transform: bool,
    as_dict: tuple[str, str] | None,
    is_stored: bool,
    has_label_function: bool,
) -> None:
    """Check options of ``HelloDataset``, and those that exclude each other.

    Raises:
        UserInputError: E_OPTION, an option is out of range or excludes another one.
    """
    _refuse_unless(labels in _KINDS, "labels", "'soft', 'logits', 'hard' or 'none'", labels)
    _refuse_unless(views in ("manifest", None), "views", "'manifest' or None", views)
    text = None
    if labels == "none" and has_target_transform:
        text = "`target_transform` with labels='none'; expected labels to transform"
    elif is_stored and has_label_function:
        text = "`label_function` and `stored`; expected one of them"
    elif is_stored and labels != "soft":
        text = f"`stored` labels; expected labels='soft', got {labels!r}"
    elif has_label_function and labels not in ("soft", "logits"):
        text = f"`label_function`; expected labels='soft' or 'logits', got {labels!r}"
    elif as_dict is not None and (labels == "none" or not _is_pair(as_dict)):
        text = "`as_dict`; expected two keys, such as ('pixel_values', 'labels'), and labels"
        text += f" for the second, got {printable(repr(as_dict))} with labels={labels!r}"
    if text is not None:
        raise UserInputError.make("E_OPTION", text)


def _is_pair(keys: object) -> bool:
    names = cast("Sequence[object]", keys) if isinstance(keys, (tuple, list)) else ()
    return all(isinstance(name, str) for name in names) and len(names) == len(set(names)) == 2


def check_without_projector(labels: LabelKind, belongs_to: str) -> None:
    """Refuse labels that an archive without a projector cannot give by itself.

    Args:
        labels: kind of label.
        belongs_to: id of the archive with the label function for its images, or empty.

    Raises:
        UserInputError: E_DATA, nothing makes soft labels or logits.
    """
    if labels in ("soft", "logits"):
        text = f"{labels} labels need a projector, which the archive lacks"
        text += f"; it is in archive {belongs_to}" if belongs_to else "; it has hard ones"
        advice = "`hello pack FILE --projector PROJECTOR` joins them" if belongs_to else ""
        raise UserInputError.make("E_DATA", text, advice=advice)
