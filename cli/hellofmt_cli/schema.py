"""``hello schema``: the JSON Schema of the manifest, generated from the types that read it."""

from __future__ import annotations

import click

from hellofmt.archive import json_schema
from hellofmt_cli.output import echo_json

__all__ = ["schema"]


@click.command("schema")
def schema() -> None:
    """Print the JSON Schema (2020-12) of an archive's manifest.

    `hello cat FILE manifest` prints the manifest of an archive.
    """
    echo_json(json_schema())
