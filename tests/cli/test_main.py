"""One table of outcomes and exit codes, and the few that only a process of its own can show."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

import hellofmt_cli.main
from hellofmt.archive import open_archive
from hellofmt.errors import HelloError, HelloIOError
from hellofmt_cli.main import COMMANDS, GROUPS, hello


def flip(path, offset, bit=0):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def make_bad(kind, archive):
    """Damage ``archive`` in place, or put something else there."""
    if kind == "empty":
        archive.write_bytes(b"")
    elif kind == "text":
        archive.write_text("hello, I am a text file\n" * 100)
    elif kind == "cut":
        archive.write_bytes(archive.read_bytes()[:-600])
    elif kind == "extended":
        archive.write_bytes(archive.read_bytes() + b"\0" * 512)
    elif kind == "manifest":
        flip(archive, 600)
    elif kind == "header":
        flip(archive, 110)
    elif kind == "directory":
        archive.unlink()
        archive.mkdir()
    elif kind == "missing":
        archive.unlink()


# What is wrong with the file, exit code, what the one line on stderr says after `Error: PATH: `.
BAD_FILES = [
    ("missing", 9, "No such file or directory"),
    ("directory", 9, "Is a directory"),
    ("empty", 3, "E_MAGIC: not a .hello archive"),
    ("text", 3, "E_MAGIC: not a .hello archive"),
    ("cut", 4, "E_TRUNCATED"),
    ("extended", 4, "E_TRAILING"),
    ("manifest", 4, "E_DIGEST_ROOT"),
    ("header", 5, "E_HEADER"),
]
READERS = [
    ("inspect", "{}"),
    ("verify", "{}"),
    ("ls", "{}"),
    ("cat", "{}", "id"),
    ("extract", "{}", "{}.out"),
    ("diff", "{}", "{}"),
]


@pytest.mark.parametrize("command", READERS, ids=lambda c: c[0])
@pytest.mark.parametrize(("kind", "code", "text"), BAD_FILES, ids=[b[0] for b in BAD_FILES])
def test_bad_files(command, kind, code, text, packed, tmp_path, tree, invoke):
    make_bad(kind, packed)
    before = tree(tmp_path)
    result = invoke(*[part.format(packed) for part in command])
    assert result.exit_code == code
    assert result.stdout == ""
    verdict = {3: "not readable: ", 4: "damaged: ", 5: "invalid: "}.get(code, "")
    verdict = verdict if command[0] == "verify" else ""
    assert result.stderr.startswith(f"Error: {packed}: {verdict}{text}")
    assert result.stderr.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["missing", "text", "cut"])
@pytest.mark.parametrize("command", ["inspect", "verify", "ls"])
def test_json_errors_are_one_document(command, kind, packed, invoke):
    make_bad(kind, packed)
    result = invoke(command, packed, "--json")
    document = json.loads(result.stdout)
    assert document["schema"] == "hello.error/1"
    assert (document["ok"], document["exit"]) == (False, result.exit_code)
    assert result.stderr == f"Error: {document['message']}\n"
    assert (document["code"] or "") in document["message"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing"], "no such command `nothing`"),
        (["inspect"], "Missing argument 'FILE'"),
        (["inspect", "--colour", "x"], "No such option"),
        (["inspect", "x", "--epochs", "0"], "0 is not in the range x>=1"),
        (["inspect", "x", "--epochs", "many"], "'many' is not a valid integer range"),
        (["verify", "x", "--signature", "y"], "--signature and --least-version need --pubkey"),
        (["verify", "x", "--fast", "--pixels"], "--pixels reads the images"),
        (["pack", "x"], "Missing option '-o' / '--output'"),
        (["pack", "x", "-o", "y", "--reencode", "gif"], "'gif' is not one of"),
        (["pack", "x", "-o", "y", "--view-crop", "0.9", "0.1"], "expected the smaller area first"),
        (["pack", "x", "-o", "y", "--note", "text"], "--note: expected KEY=TEXT, got text"),
        (["inspect", "x", "--limit", "images"], "expected NAME=NUMBER with a name of"),
        (["inspect", "x", "--limit", "fun=3"], "expected NAME=NUMBER with a name of"),
        (["inspect", "x", "--limit", "images=0"], "limit `images`; expected 1 to"),
        (["inspect", "x", "--expect", "abc"], "No such file"),
        (["sign", "x"], "give one of --key and --new-key"),
        (
            ["sign", "x", "--key"],
            "Try `hello sign --help` for help.\n\nError: Option '--key' requires",
        ),
        (["sign", "--key", "k"], "Missing argument 'FILE'"),
    ],
)
def test_usage(arguments, text, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == (9 if text == "No such file" else 2)
    assert text in result.stderr
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_pin(packed, invoke):
    other = "sha256:" + "0" * 64
    for command in (["inspect"], ["verify"], ["ls"], ["verify", "--fast"]):
        result = invoke(*command, packed, "--expect", other)
        assert result.exit_code == 7
        assert "E_PIN" in result.stderr
    result = invoke("inspect", packed, "--expect", "abc")
    assert result.exit_code == 2
    assert "E_OPTION: `--expect`: expected sha256: and 64 hex digits, got abc" in result.stderr


def test_limits_can_be_moved(packed, invoke):
    result = invoke("inspect", packed, "--limit", "images=5")
    assert result.exit_code == 6
    assert result.stderr.startswith(f"Error: {packed}: E_LIMIT_IMAGES ")
    assert "`images` is 6, cap 5; `--limit images=6` raises it" in result.stderr
    assert invoke("inspect", packed, "--limit", "images=6").exit_code == 0


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (HelloError("E_X: two\nlines"), 1, "Error: E_X: two lines\n"),
        (PermissionError(13, "Permission denied", "a\x1b[31mb"), 9, "a\\x1b[31mb: Permission"),
        (OSError("bare"), 9, "Error: bare\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (hellofmt_cli.main.Terminated(), 143, "Terminated.\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_what_is_raised_decides_the_exit_code(raised, code, text, monkeypatch, invoke):
    def fail(**_):
        raise raised

    def no_pipe():
        pass

    monkeypatch.setattr(hellofmt_cli.main, "_silence_stdout", no_pipe)
    command = click.Command("schema", callback=fail)
    monkeypatch.setattr(hello, "get_command", lambda *_: command)
    result = invoke("schema")
    assert result.exit_code == code
    assert text in result.stderr


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(**_):
        raise RuntimeError("ours")

    monkeypatch.setattr(hello, "get_command", lambda *_: click.Command("schema", callback=fail))
    result = CliRunner().invoke(hello, ["schema"])
    assert (result.exit_code, type(result.exception)) == (1, RuntimeError)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_explains_itself(name, invoke):
    assert hello.get_command(click.Context(hello), name).name == name
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_help_lists_every_command_on_a_line_of_its_group(invoke):
    lines = invoke("--help").stdout.splitlines()
    width = max(len(name) for group in GROUPS.values() for name in group)
    for title, group in GROUPS.items():
        start = lines.index(f"{title}:") + 1
        listed = [f"  {name:<{width}}  {entry.help}" for name, entry in group.items()]
        assert lines[start : start + len(group)] == listed


def test_help_of_a_command_is_asked_for_in_both_ways(invoke):
    assert invoke("help", "ls").stdout == invoke("ls", "--help").stdout
    assert invoke("help").stdout == invoke("--help").stdout
    assert invoke("help", "help").stdout == invoke("--help").stdout
    assert invoke("-V").stdout == f"hellofmt {hello_version()}\n"


def test_processes(packed, run_hello, tmp_path):
    done = run_hello("inspect", tmp_path / "none.hello")
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr == f"Error: {tmp_path / 'none.hello'}: No such file or directory\n"
    done = run_hello("verify", packed)
    assert (done.returncode, done.stderr) == (0, "")
    assert run_hello("--version").stdout == f"hellofmt {hello_version()}\n"


def hello_version():
    import hellofmt

    return hellofmt.__version__


def test_closed_pipe(packed):
    # `head -c 1` closes the pipe while most of the output is still to come.
    line = f"{sys.executable} -m hellofmt schema | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(  # noqa: S603
        ["/bin/bash", "-c", line], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) in ((141, ""), (0, ""))


def test_closed_pipe_before_the_first_byte():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "hellofmt", "schema"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


# Stops in the middle of writing, says so, and waits there for the signal.
SLOW_PACK = """
import sys, time
from hellofmt.archive.write.measure import Row
real = Row.read
def slow(*arguments):
    slow.calls += 1
    if slow.calls == 4:
        print("half way", flush=True)
        time.sleep(60)
    return real(*arguments)
