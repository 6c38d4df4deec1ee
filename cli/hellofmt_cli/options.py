"""Options that several commands share, each group as one object. No torch: ``--help`` is instant.

A group is a dataclass whose fields declare one option each; ``grouped`` hands it to a command.
"""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, get_args

import click

from hellofmt.archive import Storage, decimal_string
from hellofmt.errors import UserInputError, did_you_mean, foreign_text, printable
from hellofmt_cli.console import Level, console
from hellofmt_cli.terminal import heading as bold
from hellofmt_cli.words import checked_words, config_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from click.shell_completion import CompletionItem

    from hellofmt.archive import Limits

_Command = TypeVar("_Command", bound="Callable[..., Any]")

JSON_KEY: Final = "hellofmt.json"
"""Key of ``ctx.meta``: the user asked for one JSON document, so an error is one as well."""

LIMITS_KEY: Final = "hellofmt.limits"
"""Key of ``ctx.meta``: the limits of ``--limit``."""

PRECISIONS: Final[tuple[Storage, ...]] = get_args(Storage)
"""How numbers can be stored, in torch's words."""

_PRINT_KEY: Final = "hellofmt.print"
"""Key of ``ctx.meta``: the options are printed, and nothing runs."""

_OPTION: Final = "option"
_HEADING: Final = "heading"
"""Keys of a field's metadata: what makes the click option of its name, and where help lists it."""

LEAST_SIDE: Final = 4
"""Side in pixels of the smallest view; smaller images are enlarged."""

_MIXED_SHARE: Final = "0.5"
"""Probability that ``--view-mix`` mixes a view, in every command."""


class Option(click.Option):
    """An option that ``--help`` lists under a heading."""

    heading: str = ""


_shared: Final = functools.partial(click.option, cls=Option)


