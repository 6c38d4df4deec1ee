"""``hello verify``: every byte, and who vouches for it.

Full by default: a check that somebody has to ask for is a check that is not made. The verdict comes
first, in one line. Then each check that passed is named; the first fault in file order ends the
command with its exit code. ``--base`` and ``--probes`` import torch; without them nothing does.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from hellofmt.archive import UNSET, display_name, open_archive, verify_archive, verify_signature
from hellofmt.errors import (
    CorruptError,
    HelloError,
    LimitError,
    NotHelloError,
    SpecError,
    TrustError,
    UserInputError,
    shown_path,
)
from hellofmt_cli.console import console
from hellofmt_cli.options import command, expect_option, json_option, limit_option, limits
from hellofmt_cli.output import count, echo_json, echo_page, echo_text, reading, size

if TYPE_CHECKING:
    from collections.abc import Generator

    from hellofmt.archive import Archive

_VERDICTS: Final[dict[type[HelloError], str]] = {
    CorruptError: "damaged",
    LimitError: "too large to check",
    NotHelloError: "not readable",
    SpecError: "invalid",
    TrustError: "not trusted",
}
"""What an error says about the file, before it says why."""


@command("verify")
@click.argument("file")
@click.option("--fast", is_flag=True, help="Stop before the images.")
@click.option(
    "--pixels", is_flag=True, help="Also decode every image; print a digest of the pixels."
)
@expect_option
@click.option("--pubkey", metavar="PEM", help="Demand a signature by this Ed25519 key.")
@click.option(
    "--signature", metavar="SIG", help="Read the signature from this file.  [default: FILE.sig]"
)
@click.option(
    "--least-version", metavar="X.Y.Z", help="With --pubkey: refuse an older data set version."
)
@click.option("--probes", is_flag=True, help="Build every label function and check its probes.")
@click.option(
    "--base", metavar="BASE", help="Base for --probes, where the archive does not bring its own."
)
@limit_option
@json_option
def verify(
    file: str,
    fast: bool,
    pixels: bool,
    expect: str | None,
    pubkey: str | None,
    signature: str | None,
    least_version: str | None,
    probes: bool,
    base: str | None,
    as_json: bool,
) -> None:
    """Check FILE: the verdict in one line, then every check that passed.

    All bytes are checked unless --fast is given, and the compressed data of every image is walked
    to its end: PNG is inflated and the codes of JPEG are read. Of WebP only the structure is
    checked; add --pixels to decode it. An archive that passes is undamaged and harmless to load
    with hellofmt. Who made it, only --expect or --pubkey can tell; whether its images and labels
    are any good, no check can.

    BASE is what `HelloDataset(base=...)` takes: "open_clip:NAME:PRETRAINED", "timm:NAME=FILE", a
    path, "local-dir:..." or "hf-hub:...". Seeded and embedded bases need none.

    \b
    hello verify x.hello
    hello verify x.hello --pubkey maker.pub --probes
    """  # noqa: D301 - click wants the character
    if pubkey is None and (signature is not None or least_version is not None):
        raise click.UsageError("--signature and --least-version need --pubkey")
    if pixels and fast:
        raise click.UsageError("--pixels reads the images, which --fast leaves out")
    reading(file)
    with _verdict(file), console.stage("verify", "image") as callback:
        report = verify_archive(
            file,
            level="fast" if fast else "full",
            expect=expect,
            limits=limits(),
            progress=callback,
            pixels=pixels,
        )
    document: dict[str, Any] = {
        "schema": "hello.verify/1",
        "ok": True,
        "id": report.id,
        "content_id": report.content_id,
        "level": "fast" if fast else "full",
        "checks": list(report.checks),
        "images": report.images,
        "bytes": report.bytes,
        "signature": None,
        "pixels": report.pixel_digest,
        "probes": None,
    }
    # What was verified is what is read: the path could name another file by now.
    with _verdict(file), open_archive(file, expect=report.id, limits=limits()) as archive:
        if pubkey is not None:
            signed = verify_signature(
                archive, pubkey, signature=signature, least_version=least_version
            )
            document["checks"].append("signature")
            document["signature"] = {
                "key_id": signed.key_id,
                "name": signed.name,
                "version": signed.version,
            }
        if probes or base is not None:
            document["probes"] = _check_probes(archive, base)
            document["checks"].append("probes")
    if as_json:
        echo_json(document)
    else:
        _echo(file, document)


@contextmanager
def _verdict(file: str) -> Generator[None]:
    """Put the verdict between the name of the file and what is wrong with it."""
    try:
        yield
    except HelloError as error:
        verdict = _VERDICTS.get(type(error))
        if verdict is not None:
            error.file = f"{error.file or display_name(file)}: {verdict}"
        raise


def _check_probes(archive: Archive, base: str | None) -> dict[str, Any]:
    """Build every label function, which checks the base's digest and the probes."""
    manifest = archive.manifest
    if manifest.functions is UNSET or manifest.base is UNSET:
        raise UserInputError.make("E_OPTION", "the archive has no label function to check")
    from hellofmt.projector import Labeler, base_of

    loaded = base_of(archive, base)
    for function in manifest.functions:
        Labeler.from_file(archive, loaded, label_function=function.name, check_probes=True)
    return {
        "count": sum(function.probes.count for function in manifest.functions),
        "functions": [function.name for function in manifest.functions],
        "base": manifest.base.digest,
    }


def _echo(file: str, document: dict[str, Any]) -> None:
    rows: list[tuple[str, str] | None] = [("ok", check) for check in document["checks"]]
    rows.append(None)
    rows.append(("id", document["id"]))
    if document["pixels"] is not None:
        rows.append(("pixels", document["pixels"]))
    if document["signature"] is not None:
        rows.append(("key id", document["signature"]["key_id"]))
    is_fast = document["level"] == "fast"
    what = "its images were not read" if is_fast else count(document["images"], "image")
    verdict = click.style("sections intact" if is_fast else "intact", fg="green", bold=True)
    echo_text(f"{shown_path(display_name(file))}: {verdict}, {size(document['bytes'])}, {what}")
    echo_page(rows)
