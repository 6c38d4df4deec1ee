"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["lazy_names"]


def lazy_names(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    The stub beside it (``__init__.pyi``), which type checkers read instead of the package, says
    where each name comes from: ``from hellofmt.room import name``, or ``original as name``.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text())
    origin = {
        alias.asname or alias.name: (line.module or "", alias.name)
        for line in stub.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }

    def get(name: str) -> Any:
        if name not in origin:
            raise AttributeError(f"module `{package}` has no attribute `{name}`")
        module, original = origin[name]
        value = getattr(importlib.import_module(module), original)
        setattr(importlib.import_module(package), name, value)
        return value

    return get, lambda: sorted(origin), sorted(origin)
