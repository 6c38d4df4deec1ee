"""Switch off every check of the reader in turn; the zoo must notice: ``run.py [--only TEXT]``.

A mutant is one module of the reader with one statement changed: a ``raise`` of ours becomes
``pass`` (in an ``except`` block a bare ``raise``, so that the foreign exception comes out), a call
of a ``check_...`` function or a problem that is appended disappears. Each mutant lives in a forked
process that imports the mutated module fresh and reads the valid archives, the zoo, the vectors of
the specification and a sample of bit flips, until one outcome differs (killed) or none does; then
the unit tests of the module have a last look (or it survived). A survivor is a check without a
test, or one that no input can reach.
"""

import argparse
import ast
import collections
import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "hostile"))
# Everything slow is imported before the fork; nothing of hellofmt is.
import msgspec.inspect  # noqa: E402, F401
import numpy as np  # noqa: E402, F401
import PIL.JpegImagePlugin  # noqa: E402
import PIL.PngImagePlugin  # noqa: E402
import PIL.WebPImagePlugin  # noqa: E402, F401
import pytest  # noqa: E402
import safetensors  # noqa: E402, F401
import zstandard  # noqa: E402, F401
from zoo import VALID, ZOO  # noqa: E402
from zoo.parts import images_only  # noqa: E402

# Modules of the archive, and their unit tests where the names differ.
MODULES = {
    **{
        f"format.{name}": "manifest"
        for name in ("canonical", "parse", "validate", "fields", "views", "label_function")
    },
    **{
        f"format.{name}": name
        for name in (
            "layout",
            "implied",
            "tensors",
            "index",
            "images",
            "image_data",
            "limits",
            "compress",
            "classes",
        )
    },
    **{f"read.{name}": "reader" for name in ("checks", "front", "sections", "file")},
    "read.verify": "verify",
}
# What raises or collects a refusal; errors of callers and of writers are none.
RAISED = {
    *("SpecError", "CorruptError", "NotHelloError", "LimitError", "TrustError", "fault", "_fault"),
    *("describe_header", "_schema_error", "_OutsideProfileError", "_DamagedError"),
    "_RefusedNumber",
}
SECONDS = 15
# What only writers and callers with options of their own reach; their tests are elsewhere.
UNREAD = {"parse_png_header", "class_bytes", "decimal_value", "decimal_string", "check_expect"}


def named(node):
    """The name that a call is made by: ``SpecError`` of ``SpecError.make(...)``."""
    while isinstance(node, ast.Call | ast.Attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_problem(node):
    """``problems.append(...)``, ``problems += ...``, ``problem = "..."``, ``yield Problem()``."""
    if is_yielded(node):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        function = node.value.func
        return isinstance(function, ast.Attribute) and ast.unparse(function) == "problems.append"
    if isinstance(node, ast.AugAssign):
        return ast.unparse(node.target) == "problems"
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.JoinedStr):
        return ast.unparse(node.targets[0]) in ("problem", "fault") and ast.unparse(
            node.value
        ) not in ("''", '""')
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant | ast.JoinedStr):
        return ast.unparse(node.value).strip("f'\"").startswith("class ")
    return (
        isinstance(node, ast.Return)
        and isinstance(node.value, ast.List)
        and any(named(item) == "Problem" for item in node.value.elts)
    )


def is_yielded(node):
    """``yield Problem(...)``, or ``yield from`` a function of several."""
    value = node.value if isinstance(node, ast.Expr) else None
    if isinstance(value, ast.Yield):
        return named(value.value) == "Problem"
    names = ("in_range", "exactly")
    return isinstance(value, ast.YieldFrom) and (
        named(value.value) in names or named(value.value).endswith("_problems")
    )


def is_question(node):
    """``if ...: problem = "..."`` in a chain: to skip its body would skip the rest of the chain."""
    return isinstance(node, ast.If) and len(node.body) == 1 and isinstance(node.body[0], ast.Assign)


