"""A server that lies in every way we could think of: right bytes or an error, never anything else.

`attempt` opens, reads every section and image and verifies; whatever a server does, that ends in
the bytes of the file, a `HelloIOError` or a `CorruptError`.
"""

import hashlib
import importlib.util
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from bad_http import Server

from hellofmt.archive import open_archive, verify_archive, write_archive
from hellofmt.archive.storage import remote
from hellofmt.errors import (
    CorruptError,
    HelloError,
    HelloIOError,
    SpecError,
    TrustError,
    UserInputError,
)

SAMPLES = Path(__file__).parents[1] / "archive" / "samples.py"
SLACK = 1 << 16
# One read of a socket, and what a stream holds before it stops reading.
BUFFERS = (1 << 18) + (1 << 17)
IMAGES = 12
# The rows from here on do not come with the first request.
LATE = 4


@pytest.fixture(scope="module")
def samples():
    spec = importlib.util.spec_from_file_location("archive_samples", SAMPLES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def archive_bytes(samples, path, seed, count=IMAGES, side=80):
    """An archive; those of other seeds have the same length."""
    from hellofmt.archive import ImageItem, ImageSet

    items = [
        ImageItem(i % 2, samples.png(samples.pattern(seed + i, side, side, 3)))
        for i in range(count)
    ]
    write_archive(path, samples.draft(images=ImageSet("png", items, "files")))
    return path.read_bytes()


@pytest.fixture(scope="module")
def data(samples, tmp_path_factory):
    return archive_bytes(samples, tmp_path_factory.mktemp("http") / "a.hello", 1000)


@pytest.fixture(scope="module")
def other(samples, tmp_path_factory):
    return archive_bytes(samples, tmp_path_factory.mktemp("http") / "b.hello", 5000)


@pytest.fixture(scope="module")
def truth(data, tmp_path_factory):
    """Digest of everything that reading the archive gives."""
    path = tmp_path_factory.mktemp("http") / "truth.hello"
    path.write_bytes(data)
    return everything(path)


def everything(path, **options):
    """Digest of all that an archive holds, read by one that is opened anew."""
    digest = hashlib.sha256()
    with open_archive(path, **options) as file:
        digest.update(file.id.encode())
        for name in file.section_sizes():
            digest.update(file.section(name))
        for image in file.read_images(range(len(file))):
            digest.update(image)
        digest.update(file.read_image(len(file) - 1))
    assert verify_archive(path, expect=file.id, **options).images == len(file)
    return digest.hexdigest()


@pytest.fixture
def serve():
    servers = []

    def start(data, lie=None):
        servers.append(Server(data, lie))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0.0005)


@pytest.fixture
def fed(monkeypatch):
    """Bytes of bodies that arrived in this process."""
    from aiohttp.streams import StreamReader

    total = [0]
    feed = StreamReader.feed_data

    def count(self, piece, *rest):
        total[0] += len(piece)
        return feed(self, piece, *rest)

    monkeypatch.setattr(StreamReader, "feed_data", count)
    return total


def attempt(server, truth, **options):
    """None for the right bytes, else the error; any other outcome fails the test."""
    try:
        assert everything(server.url, storage_options=options) == truth
    except (HelloIOError, CorruptError) as error:
        return error
    return None


def test_an_honest_server(serve, data, truth, fed):
    server = serve(data)
    assert attempt(server, truth) is None
    assert server.ranges[0] == (0, 1 << 16)
    # Read once, verified once with the last 64 KiB once more, and one image besides.
    assert fed[0] <= 2 * (len(data) + SLACK) + (1 << 15)
    assert server.connections <= 3
    assert all("Accept-Encoding: identity" in head for head in server.headers)


def test_opening_is_one_request_and_a_batch_as_many_as_gaps(serve, data):
    server = serve(data)
    with open_archive(server.url) as file:
        assert file.index is not None
        assert file.classes.keys == ["n01", "n02"]
        assert len(server.ranges) == 1
        assert file.read_image(0)
        assert len(server.ranges) == 1
        found = file.read_images([5, 11, 6, 5])
        # Rows 5 and 6 are neighbours; row 11 is more than 32 KiB further.
        assert len(server.ranges) == 1 + 2
        assert found == [file.read_image(row) for row in (5, 11, 6, 5)]
    assert len(server.ranges) == 1 + 2 + 4


