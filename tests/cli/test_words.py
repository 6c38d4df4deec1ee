"""Options from a file: every value is checked as a typed one, and the printed file is the run."""

import tomllib

import click
import pytest

from hellofmt.runs import without_paths
from hellofmt_cli.byte_sizes import ByteSize
from hellofmt_cli.command_line import recorded_command
from hellofmt_cli.main import COMMANDS, hello

DISTILL = ("photos", "--teacher", "cnn", "--base", "seeded", "--ipc", "2", "-o", "x.hello")
LEAST = {
    "distill": DISTILL,
    "fit": ("photos", "--teacher", "cnn", "--base", "seeded", "-o", "x.hello"),
    "teach": ("photos", "--arch", "cnn", "--epochs", "1", "-o", "t"),
    "train": ("x.hello", "--student", "cnn", "--eval", "val"),
    "labels": ("x.hello", "--epochs", "1", "-o", "labels"),
    "pack": ("photos", "-o", "x.hello"),
}


def command_of(name):
    return hello.get_command(click.Context(hello), name)


def value_of(parameter):
    """Words of a value that is not the default, for any option."""
    kind = parameter.type
    if isinstance(kind, click.Choice):
        words = [choice for choice in kind.choices if choice != parameter.default]
        return words[:1] * max(parameter.nargs, 1)
    if parameter.name == "limit":
        return ["images=9"]
    if parameter.name == "view_crop":
        return ["0.25", "0.5"]
    if isinstance(kind, ByteSize):
        return ["1.5MiB"]
    if isinstance(kind, click.types.IntParamType):
        return [str(kind.max or 77)]
    if isinstance(kind, click.types.FloatParamType):
        return ["0.5"] * parameter.nargs
    return ['--a "b"\t\\猫=\x7f'] * max(parameter.nargs, 1)


def everything(name):
    """A command line with all of a command's options, and none at its default."""
    words = []
    for parameter in command_of(name).params:
        if not parameter.expose_value or isinstance(parameter, click.Argument):
            continue
        if parameter.is_flag:
            words += parameter.secondary_opts if parameter.default else parameter.opts[-1:]
        else:
            words += [parameter.opts[-1], *value_of(parameter)]
    return [*words, "--", "-odd name"]


@pytest.mark.parametrize("words", [LEAST.get, everything], ids=["least", "everything"])
@pytest.mark.parametrize("name", LEAST)
def test_the_printed_file_is_the_same_run(name, words, tmp_path, invoke):
    typed = words(name)
    printed = invoke(name, "--print-config", *typed)
    assert printed.exit_code == 0, printed.stderr
    path = tmp_path / "run.toml"
    path.write_text(printed.stdout)
    again = invoke(name, "--config", path, "--print-config")
    assert (again.exit_code, again.stdout) == (0, printed.stdout)
    keys = set(tomllib.loads(printed.stdout))
    unset = {line[2:-2] for line in printed.stdout.splitlines() if line.endswith(" =")}
    names = {one.opts[-1].lstrip("-") for one in command_of(name).params if one.expose_value}
    assert keys | unset == names
    assert not unset or words is not everything

    def read(arguments):
        context = command_of(name).make_context(name, [str(word) for word in arguments])
        with context:
            return context.params, recorded_command(without_paths)

    # The record of an archive, and so its id, is that of the typed run.
    assert read(["--config", path]) == read(typed)


def test_every_command_that_makes_or_trains_takes_a_file():
    taking = {
        name
        for name in COMMANDS
        if any(parameter.name == "config" for parameter in command_of(name).params)
    }
    assert taking == set(LEAST)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("stepss = 3", "`stepss` is no option of `hello distill`; did you mean `steps`?"),
        ("quiet = true", "`quiet` is no option of"),
        ('steps = "3"', "`steps`: expected a whole number, got '3'"),
        ("steps = true", "`steps`: expected a whole number, got True"),
        ("steps = 0", "`steps`: 0 is not in the range x>=1"),
        ("lr = nan", "`lr`: expected a finite number, got nan"),
        ("bfloat16 = 1", "`bfloat16`: expected true or false, got 1"),
        ("view-crop = [0.5]", "`view-crop`: expected an array of 2, each a number, got [0.5]"),
        ('teacher = "x"', "`teacher`: expected an array, each a string, got 'x'"),
        ('codec = "jpegg"', "`codec`: 'jpegg' is not one of"),
        ('work = ""', "`work`: expected a value, got an empty word"),
        ("[teacher]", "`teacher`: expected an array, each a string, got {}"),
        ("a = [", "expected TOML: "),
    ],
)
def test_a_wrong_line_is_refused_by_file_and_key(line, text, tmp_path, invoke):
    path = tmp_path / "run.toml"
    path.write_text(line)
    result = invoke("distill", *DISTILL, "--config", path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: E_OPTION: `{path}`: {text}")
    assert result.stdout == ""


def test_what_is_typed_wins(tmp_path, invoke):
    path = tmp_path / "run.toml"
    path.write_text('data = ["a", "b"]\nteacher = ["cnn", "resnet18"]\nipc = 7\nrank = 3\n')
    words = ["--config", path, "--teacher", "own", "--ipc", "2", "--base", "seeded", "-o", "x"]
    run = tomllib.loads(invoke("distill", *words, "--print-config").stdout)
    assert (run["teacher"], run["ipc"], run["rank"], run["data"]) == (["own"], 2, 3, ["a", "b"])
    run = tomllib.loads(invoke("distill", "c", *words, "--print-config").stdout)
    assert run["data"] == ["c"]


def test_what_is_no_text_has_no_place_in_a_file(tmp_path, invoke):
    result = invoke("pack", "a\udcffb", "-o", "x", "--print-config")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "a value is not Unicode, as TOML has to be" in result.stderr
    path = tmp_path / "run.toml"
    path.write_bytes(b"data = ['\xff']")
    result = invoke("pack", "-o", "x", "--config", path)
    assert f"`{path}`: not UTF-8" in result.stderr
