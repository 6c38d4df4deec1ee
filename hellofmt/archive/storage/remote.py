"""Read archives behind a URL by ranges: the head first, then only what is needed.

Storage comes from fsspec (``s3://``, ``hf://``, ``gs://``, ``memory://``, chains such as
``tar://x.hello::file:///all.tar``). HTTP differs in one point: fsspec's HTTP file system reads
whatever a server answers to a range request, the whole file or an endless one, and checks nothing.
So its session, options and event loop are used, but the GET is made here: the answer must be 206
with exactly the requested ``Content-Range`` and the known total, without content encoding, and
nothing beyond the requested bytes is read. A second HTTP stack was rejected: proxies, certificates
and credentials would have to be configured twice.

No answer is trusted for its content; the reader checks every byte against a digest or a computed
header. This module adds distinct errors for short and wrong answers, and retries transient
failures: five times with growing, jittered pauses, within a time limit for the whole read,
continuing where the connection broke. The ETag is not a condition, because servers behind one name
may differ in it; it only explains a digest that does not match.

Nothing is shared across a fork: every other process opens a session and an event loop at its first
read.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import os
import re
import secrets
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hellofmt.archive.storage.source import (
    LocalSource,
    Source,
    cut_ranges,
    display_name,
    is_url,
    merge_ranges,
)
from hellofmt.errors import HelloError, HelloIOError, UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_EMPTY_RANGE: Final = re.compile(r"bytes \*/0")
_HEAD_BYTES: Final = 1 << 16
_CHUNK_BYTES: Final = 1 << 16
# Fetching this many unneeded bytes costs less than another request.
_GAP: Final = 1 << 15
_CONCURRENT: Final = 16
_RETRIES: Final = 5
_PAUSE_SECONDS: Final = 0.2
_TIMEOUT_SECONDS: Final = 60.0
# A connection silent for a quarter of the time limit is dead; that leaves time for retries.
_SILENT_SHARE: Final = 0.25
# Anything slower counts as a stall; otherwise a large range might never end.
_LEAST_BYTES_PER_SECOND: Final = 16 << 10
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509})
_EXTRA: Final = frozenset({"http", "https", "s3", "s3a"})

_random = secrets.SystemRandom()
# Sessions from before a fork: closing them in the child would use the parent's connections.
_inherited: list[Any] = []


def open_source(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Source:
    """Open the bytes of ``path``: a local file, or any URL that fsspec knows, read by ranges.

    fsspec passes ``storage_options`` to the storage, such as credentials; for http(s) they may have
    ``timeout``, seconds for one read with all its retries (60).

    Raises:
        OSError: missing, a directory, not permitted.
        HelloIOError: reading failed (E_READ, E_SHORT_READ, E_HTTP, E_TIMEOUT).
        UserInputError: unknown scheme, a package is missing, or options for a local file
            (E_OPTION).
    """
    options = dict(storage_options or {})
    if not (isinstance(path, str) and is_url(path)):
        if options:
            raise UserInputError.make("E_OPTION", "`storage_options`; expected none: a local file")
        return LocalSource(path)
    scheme = path.partition("://")[0].lower()
    if scheme in ("file", "local"):
        import fsspec

        return LocalSource(fsspec.get_filesystem_class("file")._strip_protocol(path))  # noqa: SLF001
    if scheme in ("http", "https"):
        return _Http(path, options)
    return _Storage(path, options)


def list_urls(pattern: str, storage_options: Mapping[str, Any]) -> list[str]:
    """List the URLs that match a URL with ``*``, sorted; see ``open_source``."""
    scheme = pattern.partition("://")[0].lower()
    if scheme in ("http", "https"):
        text = f"`{_shown(pattern)}`; web servers list no files; name them as {{00000..00015}}"
        raise UserInputError.make("E_OPTION", text)
    filesystem, path = _place(pattern, storage_options)
    try:
        names = [name.partition("://")[2] or name for name in filesystem.glob(path)]
        return sorted(f"{scheme}://{name}" for name in names)
    except Exception as error:
        raise HelloIOError.make("E_READ", f"{_shown(pattern)}: {_reason(error)}") from error


@dataclass
class _Answer:
    """The answer to one range request.

    Attributes:
        data: the first bytes of the range; all of them unless ``error`` is set.
        error: why bytes are missing.
        passes: whether another attempt may succeed.
    """

    data: bytes = b""
    error: Exception | None = None
    passes: bool = False


class RemoteSource(Source):
    """A file behind a URL; see ``Source``."""

    is_remote = True

    def __init__(self, url: str, options: Mapping[str, Any], timeout: float) -> None:
        """Ask for the length and the first bytes of ``url``."""
        self.name = url
        self._options = options
        self._timeout = timeout
        self._place: tuple[Any, str] | None = None
        self._pid = 0
        self._is_closed = False
        self.size, self._first = self._open()

    @abstractmethod
    def _open(self) -> tuple[int, bytes]:
        """Return the length of the file and the first bytes that came with it."""

    @abstractmethod
    def _fetch(self, ranges: Sequence[tuple[int, int]], seconds: float) -> list[_Answer]:
        """Try once to fetch (start, end) ranges; errors come in the answers."""

    def _connected(self) -> tuple[Any, str]:
        """Return file system and path for this process, which its threads share."""
        if self._place is None or self._pid != os.getpid():
            if self._place is not None:
                _inherited.append(self._place)
            self._place = _place(self.name, self._options)
            self._pid = os.getpid()
        return self._place

    def read(self, offset: int, length: int) -> bytes:
        """See ``Source.read``."""
        return self.read_ranges([(offset, length)])[0]

    def read_ranges(self, ranges: Sequence[tuple[int, int]], *, exact: bool = False) -> list[bytes]:
        """See ``Source.read_ranges``."""
        if self._is_closed:
            raise HelloIOError.make("E_READ", f"the archive is closed: {_shown(self.name)}")
        first = self._first
        known = len(first)
        # Bytes that came with the length are not fetched again.
        outside = [
            (max(at, known), at + size - max(at, known))
            for at, size in ranges
            if size and at + size > known
        ]
        merged = merge_ranges(outside, 0 if exact else _GAP)
        blocks = self._fetch_all([(at, at + size) for at, size in merged])
        parts = iter(cut_ranges(outside, merged, blocks))
        return [
            first[at : at + size] + (next(parts) if size and at + size > known else b"")
            for at, size in ranges
        ]

    def _fetch_all(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Fetch all bytes of (start, end) ranges, with retries."""
        parts = [bytearray() for _ in ranges]
        waiting = list(range(len(ranges)))
        total = sum(end - start for start, end in ranges)
        deadline = time.monotonic() + self._timeout + total / _LEAST_BYTES_PER_SECOND
        attempt = 0
        while waiting:
            rest = [(ranges[i][0] + len(parts[i]), ranges[i][1]) for i in waiting]
            answers = self._fetch(rest, deadline - time.monotonic())
            failed: list[tuple[int, Exception]] = []
            for i, answer in zip(waiting, answers, strict=True):
                parts[i] += answer.data
                if answer.error is not None:
                    if not answer.passes:
                        raise answer.error
                    failed.append((i, answer.error))
            waiting = [i for i, _ in failed]
            if waiting:
                pause = _PAUSE_SECONDS * 2**attempt * _random.uniform(0.5, 1.5)
                if attempt == _RETRIES or time.monotonic() + pause >= deadline:
                    raise failed[0][1]
                time.sleep(pause)
                attempt += 1
        return [bytes(part) for part in parts]

    def forget(self) -> None:
        """See ``Source.forget``."""
        self._first = b""

    def close(self) -> None:
        """See ``Source.close``; connections are shared and stay with fsspec."""
        self._is_closed = True

    def _fault(self, text: str, code: str) -> HelloIOError:
        return HelloIOError.make(code, f"{_shown(self.name)}: {text}")


