"""``hello schema``: the JSON Schemas of the format, generated from the types that read it."""

from __future__ import annotations

import click

from hellofmt.archive import json_schema, record_schema
from hellofmt_cli.options import Choice, command
from hellofmt_cli.output import echo_json


@command("schema")
@click.argument("part", type=Choice(["manifest", "record"]), default="manifest")
def schema(part: str) -> None:
    """Print the JSON Schema (2020-12) of an archive's manifest or record.

    `hello cat FILE manifest` and `hello cat FILE record` print those of an archive.

    \b
    hello schema
    hello schema record
    """  # noqa: D301 - click wants the character
    echo_json(json_schema() if part == "manifest" else record_schema())
