"""All errors of hellofmt, with the exit codes of the command line.

An error is a value: ``code``, ``member``, ``offset``, ``argument``, ``problems`` and ``advice`` are
fields. The text is made from them and never parsed. It has one form::

    E_DIGEST_MEMBER member=images/0000/000123.png offset=4096: digest differs; expected ab, got cd

The library states facts. An error that concerns an argument, or advises passing one, names it, and
whoever shows the error spells it: Python as `` `batch_size` ``, the command line as
``--batch-size``. An error that concerns a file begins with the file's name, which only whoever
opened the file knows (``naming``). An error pickles with its fields.

The exit codes are a contract (``spec/hello-1.md``, section 17): no option turns 4, 5 or 7 into 0.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final, Self, TypedDict, Unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

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
    "did_you_mean",
    "foreign_text",
    "naming",
    "printable",
    "shown_path",
    "target_exists",
]

# Letters and marks that Unicode calls ignorable: they are invisible, so two names may look alike.
_INVISIBLE: Final = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)

# Controls, formats (bidirectional marks and zero-width joiners), surrogates, private and unassigned
# code points, line and paragraph separators.
_HIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_ANSI: Final = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")

# Advice of other libraries that is dangerous or points elsewhere.
_BAD_ADVICE: Final = re.compile(
    r"weights_only|arbitrary code|trusted source|safe_globals|allowlist|https?://|open an issue"
    r"|file an issue|github\.com|pickle|download=True|trust_remote_code|CUDA_LAUNCH_BLOCKING"
    r"|TORCH_USE_CUDA_DSA|ignore_mismatched_sizes|strict=False",
    re.IGNORECASE,
)


def printable(value: object, limit: int = 200) -> str:
    r"""Make ``value`` safe to print: one line of at most ``limit`` characters.

    Everything from a file passes through here before it reaches a terminal or a log. Letters of any
    script stay as they are. Characters that a terminal would obey or hide become an escape
    (``\xNN``, ``\uNNNN``): control and bidirectional characters, line ends, lone surrogates,
    zero-width and other invisible characters, and bytes beyond ASCII. A truncated value ends in
    ``...``.

    Example:
        >>> printable("two\nlines")
        'two\\nlines'
    """
    # Truncate first: escaping a hostile megabyte to show 200 characters would be wasteful.
    if isinstance(value, bytes):
        text = value[: limit + 1].decode("ascii", "backslashreplace")
    else:
        text = str(value)[: limit + 1]
    shown = shown_path(text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _shown(character: str) -> str:
    if " " <= character <= "~":
        return character
    if character in _INVISIBLE or unicodedata.category(character) in _HIDDEN_CATEGORIES:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character


def shown_path(path: object) -> str:
    """Make a path safe to print, as ``printable`` does, but in full: users may copy it."""
    return "".join(map(_shown, str(path)))


def foreign_text(error: BaseException, limit: int = 160) -> str:
    """Return the text of another library's error in one line that is safe to print.

    Removes colour sequences, dangerous advice (``weights_only=False``), everything after the first
    paragraph and a final full stop; truncates long texts at a word. An error without text gives the
    name of its class.
    """
    lines: list[str] = []
    for line in _ANSI.sub("", str(error)[: 64 * limit]).strip().splitlines():
        if not line.strip() and lines:
            break
        lines.append(line.strip())
    sentences = re.split(r"(?<=[.!?:])\s+", " ".join(lines))
    kept = " ".join(sentence for sentence in sentences if not _BAD_ADVICE.search(sentence))
    text = printable(kept, 64 * limit).rstrip(" .:,;")
    if len(text) > limit:
        text = text[: limit - 3].rsplit(" ", 1)[0].rstrip(" .:,;") + "..."
    return text or type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest a known word for a mistyped one: ``did you mean `x`?``, or nothing."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean `{by_lower[near[0]]}`?" if near else ""


# An argument in advice, optionally with a value: {force}, {limits:images=6}.
_ARGUMENT: Final = re.compile(r"\{([a-z_]+)(?::([^{}]*))?\}")


def _as_in_python(argument: str, value: str) -> str:
    return f"`{argument}` {value}".strip()


class _Fields(TypedDict, total=False):
    member: str
    offset: int | None
    argument: str
    problems: Sequence[object]
    advice: str


class HelloError(Exception):
    """Root of every error that hellofmt raises on purpose.

    Attributes:
        message: the fact, without code, location and advice.
        code: ``E_...``, one of the codes of the class, or an empty string.
        member: the archive member concerned, or an empty string.
        offset: byte offset in the file, if known.
        argument: name of the argument concerned, or an empty string.
        problems: individual findings, if there can be several; each has a ``str()``.
        advice: what to do, or an empty string; ``{name}`` stands for an argument of the call,
            ``{name:value}`` for an argument with a value.
        file: name of the file that was read or written, or an empty string; see ``naming``.

    Example:
        >>> import hellofmt
        >>> try:
        ...     hellofmt.open("photos.hello", expect="sha256:" + 64 * "0")
        ... except hellofmt.HelloError as error:
        ...     error.code
        'E_PIN'
    """

    exit_code: ClassVar[int] = 1
    file: str = ""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        member: str = "",
        offset: int | None = None,
        argument: str = "",
        problems: Sequence[object] = (),
        advice: str = "",
    ) -> None:
        """Set the fields; see the class."""
        super().__init__(message)
        self.code = code
        self.member = member
        self.offset = offset
        self.argument = argument
        self.problems = tuple(problems)
        self.advice = advice

    @classmethod
    def make(cls, code: str, text: str, **fields: Unpack[_Fields]) -> Self:
        """Build an error, the code first; it is not raised.

        ``text`` is the fact, one line, lower case: ``fact; expected X, got Y``. Values from a file
        must have gone through ``printable``.
        """
        return cls(text, code=code, **fields)

    @property
    def message(self) -> str:
        """The fact alone."""
        return str(self.args[0])

    @property
    def where(self) -> str:
        """``member=NAME offset=NUMBER``, the location as far as it is known."""
        member = f"member={printable(self.member)}" if self.member else ""
        offset = "" if self.offset is None else f"offset={self.offset}"
        return f"{member} {offset}".strip()

    def text(self, spell: Callable[[str, str], str] = _as_in_python) -> str:
        """Return the whole error in one line.

        Args:
            spell: how to write an argument and its value (or ``""``), such as ``("force", "")`` as
                ``--force``.

        Returns:
            File, code, location, argument, message, problems and advice, as far as present.
        """
        head = f"{self.code} {self.where}".strip()
        if self.file:
            head = f"{shown_path(self.file)}: {head}" if head else shown_path(self.file)
        parts = [self.message] if self.message else []
        # Five problems give the picture; a hostile file could have a million.
        parts += [str(problem) for problem in self.problems[:5]]
        if len(self.problems) > 5:
            parts.append(f"and {len(self.problems) - 5} more")
        if self.advice:
            parts.append(_ARGUMENT.sub(lambda match: spell(match[1], match[2] or ""), self.advice))
        argument = f"{spell(self.argument, '')}: " if self.argument else ""
        body = argument + "; ".join(parts)
        return f"{head}: {body}" if head else body

    def __str__(self) -> str:
        return self.text()


@contextmanager
def naming(file: str) -> Generator[None]:
    """Name the file, without credentials, in every error inside that does not name it yet."""
    try:
        yield
    except HelloError as error:
        # As a whole word: a file called `a` is in every message.
        if not re.search(rf"(?<!\w){re.escape(file)}(?!\w)", error.message):
            error.file = error.file or file
        raise


class NotHelloError(HelloError, ValueError):
    """Not a ``.hello`` file, or one with an unknown version or feature (exit 3).

    Codes: E_MAGIC, E_VERSION, E_FEATURE.
    """

    exit_code = 3


class CorruptError(HelloError, ValueError):
    """Changed, truncated or extended since it was written (exit 4).

    Codes: E_TRUNCATED, E_TRAILING, E_DIGEST_ROOT, E_DIGEST_INDEX (any section), E_DIGEST_MEMBER (an
    image), E_PADDING, E_ZSTD, E_IMAGE.
    """

    exit_code = 4


class SpecError(HelloError, ValueError):
    """Content that the format forbids (exit 5).

    Codes: E_HEADER, E_ORDER, E_DUPLICATE, E_JSON, E_SCHEMA, E_CODEC, E_TENSOR, E_RANK, E_CLASSES,
    E_INDEX.
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

    Codes: E_READ, E_SHORT_READ, E_WRITE, E_NOSPACE, E_TIMEOUT, E_HTTP, E_DURABILITY; E_TARGET. A
    missing file, a directory and denied access remain ``OSError``.
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
    """The user's data, teacher or options cannot be used (exit 2).

    Codes: E_DATA, E_TEACHER, E_OPTION.
    """

    exit_code = 2


def target_exists(path: object, *, can_replace: bool = True) -> HelloIOError:
    """Return the error for a target that exists already, which a call with ``force`` replaces."""
    advice = "{force} replaces it" if can_replace else "name a new one"
    return HelloIOError.make("E_TARGET", f"`{shown_path(path)}` exists", advice=advice)
