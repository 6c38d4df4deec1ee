"""The label functions of a manifest: by name, and the sections that hold their tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hellofmt.archive.format.layout import SECTION_ORDER
from hellofmt.archive.format.manifest import UNSET
from hellofmt.errors import UserInputError, did_you_mean, printable

if TYPE_CHECKING:
    from hellofmt.archive.format.label_function import LabelFunction
    from hellofmt.archive.format.manifest import Manifest

FUNCTION_SECTIONS: Final = ("adapter", "head", "probes")
"""Sections of every label function."""


def functions_of(manifest: Manifest) -> list[LabelFunction]:
    """Return the label functions, the default first; none of an archive of images alone."""
    return [] if manifest.functions is UNSET else manifest.functions


def find_function(manifest: Manifest, name: str | None = None) -> LabelFunction:
    """Return the manifest's entry for a label function; None names the default."""
    functions = functions_of(manifest)
    if not functions:
        text = "the archive has no projector; expected one to make soft labels"
        raise UserInputError.make("E_OPTION", text)
    if name is None:
        return functions[0]
    names = [function.name for function in functions]
    if name not in names:
        raise UserInputError.make(
            "E_OPTION",
            f"no label function {printable(name, 40)} in the archive; it has {', '.join(names)}",
            argument="label_function",
            advice=did_you_mean(name, names),
        )
    return functions[names.index(name)]


def function_section(manifest: Manifest, name: str | None, kind: str) -> str:
    """Return the section ``kind`` of a label function: ``head`` of the first, else ``head_NAME``.

    The name None is the default's; see ``find_function`` for others.
    """
    function = find_function(manifest, name)
    return kind if function is functions_of(manifest)[0] else f"{kind}_{function.name}"


def section_owner(manifest: Manifest, section: str) -> tuple[str, LabelFunction | None]:
    """Split a section's name into its kind and the label function that it belongs to.

    ``head`` gives ``head`` and the first function, ``head_NAME`` gives ``head`` and NAME's; a
    section of no function gives its own name and None.
    """
    kind, _, name = section.partition("_")
    functions = functions_of(manifest)
    if kind in FUNCTION_SECTIONS:
        for i, function in enumerate(functions):
            if name == (function.name if i else ""):
                return kind, function
    return section, None


def section_order(manifest: Manifest) -> list[str]:
    """Return every section that this manifest may list, in file order."""
    first = SECTION_ORDER.index(FUNCTION_SECTIONS[0])
    further = [
        f"{kind}_{function.name}"
        for function in functions_of(manifest)[1:]
        for kind in FUNCTION_SECTIONS
    ]
    end = first + len(FUNCTION_SECTIONS)
    return [*SECTION_ORDER[:end], *further, *SECTION_ORDER[end:]]
