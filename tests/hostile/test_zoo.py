"""Every hostile file gives one class, one code and one exit, however it is opened."""

import shutil
import subprocess
import sys
import tarfile

import pytest
from click.testing import CliRunner
from zoo import VALID, ZOO
from zoo.parts import images_only

from hellofmt.archive import open_archive, verify_archive
from hellofmt.errors import HelloError
from hellofmt_cli.main import hello

HARMLESS = [name for name, file in ZOO.items() if not file.code]


def outcome(act, *args, **options):
    """Class, code and exit of what ``act`` raises; empty ones and 0 if it returns."""
    try:
        act(*args, **options)
    except HelloError as error:
        return type(error).__name__, error.code, error.exit_code
    return "", "", 0


def read_everything(path):
    with open_archive(path) as file:
        len(file.classes)
        for row in range(len(file)):
            file.decode_image(row)
        for name in file.section_sizes():
            file.section(name)
            if name in ("index", "adapter", "head", "probes", "base", "pixels"):
                file.tensors(name)


@pytest.mark.parametrize("name", VALID)
def test_what_the_lies_start_from_is_accepted(name, tmp_path):
    path = tmp_path / "valid.hello"
    path.write_bytes(VALID[name]())
    assert outcome(verify_archive, path, pixels=True) == ("", "", 0)
    assert outcome(read_everything, path) == ("", "", 0)


def test_the_builder_and_the_writer_agree_on_the_container(tmp_path):
    # Read by the strict reader, whose every header the builder had to guess.
    path = tmp_path / "valid.hello"
    path.write_bytes(VALID["projector"]())
    with open_archive(path) as file:
        assert [file.image_name(row) for row in range(len(file))] == [
            "images/0000/000000.png",
            "images/0000/000001.png",
            "images/0001/000002.png",
        ]
        assert list(file.section_sizes()) == [
            *("index", "classes", "adapter", "head", "probes", "card", "license")
        ]
        assert file.decode_image(0)[0, 1].tolist() == [111, 148, 185]


@pytest.mark.parametrize("name", ZOO)
def test_refused(name, tmp_path):
    file = ZOO[name]
    path = file.write(tmp_path / "hostile.hello")
    wanted = (file.error, file.code, file.exit)
    assert outcome(verify_archive, path, pixels=True) == wanted
    assert outcome(verify_archive, path) == (("", "", 0) if file.decode else wanted)
    assert outcome(read_everything, path) == (("", "", 0) if file.full else wanted)
    if file.group == "index" and file.code == "E_INDEX":
        # Before any image is read: what a loader would use to plan an epoch.
        assert outcome(lambda: open_archive(path).index) == wanted


def test_the_zoo_is_no_smaller_than_promised():
    assert len(ZOO) >= 700
    codes = {file.code for file in ZOO.values()}
    # E_PIN and the signatures need a caller's option, not another file.
    assert codes >= {
        *("E_MAGIC", "E_VERSION", "E_FEATURE", "E_TRUNCATED", "E_TRAILING", "E_DIGEST_ROOT"),
        *("E_DIGEST_INDEX", "E_DIGEST_MEMBER", "E_PADDING", "E_ZSTD", "E_IMAGE", "E_HEADER"),
        *("E_ORDER", "E_DUPLICATE", "E_JSON", "E_SCHEMA", "E_CODEC", "E_TENSOR"),
        *("E_RANK", "E_CLASSES", "E_INDEX"),
    }


def one_printable_line(text):
    return text.count("\n") == 1 and text.endswith("\n") and text[:-1].isprintable()


