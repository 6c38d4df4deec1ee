"""``hello demo``: the whole idea on real data, in two minutes, without a download or a GPU."""

from __future__ import annotations

from pathlib import Path

import click

from hellofmt.errors import UserInputError
from hellofmt_cli.console import console
from hellofmt_cli.options import command, output_option


@command("demo")
@output_option("DIR", "Write the archives, report.png and result.json into this folder.")
def demo(output: str) -> None:
    """Distil real digits, train from the file, and compare; about two minutes on a laptop.

    Needs `pip install 'hellofmt[demo]'` (scikit-learn, matplotlib), no download and no GPU. Writes
    one archive with 1 and one with 10 images per class, result.json and report.png.

    \b
    hello demo -o demo
    hello inspect demo/digits-ipc10.hello
    """  # noqa: D301 - click wants the character
    # Fail before two minutes of work, not after.
    try:
        with console.stage("loading PyTorch"):
            from hellofmt_cli.demo_picture import draw_report
            from hellofmt_cli.demo_report import report_text, write_json
            from hellofmt_cli.demo_run import run_demo
    except ImportError as error:
        raise UserInputError.make(
            "E_OPTION", f"the demo needs `{error.name}`; `pip install 'hellofmt[demo]'`"
        ) from None
    out = Path(output)
    out.mkdir(parents=True, exist_ok=True)
    result = run_demo(out)
    click.echo("[6/6] The results.\n")
    click.echo(report_text(result))
    draw_report(out, result)
    write_json(out / "result.json", result)
    click.echo(f"\nPicture: {out / 'report.png'}   Numbers: {out / 'result.json'}")
    click.echo(f"Next: hello inspect {out / 'digits-ipc10.hello'}")
