"""What `hello inspect`, its page and `hello diff` show of an archive's record."""

import json
from pathlib import Path

from hellofmt.archive import open_archive

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"
EVERYTHING = VECTORS / "everything.hello"


def test_inspect_diff_and_page_show_it(tmp_path, invoke, invoke_json):
    with open_archive(EVERYTHING) as file:
        record = json.loads(file.section("record"))
    assert invoke_json("inspect", EVERYTHING)["record"] == record
    page = tmp_path / "page.html"
    text = invoke("inspect", EVERYTHING, "--html", page).stdout
    assert "hello distill drawn --teacher teacher" in text
    assert "hello distill drawn --teacher teacher" in page.read_text()
    changed = invoke_json("diff", EVERYTHING, VECTORS / "projector.hello")["manifest"]
    assert {"key": "record.images.ipc", "a": 1, "b": None} in changed
    assert invoke_json("inspect", VECTORS / "projector.hello")["record"] is None


def test_a_hostile_record_is_shown_escaped(tmp_path, invoke, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "hostile")
    from zoo import ZOO

    path = ZOO["record_that_looks_like_an_attack"].write(tmp_path / "evil.hello")
    page = tmp_path / "page.html"
    result = invoke("inspect", path, "--html", page)
    assert result.exit_code == 0, result.stderr
    assert "\\x1b]0;x\\x07<script>$(id)" in result.stdout
    assert not {"\x1b", "\x07"} & set(result.stdout + page.read_text())
    assert "<script" not in page.read_text()
