"""Pages: what is beside what, in every script."""

import click
import pytest

from hellofmt_cli.output import echo_page, option_of
from hellofmt_cli.terminal import columns


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 0),
        ("cat", 3),
        ("\u732b", 2),
        ("\u732b\u3000\uff21", 6),
        ("\u00fcben", 4),
        # The same letter as u and a mark above it.
        ("u\u0308ben", 4),
        ("\u05d7\u05ea\u05d5\u05dc", 4),
        ("\U0001f408", 2),
    ],
)
def test_columns_of_a_terminal(text, width):
    assert columns(text) == width


def test_values_stand_in_one_column(capsys):
    echo_page([("\u732b", "one"), ("cats", "two"), None, ("u\u0308", "\u202ex\n")], "title")
    lines = click.unstyle(capsys.readouterr().out).split("\n")
    assert lines == ["title", "  \u732b    one", "  cats  two", "", "  u\u0308     \\u202ex\\n", ""]


def test_options_are_spelled_as_they_are_typed():
    assert option_of("force") == "`--force`"
    assert option_of("k") == "`-k`"
    assert option_of("batch_size") == "`--batch-size`"
    assert option_of("storage", "float32") == "`--precision float32`"
    assert option_of("size") == "`--view-size`"
    assert option_of("limits", "images=6") == "`--limit images=6`"
