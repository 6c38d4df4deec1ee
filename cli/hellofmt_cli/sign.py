"""``hello sign``: a detached Ed25519 signature beside an archive."""

from __future__ import annotations

import click

from hellofmt.errors import printable
from hellofmt_cli.options import command, json_option, limit_option, limits
from hellofmt_cli.output import echo_json, echo_page, reading


@command("sign")
@click.argument("file", required=False)
@click.option(
    "--key",
    metavar="PEM",
    help="Sign with this private Ed25519 key, a PEM file without passphrase.",
)
@click.option(
    "-o", "--output", metavar="SIG", help="Write the signature here.  [default: FILE.sig]"
)
@click.option("--force", is_flag=True, help="Replace an existing signature.")
@click.option(
    "--new-key",
    metavar="PEM",
    help="Make a key pair first: PEM (mode 0600) and PEM.pub; then sign with it, if FILE is given.",
)
@limit_option
@json_option
def sign(
    file: str | None,
    key: str | None,
    output: str | None,
    force: bool,
    new_key: str | None,
    as_json: bool,
) -> None:
    """Sign FILE: verify it in full, then write FILE.sig.

    The signature covers the archive's id, and so every byte of it, together with the name and the
    version of the data set. Readers check it with `hello verify FILE --pubkey KEY.pub`.

    \b
    hello sign x.hello --new-key me.pem
    hello verify x.hello --pubkey me.pem.pub
    """  # noqa: D301 - click wants the character
    from hellofmt.archive import create_key, sign_archive, signature_path

    if (key is None) == (new_key is None):
        raise click.UsageError("give one of --key and --new-key")
    if new_key is not None:
        key_id = create_key(new_key)
        if file is None:
            _echo_key(new_key, key_id, as_json=as_json)
            return
    if file is None:
        raise click.UsageError("Missing argument 'FILE'.")
    reading(file)
    made = sign_archive(file, key or new_key or "", target=output, force=force, limits=limits())
    path = str(signature_path(file) if output is None else output)
    if as_json:
        echo_json(
            {
                "schema": "hello.sign/1",
                "signature": path,
                "id": made.id,
                "name": made.name,
                "version": made.version,
                "key_id": made.key_id,
            }
        )
        return
    echo_page(
        [
            ("signed", printable(f"{made.name} {made.version}")),
            ("id", made.id),
            ("key id", made.key_id),
            ("signature", path),
        ]
    )


def _echo_key(path: str, key_id: str, *, as_json: bool) -> None:
    """Say where the new pair lies."""
    public = f"{path}.pub"
    if as_json:
        echo_json({"schema": "hello.key/1", "key_id": key_id, "key": path, "public_key": public})
    else:
        echo_page([("private key", path), ("public key", public), ("key id", key_id)])