def is_check(node):
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and named(node.value.func).lstrip("_").startswith("check_")
    ) or (
        # self._check_length(...): the name stands last.
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr.startswith("_check")
    )


class Sites(ast.NodeTransformer):
    """Finds the statements that refuse; replaces the one numbered ``target``."""

    def __init__(self, target=-1):
        self.found = []
        self._target = target
        self._handlers = 0

    def visit_ExceptHandler(self, node):
        self._handlers += 1
        self.generic_visit(node)
        self._handlers -= 1
        return node

    def visit_FunctionDef(self, node):
        return node if node.name in UNREAD else self.generic_visit(node)

    def visit_If(self, node):
        if is_question(node) and is_problem(node.body[0]):
            never = ast.copy_location(ast.Constant(value=False), node.test)
            answer = ast.If(never, node.body, node.orelse)
            node = self._site(node.body[0], ast.copy_location(answer, node), kept=node)
            node.orelse = [self.visit(other) for other in node.orelse]
            return node
        return self.generic_visit(node)

    def _site(self, node, replacement, kept=None):
        self.found.append((node.lineno, ast.unparse(node).splitlines()[0][:90]))
        if len(self.found) - 1 == self._target:
            return ast.copy_location(replacement, node)
        return node if kept is None else kept

    def generic_visit(self, node):
        if isinstance(node, ast.Raise) and node.exc is not None and named(node.exc) in RAISED:
            return self._site(node, ast.Raise() if self._handlers else ast.Pass())
        if is_check(node) or is_problem(node):
            empty = ast.Return(ast.List([], ast.Load())) if isinstance(node, ast.Return) else None
            if is_yielded(node):
                # A function without a yield would be no generator.
                empty = ast.If(ast.Constant(value=False), [node], [])
            if empty and isinstance(node.value, ast.Constant | ast.JoinedStr):
                empty = ast.Pass()
            return self._site(node, empty or ast.Pass())
        return super().generic_visit(node)


def source(module):
    path = ROOT.joinpath("hellofmt", "archive", *module.split(".")).with_suffix(".py")
    return path.read_text(encoding="utf-8")