slow.calls = 0
Row.read = slow
from hellofmt_cli.main import main
main()
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_cannot_show_a_name_gets_its_numbers(encoding, packed, tmp_path):
    path = packed.rename(tmp_path / "\u732b\u00fc.hello")
    program = "from hellofmt_cli.main import main; main()"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}

    def run(*arguments):
        return subprocess.run(  # noqa: S603
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            check=False,
            env=environment,
        )

    done = run("inspect", path, "--html", path)
    name = "\u732b\u00fc".encode(encoding, "backslashreplace")
    assert done.returncode == 10, done.stderr
    assert b"Error: " in done.stderr
    assert name + b".hello` exists" in done.stderr
    said = run("pack", tmp_path / "images", "-o", tmp_path / "\u732b\u00fc")
    assert said.returncode == 0, said.stderr
    assert name + b"\n" in said.stdout


def test_names_of_250_bytes(image_folder, packed, tmp_path, invoke):
    for name in ("a" * 250, "\u732b" * 83, "b" * 255):
        target = tmp_path / name
        assert invoke("pack", image_folder, "-o", target).exit_code == 0
        assert invoke("pack", image_folder, "-o", target, "--force").exit_code == 0
        target.unlink()
        assert invoke("inspect", packed, "--html", target).exit_code == 0
        target.unlink()
        assert invoke("extract", packed, target).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["inspct", "x.hello"], "no such command `inspct`; did you mean `inspect`?"),
        (["zzz"], "no such command `zzz`; see `hello --help`"),
        (["pack", "x", "-o", "y", "--reencode", "jpgg"], "Did you mean `jpeg`?"),
        (["pack", "x", "-o", "y", "--limit", "imges=3"], "Did you mean `images`?"),
        (["plan", "--dataset", "imgenet-1k"], "Did you mean `imagenet-1k`?"),
        (["plan", "--dataset", "imagenet-1k", "--base", "ViT-B33"], "did you mean `ViT-B-32`?"),
        (["pack", "x", "-o", "y", "--reencod", "png"], "--reencode"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest(arguments, text, invoke):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert text in result.stderr


def test_an_ignored_interrupt_stays_ignored(image_folder, tmp_path, tree):
    # As under `nohup` or in the background of a shell.
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    before = tree(tmp_path)
    with subprocess.Popen(  # noqa: S603
        [
            sys.executable,
            "-c",
            ignored + SLOW_PACK,
            "pack",
            image_folder,
            "-o",
            tmp_path / "x",
            "--layout",
            "files",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "half way\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=0.5)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.splitlines()[-1]) == (143, "Terminated.")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("existing", [False, True])
def test_interrupted_pack_leaves_the_old_file_or_none(
    number, code, existing, image_folder, tmp_path, tree
):
    target = tmp_path / "x.hello"
    arguments = ["pack", str(image_folder), "-o", str(target), "--layout", "files"]
    if existing:
        target.write_text("old")
        arguments.append("--force")
    before = tree(tmp_path)
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", SLOW_PACK, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "half way\n"
    # The temporary file is there, so there is something to leave behind.
    assert len(tree(tmp_path)) == len(before) + 1
    time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert stderr.splitlines()[-1] == {130: "Interrupted.", 143: "Terminated."}[code]
    assert tree(tmp_path) == before
    if existing:
        assert target.read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["pack", "", "-o", "y"], "'[SOURCE]...': expected a value, got an empty word"),
        (["pack", "x", "-o", ""], "'-o' / '--output': expected a value, got an empty word"),
        (["inspect", "x", "--html="], "'--html': expected a value, got an empty word"),
        (["extract", "x", ""], "'DIRECTORY': expected a value, got an empty word"),
        (["pack", "x", "-o", "y", "--view-crop", "nan", "1"], "'--view-crop': expected a finite"),
        (["pack", "x", "-o", "y", "--view-flip", "-NaN"], "'--view-flip': expected a finite"),
        (["pack", "x", "-o", "y", "--temperature=inf"], "'--temperature': expected a finite"),
    ],
)
def test_words_that_click_lets_pass_are_refused(arguments, text, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_option_that_is_typed_twice_is_said(image_folder, tmp_path, invoke):
    one, two = tmp_path / "one.hello", tmp_path / "two.hello"
    result = invoke("pack", image_folder, "-o", one, "--output", two, "--force", "--force")
    assert result.exit_code == 0
    twice = [line for line in result.stderr.splitlines() if "times" in line]
    assert twice == ["Warning: `--output` is given 2 times; the last counts"]
    assert (one.exists(), two.exists()) == (False, True)
    # Options that may be repeated, and values that look like options, are none of that.
    result = invoke("inspect", two, "--limit", "images=9", "--limit", "rank=9")
    assert (result.exit_code, result.stderr) == (0, "")


def test_what_is_read_is_not_replaced(packed, tmp_path, invoke):
    before = packed.read_bytes()
    for name in (packed, tmp_path / "link.hello"):
        if name != packed:
            name.symlink_to(packed)
        result = invoke("inspect", packed, "--html", name, "--force")
        assert result.exit_code == 10
        assert f"E_TARGET: `{name}` is what is read" in result.stderr
    assert packed.read_bytes() == before


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["ls", "{}"], ["cat", "{}", "id"]]
)
def test_a_full_disk_below_stdout(arguments, packed):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "hellofmt", *[part.format(packed) for part in arguments]],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 9
    assert done.stderr == "Error: stdout: No space left on device\n"


