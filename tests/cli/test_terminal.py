"""A terminal: lines as wide as it is, colour only there and where it is wanted."""

import os
import pty
import re
import sys

import click
import click.testing
import pytest

from hellofmt_cli.main import hello
from hellofmt_cli.terminal import columns, wrapped


@pytest.fixture
def terminal(monkeypatch):
    """Runs `hello` on a terminal of so many columns."""

    def run(width, *words, **environment):
        stream = click.testing._NamedTextIOWrapper
        monkeypatch.setattr(stream, "isatty", lambda self: self.name != "<stdin>", raising=False)
        monkeypatch.setenv("COLUMNS", str(width))
        for name, value in {"TERM": "xterm", "NO_COLOR": "", **environment}.items():
            monkeypatch.setenv(name, value)
        return click.testing.CliRunner().invoke(hello, [str(word) for word in words], color=True)

    return run


def test_lines_are_broken_between_words():
    assert wrapped("one two three", 8) == "one two\nthree"
    assert wrapped("one two three", 10, "- ") == "- one two\n  three"
    assert wrapped("one two three", None, "- ") == "- one two three"
    # A digest is copied whole, and a wide character takes two columns.
    assert wrapped("id 0123456789 end", 5) == "id\n0123456789\nend"
    assert wrapped("猫 猫 猫", 5) == "猫 猫\n猫"
    assert wrapped("a\n  b c", 4) == "a\n  b\nc"
    assert wrapped(click.style("ab", fg="red") + " cd", 5) == "\x1b[31mab\x1b[0m cd"


@pytest.mark.parametrize("width", [40, 200])
@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "FILE", "--classes", "--tensors"],
        ["verify", "FILE"],
        ["diff", "FILE", "OTHER"],
        ["plan", "--dataset", "imagenet-1k"],
        ["plan", "--classes", "10", "--ipc", "1", "--base", "ViT-B-33"],
        ["pack", "FILE", "-o", "FILE"],
        ["--help"],
        ["distill", "--help"],
    ],
)
def test_no_line_is_wider_than_the_terminal(width, words, full, packed, terminal):
    names = {"FILE": full, "OTHER": packed}
    done = terminal(width, *(names.get(word, word) for word in words))
    lines = click.unstyle(done.output).replace("\r", "\n").splitlines()
    # What is copied stays whole: a value of one word, an example, the choices of an option.
    whole = re.compile(r"\S*|.*  \S+| *(hello |--[a-z-]+ [\[/]).*|.*%\|.*")
    loose = [line for line in lines if not whole.fullmatch(line)]
    assert loose
    assert [line for line in loose if columns(line) > width] == []


def test_what_is_no_terminal_gets_whole_lines_without_colour(packed, invoke, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    page = invoke("inspect", packed).stdout
    assert max(map(len, page.splitlines())) > 80
    assert "\x1b" not in page + invoke("--help").stdout + invoke("inspect", "nosuch").stderr


@pytest.mark.parametrize(
    ("words", "environment", "is_coloured"),
    [
        ([], {}, True),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"NO_COLOR": ""}, True),
        ([], {"TERM": "dumb"}, False),
        (["--no-color"], {}, False),
        (["--color"], {"NO_COLOR": "1"}, True),
    ],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_colour_is_there_where_it_is_wanted(
    words, environment, is_coloured, place, packed, terminal
):
    def run(*arguments):
        line = (*words, *arguments) if place == "before" else (*arguments, *words)
        return terminal(80, *line, **environment)

    verdict, failed, usage = run("verify", packed), run("inspect", "nosuch"), run("inspect")
    assert ("\x1b[32m\x1b[1mintact" in verdict.stdout) == is_coloured
    assert ("\x1b[31m\x1b[1mError:" in failed.stderr) == is_coloured
    assert ("\x1b[31m\x1b[1mError:" in usage.stderr) == is_coloured
    if not is_coloured:
        assert "\x1b" not in verdict.stdout + failed.stderr + usage.stderr


def test_a_real_terminal(packed):
    child, terminal = pty.fork()
    if child == 0:
        os.execve(  # noqa: S606
            sys.executable,
            [sys.executable, "-m", "hellofmt", "ls", packed, "--zzzzzz"],
            {**os.environ, "COLUMNS": "30", "TERM": "xterm"},
        )
    said = b""
    while True:
        try:
            said += os.read(terminal, 4096)
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    # How click words it is its own.
    last = said.split(b"\r\n\r\n")[-1]
    assert last.startswith(b"\x1b[31m\x1b[1mError:\x1b[0m No such option")
    assert last.count(b"\r\n") == 2