class _Http(RemoteSource):
    """An http(s) URL, through the session of fsspec's HTTP file system."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        timeout = options.pop("timeout", _TIMEOUT_SECONDS)
        if not isinstance(timeout, (int, float)) or not timeout > 0:
            text = f"`timeout`; expected seconds > 0, got {printable(timeout)}"
            raise UserInputError.make("E_OPTION", text)
        # Compressed answers would change lengths and put a decoder in front of every check.
        client = {"auto_decompress": False, **options.pop("client_kwargs", {})}
        self._total = -1
        self._tag: str | None = None
        self._other_tag = ""
        super().__init__(url, {**options, "client_kwargs": client}, float(timeout))

    def _open(self) -> tuple[int, bytes]:
        """See ``RemoteSource``: one request."""
        [first] = self._fetch_all([(0, _HEAD_BYTES)])
        return self._total, first

    def describe_change(self) -> str:
        """See ``Source.describe_change``."""
        return self._other_tag

    def _fetch(self, ranges: Sequence[tuple[int, int]], seconds: float) -> list[_Answer]:
        """See ``RemoteSource``."""
        filesystem, _ = self._connected()
        from fsspec.asyn import sync

        answers: Any
        try:
            answers = sync(filesystem.loop, self._get_all, filesystem, ranges, max(seconds, 0.001))
        except Exception as error:
            # The client refused an option; requests report errors in their answers.
            text = f"{_shown(self.name)}: {_reason(error)}"
            raise UserInputError.make("E_OPTION", text) from error
        return answers

    async def _get_all(
        self, filesystem: Any, ranges: Sequence[tuple[int, int]], seconds: float
    ) -> list[_Answer]:
        """Fetch all ranges, a few at a time."""
        session = await filesystem.set_session()
        places = asyncio.Semaphore(_CONCURRENT)

        async def get(start: int, end: int) -> _Answer:
            async with places:
                return await self._get(filesystem, session, start, end, seconds)

        return await asyncio.gather(*(get(start, end) for start, end in ranges))

    async def _get(
        self, filesystem: Any, session: Any, start: int, end: int, seconds: float
    ) -> _Answer:
        """Fetch one range in one request; errors come in the answer."""
        import aiohttp

        options = dict(filesystem.kwargs)
        headers = {
            **options.pop("headers", {}),
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        silent = min(self._timeout * _SILENT_SHARE, seconds)
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=silent, sock_read=silent)
        data = bytearray()
        if self._total >= 0:
            end = min(end, self._total)
        try:
            async with session.get(
                filesystem.encode_url(self.name), headers=headers, timeout=timeout, **options
            ) as response:
                try:
                    answer = self._judge(response, start, end)
                    if answer is not None:
                        return answer
                    # The first answer gave the total, which may be less than requested.
                    end = min(end, self._total)
                    while len(data) < end - start:
                        size = min(_CHUNK_BYTES, end - start - len(data))
                        chunk = await response.content.read(size)
                        if not chunk:
                            break
                        data += chunk
                finally:
                    # Unless the body ended, do not wait for the rest.
                    if not response.content.at_eof():
                        response.close()
        except aiohttp.InvalidURL:
            return _Answer(error=UserInputError.make("E_OPTION", f"not a URL: {_shown(self.name)}"))
        except (aiohttp.ClientResponseError, aiohttp.ClientSSLError) as error:
            # A bad certificate, endless redirects, no HTTP at all: not transient.
            return _Answer(error=self._fault(_reason(error), "E_HTTP"))
        except TimeoutError:
            return _Answer(bytes(data), self._fault("no answer in time", "E_TIMEOUT"), passes=True)
        except (aiohttp.ClientError, OSError) as error:
            what, code = _reason(error), "E_SHORT_READ" if data else "E_HTTP"
            return _Answer(bytes(data), self._fault(what, code), passes=True)
        if len(data) < end - start:
            text = f"the answer ended early; expected {end - start} bytes, got {len(data)}"
            return _Answer(bytes(data), self._fault(text, "E_SHORT_READ"), passes=True)
        return _Answer(bytes(data))

    def _judge(self, response: Any, start: int, end: int) -> _Answer | None:
        """Return None if the body is exactly the requested range, else an answer with the error."""

        def refused(text: str, passes: bool = False) -> _Answer:
            return _Answer(error=self._fault(text, "E_HTTP"), passes=passes)

        status, headers = response.status, response.headers
        if status in (404, 410):
            return _Answer(error=FileNotFoundError(errno.ENOENT, "No such file", _shown(self.name)))
        if status in (401, 403):
            return _Answer(error=PermissionError(errno.EACCES, "Not permitted", _shown(self.name)))
        stated = headers.get("Content-Range", "")
        if status == 416 and self._total < 0 and _EMPTY_RANGE.fullmatch(stated):
            self._total = 0
            return _Answer()
        if status != 206:
            hint = "; the server does not serve ranges" if status == 200 else ""
            return refused(f"status {status}; expected 206 to a range{hint}", status in _PASSING)
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            coding = printable(headers["Content-Encoding"], 40)
            return refused(f"`Content-Encoding` {coding}; expected none")
        match = _CONTENT_RANGE.fullmatch(stated)
        total = int(match[3]) if match else -1
        last = (end if self._total >= 0 else min(end, total)) - 1
        if match is None or (int(match[1]), int(match[2])) != (start, last):
            return refused(
                f"`Content-Range` {printable(stated, 80)}; expected bytes {start}-{last}"
            )
        if self._total < 0:
            self._total = total
        elif total != self._total:
            text = f"changed while it was open; expected {self._total} bytes in all, got {total}"
            return _Answer(error=self._fault(text, "E_READ"))
        length = headers.get("Content-Length")
        if length is not None and length != str(last + 1 - start):
            return refused(f"`Content-Length` {printable(length, 40)}; expected {last + 1 - start}")
        self._compare_tag(headers.get("ETag") or headers.get("Last-Modified") or "")
        return None

    def _compare_tag(self, tag: str) -> None:
        """Remember the server's tag for this version of the file."""
        if self._tag is None:
            self._tag = tag
        elif tag != self._tag:
            self._other_tag = (
                f"the server now has {printable(tag, 60) or 'no tag'}, "
                f"it had {printable(self._tag, 60) or 'none'}"
            )


