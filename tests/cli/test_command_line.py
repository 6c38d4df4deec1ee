"""The command that a record keeps."""

import click
import pytest

from hellofmt.runs import without_paths
from hellofmt_cli.command_line import recorded_command
from hellofmt_cli.main import hello


@pytest.fixture
def recorded(monkeypatch):
    """What a command line is recorded as, without running it."""

    def run(*words):
        name, *rest = words
        command = hello.get_command(click.Context(hello), name)
        with command.make_context(name, list(rest)) as ctx:
            assert ctx is click.get_current_context()
            return recorded_command(without_paths)

    return run


FIT = ("fit", "/home/me/photos", "--teacher", "resnet18=/home/me/t.pth", "--base", "seeded")


def test_paths_go_and_words_stay(recorded):
    assert recorded(*FIT, "--prompt", "a cat/dog {}", "--note", "k=a/b", "-o", "x.hello") == (
        "hello fit photos --teacher resnet18=t.pth --base seeded --prompt 'a cat/dog {}'"
        " --note k=a/b"
    )


def test_where_it_is_written_and_what_is_said_play_no_part(recorded):
    plain = recorded(*FIT, "-o", "x.hello")
    more = ("--work", "w", "--force", "--json", "--no-precision-table")
    assert recorded(*FIT, *more, "--output", "y.hello") == plain


def test_the_order_of_options_plays_no_part(recorded):
    one = recorded(*FIT, "--rank", "4", "--seed", "1", "-o", "x")
    other = recorded("fit", "--seed", "1", "--rank", "4", "-o", "x", *FIT[1:])
    assert one == other
    assert one.endswith("--rank 4")


def test_options_of_several_words_and_flags(recorded):
    typed = ("--view-crop", "0.5", "1", "--bfloat16", "--target", "a/b:4", "--target", "c")
    text = recorded(*FIT, *typed, "-o", "x.hello")
    assert "--view-crop 0.5 1.0" in text
    assert "--bfloat16" in text
    assert "--target a/b:4 --target c" in text


def test_what_was_not_typed_is_not_there(recorded):
    assert "--batch-size" not in recorded(*FIT, "-o", "x.hello")
