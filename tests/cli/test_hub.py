"""``hello push`` and ``hello pull``: the Hub's own client against a stand-in of its API."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import hellofmt
from hellofmt.archive import Texts


class Hub(BaseHTTPRequestHandler):
    """Repositories of data sets in memory: a dict of file names for each name."""

    repositories: dict
    private: set

    def log_message(self, *_):
        pass

    def answer(self, status, document=None, body=b"", **headers):
        body = json.dumps(document).encode() if document is not None else body
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def repository(self):
        name = "/".join(self.path.partition("/datasets/")[2].split("/")[:2])
        return self.repositories.get(name.split("?")[0])

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        if self.headers.get("Authorization") != "Bearer hf_mine":
            return self.answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            wanted = json.loads(body)

            name = f"{wanted.get('organization') or 'you'}/{wanted['name']}"
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.private.add(name)
            self.repositories.setdefault(name, {})
            return self.answer(200, {"url": f"{self.server.url}/datasets/{name}"})
        if "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        for line in body.splitlines():
            step = json.loads(line)
            if step["key"] == "file":
                data = base64.b64decode(step["value"]["content"])
                self.repository()[step["value"]["path"]] = data
        commit = {
            "commitOid": "a" * 40,
            "commitUrl": f"{self.server.url}/datasets/you/photos/commit/{'a' * 40}",
            "success": True,
        }
        return self.answer(200, commit)

    def do_GET(self):
        files = self.repository()
        if files is None:
            return self.answer(404, {"error": "not here"}, X_Error_Code="RepoNotFound")
        if self.path.startswith("/api/"):
            found = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
            siblings = [{"rfilename": name} for name in files]
            whole = {"id": "you/photos", "sha": "a" * 40, "siblings": siblings}
            return self.answer(200, found if "/tree/" in self.path else whole)
        data = files.get(self.path.rsplit("/", 1)[1])
        if data is None:
            return self.answer(404, {"error": "no file"}, X_Error_Code="EntryNotFound")
        tag = f'"{hashlib.sha1(data).hexdigest()}"'  # noqa: S324 - as the Hub's tags are
        return self.answer(200, body=data, ETag=tag, X_Repo_Commit="a" * 40)

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub.constants as constants
    import huggingface_hub.hf_api as api

    handler = type("Here", (Hub,), {"repositories": {}, "private": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.url = url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(api, "ENDPOINT", url, raising=False)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def photos(image_folder, tmp_path):
    hellofmt.pack(image_folder, tmp_path / "photos.hello", texts=Texts(card="# Photos\n"))
    return tmp_path / "photos.hello"


def test_what_is_pushed_is_pulled(hub, photos, tmp_path, invoke):
    sent = invoke("push", photos, "hf://you/photos", "--private")
    assert sent.exit_code == 0, sent.output
    archive_id = hellofmt.verify(photos).id
    assert f"hello pull hf://you/photos/photos.hello --expect {archive_id}" in sent.stdout
    assert hub.private == {"you/photos"}
    kept = hub.repositories["you/photos"]
    assert kept == {"photos.hello": photos.read_bytes(), "README.md": b"# Photos\n"}
    got = invoke("pull", "hf://you/photos", "-o", tmp_path / "in", "--expect", archive_id)
    assert got.exit_code == 0, got.output
    assert (tmp_path / "in/photos.hello").read_bytes() == photos.read_bytes()
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["photos.hello"]
    again = invoke("pull", "hf://datasets/you/photos", "-o", tmp_path / "in")
    assert (again.exit_code, again.stdout) == (10, "")


def test_a_pushed_set_is_read_where_it_is(hub, image_folder, tmp_path, invoke):
    hellofmt.pack(image_folder, tmp_path / "x.hello", shards=2)
    sent = invoke("push", tmp_path / "x-*-of-00002.hello", "hf://you/photos")
    assert sent.exit_code == 0, sent.output
    assert 'Next: hello inspect "hf://datasets/you/photos/x-*-of-00002.hello"' in sent.stdout
    assert len(hub.repositories["you/photos"]) == 2


def test_a_readme_of_the_repository_stays(hub, photos, invoke):
    hub.repositories["you/photos"] = {"README.md": b"mine"}
    sent = invoke("push", photos, "hf://you/photos")
    assert "README.md of the repository stays as it is" in sent.stderr
    assert hub.repositories["you/photos"]["README.md"] == b"mine"


def test_damage_on_the_way_leaves_nothing(hub, photos, tmp_path, invoke):
    data = bytearray(photos.read_bytes())
    data[len(data) // 2] ^= 1
    hub.repositories["you/photos"] = {"photos.hello": bytes(data)}
    got = invoke("pull", "hf://you/photos", "-o", tmp_path / "in")
    assert got.exit_code in (4, 5), got.output
    assert list((tmp_path / "in").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["pull", "you/photos"], 2, "expected hf://ORG/NAME"),
        (["pull", "hf://you/nothing"], 9, "the Hub refused"),
        (["pull", "hf://you/two"], 2, "expected one archive, found a.hello, b.hello"),
    ],
)
def test_wrong_places_get_one_line(hub, tmp_path, invoke, arguments, code, text):
    hub.repositories["you/two"] = {"a.hello": b"", "b.hello": b""}
    result = invoke(*arguments, "-o", tmp_path / "in")
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


def test_who_has_not_signed_in_is_told_how(hub, photos, monkeypatch, invoke):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    result = invoke("push", photos, "hf://you/photos")
    assert result.exit_code == 9
    assert "`hf auth login` signs you in" in result.stderr


@pytest.mark.parametrize("place", ["hf://you/photos", "hf://you/photos/photos.hello"])
def test_without_a_network_a_pull_ends_at_once_in_one_line(
    hub, tmp_path, monkeypatch, invoke, place
):
    import huggingface_hub.constants as constants

    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", nobody, raising=False)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        nobody + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("the client tries again"))
    result = invoke("pull", place, "-o", tmp_path / "in")
    assert (result.exit_code, result.stderr.count("\n")) == (9, 1), result.stderr
    assert "E_HTTP" in result.stderr