class _Storage(RemoteSource):
    """A file in any other fsspec storage."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        super().__init__(url, options, _TIMEOUT_SECONDS)

    def _open(self) -> tuple[int, bytes]:
        """See ``RemoteSource``."""
        try:
            filesystem, path = self._connected()
            facts: dict[str, Any] = filesystem.info(path)
        except (HelloError, FileNotFoundError, PermissionError):
            raise
        except Exception as error:
            raise self._failed(error) from error
        if facts.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), _shown(self.name))
        size = facts.get("size")
        if not isinstance(size, int) or size < 0:
            raise self._fault("not a file of known length", "E_READ")
        return size, b""

    def _fetch(self, ranges: Sequence[tuple[int, int]], seconds: float) -> list[_Answer]:
        """See ``RemoteSource``."""
        filesystem, path = self._connected()
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        options: dict[str, Any]
        if filesystem.async_impl:
            options = {"batch_size": _CONCURRENT, "timeout": seconds}
        else:
            # One range after another, and of each as many bytes more: 5 MiB if nothing is said.
            options = {"block_size": 1}
        try:
            results = filesystem.cat_ranges(
                [path] * len(ranges), starts, ends, on_error="return", **options
            )
        except Exception as error:
            results = [error] * len(ranges)
        return [
            self._answer(data, end - start)
            for data, (start, end) in zip(results, ranges, strict=True)
        ]

    def _answer(self, result: Any, size: int) -> _Answer:
        if isinstance(result, (FileNotFoundError, PermissionError)):
            return _Answer(error=result)
        if isinstance(result, Exception):
            return _Answer(error=self._failed(result), passes=True)
        if len(result) != size:
            is_short = len(result) < size
            fault = self._fault(
                f"expected {size} bytes, got {len(result)}",
                "E_SHORT_READ" if is_short else "E_READ",
            )
            return _Answer(error=fault, passes=is_short)
        return _Answer(bytes(result))

    def _failed(self, error: Exception) -> HelloIOError:
        code = "E_TIMEOUT" if isinstance(error, TimeoutError) else "E_READ"
        return self._fault(_reason(error), code)


def _place(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, one per set of options, and the path in it."""
    fsspec, core = importlib.import_module("fsspec"), importlib.import_module("fsspec.core")
    protocol = url.partition("://")[0]
    is_http = protocol.lower() in ("http", "https")
    try:
        # A web address may hold `::`, which stands between the links of a chain.
        return (
            (fsspec.filesystem("http", **options), url)
            if is_http
            else core.url_to_fs(url, **options)
        )
    except (ImportError, ValueError, TypeError) as error:
        what = f"{printable('http' if is_http else protocol, 40)}://: {_reason(error)}"
        if isinstance(error, ImportError) and protocol.rpartition("::")[2].lower() in _EXTRA:
            what += "; pip install 'hellofmt[remote]'"
        raise UserInputError.make("E_OPTION", what) from error


def _reason(error: BaseException) -> str:
    """Return the text of an error without the URL that aiohttp adds to some."""
    text = getattr(error, "message", "") if hasattr(error, "request_info") else str(error)
    return printable(text or type(error).__name__)


def _shown(url: str) -> str:
    return printable(display_name(url))