class _Formatter(click.HelpFormatter):
    """Help with headings that stand out on a terminal."""

    def write_heading(self, heading: str) -> None:
        """Write one."""
        self.write(f"{'':{self.current_indent}}{bold(f'{heading}:')}\n")

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        """Write names and what they mean, which get half of a narrow terminal at least."""
        super().write_dl(list(rows), min(col_max, self.width // 2), col_spacing)


class Context(click.Context):
    """Of every command and of the group."""

    def make_formatter(self) -> click.HelpFormatter:
        """Help is as wide as the terminal, up to 80 columns; click's own needs 50 at least."""
        return _Formatter(width=min(shutil.get_terminal_size().columns, 80) - 2)


class _Word(click.types.StringParamType):
    """Any word; a shell completes it as the name of a file, which most are."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The one item by which shells are asked for files."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


_WORD: Final = _Word()


class Command(click.Command):
    """A command whose ``--help`` lists options under the headings of their groups."""

    context_class = Context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with the words of ``--config`` and without those that are a mistake."""
        try:
            words = args if ctx.resilient_parsing else checked_words(ctx, args)
            return super().parse_args(ctx, words)
        except click.UsageError as error:
            # Click's parser does not know whose options it reads.
            error.ctx = error.ctx or ctx
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run, or print what would run."""
        if ctx.meta.get(_PRINT_KEY):
            return click.echo(config_text(ctx))
        ctx.params.pop("limit", None)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each heading; what is written comes late, what has none last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record is not None:
                heading = parameter.heading if isinstance(parameter, Option) else ""
                sections.setdefault(heading, []).append(record)
        names = [name for rows in sections.values() for name, _ in rows]
        # One column for all sections, as wide as click makes it at most.
        width = min(30, formatter.width // 2, max(map(len, names)))
        for heading in sorted(sections, key=lambda heading: {"Output": 1, "": 2}.get(heading, 0)):
            with formatter.section(f"{heading} options".strip().capitalize()):
                formatter.write_dl([(f"{name:{width}}", text) for name, text in sections[heading]])


def command(name: str, *, has_config: bool = False) -> Callable[[Callable[..., Any]], Command]:
    """Make a function the command ``name``; with ``has_config`` a file can give its options."""

    def decorate(function: Callable[..., Any]) -> Command:
        made = click.command(name, cls=Command)(function)
        made.params += [*(_CONFIG_OPTIONS if has_config else ()), *global_options()]
        for parameter in made.params:
            if type(parameter.type) is click.types.StringParamType:
                parameter.type = _WORD
        return made

    return decorate


def global_options() -> list[click.Parameter]:
    """The options of every command, and of ``hello`` before the command."""
    return [
        *(
            Option(
                [f"-{name[0]}", f"--{name}"],
                is_flag=True,
                expose_value=False,
                callback=_set_level,
                help=text,
            )
            for name, text in (
                ("quiet", "Say nothing but errors and results."),
                ("verbose", "Say more: what is read, kept and chosen."),
            )
        ),
        Option(
            ["--color/--no-color"],
            default=None,
            expose_value=False,
            is_eager=True,
            callback=_set_color,
            help="Print colour, or none.  [default: on a terminal, unless NO_COLOR is set]",
        ),
    ]


def _set_level(_ctx: click.Context, option: click.Parameter, is_set: bool) -> None:
    if is_set:
        console.level = Level[(option.name or "").upper()]


def _set_color(ctx: click.Context, _: click.Parameter, color: bool | None) -> None:
    if color is not None:
        # The error that ends the command is printed by the group.
        ctx.color = ctx.find_root().color = color


def _remember_print(ctx: click.Context, _: click.Parameter, is_set: bool) -> None:
    ctx.meta[_PRINT_KEY] = is_set


_CONFIG_OPTIONS: Final = (
    Option(
        ["--config"],
        metavar="FILE",
        expose_value=False,
        help="Read options from this TOML file: `view-size = 64`. Typed ones win; paths are"
        " relative to the current folder.",
    ),
    Option(
        ["--print-config"],
        is_flag=True,
        expose_value=False,
        callback=_remember_print,
        help="Print every option as a file for --config, and run nothing.",
    ),
)


def option(*names: str, heading: str = "", **attributes: Any) -> Any:
    """Declare a field of an option group: the option of its name, or one with other ``names``.

    It is listed under ``heading``, else under that of the group.
    """
    attributes.setdefault("show_default", "default" in attributes)

    def decorated(field_name: str) -> Callable[[_Command], _Command]:
        dashed = f"--{field_name.replace('_', '-')}"
        return click.option(*(names or (dashed,)), field_name, cls=Option, **attributes)

    return field(metadata={_OPTION: decorated, _HEADING: heading})


def argument(**attributes: Any) -> Any:
    """Declare a field of an option group: the argument of its name."""

    def decorated(field_name: str) -> Callable[[_Command], _Command]:
        return click.argument(field_name, **attributes)

    return field(metadata={_OPTION: decorated, _HEADING: ""})


def shared(decorator: Callable[..., Any], heading: str = "") -> Any:
    """Declare a field of an option group: an option that other commands have as well."""

    def decorated(_field_name: str) -> Callable[..., Any]:
        return decorator

    return field(metadata={_OPTION: decorated, _HEADING: heading})


def grouped(name: str, kind: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options that the dataclass ``kind`` declares, as its argument ``name``.

    In ``--help`` its own come before those that it inherits, under the heading ``HEADING`` of the
    class that declares them.
    """
    declared = {each.name: each for each in fields(kind)}
    heading_of = {
        key: declared[key].metadata[_HEADING] or vars(base).get("HEADING", "")
        for base in reversed(kind.__mro__)
        for key in vars(base).get("__annotations__", {})
        if key in declared
    }
    order = dict.fromkeys(
        key for base in kind.__mro__ for key in vars(base).get("__annotations__", {})
    )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def with_group(*args: Any, **values: Any) -> Any:
            group = kind(**{key: values.pop(key) for key in declared})
            return function(*args, **{name: group}, **values)

        decorated: Any = with_group
        for key in [key for key in reversed(order) if key in declared]:
            decorated = declared[key].metadata[_OPTION](key)(decorated)
            made = decorated.__click_params__[-1]
            if isinstance(made, Option):
                made.heading = heading_of[key]
        return decorated

    return decorate


class Choice(click.Choice[str]):
    """One of some words; a mistyped one is answered with the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            meant = _meant(str(value), map(str, self.choices))
            raise click.BadParameter(f"{error.message} {meant}".strip(), ctx, param) from None


def _meant(word: str, known: Iterable[str]) -> str:
    """``did_you_mean`` as a sentence."""
    advice = did_you_mean(word, known)
    return advice[:1].upper() + advice[1:]


def _remember_json(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta[JSON_KEY] = value
    return value


json_option = _shared(
    "--json",
    "as_json",
    is_flag=True,
    callback=_remember_json,
    # Eager, so that an error in any other option already finds it set.
    is_eager=True,
    help="Print one JSON document instead of text.",
)
"""``--json``, passed to the command as ``as_json``."""


def _parse_limits(
    ctx: click.Context, _: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Keep the limits that ``--limit`` raises or lowers."""
    from hellofmt.archive import DEFAULT_LIMITS

    known = {field.name for field in fields(DEFAULT_LIMITS)}
    changed: dict[str, int] = {}
    for value in values:
        name, number = value.partition("=")[::2]
        if name not in known or not (number.isascii() and number.isdigit()):
            raise click.BadParameter(
                f"expected NAME=NUMBER with a name of {', '.join(sorted(known))}."
                f" {'' if name in known else _meant(name, known)}".rstrip()
            )
        changed[name] = int(number)
    ctx.meta[LIMITS_KEY] = replace(DEFAULT_LIMITS, **changed)
    return values


limit_option = _shared(
    "--limit",
    multiple=True,
    metavar="NAME=NUMBER",
    callback=_parse_limits,
    help="Move a limit of the reader; the error of a limit names it.",
)
"""``--limit``, which ``limits()`` returns to the command."""


def limits() -> Limits:
    """The limits the user asked for, else the default ones."""
    from hellofmt.archive import DEFAULT_LIMITS

    return click.get_current_context().meta.get(LIMITS_KEY, DEFAULT_LIMITS)


def device_option(what: str) -> Callable[[_Command], _Command]:
    """``--device``, for ``chosen_device``; ``what`` is its help."""
    auto = "  [default: a CUDA device if torch sees one, else cpu]"
    return _shared("--device", default="auto", help=f"{what}{auto}")


def chosen_device(text: str) -> str:
    """The device to use, refused if it is not here before anything is read. Imports torch."""
    import torch

    if text == "auto":
        if not torch.cuda.is_available():
            console.detail("device: cpu, for torch sees no CUDA device")
            return "cpu"
        # Under torchrun every process has a GPU of its own, chosen later.
        console.say(f"device: cuda ({torch.cuda.get_device_name()}); --device chooses")
        return "cuda"
    try:
        device = torch.device(text)
        if device.type == "cuda":
            # Only counted: under torchrun every process has a GPU of its own, chosen later.
            if (device.index or 0) >= torch.cuda.device_count():
                number = torch.cuda.device_count()
                raise UserInputError.make(
                    "E_OPTION", f"device `{printable(text)}`: torch sees {number} CUDA devices here"
                )
        elif device.type != "cpu":
            torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UserInputError.make(
            "E_OPTION",
            f"device `{printable(text)}`: expected `cpu`, or another that torch can use here, such"
            f" as `cuda` or `cuda:1`: {foreign_text(error, 80)}",
        ) from error
    return text


def check_steps(steps: int | None, epochs: int | None) -> None:
    """Refuse both ``--steps`` and ``--epochs``."""
    if steps is not None and epochs is not None:
        raise UserInputError.make("E_OPTION", "`--steps` and `--epochs`: expected one, got both")


def output_option(metavar: str, what: str) -> Callable[[_Command], _Command]:
    """``-o``/``--output``, required; ``what`` is its help."""
    return _shared("-o", "--output", required=True, metavar=metavar, help=what)


def precision_option(prefix: str = "") -> Callable[[_Command], _Command]:
    """``--precision``; ``prefix`` starts its help."""
    what = "How the numbers of the label function are stored."
    return _shared(
        "--precision",
        type=Choice(PRECISIONS),
        default="float16",
        show_default=True,
        help=f"{prefix}{what[0].lower() if prefix else what[0]}{what[1:]}",
    )


classes_option = _shared(
    "--classes",
    metavar="FILE",
    help="Class list in label order: `key TAB name` a line, or a published list.",
)
expect_option = _shared(
    "--expect", metavar="ID", help="Refuse any archive but the one with this sha256 id."
)
base_option = _shared(
    "--base", metavar="BASE", help="Base encoder of the label function, if the archive needs one."
)
label_function_option = _shared(
    "--label-function",
    metavar="NAME",
    help="Label function of an archive that has several.  [default: the first]",
)
label_dtype_option = _shared(
    "--label-dtype",
    type=Choice(("float32", "bfloat16")),
    default="float32",
    show_default=True,
    help="Precision of the label function's image tower. bfloat16 is faster on a GPU and on"
    " processors that multiply it (AMX, AVX-512 BF16), and slower on every other.",
)
ipc_option = _shared(
    "--ipc",
    type=click.IntRange(1),
    help="Read only the first images of each class, of an archive in order of value.",
)
batch_size_option = _shared(
    "--batch-size",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Number of views in a batch.",
)


def force_option(what: str = "archive") -> Callable[[_Command], _Command]:
    """``--force``, for an existing ``what``."""
    return _shared("--force", is_flag=True, help=f"Replace an existing {what}.")


def seed_option(what: str) -> Callable[[_Command], _Command]:
    """``--seed``, 0 by default; ``what`` is its help."""
    return _shared("--seed", type=click.IntRange(0), default=0, show_default=True, help=what)


def view_size_option(default: str, most: int) -> Any:
    """``--view-size`` of a group, at most ``most`` pixels."""
    return option(
        type=click.IntRange(LEAST_SIDE, most),
        help=f"Side of a view in pixels.  [default: {default}]",
    )


def view_mix_option(default: str) -> Any:
    """``--view-mix`` of a group."""
    return option(
        type=Choice(["none", "cutmix", "mixup"]),
        help="Mix every second view, on average, with another one by CutMix or MixUp."
        f"  [default: {default}]",
    )


@dataclass(frozen=True)
class ViewOptions:
    """How views are made from images; None leaves what the command does by default."""

    HEADING: ClassVar[str] = "View"

    view_size: int | None = view_size_option(
        "the median shorter side of the images, 4 to 224", 1024
    )
    view_crop: tuple[float, float] | None = option(
        nargs=2,
        type=click.FloatRange(0, 1, min_open=True),
        help="Smallest and largest area of a crop, as fractions of the image.  [default: 0.08 1]",
    )
    view_flip: float | None = option(
        type=click.FloatRange(0, 1),
        help="Probability that a view is flipped from left to right.  [default: 0.5]",
    )
    view_mix: str | None = view_mix_option("cutmix")

    def changes(self, *, mix: str | None = None) -> dict[str, Any]:
        """Fields of the archive's ``Views`` that the options change, without the size.

        ``mix`` is what to do unless ``view_mix`` says otherwise.
        """
        changes: dict[str, Any] = {}
        if self.view_crop is not None:
            if self.view_crop[0] > self.view_crop[1]:
                raise click.BadParameter("--view-crop: expected the smaller area first")
            changes["crop_scale"] = [decimal_string(bound) for bound in self.view_crop]
        if self.view_flip is not None:
            changes["flip"] = decimal_string(self.view_flip)
        mix = self.view_mix or mix
        if mix is not None:
            changes["mix"] = mix
            if mix != "none":
                changes["mix_probability"] = _MIXED_SHARE
        return changes


skip_unreadable_option = _shared(
    "--skip-unreadable",
    is_flag=True,
    help="Leave out images that cannot be read, and list them, instead of stopping.",
)


@dataclass(frozen=True)
class DataOptions(ViewOptions):
    """DATA, how it is seen, and what networks run on; read by ``read_data``."""

    HEADING: ClassVar[str] = "Data"

    data: tuple[str, ...] = argument(nargs=-1, required=True)
    skip_unreadable: bool = shared(skip_unreadable_option)
    classes: str | None = shared(classes_option)
    seed: int = shared(seed_option("Seed of everything random."), "Run")
    device: str = shared(device_option("Device that networks run on."), "Run")
    bfloat16: bool = option(
        heading="Run",
        is_flag=True,
        help="Train, and ask teachers, in bfloat16 autocast: faster on GPUs and on CPUs with AMX,"
        " slower elsewhere.",
    )
    workers: int | None = option(
        heading="Run",
        type=click.IntRange(0),
        help="Processes that read and decode images.  [default: the cores but one, at most 16; 0"
        " for fewer than 256 images]",
    )

    @property
    def arithmetic(self) -> str:
        """What networks are trained in: ``bfloat16`` or ``float32``."""
        return "bfloat16" if self.bfloat16 else "float32"


data_options = grouped("data", DataOptions)
