"""Commands that read an archive take URLs and sharded sets as well."""

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hellofmt.archive import create_key, open_archive, shard_path, sign_archive, write_archive
from hellofmt.archive import write_shards as write
from hellofmt_cli.main import hello

TESTS = Path(__file__).parents[1]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def samples():
    return load(TESTS / "archive" / "samples.py")


@pytest.fixture(scope="module")
def draft(samples):
    return samples.draft(images=samples.images(9), projector=samples.projector(), card="# hi")


@pytest.fixture
def archive(draft, tmp_path):
    write_archive(tmp_path / "x.hello", draft)
    return tmp_path / "x.hello"


@pytest.fixture
def server(archive):
    made = load(TESTS / "hostile" / "bad_http.py").Server(archive.read_bytes())
    yield made
    made.stop()


def run(*arguments, code=0):
    done = CliRunner().invoke(hello, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "--json"], ["verify", "--json"], ["ls", "-l"], ["cat", "card"],
        ["cat", "images/0001/000007.png"], ["cat", "manifest"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_url_prints_what_the_file_prints(server, archive, command):
    name, *rest = command
    assert run(name, server.url, *rest).stdout_bytes == run(name, archive, *rest).stdout_bytes


def test_errors_do_not_show_the_query(server):
    server.lie = lambda request: request.answer("403 No", b"") or True
    done = run("inspect", server.url + "?token=sesame", code=9)
    assert "sesame" not in done.output
    assert "Not permitted" in done.stderr


def test_a_missing_url(server):
    server.lie = lambda request: request.answer("404 No", b"") or True
    assert "No such file" in run("ls", server.url, code=9).stderr


def test_a_signature_behind_a_url(server, archive, tmp_path):
    create_key(tmp_path / "key")
    done = run("verify", server.url, "--pubkey", tmp_path / "key.pub", code=7)
    # This server serves the archive under every name.
    assert "E_SIG_BAD: signature file: expected at most 4096 bytes" in done.stderr
    sign_archive(archive, tmp_path / "key")
    signature = archive.with_name("x.hello.sig").read_bytes()
    data = server.data

    def lie(request):
        path = server.paths[request.number]
        server.data = signature if path.startswith("/x.hello.sig?") else data
        return False

    server.lie = lie
    done = run("verify", server.url + "?v=1", "--pubkey", tmp_path / "key.pub", "--json")
    assert "signature" in json.loads(done.stdout)["checks"]
    server.data = data
    server.lie = lambda request: (
        ".sig" in server.paths[request.number] and (request.answer("404 No", b"") or True)
    )
    done = run("verify", server.url + "?v=1", "--pubkey", tmp_path / "key.pub", code=7)
    assert "E_SIG_MISSING: no signature; expected `http" in done.stderr
    assert "v=1" not in done.stderr


@pytest.fixture
def pattern(draft, tmp_path):
    write(tmp_path / "s.hello", draft, 2)
    return f"{tmp_path}/s-*-of-00002.hello"


def test_a_sharded_set(pattern, archive):
    assert (
        run("ls", pattern).stdout.splitlines()[-9:] == run("ls", archive).stdout.splitlines()[-9:]
    )
    one = json.loads(run("inspect", pattern, "--json").stdout)
    whole = json.loads(run("inspect", archive, "--json").stdout)
    for key in ("dataset", "classes", "base", "views"):
        assert one[key] == whole[key], key
    [first], [other] = one["functions"], whole["functions"]
    assert first["temperature"] == other["temperature"]
    # Every shard has the label function.
    assert first["delta"]["bytes"] == 2 * other["delta"]["bytes"]
    assert one["images"]["count"] == whole["images"]["count"]
    checks = json.loads(run("verify", pattern, "--json").stdout)["checks"]
    assert checks[0] == "set"
    assert "shard 1 images" in checks
    name = "images/0001/000008.png"
    assert run("cat", pattern, name).stdout_bytes == run("cat", archive, name).stdout_bytes
    assert "each shard of a set has its own" in run("cat", pattern, "manifest", code=2).stderr


def test_pack_into_shards(archive, tmp_path):
    out = tmp_path / "p.hello"
    done = run("pack", archive, "-o", out, "--shards", 3, "--json")
    document = json.loads(done.stdout)
    assert (document["shards"], document["images"]) == (3, 9)
    paths = [shard_path(out, i, 3) for i in range(3)]
    assert not out.exists()
    with open_archive(paths) as file:
        assert (file.id, file.size_bytes) == (document["id"], document["bytes"])
    text = run("pack", archive, "-o", out, "--shards", 3, "--force").stdout
    assert "p-00000-of-00003.hello ..." in text
    assert "in 3 shards" in text
    assert "E_TARGET" in run("pack", archive, "-o", out, "--shards", 3, code=10).stderr
    assert (
        "expected 2 to 9, got 10" in run("pack", archive, "-o", out, "--shards", 10, code=2).stderr
    )
