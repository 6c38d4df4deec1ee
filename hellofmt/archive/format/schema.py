"""The JSON Schema of the manifest, generated from the types that read it.

A schema kept by hand drifts: sooner or later it refuses what the code writes. So this one is
generated from the structs of the manifest. A test compares it with ``spec/hello-1.schema.json`` and
validates every vector of the specification against it.

It says less than ``spec/hello-1.md``: a JSON Schema sees a parsed document, so it cannot check
canonical spelling, duplicate keys and the groups that belong together.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import msgspec

from hellofmt.archive.format.manifest import Manifest

__all__ = ["json_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Return the manifest's schema, JSON Schema 2020-12; keys that start with ``x_`` are strings.

    Returns:
        A new dictionary that ``json.dumps`` takes; the definitions are sorted by name.
    """
    schema = msgspec.json.schema(Manifest)
    definitions: dict[str, dict[str, Any]] = schema["$defs"]
    for definition in definitions.values():
        if "description" in definition:
            definition["description"] = inspect.cleandoc(cast("str", definition["description"]))
    definitions["Manifest"]["patternProperties"] = {"^x_": {"type": "string", "maxLength": 4096}}
    return {
        "$schema": _DIALECT,
        "title": "The manifest of a .hello archive, version 1",
        "$ref": "#/$defs/Manifest",
        "$defs": {name: definitions[name] for name in sorted(definitions)},
    }
