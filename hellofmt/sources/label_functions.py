"""Label functions taken from archives bit for bit, to be packed with others or with images.

Their tensors are not decoded and stored again, so probes, quantisation and digests stay what they
were.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, cast

import msgspec

from hellofmt.archive.format.functions import function_section
from hellofmt.archive.format.implied import section_tensors
from hellofmt.archive.format.manifest import UNSET, Dataset
from hellofmt.archive.read.open import open_archive
from hellofmt.archive.write.draft import ProjectorPart
from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from hellofmt.archive.format.classes import ClassLine
    from hellofmt.archive.format.limits import Limits
    from hellofmt.archive.format.record import FittedFunction
    from hellofmt.archive.format.tensors import StoredTensor
    from hellofmt.archive.format.views import Views

    Path = str | os.PathLike[str]
    Paths = Path | Sequence[Path | tuple[str, Path]]

_NAME: Final = re.compile(r"[a-z0-9_]{1,32}")


@dataclass(frozen=True)
class LabelFunctions:
    """What is taken over from archives with label functions on one base.

    Id, data set and views are those of the first archive; the first part is the default.
    """

    id: str
    parts: list[ProjectorPart]
    lines: list[ClassLine]
    dataset: Dataset
    views: Views
    records: list[FittedFunction]


def read_label_functions(
    paths: Paths, limits: Limits, say: Callable[[str], None]
) -> LabelFunctions:
    """Read the label functions of archives, their tensors as they are stored.

    Each archive is alone or in a pair after a new name for its one label function; an empty name
    keeps the old one.
    """
    several = [paths] if isinstance(paths, str) or not isinstance(paths, Sequence) else paths
    made: LabelFunctions | None = None
    for one in several:
        name, path = one if isinstance(one, tuple) else ("", one)
        if name and not _NAME.fullmatch(name):
            raise UserInputError.make(
                "E_OPTION",
                f"name of a label function; expected 1 to 32 of a-z, 0-9 and _, "
                f"got {printable(name, 40)}",
            )
        read = _read(path, name, limits)
        made = read if made is None else _joined(made, read, printable(path), say)
    if made is None:
        raise UserInputError.make("E_OPTION", "no archive to take a label function from")
    return made


def _read(path: str | os.PathLike[str], name: str, limits: Limits) -> LabelFunctions:
    with open_archive(path, limits=limits) as file:
        manifest = file.manifest
        base, functions = manifest.base, manifest.functions
        if base is UNSET or functions is UNSET:
            raise UserInputError.make(
                "E_OPTION", f"`{printable(path)}`: no label function in this archive"
            )
        if name and len(functions) > 1:
            raise UserInputError.make(
                "E_OPTION",
                f"`{printable(path)}`: has {len(functions)} label functions; expected one to be "
                f"called {name}",
            )

        def stored(section: str) -> dict[str, StoredTensor]:
            # `file.section` verified them; this gives them without decoding a value.
            return section_tensors(file.section(section), manifest, section)

        parts: list[ProjectorPart] = []
        for function in functions:
            adapter, head, probes = (
                stored(function_section(manifest, function.name, kind))
                for kind in ("adapter", "head", "probes")
            )
            parts.append(
                ProjectorPart(
                    base=base,
                    adapter=function.adapter,
                    head=function.head,
                    adapter_tensors=adapter,
                    head_tensors=head,
                    probe_logits=cast("NDArray[np.float32]", probes["logits"].numpy()),
                    base_tensors=stored("base") if base.kind == "embedded" else None,
                    name=name or function.name,
                )
            )
        record = file.record
        records = [] if record is None or record.functions is UNSET else record.functions
        if name:
            records = [msgspec.structs.replace(one, name=name) for one in records]
        return LabelFunctions(
            file.id, parts, file.classes.lines(), manifest.dataset, manifest.views, list(records)
        )


def _joined(
    known: LabelFunctions, more: LabelFunctions, path: str, say: Callable[[str], None]
) -> LabelFunctions:
    """``known`` with the functions of one more archive."""
    base, other = known.parts[0].base, more.parts[0].base
    if base.digest != other.digest:
        raise UserInputError.make(
            "E_DATA",
            f"`{path}`: label functions of one archive have one base; expected "
            f"{printable(base.name)} {base.digest}, got {printable(other.name)} {other.digest}",
        )
    if more.lines != known.lines:
        pairs = zip(known.lines, more.lines, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if at is None:
            what = f"expected {len(known.lines)} classes, got {len(more.lines)}"
        else:
            what = f"class {at}: expected {_shown(known.lines[at])}, got {_shown(more.lines[at])}"
        raise UserInputError.make(
            "E_DATA", f"`{path}`: label functions of one archive have one class list; {what}"
        )
    names = {part.name for part in known.parts}
    for part in more.parts:
        if part.name in names:
            raise UserInputError.make(
                "E_DATA",
                f"`{path}`: a second label function called {part.name}; expected another name",
                advice="{projector:NAME=FILE} gives it one" if len(more.parts) == 1 else "",
            )
    if more.views != known.views:
        say(f"{path}: its views differ from the first's, which are taken")
    return replace(
        known, parts=[*known.parts, *more.parts], records=[*known.records, *more.records]
    )


def _shown(line: ClassLine) -> str:
    return printable(f"{line.key} ({', '.join(line.names)})", 80)
