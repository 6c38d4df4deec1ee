"""``hello convert``: weights as people have them, as safetensors."""

from __future__ import annotations

import click

from hellofmt.errors import shown_path
from hellofmt_cli.console import console
from hellofmt_cli.options import command, force_option
from hellofmt_cli.output import count, echo_page

_THREE = "R G B"


@command("convert")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT.safetensors")
@click.option(
    "--as",
    "network",
    metavar="NETWORK",
    help="Check that IN holds this network of torchvision or timm, timm:NAME, torchvision:NAME or"
    " MODULE:FACTORY, and take its names; they are found by order where no name agrees.",
)
@click.option(
    "--mean",
    nargs=3,
    type=float,
    metavar=_THREE,
    help="With --as: mean of each channel that the network expects, in [0, 1], kept in OUT."
    "  [default: its library's]",
)
@click.option(
    "--std",
    nargs=3,
    type=click.FloatRange(0, min_open=True),
    metavar=_THREE,
    help="With --as: standard deviation of each channel, kept in OUT.  [default: its library's]",
)
@click.option(
    "--input-size",
    "size",
    type=click.IntRange(4, 1024),
    help="With --as: side in pixels of its input, kept in OUT.  [default: its library's]",
)
@force_option("file")
def convert(
    source: str,
    target: str,
    network: str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    size: int | None,
    force: bool,
) -> None:
    """Write the weights in IN as safetensors, which runs no code when it is read.

    IN is a file of torch.save (.pth, .pt, .ckpt, .bin) or safetensors, of any trainer. Prefixes of
    wrappers (`module.`, `_orig_mod.`, `model.`, `net.`) are removed, averaged weights (EMA) are
    preferred, and what is left out is said. OUT is what --teacher NETWORK=OUT and --base
    timm:NAME=OUT take; with --as it says how images reach the network.

    \b
    hello convert last.ckpt best.safetensors --as resnet18
    hello convert net.pth net.safetensors --as timm:resnet50 --mean 0 0 0 --std 1 1 1
    """  # noqa: D301 - click wants the character
    from hellofmt.teacher import RuleChange, convert_weights

    made = convert_weights(
        source,
        target,
        network=network,
        change=RuleChange(mean or None, std or None, size),
        force=force,
        say=console.say,
    )
    rows: list[tuple[str, str] | None] = [
        ("written", shown_path(target)),
        ("weights", f"{count(made.tensors, 'tensor')}, {made.numbers:,} numbers"),
    ]
    if network is not None and made.rule is not None:
        rule = made.rule.text().removeprefix("input ")
        rows += [("network", shown_path(network)), ("input", rule)]
    echo_page(rows)
