"""``hf:NAME`` against a hub on the loopback, with the library as it is."""

import hashlib
import http.server
import io
import json
import re
import threading

import datasets
import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from hellofmt.errors import HelloIOError, UserInputError
from hellofmt.sources import decode_centre, open_source

COMMIT = "a" * 40
API = "/api/datasets/some/fish"


class Hub(http.server.BaseHTTPRequestHandler):
    """What the library asks to load one data set of Parquet files."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        files, path = self.server.files, self.path.partition("?")[0]
        resolved = re.fullmatch(rf"/datasets/some/fish/resolve/(main|{COMMIT})/(.*)", path)
        tree = re.fullmatch(rf"{API}/tree/(?:main|{COMMIT})/?(.*)", path)
        if path == API or path.startswith(f"{API}/revision/"):
            names = [{"rfilename": name} for name in files]
            self.send(json.dumps({"id": "some/fish", "sha": COMMIT, "siblings": names}).encode())
        elif tree:
            kind = {"oid": "0" * 40, "size": 0}
            found = [
                {"type": "file", **kind, "path": name, "size": len(data)}
                for name, data in files.items()
                if name.rpartition("/")[0] == tree[1]
            ]
            if not tree[1]:
                found.append({"type": "directory", **kind, "path": "data"})
            self.send(json.dumps(found).encode())
        elif resolved and resolved[2] in files:
            data = files[resolved[2]]
            tag = ("ETag", f'"{hashlib.sha1(data).hexdigest()}"')  # noqa: S324
            self.send(data, tag, ("X-Repo-Commit", COMMIT))
        else:
            code = "EntryNotFound" if "/fish/" in path else "RepoNotFound"
            self.send(b"", ("X-Error-Code", code), status=404)

    do_HEAD = do_GET

    def send(self, body, *headers, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["tench", "shark"])}
    )
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    rows = {"image": list(map(Image.fromarray, pixels)), "label": [0, 1, 0, 1, 0]}
    out = io.BytesIO()
    datasets.Dataset.from_dict(rows, features).to_parquet(out)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {"data/train-00000-of-00001.parquet": out.getvalue(), "README.md": b"fish"}
    server.pixels = pixels
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    at = {"HF_ENDPOINT": url, "HF_DATASETS_CACHE": tmp_path / "datasets"}
    for name, value in at.items():
        monkeypatch.setattr(datasets.config, name, value)
    monkeypatch.setattr(datasets.config, "HUB_DATASETS_URL", url + "/datasets/{repo_id}/resolve")
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_a_name_of_the_hub(hub):
    source = open_source("hf:some/fish")
    assert (source.name, source.labels.tolist()) == ("fish", [0, 1, 0, 1, 0])
    assert [line.key for line in source.classes] == ["tench", "shark"]
    for row in range(5):
        assert np.array_equal(decode_centre(source, row, 8), hub.pixels[row])
    for text, message in [("some/fish:test", 'Unknown split "test"'), ("some/none", "doesn't ex")]:
        with pytest.raises(UserInputError, match=f"E_DATA: cannot read `hf:{text}`: .*{message}"):
            open_source(f"hf:{text}")


def test_a_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(HelloIOError, match="E_HTTP: cannot fetch `hf:some/fish`: Couldn't reach"):
        open_source("hf:some/fish")