def test_a_larger_head_is_two_requests(serve, samples, tmp_path):
    card = "".join(f"{line * 2654435761 % 2**32:x}\n" for line in range(20_000))
    path = tmp_path / "c.hello"
    write_archive(path, samples.draft(images=samples.images(3), card=card))
    server = serve(path.read_bytes())
    with open_archive(server.url) as file:
        assert file.section("card") == card.encode()
        assert (len(file.index), len(file.classes)) == (3, 2)
    assert len(server.ranges) == 2


@pytest.mark.parametrize("k", [0, 1, 7, 100, 511, 512, 513, 1000, 4096, 9999, 40_000, 65_535])
def test_closing_after_k_bytes_of_a_body(serve, data, truth, k, fed):
    server = serve(
        data, lambda r: r.answer(body=r.body[:k], length=max(0, len(r.body) - k)) or True
    )
    error = attempt(server, truth)
    # Each attempt continues where the last one ended, so a few cuts are survived.
    if k * 6 < 1 << 16:
        assert error.code in ("E_SHORT_READ", "E_HTTP"), error
        assert len(server.ranges) == 6
    assert fed[0] <= (len(data) + SLACK) * (1 if error else 2) + (1 << 15)


def test_closing_at_every_kth_byte_of_the_whole_answer(serve, data, truth):
    class Cut:
        """Send only the first bytes of what is sent."""

        def __init__(self, stream, keep):
            self.stream, self.keep = stream, keep

        def sendall(self, piece):
            self.stream.sendall(piece[: self.keep])

    for keep in [*range(0, 260, 9), 300, 400]:

        def lie(request, keep=keep):
            request.stream = Cut(request.stream, keep)
            request.answer(close=True)
            return True

        error = attempt(serve(data, lie), truth)
        assert error.code in ("E_SHORT_READ", "E_HTTP"), (keep, error)


def test_a_broken_connection_is_tried_again_five_times(serve, data, truth):
    def lie(failures):
        def answer(request):
            if request.number % 7 >= failures:
                return False
            request.answer(body=request.body[:10], length=len(request.body) - 10)
            return True

        return answer

    assert attempt(serve(data, lie(5)), truth) is None
    assert attempt(serve(data, lie(6)), truth) is not None


@pytest.mark.parametrize("status", ["500 Oops", "503 Busy", "429 Slow Down"])
def test_a_passing_fault_of_the_server(serve, data, truth, status):
    def lie(request):
        if request.number % 2:
            return False
        request.answer(status, b"try later", Content_Range=None)
        return True

    assert attempt(serve(data, lie), truth) is None


def test_a_lasting_fault_of_the_server(serve, data):
    server = serve(data, lambda r: r.answer("502 Bad", b"") or True)
    with pytest.raises(HelloIOError, match=r"E_HTTP: .*: status 502; expected 206 to a range$"):
        open_archive(server.url)
    assert len(server.ranges) == 6


@pytest.mark.parametrize(
    ("status", "kind"),
    [("404 No", FileNotFoundError), ("410 Gone", FileNotFoundError), ("401 Who", PermissionError),
     ("403 No", PermissionError)],
)  # fmt: skip
def test_missing_and_forbidden_stay_what_they_are(serve, data, status, kind):
    server = serve(data, lambda r: r.answer(status, b"page") or True)
    with pytest.raises(kind):
        open_archive(server.url)
    assert len(server.ranges) == 1


def total_of(request):
    return len(request.server.data)


