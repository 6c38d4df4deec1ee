"""``hello ls``: the members of an archive, in file order."""

from __future__ import annotations

import click

from hellofmt.errors import printable
from hellofmt_cli.options import command, expect_option, json_option, limit_option
from hellofmt_cli.output import echo_json, opened


@command("ls")
@click.argument("file")
@click.option(
    "-l", "--long", "long_form", is_flag=True, help="Sizes in bytes, labels and SHA-256 too."
)
@expect_option
@limit_option
@json_option
def ls(file: str, long_form: bool, expect: str | None, as_json: bool) -> None:
    """List the members of FILE, as `tar tf` would, from checked metadata alone.

    With -l one line is: size, class number (- for a section), first 16 digits of the SHA-256, name.
    Images of a packed archive lie in one section, `pixels`, and are listed by the names under which
    `hello cat` and `hello extract` know them.

    \b
    hello ls x.hello
    hello ls -l https://example.org/x.hello
    """  # noqa: D301 - click wants the character
    with opened(file, expect=expect) as archive:
        members: list[tuple[str, int, int | None, str]] = [
            (f"__hello__/{section.name}", section.size, None, section.digest)
            for section in archive.manifest.sections
        ]
        index = archive.index
        if index is not None:
            members += [
                (
                    archive.image_name(row),
                    int(index.size[row]),
                    int(index.label[row]),
                    "sha256:" + bytes(index.sha256[row]).hex(),
                )
                for row in range(len(archive))
            ]
    if as_json:
        echo_json(
            {
                "schema": "hello.ls/1",
                "members": [
                    {"name": name, "size": size, "label": label, "digest": digest}
                    for name, size, label, digest in members
                ],
            }
        )
        return
    width = max((len(str(size)) for _, size, _, _ in members), default=0)
    lines: list[str] = []
    for name, size, label, digest in members:
        line = printable(name)
        if long_form:
            shown = "-" if label is None else str(label)
            line = f"{size:>{width}}  {shown:>6}  {digest[7:23]}  {line}"
        lines.append(line)
    click.echo("\n".join(lines))
