"""The group ``hello``: commands loaded on use, errors mapped to exit codes in one place.

A command's module is imported when that command runs, and ``hello --help`` prints one line per
command from the table below without importing any: ``hello inspect`` must not pay for torch.

Exit codes are a contract. Every ``HelloError`` carries its own; a missing file, a directory or a
missing permission stays the ``OSError`` it is and gives 9; usage is click's 2; 130, 143 and 141
are SIGINT, SIGTERM and a closed pipe, as a shell would report them. Anything else is a bug of ours:
it keeps its traceback and gives 1. Mapping happens in ``invoke``, not in ``main``, so that click's
test runner, a program that calls the group and a shell all see the same codes.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import io
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import click

import hellofmt
from hellofmt.errors import HelloError, did_you_mean, shown_path
from hellofmt_cli.console import Level, console
from hellofmt_cli.options import JSON_KEY, Context, global_options
from hellofmt_cli.output import FILE_KEY, echo_json, option_of
from hellofmt_cli.terminal import has_colour, width_of, wrapped
from hellofmt_cli.workers import worker_error

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

EXIT_IO: Final = 9
EXIT_SIGINT: Final = 130
EXIT_SIGPIPE: Final = 141
EXIT_SIGTERM: Final = 143

_ESCAPED: Final = "ascii_escaped"


class Entry(NamedTuple):
    """One command: the module that holds a click command of the same name, and its short help."""

    module: str
    help: str


GROUPS: Final[dict[str, dict[str, Entry]]] = {
    "Make": {
        "distill": Entry("distill", "Distil a data set and a teacher into one archive."),
        "fit": Entry("fit", "Fit a label function to a teacher; an archive without images."),
        "teach": Entry("teach", "Train a teacher and keep its trajectory."),
        "pack": Entry("pack", "Pack images, with a label function or without, into an archive."),
        "convert": Entry("convert", "Write weights of any trainer as safetensors."),
        "plan": Entry("plan", "Say what labels of a data set cost, before anything is run."),
        "demo": Entry("demo", "Distil and train on real digits in minutes; no download."),
    },
    "Read": {
        "inspect": Entry(
            "inspect", "Show what an archive holds, what it weighs and what it saves."
        ),
        "show": Entry("show", "Show images with their views and soft labels."),
        "verify": Entry("verify", "Check every byte of an archive; pins, signatures, labels."),
        "ls": Entry("ls", "List the members of an archive."),
        "cat": Entry("cat", "Write one verified member to stdout."),
        "extract": Entry("extract", "Unpack a verified archive into a new directory."),
        "diff": Entry("diff", "Say in what two archives differ."),
        "schema": Entry("schema", "Print the JSON Schema of the manifest."),
        "completion": Entry("completion", "Print what a shell needs to complete words by TAB."),
    },
    "Train": {
        "train": Entry("train", "Train a student from an archive and measure it."),
        "labels": Entry("labels", "Write the labels of a finite schedule for other trainers."),
    },
    "Share": {
        "sign": Entry("sign", "Sign an archive with an Ed25519 key."),
        "push": Entry("hub", "Upload a verified archive to the Hugging Face Hub."),
        "pull": Entry("hub", "Download an archive from the Hugging Face Hub and verify it."),
        "croissant": Entry("croissant", "Describe an archive for tools that read Croissant."),
    },
}
"""Every command, in the groups and the order of ``hello --help``."""

COMMANDS: Final = {name: entry for group in GROUPS.values() for name, entry in group.items()}


class Terminated(BaseException):
    """SIGTERM arrived; an exception, so that temporary files are removed on the way out."""


class _Hello(click.Group):
    """Loads a command's module on use and turns what it raises into an exit code."""

    context_class = Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name of ``COMMANDS``, in its order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command object, or None for an unknown name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        return getattr(importlib.import_module(f"hellofmt_cli.{entry.module}"), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line per command from the table; click's own would import every module."""
        widest = max(map(len, COMMANDS))
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{n:{widest}}", entry.help) for n, entry in group.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of ``args[0]``; for a name of no command, the nearest is suggested."""
        # click's own suggestion of similar names would ask every command to load.
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            advice = did_you_mean(args[0], COMMANDS) or "see `hello --help`"
            ctx.fail(f"no such command `{shown_path(args[0])}`; {advice}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; ``hello help X`` is ``hello X --help``."""
        if args[:1] == ["help"]:
            args = [*(word for word in args[1:] if word != "help"), "--help"]
        console.level = Level.NORMAL
        ctx.color = has_colour()
        # What --help and --version print may fail.
        with _exit_codes(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit with the code of whatever it raises."""
        with _exit_codes(ctx):
            return super().invoke(ctx)


@contextlib.contextmanager
def _exit_codes(ctx: click.Context) -> Generator[None]:
    """Report what is raised inside and exit with its code."""
    try:
        yield
    except click.UsageError as error:
        if type(error).show is not click.UsageError.show:
            # Not wrong, but to be shown the help.
            raise
        used = error.ctx or ctx
        click.echo(f"{used.get_usage()}\n\nTry `{used.command_path} --help` for help.\n", err=True)
        _fail(ctx, error.format_message(), error.exit_code)
    except BrokenPipeError:
        _silence_stdout()
        ctx.exit(EXIT_SIGPIPE)
    except HelloError as error:
        if error.file:
            ctx.meta.pop(FILE_KEY, None)
        _fail(ctx, error.text(option_of), error.exit_code, error)
    except RuntimeError as error:
        # Raised by torch's handler of a signal, in whatever line it came.
        ended = worker_error(str(error))
        if ended is None:
            raise
        _fail(ctx, ended.text(option_of), ended.exit_code, ended)
    except OSError as error:
        ctx.meta.pop(FILE_KEY, None)
        _fail(ctx, _os_error_text(error), EXIT_IO)
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        ctx.exit(EXIT_SIGINT)
    except Terminated:
        click.echo("Terminated.", err=True)
        ctx.exit(EXIT_SIGTERM)


def _os_error_text(error: OSError) -> str:
    """``path: No such file or directory``, as every other tool prints it."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        frames = traceback.walk_tb(error.__traceback__)
        is_printing = any(f.f_globals.get("__name__") == "click.utils" for f, _ in frames)
        return f"stdout: {reason}" if is_printing else reason
    name = os.fsdecode(error.filename) if not isinstance(error.filename, int) else error.filename
    return f"{shown_path(name)}: {reason}"


def _fail(
    ctx: click.Context, text: str, exit_code: int, error: HelloError | None = None
) -> NoReturn:
    """Exit, after one line on stderr and, with ``--json``, one document on stdout."""
    # What went wrong on the way to a URL names it, too.
    file = f"{shown_path(ctx.meta[FILE_KEY])}: " if FILE_KEY in ctx.meta else ""
    line = " ".join(f"{file}{text.replace(file, '')}".splitlines())
    red = click.style("Error:", fg="red", bold=True)
    click.echo(wrapped(f"{red} {line}", width_of(err=True)), err=True)
    if ctx.meta.get(JSON_KEY):
        with contextlib.suppress(OSError):
            echo_json(
                {
                    "schema": "hello.error/1",
                    "ok": False,
                    "code": error.code if error else None,
                    "member": (error.member or None) if error else None,
                    "offset": error.offset if error else None,
                    "message": line,
                    "exit": exit_code,
                }
            )
    ctx.exit(exit_code)


def _silence_stdout() -> None:
    """Let the interpreter's last flush of a closed stdout go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@click.group(cls=_Hello, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hellofmt.__version__, "-V", "--version", message="hellofmt %(version)s")
def hello() -> None:
    """Make, read and train from .hello archives.

    A .hello archive is a distilled dataset in one file: a few images, and instead of gigabytes of
    soft labels the small function that makes them.

    \b
    hello distill photos/ --teacher resnet18=best.pth --base BASE --ipc 10 -o photos.hello
    hello train photos.hello --student resnet18 --eval photos-val/

    Where a command reads a FILE, that may be a URL (https://, s3://, hf://), read by ranges, or the
    quoted pattern of a sharded set ("x-*-of-00016.hello"). HELLOFMT_CACHE names a folder that keeps
    what came from URLs.
    """  # noqa: D301


hello.params += global_options()


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _open_closed() -> None:
    """Let standard streams that were closed lead nowhere.

    Otherwise the next file that is opened, an archive perhaps, would be what they are.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: PTH123, SIM115


def _escape_unencodable() -> None:
    """Let a terminal that cannot show a letter show its number, instead of failing."""
    ascii_codec = codecs.lookup("ascii")

    def find(name: str) -> codecs.CodecInfo | None:
        if name != _ESCAPED:
            return None
        return codecs.CodecInfo(
            ascii_codec.encode,
            ascii_codec.decode,
            incrementalencoder=ascii_codec.incrementalencoder,
            incrementaldecoder=ascii_codec.incrementaldecoder,
            name=_ESCAPED,
        )

    codecs.register(find)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # click takes a stream that says ASCII for a mistake, and writes UTF-8 into it.
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(
                encoding=_ESCAPED if is_ascii else stream.encoding, errors="backslashreplace"
            )


def main() -> None:
    """Run ``hello`` with the arguments of the process and exit."""
    # Not at import: a program that imports the group keeps its own handlers and streams.
    signal.signal(signal.SIGTERM, _terminate)
    _open_closed()
    _escape_unencodable()
    hello()


if __name__ == "__main__":
    main()