def test_closed_standard_streams_lead_nowhere(image_folder, packed, tmp_path):
    # With stdout closed, the archive itself would be file 1, into which libraries print.
    program = "import os, sys; os.closerange(0, 3); os.execv(sys.argv[1], sys.argv[1:])"
    code = """import os, sys
from hellofmt_cli.main import main
try:
    main()
finally:
    os.write(1, b"x")
"""
    target = tmp_path / "closed.hello"
    for words in (["pack", str(image_folder), "-o", str(target)], ["cat", str(packed), "id"]):
        called = f"import sys; sys.argv = {['hello', *words]!r}\n{code}"
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", program, sys.executable, "-c", called], check=False
        )
        assert done.returncode == 0
    with open_archive(target) as file:
        assert len(file) == 6


def test_more_and_less_is_said(packed, invoke):
    plain = invoke("inspect", packed)
    for words in (["-v", "inspect"], ["inspect", "--verbose"]):
        done = invoke(*words, packed)
        assert done.stdout == plain.stdout
        assert re.match(rf"read: {re.escape(str(packed))}, sha256:\w+, 6 images, ", done.stderr)
    twice = ["--epochs", "1", "--epochs", "2"]
    assert "given 2 times" in invoke("inspect", packed, *twice).stderr
    for words in (["-q", "inspect"], ["inspect", "--quiet"]):
        done = invoke(*words, packed)
        assert (done.stdout, done.stderr) == (plain.stdout, "")
    assert invoke("inspect", packed).stderr == ""


def test_a_url_is_named_once(invoke, monkeypatch):
    def fail(path, **_):
        raise HelloIOError.make("E_READ", f"{path}: no such host")

    monkeypatch.setattr("hellofmt.archive.open_archive", fail)
    done = invoke("inspect", "hf://a/b/c.hello")
    assert done.stderr == "Error: hf://a/b/c.hello: E_READ: no such host\n"
