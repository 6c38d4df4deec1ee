"""Options without torch: every ``--help`` and every usage error is instant; groups and words."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from hellofmt.archive import default_views
from hellofmt.errors import UserInputError
from hellofmt_cli.labels import FORM_NAMES
from hellofmt_cli.main import COMMANDS, hello
from hellofmt_cli.options import (
    PRECISIONS,
    Choice,
    ViewOptions,
    argument,
    check_steps,
    chosen_device,
    grouped,
    option,
    shared,
)
from hellofmt_cli.teach import DEFAULT_CHECKPOINTS
from hellofmt_cli.train_options import RECIPE_NAMES

# One process for all: every command is built, prints its help, and refuses an unknown option.
WITHOUT_TORCH = """
import sys
from click.testing import CliRunner
from hellofmt_cli.main import COMMANDS, hello
HEAVY = {"torch", "torchvision", "open_clip", "timm", "matplotlib", "webdataset", "tqdm"}
for name in COMMANDS:
    for option, code in (("--help", 0), ("--no-such-option", 2)):
        done = CliRunner().invoke(hello, [name, option])
        assert done.exit_code == code, (name, option, done.output, done.exception)
        assert not HEAVY & set(sys.modules), (name, HEAVY & set(sys.modules))
"""


def test_no_help_and_no_usage_error_imports_torch():
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def commands():
    context = click.Context(hello)
    return [hello.get_command(context, name) for name in COMMANDS]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_every_option_has_a_whole_phrase(command):
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        text = (parameter.help or "").partition("  [")[0]
        assert re.match(r"[A-Z`]", text), (parameter.name, text)
        assert text.endswith("."), (parameter.name, text)
        assert not text.startswith("Of "), (parameter.name, text)


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_examples_are_commands_that_parse(command):
    lines = [line.strip() for line in (command.help or "").splitlines()]
    examples = [line.partition(" > ")[0] for line in lines if line.startswith("hello ")]
    assert examples, command.name
    assert any(example.split()[1] == command.name for example in examples)
    for example in examples:
        _, name, *words = shlex.split(example)
        hello.get_command(click.Context(hello), name).make_context(name, words)


def test_options_stand_under_the_headings_of_their_groups():
    help_text = CliRunner().invoke(hello, ["distill", "--help"]).output
    sections = re.findall(r"^(\S.*):$", help_text, re.MULTILINE)
    assert sections[:3] == ["Data options", "Run options", "View options"]
    assert sections[-2:] == ["Output options", "Options"]
    listed = re.split(r"^\S.*:$", help_text, flags=re.MULTILINE)[1:]
    assert "--teacher-mean" in listed[sections.index("Teacher options")]
    assert "  --ipc" in listed[sections.index("Image options")]
    options = help_text.partition("Data options:")[2]
    shown = re.findall(r"^  (?:-\w, )?--([\w-]+)", options, re.MULTILINE)
    assert len(shown) == len(set(shown))


def test_one_option_means_one_thing():
    """What is written is `-o/--output`, how numbers are stored `--precision`, in torch's words."""
    for command in commands():
        names = {flag for param in command.params for flag in param.opts}
        assert not names & {"--out", "--storage"}
        # Of a network, where no views are.
        assert "--size" not in names or command.name == "convert"
        assert ("-o" in names) == ("--output" in names)
        for param in command.params:
            if param.name == "precision":
                assert set(param.type.choices) <= set(PRECISIONS)
    assert PRECISIONS == ("float32", "float16", "bfloat16", "int8", "int4")


def test_names_without_torch_are_the_library_s():
    from hellofmt.loading.stored_labels import FORMS
    from hellofmt.student.recipes import RECIPES
    from hellofmt.teacher.trajectory import CHECKPOINTS

    assert FORM_NAMES == FORMS
    assert (*RECIPE_NAMES, "hard") == tuple(RECIPES)
    assert DEFAULT_CHECKPOINTS == CHECKPOINTS


def test_a_group_arrives_as_one_object():
    @dataclass(frozen=True)
    class Side:
        file: str = argument()
        width: int = option("--wide", type=int)

    @dataclass(frozen=True)
    class Size(Side):
        height: int = option(default=2)
        depth: int = shared(click.option("--depth", type=int))

    @click.command()
    @grouped("size", Size)
    @click.option("--name")
    def program(size, name):
        click.echo(f"{size} {name}")

    done = CliRunner().invoke(program, ["a", "--wide", "3", "--name", "x"])
    assert done.output.endswith("Size(file='a', width=3, height=2, depth=None) x\n")
    order = re.findall(r"^  --(\w+)", CliRunner().invoke(program, ["--help"]).output, re.MULTILINE)
    # Its own options come before those that it inherits.
    assert order == ["height", "depth", "wide", "name", "help"]


@pytest.mark.parametrize(
    ("options", "default", "changes"),
    [
        (ViewOptions(None, None, None, None), None, {}),
        (
            ViewOptions(None, None, None, None),
            "cutmix",
            {"mix": "cutmix", "mix_probability": "0.5"},
        ),
        (
            ViewOptions(32, None, None, "mixup"),
            "cutmix",
            {"mix": "mixup", "mix_probability": "0.5"},
        ),
        (
            ViewOptions(None, None, None, "none"),
            "cutmix",
            {"mix": "none"},
        ),
        (
            ViewOptions(None, (0.25, 1.0), 0.0, None),
            None,
            {"crop_scale": ["0.25", "1.0"], "flip": "0.0"},
        ),
    ],
)
def test_views_change_as_the_options_say(options, default, changes):
    assert options.changes(mix=default) == changes
    assert set(changes) <= set(default_views(8).__struct_fields__)


def test_crops_from_large_to_small_are_refused():
    with pytest.raises(click.BadParameter, match="the smaller area first"):
        ViewOptions(None, (1.0, 0.5), None, None).changes()


@pytest.mark.parametrize(("word", "meant"), [("jpgg", " Did you mean `jpeg`?"), ("zzz", "")])
def test_a_choice_answers_a_mistyped_word(word, meant):
    @click.command()
    @click.option("--codec", type=Choice(["png", "jpeg"]))
    def program(codec):
        click.echo(codec)

    assert CliRunner().invoke(program, ["--codec", "jpeg"]).output == "jpeg\n"
    result = CliRunner().invoke(program, ["--codec", word])
    assert result.exit_code == 2
    assert result.stderr.endswith(f"'{word}' is not one of 'png', 'jpeg'.{meant}\n")


def test_steps_and_epochs_exclude_each_other():
    check_steps(None, None)
    check_steps(1, None)
    with pytest.raises(UserInputError, match="`--steps` and `--epochs`: expected one, got both"):
        check_steps(1, 1)


def test_a_device_is_checked():
    assert chosen_device("cpu") == "cpu"
    with pytest.raises(UserInputError, match="device `abacus`: expected `cpu`, or another"):
        chosen_device("abacus")


def test_no_option_begins_one_of_torchrun():
    """``torchrun -m hellofmt fit --start text`` is refused: ``--start-method`` is its own."""
    from torch.distributed.run import get_args_parser

    theirs = [name for action in get_args_parser()._actions for name in action.option_strings]
    assert "--start-method" in theirs
    ours = {
        name
        for command in commands()
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }
    assert len(ours) > 50
    assert [(a, b) for a in sorted(ours - {"--help"}) for b in theirs if b.startswith(a)] == []
