"""open_clip as a guest: its weights checked before, its log kept quiet, its errors in one line."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hellofmt.archive.storage.local_files import open_regular
from hellofmt.checkpoint import read_checkpoint
from hellofmt.errors import (
    BaseModelError,
    HelloError,
    UserInputError,
    did_you_mean,
    foreign_text,
    printable,
    shown_path,
)

if TYPE_CHECKING:
    from collections.abc import Generator


def check_weights(name: str, pretrained: str) -> None:
    """Refuse weights that are neither a tag of open_clip model ``name`` nor a regular file."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained in tags or open_clip.get_pretrained_cfg(name, pretrained):
        return
    if not Path(pretrained).exists():
        raise UserInputError.make(
            "E_OPTION",
            f"base `open_clip:{name}:{printable(pretrained)}`: no such file, and no weights that"
            f" open_clip has; expected a checkpoint or one of {', '.join(tags) or 'none'}",
            advice=did_you_mean(pretrained, tags),
        )
    os.close(open_regular(pretrained)[0])


@contextmanager
def foreign_calls(what: str) -> Generator[None]:
    """Give one error for whatever torch, timm and open_clip raise about a base from a file.

    Their checks are assertions, lookups and shape errors of any type. The cause is kept, so that a
    fault of ours is not hidden. ``what`` says what failed: ``open_clip cannot build the base``.
    """
    try:
        yield
    except HelloError:
        raise
    except Exception as error:
        text = foreign_text(error)
        if isinstance(error, MemoryError) or "allocate" in text or "out of memory" in text:
            text = "there is not enough memory for it"
        raise BaseModelError.make("E_BASE_CONFIG", f"{what}: {text}") from error


@contextmanager
def quiet_logs() -> Generator[None]:
    """Keep open_clip's log off stderr: it logs to the root logger, and sets that up if needed."""
    root, before = logging.getLogger(), logging.root.manager.disable
    handler = logging.NullHandler()
    # With a handler there, `logging.error` adds none of its own.
    root.addHandler(handler)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


def cannot_load(name: str, pretrained: str | None, error: Exception) -> UserInputError:
    """Turn an error of open_clip, of any type and length, into one line: E_OPTION, not raised.

    ``pretrained`` is a tag or a file, or None if ``name`` says it all.
    """
    if pretrained is None or not Path(pretrained).exists():
        text = f"open_clip cannot load base `{shown_path(name)}`: {foreign_text(error)}"
        return UserInputError.make("E_OPTION", text)
    where = f"base `open_clip:{printable(name)}:{shown_path(pretrained)}`"
    try:
        read_checkpoint(pretrained, code="E_OPTION")
    except UserInputError as unread:
        return UserInputError.make("E_OPTION", f"{where}: {unread.message}", advice=unread.advice)
    text = f"{where} cannot be loaded: {foreign_text(error)}"
    return UserInputError.make("E_OPTION", text)
