"""``hello pack --adapter``: an image tower that PEFT adapted becomes a projector.

Apart from ``pack``, which packs images and must not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from hellofmt.archive import Dataset, Draft, default_views, write_archive
from hellofmt.projector import Projector, load_base
from hellofmt_cli.output import limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hellofmt.archive import ClassLine, Storage
    from hellofmt.projector import MhaFix

__all__ = ["pack_adapter"]


def pack_adapter(
    directory: str,
    output: str,
    *,
    base: str,
    classes: Sequence[ClassLine],
    prompts: Sequence[str],
    temperature: float,
    storage: Storage,
    mha_fix: MhaFix,
    views: Mapping[str, Any],
    dataset: Mapping[str, Any],
    texts: Mapping[str, str | None],
    extras: Mapping[str, str],
    force: bool,
) -> str:
    """Write the projector of an adapter, with a head from text, as an archive without images.

    Args:
        directory: of the adapter.
        output: path of the archive.
        base: what was adapted.
        classes: whose names go into the prompts.
        prompts: templates with ``{}``.
        temperature: default T of the labels.
        storage: of the deltas.
        mha_fix: whether the deltas of ``out_proj`` acted twice.
        views: fields of the default views to change.
        dataset: name, version, license, method and sources.
        texts: ``card`` and ``license``.
        extras: free fields.
        force: replace an existing archive.

    Returns:
        The archive's id.

    Raises:
        HelloError: the adapter, the base or an option cannot be used, or the archive not written.
        OSError: a file cannot be read.
    """
    loaded = load_base(base)
    projector = Projector.from_peft(
        directory,
        loaded,
        classes,
        prompts=prompts,
        temperature=temperature,
        mha_fix=mha_fix,
    )
    draft = Draft(
        dataset=Dataset(**dataset),
        classes=classes,
        views=msgspec.structs.replace(default_views(loaded.spec.preprocess.size), **views),
        projector=projector.part(storage),
        card=texts["card"],
        license=texts["license"],
        extras=extras,
    )
    return write_archive(output, draft, force=force, limits=limits())
