"""``hello croissant``: a description of an archive that Croissant's readers turn into rows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hellofmt.archive import UNSET
from hellofmt.errors import UserInputError, shown_path
from hellofmt_cli.console import console
from hellofmt_cli.options import command, expect_option, force_option, limit_option
from hellofmt_cli.output import opened, write_text

if TYPE_CHECKING:
    from hellofmt.archive import Archive

# The context of Croissant 1.0, whole: readers warn of a shorter one.
_TERMS: Final = (
    *("citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty"),
    *("fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField"),
    *("path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate"),
    *("separator", "source", "subField", "transform"),
)
_CONTEXT: Final = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS},
}
_ENDINGS: Final = {"png": "png", "jpeg": "jpg", "webp": "webp"}


@command("croissant")
@click.argument("file")
@click.option("-o", "--output", metavar="JSON", help="Write here.  [default: stdout]")
@click.option(
    "--url", metavar="URL", help="Where the archive can be downloaded.  [default: its file name]"
)
@force_option("description")
@expect_option
@limit_option
def croissant(
    file: str, output: str | None, url: str | None, force: bool, expect: str | None
) -> None:
    """Describe FILE in Croissant 1.0, JSON-LD that data set search engines and mlcroissant read.

    Its rows are the images with the number and the name of their class. Soft labels are made, not
    stored, and have no row: the description says so. Images that are packed as one array cannot be
    described; `hello pack FILE -o NEW --layout files` makes an archive of image files.

    \b
    hello croissant photos.hello -o croissant.json
    """  # noqa: D301
    with opened(file, expect=expect) as archive:
        document = describe(archive, url or Path(file).name)
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text, force=force)
        console.say(f"written         {shown_path(output)}")


def describe(archive: Archive, url: str) -> dict[str, Any]:
    """The description as a JSON document; ``url`` may be relative to where that lies."""
    images, dataset = archive.manifest.images, archive.manifest.dataset
    is_sharded = len(archive.shards) > 1 or archive.manifest.shard is not UNSET
    if images is UNSET or images.shape is not UNSET or is_sharded:
        what = "no images" if images is UNSET else "packed images"
        what = "several shards" if is_sharded else what
        raise UserInputError.make(
            "E_DATA",
            f"Croissant describes rows that are files; this has {what}",
            advice="`hello pack FILE -o NEW --layout files` makes one archive of image files",
        )
    ending = _ENDINGS[images.codec]
    names = archive.classes.names
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": dataset.name,
        "version": dataset.version,
        "license": dataset.license,
        "description": (
            f"A distilled data set: {len(archive):,} images of {len(names):,} classes. Soft labels"
            " are made by a label function in the file (pip install hellofmt)."
        ),
        "identifier": archive.id,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "archive",
                "contentUrl": url,
                "encodingFormat": "application/x-tar",
                "contentSize": f"{archive.size_bytes} B",
                "sha256": _sha256(archive.path),
            },
            {
                "@type": "cr:FileSet",
                "@id": "files",
                "containedIn": {"@id": "archive"},
                "encodingFormat": f"image/{images.codec}",
                "includes": f"images/*/*.{ending}",
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "classes",
                "dataType": "sc:Enumeration",
                "key": {"@id": "classes/label"},
                "field": [
                    {"@type": "cr:Field", "@id": "classes/label", "dataType": "sc:Integer"},
                    {"@type": "cr:Field", "@id": "classes/name", "dataType": "sc:Text"},
                ],
                "data": [
                    {"classes/label": label, "classes/name": ", ".join(each)}
                    for label, each in enumerate(names)
                ],
            },
            {
                "@type": "cr:RecordSet",
                "@id": "images",
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": "images/image",
                        "dataType": "sc:ImageObject",
                        "source": {
                            "fileSet": {"@id": "files"},
                            "extract": {"fileProperty": "content"},
                        },
                    },
                    {
                        "@type": "cr:Field",
                        "@id": "images/label",
                        "dataType": "sc:Integer",
                        "source": {
                            "fileSet": {"@id": "files"},
                            "extract": {"fileProperty": "fullpath"},
                            "transform": {"regex": r".*images/0*(\d+)/\d+\.\w+$"},
                        },
                    },
                ],
            },
        ],
    }


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
