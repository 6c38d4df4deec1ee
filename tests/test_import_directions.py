"""Rooms import only what stands below them, and no files import each other in a circle.

Read from the source, so lazy imports count too, and those for type checkers.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "hellofmt": ROOT / "hellofmt",
    "hellofmt_kernels": ROOT / "kernels" / "hellofmt_kernels",
    "hellofmt_cli": ROOT / "cli" / "hellofmt_cli",
}
LEAVES = {"errors", "lazy", "rng", "version"}
# room -> rooms it may import, itself apart.
ALLOWED = {
    "errors": set(),
    "lazy": set(),
    "rng": set(),
    "version": set(),
    "archive": LEAVES,
    "sources": LEAVES | {"archive"},
    "ledger": LEAVES | {"archive"},
    "checkpoint": {"errors"},
    "weights": {"errors", "checkpoint"},
    "projector": LEAVES | {"archive", "checkpoint", "weights"},
    "runs": LEAVES | {"archive"},
    "loading": LEAVES | {"archive", "sources", "projector", "runs"},
    "making": LEAVES | {"archive", "sources", "runs", "loading"},
    "student": LEAVES | {"archive", "sources", "projector", "loading", "runs", "making"},
    "teacher": LEAVES
    | {"archive", "sources", "checkpoint", "weights", "projector", "loading", "runs", "making"}
    | {"student"},
    "distillation": LEAVES
    | {"archive", "sources", "ledger", "projector", "loading", "runs", "making", "student"}
    | {"teacher", "weights"},
}
KERNEL_USERS = {
    "projector/labeler.py",
    "loading/batch_maker.py",
    "loading/resident.py",
    "loading/views/crops.py",
    "loading/views/normalise.py",
    "loading/views/parts.py",
    "loading/views/pixels.py",
    "loading/views/recipes.py",
    "loading/views/table.py",
    "making/views.py",
    "student/train.py",
}
TORCH_FREE = {"errors", "lazy", "rng", "archive", "sources", "ledger"}
# A reader of torchvision's data sets, itself imported only where one is named.
HEAVY_FILES = {"sources/torchvision.py"}
HEAVY = {"torch", "torchvision", "open_clip", "timm", "triton", "hellofmt_kernels"}


# Floors inside the archive, from the ground up.
FLOORS = ("format", "storage", "read", "write")


def imports(tree):
    """(module, names, whether at run time) of every import."""
    todo = [(tree, True)]
    while todo:
        node, runs = todo.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            todo.extend((child, False) for child in node.body)
            todo.extend((child, runs) for child in node.orelse)
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, (), runs
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", tuple(alias.name for alias in node.names), runs
        todo.extend((child, runs) for child in ast.iter_child_nodes(node))


def violations(package, relative, source):
    """What one file imports although it may not."""
    room = Path(relative).parts[0].removesuffix(".py")
    found = []
    for module, names, runs in imports(ast.parse(source)):
        top, *rest = module.split(".")
        if package == "hellofmt_kernels":
            if top in {"hellofmt", "hellofmt_cli"}:
                found.append(f"{package}/{relative} imports {module}")
            continue
        # `python -m hellofmt` is the command line.
        if top == "hellofmt_cli" and package != "hellofmt_cli" and relative != "__main__.py":
            found.append(f"{package}/{relative} imports {module}")
        if package == "hellofmt_cli":
            # The command line sees `hellofmt`, its rooms' __all__, and the single-file modules.
            if top == "hellofmt" and len(rest) > 1:
                found.append(f"{package}/{relative} imports {module}, past the room's __all__")
            if top == "hellofmt_kernels":
                found.append(f"{package}/{relative} imports {module}")
            continue
        if room in {"__init__", "__main__"}:
            continue
        if top == "hellofmt":
            rooms = {rest[0]} if rest else set(names)
            found += [
                f"{relative} imports {r}" for r in rooms if r != room and r not in ALLOWED[room]
            ]
        if top == "hellofmt_kernels" and relative not in KERNEL_USERS:
            found.append(f"{relative} imports {module}")
        floor = Path(relative).parts[1] if room == "archive" else ""
        above = FLOORS[FLOORS.index(floor) + 1 :] if floor in FLOORS else ()
        if rest[:1] == ["archive"] and any(each in above for each in rest[1:2]):
            found.append(f"{relative} imports {module}, which stands above it")
        if runs and room in TORCH_FREE and top in HEAVY and relative not in HEAVY_FILES:
            found.append(f"{relative} imports {module}")
    return found


def files():
    for package, root in SOURCES.items():
        for path in sorted(root.rglob("*.py")):
            yield package, path.relative_to(root).as_posix(), path


def circles(sources):
    """Groups of modules that import each other, of {module: source}; packages' faces are apart."""
    known = {
        name: {
            each
            for module, names, _ in imports(ast.parse(source))
            for each in (module, *(f"{module}.{one}" for one in names))
            if each in sources and each != name
        }
        for name, source in sources.items()
    }

    def reached(start):
        seen, todo = set(), [start]
        while todo:
            new = known[todo.pop()] - seen
            seen |= new
            todo.extend(new)
        return seen

    above = {name: reached(name) for name in known}
    return sorted(
        {
            tuple(sorted(n for n in above if n in a and name in above[n]))
            for name, a in above.items()
            if name in a
        }
    )


def test_no_files_import_each_other_in_a_circle():
    modules = {}
    for package, relative, path in files():
        if path.name != "__init__.py":
            dotted = relative.removesuffix(".py").replace("/", ".")
            modules[f"{package}.{dotted}"] = path.read_text()
    assert circles(modules) == []


def test_a_circle_is_seen():
    a = "if TYPE_CHECKING:\n    from x.b import B"
    assert circles({"x.a": a, "x.b": "from x import c", "x.c": "import x.a"}) == [
        ("x.a", "x.b", "x.c")
    ]
    assert circles({"x.a": a, "x.b": "import os"}) == []


@pytest.mark.parametrize(("package", "relative", "path"), list(files()), ids=lambda v: str(v)[-40:])
def test_imports_follow_the_plan(package, relative, path):
    assert violations(package, relative, path.read_text()) == []


@pytest.mark.parametrize(
    ("package", "relative", "source"),
    [
        ("hellofmt", "archive/read/file.py", "import torch"),
        ("hellofmt", "sources/folder.py", "import torchvision"),
        ("hellofmt", "archive/read/file.py", "def f():\n    from hellofmt.projector import base"),
        ("hellofmt", "archive/format/index.py", "from hellofmt.archive.read.file import HelloFile"),
        ("hellofmt", "projector/head.py", "from hellofmt import loading"),
        ("hellofmt", "projector/head.py", "if TYPE_CHECKING:\n    from hellofmt import loading"),
        ("hellofmt", "projector/head.py", "import hellofmt_kernels"),
        ("hellofmt", "student/train.py", "import hellofmt_cli.main"),
        ("hellofmt_kernels", "views/ops.py", "import hellofmt"),
        ("hellofmt_cli", "inspect.py", "from hellofmt.archive.read.file import open_archive"),
    ],
)
def test_the_check_can_fail(package, relative, source):
    assert violations(package, relative, source)


def test_every_room_is_in_the_plan():
    places = [p for p in SOURCES["hellofmt"].iterdir() if p.is_dir() or p.suffix == ".py"]
    rooms = {p.stem for p in places if p.name[0] != "_"}
    assert rooms <= set(ALLOWED)