def test_the_command_gives_the_same_exit_and_one_line(tmp_path):
    runner, wrong = CliRunner(), []
    for name, file in ZOO.items():
        if file.exit == 0:
            continue
        path = file.write(tmp_path / "hostile.hello")
        result = runner.invoke(hello, ["verify", "--pixels", str(path)])
        said = file.code in result.stderr and one_printable_line(result.stderr)
        if result.exit_code != file.exit or not said or result.stdout:
            wrong.append((name, result.exit_code, result.stderr, result.stdout))
    assert wrong == []


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("command", ["verify", "inspect", "ls"])
def test_text_that_looks_like_an_attack_is_shown_escaped(name, command, tmp_path):
    path = ZOO[name].write(tmp_path / "harmless.hello")
    result = CliRunner().invoke(hello, [command, str(path)])
    assert result.exit_code == 0
    shown = result.stdout + result.stderr
    strange = {c for c in shown if c != "\n" and not c.isprintable()}
    # U+202E turns the text of a terminal around; it is not printable by Python's measure either.
    assert strange == set()


@pytest.mark.parametrize(
    "name",
    [
        "a_png_file",
        "zstd_lying_bomb",
        "json_nan",
        "header_type_symbolic_link",
        "index_size_2_to_64_minus_1",
        "manifest_requires_escape_sequence",
    ],
)
def test_exit_of_the_process(name, tmp_path):
    file = ZOO[name]
    path = file.write(tmp_path / "hostile.hello")
    command = [sys.executable, "-m", "hellofmt_cli.main", "verify", str(path)]
    done = subprocess.run(  # noqa: S603 (our own command)
        command, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (file.exit, "")
    assert file.code in done.stderr
    assert "Traceback" not in done.stderr


def test_other_tar_readers_see_the_members_that_ours_reads(tmp_path):
    accepted = [*VALID.values(), *(file.make for file in ZOO.values() if not file.code)]
    path = tmp_path / "accepted.hello"
    tar = shutil.which("tar")
    for make in accepted:
        path.write_bytes(make())
        with open_archive(path) as file:
            wanted = ["__hello__/manifest", "__hello__/id"]
            wanted += [f"__hello__/{name}" for name in file.section_sizes()]
            if not file.has_section("pixels"):
                wanted += [file.image_name(row) for row in range(len(file))]
            with tarfile.open(path, "r:") as other:
                members = other.getmembers()
                assert [member.name for member in members] == wanted
                assert {member.type for member in members} == {tarfile.REGTYPE}
                assert other.extractfile(members[0]).read() == file.manifest_bytes
        if tar is not None:
            listed = subprocess.run(  # noqa: S603 (a list, nothing is unpacked)
                [tar, "tf", path], capture_output=True, text=True, check=True
            )
            assert (listed.stdout.splitlines(), listed.stderr) == (wanted, "")


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_no_depth_is_too_deep_for_an_error_of_ours(opening, tmp_path):
    # Parsing and writing back give up at depths that differ by a few levels.
    closing = {"[": "]", '{"a":': "}"}[opening]
    path = tmp_path / "deep.hello"
    for depth in range(700, 1001, 2):
        text = f'{{"a":{opening * depth}1{closing * depth}}}'
        path.write_bytes(images_only().build(text.encode()))
        assert outcome(verify_archive, path)[2] == 5


def test_a_pin_and_an_id_come_before_the_content(tmp_path):
    path = tmp_path / "valid.hello"
    path.write_bytes(VALID["images"]())
    wanted = ("TrustError", "E_PIN", 7)
    assert outcome(verify_archive, path, expect="sha256:" + "0" * 64) == wanted
    # Nothing is parsed that is not the pinned file: not even to say that it is malformed.
    path = ZOO["json_nan"].write(tmp_path / "hostile.hello")
    assert outcome(verify_archive, path, expect="sha256:" + "0" * 64) == wanted


def test_a_matmul_bomb_is_refused_before_its_product(tmp_path):
    from hellofmt.projector import Labeler

    path = ZOO["matmul_bomb"].write(tmp_path / "bomb.hello")
    with open_archive(path) as file, pytest.raises(HelloError) as caught:
        Labeler.from_file(file)
    assert caught.value.exit_code in (5, 8)
