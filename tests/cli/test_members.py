"""`hello ls`, `hello cat`, `hello extract`: verified members, nothing outside the target."""

import hashlib
import io
import os
import re
import stat
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from hellofmt.archive import open_archive
from hellofmt.archive.write import extraction
from hellofmt_cli import extract as extract_module


def damage(path, row):
    with open_archive(path) as file:
        offset = int(file.index.offset[row])
    data = bytearray(path.read_bytes())
    data[offset + 30] ^= 1
    path.write_bytes(data)


class TestLs:
    def test_names_are_those_of_tar(self, full, invoke):
        with tarfile.open(full) as tar:
            names = tar.getnames()
        listed = invoke("ls", full).stdout.splitlines()
        assert listed == [n for n in names if n not in ("__hello__/manifest", "__hello__/id")]

    def test_long_form(self, packed, image_folder, invoke, invoke_json):
        data = (image_folder / "dog" / "1.png").read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        line = f"{len(data)}       1  {digest[:16]}  images/0001/000003.png"
        assert line in invoke("ls", "-l", packed).stdout.splitlines()
        members = invoke_json("ls", packed)["members"]
        assert members[5] == {
            "name": "images/0001/000003.png",
            "size": len(data),
            "label": 1,
            "digest": f"sha256:{digest}",
        }
        assert members[0]["label"] is None


class TestCat:
    @pytest.mark.parametrize("member", ["classes", "__hello__/classes"])
    def test_section(self, packed, invoke, member):
        result = invoke("cat", packed, member)
        assert result.stdout_bytes == b"cat\tcat\ndog\tdog\nowl\towl\n"

    def test_manifest_and_id_are_those_in_the_file(self, full, invoke):
        with tarfile.open(full) as tar:
            for member in ("manifest", "id"):
                stored = tar.extractfile(f"__hello__/{member}").read()
                assert invoke("cat", full, member).stdout_bytes == stored

    def test_image(self, packed, image_folder, invoke):
        result = invoke("cat", packed, "images/0002/000004.png")
        assert result.stdout_bytes == (image_folder / "owl" / "0.png").read_bytes()

    def test_image_of_a_packed_archive(self, image_folder, tmp_path, invoke):
        path = tmp_path / "p.hello"
        invoke("pack", image_folder, "-o", path, "--layout", "packed")
        data = invoke("cat", path, "images/0002/000004.png").stdout_bytes
        expected = Image.open(image_folder / "owl" / "0.png")
        assert (np.asarray(Image.open(io.BytesIO(data))) == np.asarray(expected)).all()

    @pytest.mark.parametrize(
        "member",
        [
            "images/0002/000000.png",
            "images/0000/000006.png",
            "images/0000/0.png",
            "images/0000/000000.jpg",
            "../x",
            "/etc/passwd",
            "images/0000/\u0661.png",
            "card",
        ],
    )
    def test_no_such_member(self, packed, invoke, member):
        result = invoke("cat", packed, member)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "E_OPTION: no member" in result.stderr

    def test_damage(self, packed, invoke):
        damage(packed, 4)
        result = invoke("cat", packed, "images/0002/000004.png")
        assert (result.exit_code, result.stdout) == (4, "")
        assert invoke("cat", packed, "images/0002/000005.png").exit_code == 0

    def test_a_terminal_gets_no_control_characters(self, image_folder, tmp_path, invoke):
        card = tmp_path / "card.md"
        card.write_text("# Card\n\x1b[31mred\n" + "long " * 1000)
        path = tmp_path / "x.hello"
        assert invoke("pack", image_folder, "-o", path, "--card", card).exit_code == 0
        assert invoke("cat", path, "card").stdout == card.read_text()
        shown = on_a_terminal("cat", path, "card")
        assert shown == (0, "# Card\n\\x1b[31mred\n" + "long " * 1000 + "\n")

    def test_a_terminal_gets_no_binary(self, packed):
        code, shown = on_a_terminal("cat", packed, "images/0000/000000.png")
        assert code == 2
        assert "is binary; redirect stdout into a file" in shown


def on_a_terminal(*args):
    """Exit code and what a command writes to a pseudo-terminal."""
    import pty
    import subprocess

    ours, theirs = pty.openpty()
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "hellofmt", *map(str, args)], stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    return process.wait(timeout=30), b"".join(parts).decode().replace("\r\n", "\n")


