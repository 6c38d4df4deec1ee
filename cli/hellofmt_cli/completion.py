"""``hello completion``: what a shell needs to complete commands, options, choices and files."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from hellofmt_cli.options import Choice, command


@command("completion")
@click.argument("shell", type=Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that lets SHELL complete commands, options, choices and files by TAB.

    For bash, add `eval "$(hello completion bash)"` to ~/.bashrc; for zsh the same with zsh to
    ~/.zshrc; for fish `hello completion fish | source` to ~/.config/fish/config.fish.

    \b
    hello completion bash
    hello completion fish
    """  # noqa: D301 - click wants the character
    made = get_completion_class(shell)
    if made is not None:
        click.echo(made(click.Group(), {}, "hello", "_HELLO_COMPLETE").source())
