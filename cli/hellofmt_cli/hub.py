"""``hello push`` and ``hello pull``: archives on the Hugging Face Hub, verified at both ends."""

from __future__ import annotations

import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from hellofmt.errors import (
    HelloError,
    HelloIOError,
    UserInputError,
    foreign_text,
    printable,
    shown_path,
    target_exists,
)
from hellofmt_cli.console import console
from hellofmt_cli.options import command, expect_option, force_option, limit_option, limits
from hellofmt_cli.output import opened

if TYPE_CHECKING:
    from collections.abc import Generator

_PLACE = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)(?:/(.+\.hello))?")


class _Place(NamedTuple):
    """A data set repository of the Hub, and the file in it, if one is named."""

    repository: str
    file: str | None

    @classmethod
    def read(cls, text: str) -> _Place:
        """Take ``hf://ORG/NAME`` or ``hf://ORG/NAME/FILE.hello`` apart."""
        found = _PLACE.fullmatch(text)
        if found is None:
            raise UserInputError.make(
                "E_OPTION",
                f"`{printable(text)}`: expected hf://ORG/NAME or hf://ORG/NAME/FILE.hello",
            )
        return cls(found[1], found[2])


@contextmanager
def _hub() -> Generator[Any]:
    """The Hub's client; whatever goes wrong with it is one line."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserInputError.make(
            "E_OPTION", "this needs `huggingface_hub`; `pip install 'hellofmt[hub]'`"
        ) from None
    try:
        yield huggingface_hub.HfApi()
    except (HelloError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None:
            raise
        missing = "no such repository or file, or it is private"
        said = missing if status in (401, 403, 404) else foreign_text(error, 200)
        advice = "`hf auth login` signs you in" if said == missing else ""
        raise HelloIOError.make("E_HTTP", f"the Hub refused: {said}", advice=advice) from error
    except Exception as error:
        # The client's own network library has errors of its own.
        raise HelloIOError.make("E_HTTP", f"the Hub: {foreign_text(error, 200)}") from error


@command("push")
@click.argument("file")
@click.argument("place", metavar="hf://ORG/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@expect_option
@limit_option
def push(file: str, place: str, private: bool, expect: str | None) -> None:
    """Verify FILE and upload it to a data set repository of the Hugging Face Hub.

    A repository that does not exist is made. The archive's card becomes README.md, unless the
    repository has one already. FILE may be the pattern of a sharded set. Sign in with `hf auth
    login` first, or set HF_TOKEN.

    \b
    hello push photos.hello hf://you/photos
    hello push "photos-*-of-00016.hello" hf://you/photos
    """  # noqa: D301
    repository = _Place.read(place).repository
    with console.stage("verifying"):
        from hellofmt.archive import verify_archive

        report = verify_archive(file, expect=expect, limits=limits())
    with opened(file, expect=report.id) as archive:
        paths = [Path(shard.path) for shard in archive.shards]
        card = archive.section("card") if archive.has_section("card") else None
    with _hub() as api, console.stage("uploading"):
        from huggingface_hub import CommitOperationAdd

        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        operations = [CommitOperationAdd(path.name, path) for path in paths]
        if card is not None:
            if api.file_exists(repository, "README.md", repo_type="dataset"):
                console.say("README.md of the repository stays as it is")
            else:
                operations.append(CommitOperationAdd("README.md", card))
        done = api.create_commit(
            repository,
            operations,
            repo_type="dataset",
            commit_message=f"{paths[0].name}, {report.id}",
        )
    console.write(f"uploaded  {done.commit_url}")
    if len(paths) > 1:
        place = f"hf://datasets/{repository}/{Path(file).name}"
        console.write(f'Next: hello inspect "{place}" --expect {report.id}')
    else:
        console.write(f"Next: hello pull hf://{repository}/{paths[0].name} --expect {report.id}")


@command("pull")
@click.argument("place", metavar="hf://ORG/NAME[/FILE]")
@click.option(
    "-o", "--output", metavar="DIR", default=".", help="Write into this folder.  [default: here]"
)
@expect_option
@force_option()
@limit_option
def pull(place: str, output: str, expect: str | None, force: bool) -> None:
    """Download an archive from the Hugging Face Hub and verify it.

    Without FILE the repository must hold one archive. It has its name only after every byte was
    verified. To read a part of an archive, use it where it is: `HelloDataset("hf://datasets/...")`.

    \b
    hello pull hf://you/photos
    hello pull hf://you/photos/photos.hello --expect sha256:...
    """  # noqa: D301
    repository, name = _Place.read(place)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    with _hub() as api, tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as scratch:
        # Unlike a download this does not try again for half a minute without a network.
        files = [file.rfilename for file in api.dataset_info(repository).siblings or []]
        name = name or _only_archive(files, repository)
        target = folder / Path(name).name
        if target.exists() and not force:
            raise target_exists(target)
        with console.stage("downloading"):
            path = Path(
                api.hf_hub_download(repository, name, repo_type="dataset", local_dir=scratch)
            )
        with console.stage("verifying"):
            from hellofmt.archive import verify_archive

            report = verify_archive(path, expect=expect, limits=limits())
        path.replace(target)
    console.write(f"written   {shown_path(target)}")
    console.write(f"id        {report.id}")


def _only_archive(files: list[str], repository: str) -> str:
    """The one archive of a repository."""
    names = [name for name in files if name.endswith(".hello")]
    if len(names) != 1:
        found = ", ".join(printable(name, 60) for name in names[:5]) or "none"
        raise UserInputError.make(
            "E_DATA",
            f"`{repository}`: expected one archive, found {found}",
            advice="name the file: hf://ORG/NAME/FILE.hello",
        )
    return names[0]
