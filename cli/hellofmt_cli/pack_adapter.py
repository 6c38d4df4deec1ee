"""``hello pack --adapter``: an image tower that PEFT adapted becomes a projector.

Apart from ``pack``, which packs images and must not wait for torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hellofmt.archive import Dataset, Draft, changed_views, default_views, write_archive
from hellofmt.projector import Projector, load_base
from hellofmt_cli.console import console
from hellofmt_cli.options import limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hellofmt.archive import ClassLine, Texts
    from hellofmt_cli.pack_options import AdapterOptions


def pack_adapter(
    options: AdapterOptions,
    texts: Texts,
    output: str,
    *,
    classes: Sequence[ClassLine],
    views: Mapping[str, Any],
    force: bool,
) -> str:
    """Write the projector of an adapter, with a head from text, as an archive without images."""
    directory, base = options.adapter or "", options.base or ""
    with console.stage("loading the base"):
        loaded = load_base(base)
    with console.stage("packing the adapter"):
        projector = Projector.from_peft(
            directory,
            loaded,
            classes,
            prompts=options.prompts or ("a photo of a {}.",),
            temperature=options.temperature,
            mha_fix=options.peft_mha_fix,
        )
        draft = Draft(
            dataset=Dataset(
                name=texts.name or Path(directory).resolve().name,
                version=texts.version,
                license=texts.license or "NOASSERTION",
                method=texts.method or "peft",
                sources=list(texts.sources or ()),
            ),
            classes=classes,
            views=changed_views(default_views(loaded.spec.preprocess.size), views),
            projector=projector.part(options.precision),
            card=texts.card,
            license=texts.license_text,
            extras=texts.extras,
        )
        return write_archive(output, draft, force=force, limits=limits())