def sites(module):
    finder = Sites()
    finder.visit(ast.parse(source(module)))
    return finder.found


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from its changed tree."""

    def __init__(self, module, target):
        self._name = f"hellofmt.archive.{module}"
        self._module, self._target = module, target

    def find_spec(self, name, path, target=None):
        if name != self._name:
            return None
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        tree = Sites(self._target).visit(ast.parse(source(self._module)))
        code = compile(ast.fix_missing_locations(tree), f"<{self._name} mutated>", "exec")
        exec(code, module.__dict__)  # noqa: S102 (our own source, one statement changed)


def vectors():
    """(name, bytes, expected codes) of the committed invalid vectors, if there are any."""
    for path in sorted((ROOT / "spec" / "vectors" / "invalid").glob("*.hello")):
        described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        yield f"vector {path.stem}", path.read_bytes(), {"pixels": described["code"]}


def cases():
    """(name, bytes, expected code by way of reading); None stands for any error of ours."""
    ways = ("full", "pixels", "read", "index")
    made = [(f"valid {name}", make(), dict.fromkeys(ways, "")) for name, make in VALID.items()]
    for name, file in ZOO.items():
        data = file.make()
        if isinstance(data, bytes):
            wanted = {"pixels": file.code, "full": "" if file.decode else file.code}
            wanted["read"] = "" if file.full else file.code
            if file.group == "index" and file.code == "E_INDEX":
                wanted["index"] = file.code
            made.append((name, data, wanted))
    # The cheap ones first: most mutants die early.
    made.sort(key=lambda case: len(case[1]))
    made += vectors()
    data = VALID["projector"]()
    for at in range(0, len(data), 29):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        made.append((f"flip of byte {at}", bytes(flipped), {"full": None}))
    # Somewhere between them reading back gives up and writing does not, or the other way round.
    for depth in range(900, 1001):
        text = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
        made.append((f"depth {depth}", images_only().build(text), {"full": None}))
    return made


class Memory:
    """An archive in memory, as a source of the reader."""

    is_remote = False

    def __init__(self, data):
        self.name, self.size, self._data = "memory", len(data), data

    def read(self, offset, length):
        return self._data[offset : offset + length]

    def read_ranges(self, ranges):
        return [self.read(*found) for found in ranges]

    def close(self):
        pass


def judge(everything):
    """The first case that the imported reader gets wrong, or an empty string."""
    from hellofmt.archive.read import verify
    from hellofmt.archive.read.file import HelloFile
    from hellofmt.errors import HelloError

    def everything_of(file):
        len(file.classes)
        for row in range(len(file)):
            file.decode_image(row)
        for name in file.section_sizes():
            file.section(name)

    ways = {
        "full": lambda file: verify._verify(file, "full", [], None, None),
        "pixels": lambda file: verify._verify(file, "full", [], None, hashlib.sha256()),
        "read": everything_of,
        "index": lambda file: file.index,
    }

    def read(data, way, **options):
        try:
            ways[way](HelloFile(Memory(data), **options))
        except HelloError as error:
            return error.code
        except Exception as error:
            return type(error).__name__
        return ""

    for name, data, wanted in everything:
        for way, code in wanted.items():
            found = read(data, way)
            if found != code and not (code is None and found.startswith("E_")):
                return f"{name} ({way}): {found or 'accepted'}"
    if read(VALID["images"](), "full", expect="sha256:" + "0" * 64) != "E_PIN":
        return "pin of another file: accepted"
    return ""


def outcome(module, target, everything):
    """What killed a mutant, or an empty string."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        sys.meta_path.insert(0, Mutated(module, target))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS * 4)
        try:
            said = judge(everything)
        except BaseException as error:
            said = f"import: {type(error).__name__}"
        os.write(write, said.encode()[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        said = stream.read()
    _, status = os.waitpid(pid, 0)
    return said if status == 0 else f"signal {os.WTERMSIG(status)}"


def unit_tests(module, target):
    """The mirrored unit tests if they notice a mutant, or an empty string."""
    path = ROOT / "tests" / "archive" / f"test_{MODULES[module]}.py"
    if not path.exists():
        return ""
    pid = os.fork()
    if pid == 0:
        sys.meta_path.insert(0, Mutated(module, target))
        os.chdir(ROOT)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os._exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", str(path)]))
    _, status = os.waitpid(pid, 0)
    return "" if status == 0 else f"tests/archive/{path.name}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="modules or statements that contain this")
    only = parser.parse_args().only
    everything = cases()
    if said := outcome("format.layout", -1, everything):
        raise SystemExit(f"the reader itself fails: {said}")
    for module in MODULES:
        if said := unit_tests(module, -1):
            raise SystemExit(f"without a mutant: {said} fails")
    counts, start = collections.Counter(), time.perf_counter()
    sys.stdout.write("| line | statement | killed by |\n| --- | --- | --- |\n")
    for module in MODULES:
        for number, (line, text) in enumerate(sites(module)):
            if only not in f"{module}:{line} {text}":
                continue
            killer = outcome(module, number, everything) or unit_tests(module, number)
            counts[bool(killer)] += 1
            shown = text.replace("|", "\\|")
            sys.stdout.write(f"| {module}:{line} | `{shown}` | {killer or '**survived**'} |\n")
            sys.stdout.flush()
    seconds = time.perf_counter() - start
    sys.stdout.write(
        f"\n{counts[True]} killed, {counts[False]} survived, {seconds:.0f} s, "
        f"{len(everything)} inputs each at most\n"
    )


if __name__ == "__main__":
    main()
