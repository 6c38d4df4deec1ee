"""s3fs against a small S3 on the loopback: ranges, batches and what it makes of errors."""

import http.server
import re
import threading
import time

import pytest

from hellofmt.archive import open_archive, verify_archive
from hellofmt.archive.storage import remote
from hellofmt.errors import HelloIOError


class Bucket(http.server.BaseHTTPRequestHandler):
    """HEAD and GET with ranges of one object."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, head):
        server = self.server
        path, _, query = self.path.partition("?")
        if path == "/data" or "list-type" in query:
            key = b"<Contents><Key>x.hello</Key><Size>%d</Size></Contents>" % len(server.data)
            listing = b'<?xml version="1.0"?><ListBucketResult>%s</ListBucketResult>'
            return self.send(200, listing % (b"" if "none" in query else key), head)
        if path != "/data/x.hello":
            return self.send(404, b"", head)
        if not head and server.is_silent:
            server.stopped.wait(20)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None:
            return self.send(200, server.data, head)
        start, end = int(match[1]), int(match[2]) + 1
        server.ranges.append((start, end))
        return self.send(
            206, server.data[start:end], head, f"bytes {start}-{end - 1}/{len(server.data)}"
        )

    def send(self, status, body, head, stated=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        if stated:
            self.send_header("Content-Range", stated)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def bucket(archive):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    server.daemon_threads = True
    server.block_on_close = False
    server.data, server.ranges, server.is_silent = archive.read_bytes(), [], False
    server.stopped = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def options(bucket, monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0.001)
    return {
        "anon": True,
        "endpoint_url": f"http://127.0.0.1:{bucket.server_address[1]}",
        "config_kwargs": {"retries": {"max_attempts": 1}, "s3": {"addressing_style": "path"}},
        "skip_instance_cache": True,
    }


def test_s3_gives_what_the_file_gives(bucket, options, archive):
    with (
        open_archive("s3://data/x.hello", storage_options=options) as file,
        open_archive(archive) as local,
    ):
        assert file.id == local.id
        rows = range(len(local))
        assert file.read_images(rows) == local.read_images(rows)
        assert file.section("base") == local.section("base")
    assert bucket.ranges
    assert verify_archive("s3://data/x.hello", storage_options=options).id == local.id


def test_s3_errors(bucket, options):
    with pytest.raises(FileNotFoundError):
        open_archive("s3://data/none.hello", storage_options=options)
    with open_archive("s3://data/x.hello", storage_options=options) as file:
        bucket.data = bucket.data[:3000]
        with pytest.raises(HelloIOError) as caught:
            file.read_image(10)
        assert caught.value.code in ("E_SHORT_READ", "E_READ")


def test_a_stall_ends_at_its_timeout(bucket, options, monkeypatch):
    monkeypatch.setattr(remote, "_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(remote, "_LEAST_BYTES_PER_SECOND", 1 << 20)
    bucket.is_silent = True
    start = time.monotonic()
    with pytest.raises(HelloIOError, match=r"^E_TIMEOUT: s3://data/x\.hello: "):
        open_archive("s3://data/x.hello", storage_options=options)
    assert time.monotonic() - start < 5
