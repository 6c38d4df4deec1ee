"""The names and files that CONTRIBUTING.md points at exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SOURCES = [ROOT / "hellofmt", ROOT / "kernels", ROOT / "cli"]
LIVES = ("The life of an image", "The life of a delta")


def section(title):
    return re.split(r"^## ", PAGE.split(f"## {title}\n")[1], flags=re.MULTILINE)[0]


def defined():
    """Every function, class and ``Class.method`` of the product."""
    names = set()
    for path in (each for root in SOURCES for each in root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= {
                    f"{node.name}.{each.name}"
                    for each in node.body
                    if isinstance(each, ast.FunctionDef)
                }
    return names


def unknown(text, names):
    """Names in backticks that are neither defined nor torch's nor a path."""
    found = re.findall(r"`([\w.]+)`", text)
    ours = [re.sub(r"^(rng|hellofmt_kernels)\.", "", name) for name in found]
    return [name for name in ours if name not in names and not name.startswith("torch")]


@pytest.mark.parametrize("title", LIVES)
def test_the_lives_pass_functions_that_exist(title):
    text = re.sub(r"`tests/\S+`", "", section(title))
    assert len(re.findall(r"`[\w.]+`", text)) > 15
    assert unknown(text, defined()) == []


def test_a_name_that_is_gone_is_seen():
    assert unknown("`render` and `rendered`, `Labeler.gone`", defined()) == [
        "rendered",
        "Labeler.gone",
    ]


def test_every_fact_names_a_place_that_exists():
    facts = re.split(r"^- ", section("Measured facts and traps"), flags=re.MULTILINE)[1:]
    assert len(facts) > 25
    for fact in facts:
        # Paths below `hellofmt/` are written without it.
        paths = re.findall(r"`((?:[\w.-]+/)*(?:[\w-]+\.(?:py|md)|Makefile))`", fact)
        assert paths, fact
        for path in paths:
            assert (ROOT / path).exists() or (ROOT / "hellofmt" / path).exists(), path