LIES = {
    "ignores the range": (
        lambda r: r.answer("200 OK", r.server.data, Content_Range=None),
        "E_HTTP", "status 200; expected 206 to a range; the server does not serve ranges",
    ),
    "calls a part the whole": (
        lambda r: r.answer("200 OK"), "E_HTTP", "status 200"),
    "nothing there": (
        lambda r: r.answer("204 Empty", b"", Content_Length=None), "E_HTTP", "status 204"),
    "not modified": (lambda r: r.answer("304 Same", b""), "E_HTTP", "status 304"),
    "range shifted": (
        lambda r: r.answer(Content_Range=f"bytes {r.start + 1}-{r.end}/{total_of(r)}"),
        "E_HTTP", "`Content-Range` bytes",
    ),
    "range longer": (
        lambda r: r.answer(Content_Range=f"bytes {r.start}-{total_of(r)}/{total_of(r)}"),
        "E_HTTP", "`Content-Range`",
    ),
    "no range": (lambda r: r.answer(Content_Range=None), "E_HTTP", "`Content-Range` ; expected"),
    "unknown total": (
        lambda r: r.answer(Content_Range=f"bytes {r.start}-{r.start + len(r.body) - 1}/*"),
        "E_HTTP", "`Content-Range`",
    ),
    "several parts": (
        lambda r: r.answer(Content_Range=None, Content_Type="multipart/byteranges; boundary=x"),
        "E_HTTP", "`Content-Range`",
    ),
    "length shorter": (
        lambda r: r.answer(Content_Length=str(len(r.body) - 1)), "E_HTTP", ""),
    "length longer": (lambda r: r.answer(length=1), "E_HTTP", "`Content-Length`"),
    "length is no number": (lambda r: r.answer(Content_Length="many"), "E_HTTP", ""),
    "length below zero": (lambda r: r.answer(Content_Length="-5"), "E_HTTP", ""),
    "short without a length": (
        lambda r: r.answer(body=r.body[:1000], Content_Length=None, close=True),
        "E_SHORT_READ", "the answer ended early; expected",
    ),
    "compressed": (
        lambda r: r.answer(Content_Encoding="gzip"), "E_HTTP", "`Content-Encoding` gzip"),
    "larger total": (
        lambda r: r.answer(
            Content_Range=f"bytes {r.start}-{r.start + len(r.body) - 1}/{total_of(r) + 512}"),
        "E_TRAILING", "",
    ),
    "smaller total": (
        lambda r: r.answer(body=r.body[:1024], Content_Range="bytes 0-1023/1024"),
        "E_TRUNCATED", "",
    ),
    "huge total": (
        lambda r: r.answer(
            Content_Range=f"bytes {r.start}-{r.start + len(r.body) - 1}/{10**17}"),
        "E_TRAILING", "",
    ),
    "not http": (lambda r: r.send(b"\0\1\2\3 what\r\n\r\n") or setattr(r, "keep", False),
                 "E_HTTP", ""),
    "a line of a megabyte": (
        lambda r: r.answer(X_Long="x" * (1 << 20), close=True), "E_HTTP", ""),
    "redirects for ever": (
        lambda r: r.answer("302 There", b"", Location="/x.hello"), "E_HTTP", "TooManyRedirects"),
    "redirects to a file": (
        lambda r: r.answer("302 There", b"", Location="file:///etc/passwd"), "E_", ""),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(serve, data, truth, lie, fed):
    tell, code, text = LIES[lie]
    server = serve(data, lambda r: tell(r) or True)
    try:
        error = attempt(server, truth)
    except UserInputError as refused:
        error = refused
    assert error is not None
    assert error.code.startswith(code), error
    assert text in str(error)
    assert "\n" not in str(error)
    assert fed[0] <= len(data) + SLACK


@pytest.mark.parametrize("lie", [name for name in LIES if "total" not in name])
def test_lies_after_opening(serve, data, lie):
    tell, _, _ = LIES[lie]
    server = serve(data, lambda r: r.number > 0 and (tell(r) or True))
    with open_archive(server.url) as file, pytest.raises((HelloIOError, UserInputError)):
        file.read_image(IMAGES - 1)


def test_another_total_after_opening(serve, data):
    server = serve(data)
    with open_archive(server.url) as file:
        server.data = data + bytes(512)
        with pytest.raises(HelloIOError, match=r"E_READ: .* changed while it was open; expected"):
            file.read_image(IMAGES - 1)


def chunked(request):
    """An honest answer in chunks, without a stated length."""
    pieces = [request.body[i : i + 1000] for i in range(0, len(request.body), 1000)]
    last = request.start + len(request.body) - 1
    head = (
        "HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n"
        f"Content-Range: bytes {request.start}-{last}/{total_of(request)}\r\n\r\n"
    )
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    request.send(head.encode() + body + b"0\r\n\r\n")
    return True


def moved(request):
    if request.server.paths[request.number].startswith("/x.hello"):
        request.answer("307 There", b"", Location="/y?token=1", Content_Range=None)
        return True
    return False


@pytest.mark.parametrize("way", [chunked, moved], ids=["chunked", "redirected"])
def test_honest_in_another_way(serve, data, truth, way):
    assert attempt(serve(data, way), truth) is None


def test_tags_that_differ_are_no_fault(serve, data, truth):
    server = serve(data, lambda r: r.answer(ETag=f'"{r.number}"') or True)
    assert attempt(server, truth) is None


def test_a_file_swapped_between_ranges_is_always_noticed(serve, data, other):
    assert len(data) == len(other)
    server = serve(data)
    noticed = 0
    for i in range(100):
        server.data, server.tag = data, '"1"'
        with open_archive(server.url) as file:
            assert file.index is not None
            server.data = other
            # Half of the servers say so, half pretend that nothing happened.
            server.tag = '"2"' if i % 2 else '"1"'
            with pytest.raises(HelloError) as caught:
                file.read_image(LATE + i % (IMAGES - LATE))
        kind = HelloIOError if i % 2 else CorruptError
        assert isinstance(caught.value, kind), caught.value
        if i % 2:
            assert 'was replaced since it was opened, the server now has "2", it had "1"' in str(
                caught.value
            )
        noticed += 1
    assert noticed == 100


def test_a_file_swapped_at_any_request_gives_one_version_or_an_error(serve, data, other, truth):
    refused = 0
    for at in range(1, 7):

        def lie(request, at=at):
            request.server.data = data if request.number < at else other
            return False

        server = serve(data, lie)
        try:
            assert everything(server.url) == truth
        except (HelloIOError, CorruptError, SpecError, TrustError):
            refused += 1
    assert refused > 1


@pytest.mark.parametrize("times", [1, 2])
def test_a_byte_that_flips_on_the_way_is_fetched_once_more(serve, data, truth, times):
    hit = {}

    def lie(request):
        # In every answer but the repeated one.
        seen = hit[request.start] = hit.get(request.start, 0) + 1
        body = bytearray(request.body)
        if seen <= times and body:
            body[len(body) // 2] ^= 4
        request.answer(body=bytes(body))
        return True

    server = serve(data, lie)
    with open_archive(serve(data).url) as file:
        row = file.read_image(5)
        file.source.name = file.path
    if times == 1:
        with open_archive(server.url) as file:
            assert file.read_image(5) == row
    else:
        with pytest.raises(CorruptError), open_archive(server.url) as file:
            file.read_image(5)


@pytest.mark.parametrize("place", [3, 600, 3000])
def test_a_head_that_is_damaged_on_the_way_is_fetched_once_more(serve, data, place):
    def lie(times):
        def answer(request):
            body = bytearray(request.body)
            if request.start == 0 and request.number < times:
                body[place] ^= 4
            request.answer(body=bytes(body))
            return True

        return answer

    server = serve(data, lie(1))
    with open_archive(server.url) as file:
        # A byte of the manifest is noticed at once, one of the index when that is read.
        assert len(file.index) == IMAGES
    assert len(server.ranges) == 2
    with pytest.raises(HelloError), open_archive(serve(data, lie(9)).url) as file:
        _ = file.index


def test_damage_in_transit_while_verifying(serve, data, truth):
    def lie(request):
        body = bytearray(request.body)
        # The large window of the images; the single rows that are asked for afterwards are good.
        if len(body) > 30_000 and request.start:
            body[10_000] ^= 1
        request.answer(body=bytes(body))
        return True

    server = serve(data, lie)
    assert verify_archive(server.url).images == IMAGES


@pytest.mark.parametrize("damaged", [b"", b"page not found", bytes(5000)])
def test_not_an_archive(serve, damaged):
    def lie(request):
        if damaged:
            return False
        request.answer("416 None", b"", Content_Range="bytes */0")
        return True

    with pytest.raises(HelloError) as caught:
        open_archive(serve(damaged, lie).url)
    assert caught.value.code == "E_MAGIC"


def silent(request):
    request.hang()


def silent_in_headers(request):
    request.send(b"HTTP/1.1 206 Partial Content\r\nContent-Ra")
    request.hang()


def silent_in_body(request):
    request.answer(body=request.body[:100], length=len(request.body) - 100)
    request.hang()


def dripping_headers(request):
    request.send(b"HTTP/1.1 206 Partial Content\r\nX-A: ")
    request.send_forever(b"a", 0.02)


@pytest.mark.parametrize("stall", [silent, silent_in_headers, silent_in_body, dripping_headers])
def test_a_stall_ends_at_its_timeout(serve, data, stall, monkeypatch):
    server = serve(data, lambda r: stall(r) or True)
    # What a read is given for its bytes besides; a silent connection is given up before.
    monkeypatch.setattr(remote, "_LEAST_BYTES_PER_SECOND", 1 << 17)
    start = time.monotonic()
    with pytest.raises(HelloIOError) as caught:
        open_archive(server.url, storage_options={"timeout": 0.5})
    assert time.monotonic() - start < 0.5 + 0.5 + 1
    assert caught.value.code == "E_TIMEOUT"


def endless_body(request):
    last = request.start + len(request.body) - 1
    request.send(
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\n\r\n"
        % (request.start, last, total_of(request))
    )
    request.send(request.body)
    request.send_forever(b"x" * 65_536)


def endless_after_the_body(request):
    request.answer()
    request.send_forever(b"x" * 65_536)


def endless_whole_file(request):
    request.send(b"HTTP/1.1 200 OK\r\n\r\n")
    request.send_forever(b"x" * 65_536)


def endless_headers(request):
    request.send(b"HTTP/1.1 206 Partial Content\r\n")
    request.send_forever(b"X-A: b\r\n" * 1000)


def endless_chunk_extension(request):
    request.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;")
    request.send_forever(b"x" * 65_536)


@pytest.mark.parametrize(
    "never",
    [endless_body, endless_after_the_body, endless_whole_file, endless_headers,
     endless_chunk_extension],
)  # fmt: skip
def test_what_never_ends_is_not_read(serve, data, truth, never, fed):
    server = serve(data, lambda r: never(r) or True)
    start = time.monotonic()
    error = attempt(server, truth, timeout=2)
    assert time.monotonic() - start < 8
    if never is endless_body or error is None:
        assert error is None
        assert never in (endless_body, endless_after_the_body)
        # Twice the file was read; what beyond it arrives in buffers before a connection is closed
        # is never taken from them.
        assert fed[0] <= 2 * len(data) + len(server.ranges) * BUFFERS
    else:
        assert error.code in ("E_HTTP", "E_TIMEOUT", "E_SHORT_READ")
        assert fed[0] <= len(data) + 6 * BUFFERS


def test_nobody_listens(serve, data):
    server = serve(data)
    url = server.url
    server.stop()
    with pytest.raises(HelloIOError, match="E_HTTP: http://127"):
        open_archive(url)


def test_secrets_of_a_url_stay_out_of_messages(serve, data):
    server = serve(data, lambda r: r.answer("500 Oops", b"") or True)
    url = server.url.replace("http://", "http://user:word@") + "?token=sesame"
    with pytest.raises(HelloIOError) as caught:
        open_archive(url)
    assert "word" not in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert "sesame" in server.paths[0]
    server.lie = None
    with open_archive(url) as file:
        assert "sesame" not in repr(file)
        assert "sesame" in file.path


@pytest.mark.parametrize("url", ["http://", "http://:x/", "http://[::1"])
def test_not_a_url(url):
    with pytest.raises((UserInputError, HelloIOError)):
        open_archive(url)


@pytest.mark.parametrize("timeout", [0, -1, "soon"])
def test_a_timeout_that_is_none(timeout):
    with pytest.raises(UserInputError, match="E_OPTION: `timeout`; expected seconds > 0, got"):
        open_archive("http://127.0.0.1:9/x", storage_options={"timeout": timeout})


def test_options_reach_the_request(serve, data):
    server = serve(data)
    options = {"headers": {"Authorization": "Bearer word", "Range": "bytes=0-1"}}
    with open_archive(server.url, storage_options=options) as file:
        assert file.index is not None
    assert "Authorization: Bearer word" in server.headers[0]
    assert server.ranges[0] == (0, 1 << 16)


def test_a_closed_archive(serve, data):
    file = open_archive(serve(data).url)
    assert file.index is not None
    file.close()
    with pytest.raises(HelloIOError, match="E_READ: the archive is closed"):
        file.read_image(0)


def test_threads_and_forked_children_read_at_once(serve, data):
    server = serve(data)
    with open_archive(server.url) as file:
        wanted = file.read_images(range(IMAGES))
        faults = []

        def read(thread):
            rows = np.random.default_rng(thread).permutation(IMAGES).tolist()
            if file.read_images(rows) != [wanted[row] for row in rows]:
                faults.append(thread)

        threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                # Nothing of pytest may run twice.
                code = 1
                try:
                    code = 0 if file.read_images(range(IMAGES)) == wanted else 2
                finally:
                    os._exit(code)
            children.append(child)
        for thread in threads:
            thread.join(30)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        assert not faults
        assert file.read_images(range(IMAGES)) == wanted


@pytest.mark.slow
def test_closing_at_every_byte_of_a_body(serve, data, truth):
    server = serve(data)
    for k in range(0, 65_536, 97):
        server.lie = lambda r, k=k: (
            r.answer(body=r.body[:k], length=max(0, len(r.body) - k)) or True
        )
        server.ranges.clear()
        attempt(server, truth)
