"""huggingface_hub's file system against a small hub on the loopback: ranges and errors."""

import http.server
import json
import re
import threading

import pytest

from hellofmt.archive import ImageItem, ImageSet, open_archive, verify_archive, write_archive
from hellofmt.archive.storage import remote
from hellofmt.errors import HelloIOError

URL = "hf://datasets/some/set/x.hello"


class Hub(http.server.BaseHTTPRequestHandler):
    """What is asked of the hub to read one file of one data set."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0]
        if path == "/api/datasets/some/set":
            return self.send(200, json.dumps({"id": "some/set", "sha": "a" * 40}).encode())
        if path == "/api/datasets/some/set/tree/main":
            size = len(server.data)
            file = {"type": "file", "path": "x.hello", "size": size, "oid": "0" * 40}
            return self.send(200, json.dumps([file]).encode())
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if path != "/datasets/some/set/resolve/main/x.hello" or match is None:
            return self.send(404, b"", ("X-Error-Code", "RepoNotFound"))
        start, end = int(match[1]), min(int(match[2]) + 1, len(server.data))
        body = server.data[start:end]
        server.fetched.append(len(body))
        if server.is_short:
            body = body[: len(body) // 2]
        stated = f"bytes {start}-{start + len(body) - 1}/{len(server.data)}"
        return self.send(206, body, ("Content-Range", stated))

    def send(self, status, body, header=("Content-Type", "application/json")):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def large(samples, tmp_path_factory):
    """An archive of 3 MB, of which a row is a small part."""
    items = [
        ImageItem(i % 2, samples.png(samples.pattern(i, 100, 100, 3), level=0)) for i in range(100)
    ]
    path = tmp_path_factory.mktemp("hf") / "x.hello"
    write_archive(path, samples.draft(images=ImageSet("png", items, "files")))
    return path


@pytest.fixture
def hub(large):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.block_on_close = False
    server.data, server.fetched, server.is_short = large.read_bytes(), [], False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def options(hub, monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0.001)
    endpoint = f"http://127.0.0.1:{hub.server_address[1]}"
    return {"endpoint": endpoint, "token": False, "skip_instance_cache": True}


def test_the_hub_gives_what_the_file_gives_and_no_more_is_fetched(hub, options, large):
    rows = [3, 70, 71]
    with open_archive(URL, storage_options=options) as file, open_archive(large) as local:
        assert file.id == local.id
        opened = sum(hub.fetched)
        assert opened < 1 << 17
        assert file.read_images(rows) == local.read_images(rows)
        assert sum(hub.fetched) - opened < sum(local.index.size[rows]) + 4096
    assert verify_archive(URL, storage_options=options).id == local.id


def test_hub_errors(hub, options):
    for missing in (URL + "x", "hf://datasets/some/other/x.hello"):
        with pytest.raises(FileNotFoundError):
            open_archive(missing, storage_options=options)
    with open_archive(URL, storage_options=options) as file:
        hub.is_short = True
        with pytest.raises(HelloIOError) as caught:
            file.read_image(10)
        assert caught.value.code in ("E_SHORT_READ", "E_READ")
