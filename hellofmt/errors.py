"""Every error of hellofmt, with the exit code that the command line gives for it.

Each class takes exactly one string. A ``DataLoader`` rebuilds a worker's exception as
``type(error)(message)``, so a class with two arguments would arrive in the main process as a bare
``RuntimeError``; one string survives every process boundary, and ``code``, ``member`` and
``offset`` are read back from it. Messages have one form::

    E_DIGEST_MEMBER member=images/0000/000123.png offset=4096: digest differs; expected ab, got cd

The exit codes are a contract (``spec/hello-1.md``, "Exit codes"): no option turns 4, 5 or 7 into 0.
"""

from __future__ import annotations

import re
from typing import ClassVar, Self

__all__ = [
    "BaseModelError",
    "CorruptError",
    "HelloError",
    "HelloIOError",
    "LimitError",
    "NotHelloError",
    "SpecError",
    "StateError",
    "TrustError",
    "UserInputError",
    "printable",
]

_FORM = re.compile(
    r"(?P<code>E_[A-Z0-9_]+)(?: member=(?P<member>[^ :]+))?(?: offset=(?P<offset>[0-9]+))?(?:: |$)"
)

# A DataLoader puts its worker's traceback in front; the message follows the class's name.
_AFTER_TRACEBACK = re.compile(r"(?<=: )" + _FORM.pattern)


def _form(message: str) -> re.Match[str] | None:
    """The parts of ``message``, as it was made or as it came from a worker process."""
    match = _FORM.match(message)
    if match or not message.startswith("Caught "):
        return match
    # Of chained errors the last is the one that was raised.
    return next(reversed(list(_AFTER_TRACEBACK.finditer(message))), None)


def printable(value: object, limit: int = 200) -> str:
    r"""``value`` as one line of printable ASCII, at most ``limit`` characters.

    Everything that comes from a file passes through here before it reaches a terminal or a log:
    control characters, escapes, line ends and non-ASCII appear as ``\xNN``, ``\uNNNN`` sequences.

    Args:
        value: bytes (read as Latin-1) or anything with ``str()``.
        limit: most characters returned; a cut ends in ``...``.

    Returns:
        Printable ASCII without line ends.
    """
    text = value[: limit + 1].decode("latin-1") if isinstance(value, bytes) else str(value)
    # Cut first: escaping a hostile megabyte to show 200 characters of it would be waste.
    cut = text[: limit + 1]
    escaped = "".join(
        c if " " <= c <= "~" and c != "\\" else c.encode("unicode_escape").decode("ascii")
        for c in cut
    )
    if len(text) > limit or len(escaped) > limit:
        return escaped[: limit - 3] + "..."
    return escaped


class HelloError(Exception):
    """Root of every error that hellofmt raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        """Keep ``message``; see ``make`` for the usual way to build one."""
        super().__init__(message)

    @classmethod
    def make(cls, code: str, text: str, *, member: str = "", offset: int | None = None) -> Self:
        """Build the error from its parts.

        Args:
            code: ``E_...``, one of the codes of the class.
            text: one line, lower case, ``fact; expected X, got Y``. Values from a file must have
                gone through ``printable``.
            member: archive member it concerns.
            offset: byte offset in the file.

        Returns:
            The error, not raised.
        """
        where = code
        if member:
            where += f" member={printable(member).replace(' ', '_').replace(':', '_')}"
        if offset is not None:
            where += f" offset={offset}"
        return cls(f"{where}: {text}")

    @property
    def code(self) -> str:
        """The ``E_...`` code, or an empty string."""
        match = _form(str(self))
        return match["code"] if match else ""

    @property
    def member(self) -> str:
        """The archive member the error concerns, or an empty string."""
        match = _form(str(self))
        return (match["member"] or "") if match else ""

    @property
    def offset(self) -> int | None:
        """The byte offset the error concerns, if known."""
        match = _form(str(self))
        return int(match["offset"]) if match and match["offset"] else None


class NotHelloError(HelloError, ValueError):
    """Not a ``.hello`` file, or of a version or feature this reader does not know (exit 3).

    Codes: E_MAGIC, E_VERSION, E_FEATURE.
    """

    exit_code = 3


class CorruptError(HelloError, ValueError):
    """Changed, cut or extended since it was written (exit 4).

    Codes: E_TRUNCATED, E_TRAILING, E_DIGEST_ROOT, E_DIGEST_INDEX (any section),
    E_DIGEST_MEMBER (an image), E_PADDING, E_ZSTD, E_IMAGE.
    """

    exit_code = 4


class SpecError(HelloError, ValueError):
    """Content that the format forbids (exit 5).

    Codes: E_HEADER, E_NAME, E_ORDER, E_DUPLICATE, E_JSON, E_SCHEMA, E_CODEC, E_TENSOR, E_RANK,
    E_CLASSES, E_INDEX.
    """

    exit_code = 5


class LimitError(HelloError, ValueError):
    """Larger than a limit allows (exit 6). Codes: E_LIMIT_*, each naming value, cap and flag."""

    exit_code = 6


class TrustError(HelloError):
    """Signature, pin or identity does not match (exit 7).

    Codes: E_SIG_MISSING, E_SIG_BAD, E_SIG_IDENTITY, E_PIN, E_ROLLBACK.
    """

    exit_code = 7


class BaseModelError(HelloError):
    """The base encoder is missing or differs from the one the archive pins (exit 8).

    Codes: E_BASE_MISSING, E_BASE_WEIGHTS, E_BASE_CONFIG, E_BASE_PREPROC, E_BASE_PROBES.
    """

    exit_code = 8


class HelloIOError(HelloError):
    """Reading, writing or the network failed (exit 9), or the target is unusable (exit 10).

    Codes: E_READ, E_SHORT_READ, E_WRITE, E_NOSPACE, E_TIMEOUT, E_HTTP, E_DURABILITY; E_TARGET.
    A missing file, a directory and a missing permission stay the ``OSError`` they are.
    """

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """10 for E_TARGET, else 9."""
        return 10 if self.code == "E_TARGET" else 9


class StateError(HelloError):
    """A saved state belongs to another file or batch geometry (exit 2).

    Codes: E_STATE_DIGEST, E_STATE_SHAPE.
    """

    exit_code = 2


class UserInputError(HelloError, ValueError):
    """What the user gave (data, teacher, options) cannot be used (exit 2).

    Codes: E_DATA, E_TEACHER, E_OPTION.
    """

    exit_code = 2