class TestExtract:
    def test_equals_what_was_packed(self, full, image_folder, tmp_path, tree, invoke, invoke_json):
        document = invoke_json("extract", full, tmp_path / "out")
        out = tmp_path / "out"
        files = [p for p in out.rglob("*") if p.is_file()]
        assert document["files"] == len(files)
        assert document["bytes"] == sum(p.stat().st_size for p in files)
        packed = sorted(image_folder.glob("*/*.png"))
        unpacked = sorted((out / "images").glob("*/*.png"))
        assert [p.read_bytes() for p in packed] == [p.read_bytes() for p in unpacked]
        sections = sorted(p.name for p in (out / "__hello__").iterdir())
        assert sections == ["adapter", "classes", "head", "id", "index", "manifest", "probes"]
        with open_archive(full) as file:
            for name in file.section_sizes():
                assert (out / "__hello__" / name).read_bytes() == file.section(name)
        # And it packs again to the same images.
        again = tmp_path / "again.hello"
        invoke("pack", out / "images", "-o", again, "--layout", "files")
        with open_archive(full) as one, open_archive(again) as two:
            assert (one.index.sha256 == two.index.sha256).all()

    def test_modes(self, packed, tmp_path, invoke):
        invoke("extract", packed, tmp_path / "out")
        out = tmp_path / "out"
        # As the process's mask says, like every folder in it.
        assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE((out / "images").stat().st_mode)
        assert stat.S_IMODE(out.stat().st_mode) & 0o700 == 0o700
        for path in out.rglob("*"):
            mode = path.lstat().st_mode
            assert stat.S_ISDIR(mode) or stat.S_ISREG(mode)
            assert stat.S_IMODE(mode) & 0o7022 == 0

    def test_packed_images_come_as_png(self, image_folder, tmp_path, invoke):
        path = tmp_path / "p.hello"
        invoke("pack", image_folder, "-o", path, "--layout", "packed")
        assert invoke("extract", path, tmp_path / "out").exit_code == 0
        for one, two in zip(
            sorted(image_folder.glob("*/*.png")),
            sorted((tmp_path / "out" / "images").glob("*/*.png")),
            strict=True,
        ):
            assert (np.asarray(Image.open(one)) == np.asarray(Image.open(two))).all()
        assert not (tmp_path / "out" / "__hello__" / "pixels").exists()

    @pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
    def test_an_existing_target_is_refused(self, packed, tmp_path, tree, invoke, kind):
        target = tmp_path / "out"
        if kind == "file":
            target.write_text("mine")
        elif kind == "directory":
            target.mkdir()
        else:
            target.symlink_to(tmp_path / "elsewhere")
        before = tree(tmp_path)
        result = invoke("extract", packed, target)
        assert result.exit_code == 10
        assert "E_TARGET" in result.stderr
        assert "exists; name a new one" in result.stderr
        assert tree(tmp_path) == before

    def test_damage_leaves_nothing(self, packed, tmp_path, tree, invoke):
        damage(packed, 5)
        before = tree(tmp_path)
        assert invoke("extract", packed, tmp_path / "out").exit_code == 4
        assert tree(tmp_path) == before

    def test_failure_half_way_leaves_nothing(self, packed, tmp_path, tree, invoke, monkeypatch):
        real, calls = extraction._write, []

        def write(path, data):
            calls.append(path)
            if len(calls) == 6:
                raise OSError(28, "No space left on device", str(path))
            real(path, data)

        monkeypatch.setattr(extraction, "_write", write)
        before = tree(tmp_path)
        result = invoke("extract", packed, tmp_path / "out")
        assert result.exit_code == 9
        assert "No space left on device" in result.stderr
        assert tree(tmp_path) == before

    def test_the_space_is_checked_first(self, packed, tmp_path, tree, invoke, monkeypatch):
        monkeypatch.setattr(extraction, "free_bytes", lambda _: 2560)
        before = tree(tmp_path)
        result = invoke("extract", packed, tmp_path / "out")
        assert result.exit_code == 9
        assert re.search(r"E_NOSPACE: needs 3\d,\d{3} bytes, 2,560 are free", result.stderr)
        assert tree(tmp_path) == before

    def test_a_target_that_appears_meanwhile_is_not_replaced(
        self, packed, tmp_path, invoke, monkeypatch
    ):
        real = extraction._write
        target = tmp_path / "out"

        def write(path, data):
            target.mkdir(exist_ok=True)
            real(path, data)

        monkeypatch.setattr(extraction, "_write", write)
        assert invoke("extract", packed, target).exit_code == 10
        assert list(target.iterdir()) == []
        assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "out", "x.hello"]

    def test_no_link_is_followed(self, tmp_path):
        victim = tmp_path / "victim"
        victim.write_text("mine")
        (tmp_path / "link").symlink_to(victim)
        with pytest.raises(FileExistsError):
            extraction._write(tmp_path / "link", b"theirs")
        assert victim.read_text() == "mine"

    def test_the_file_that_was_verified_is_the_one_that_is_read(
        self, packed, full, tmp_path, tree, invoke, monkeypatch
    ):
        real = extract_module.verify_archive

        def swap(path, **options):
            report = real(path, **options)
            full.replace(packed)
            return report

        monkeypatch.setattr(extract_module, "verify_archive", swap)
        result = invoke("extract", packed, tmp_path / "out")
        assert result.exit_code == 7
        assert "E_PIN" in result.stderr
        assert not (tmp_path / "out").exists()
