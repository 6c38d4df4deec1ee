"""Sphinx: MyST pages, Furo's theme, the reference from docstrings, commands from their help."""

import re
import tomllib
from pathlib import Path

from sphinx.domains.python import PyObject

from hellofmt.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]

project = "hellofmt"
author = copyright = "The hellofmt authors"
release = version = VERSION
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "hellofmt"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["numbers.css"]

# Pages link to files of the repository that are no pages as `repo:PATH`.
myst_url_schemes = {
    "http": None,
    "https": None,
    "repo": {"url": SOURCE + "/blob/main/{{path}}", "title": "{{path}}"},
}
myst_heading_anchors = 3

napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
# As it is written: limits have twenty fields.
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
# A class documents its attributes; its constructor's parameters are the same names once more.
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True}
for field in PyObject.doc_field_types:
    if field.name == "variable":
        field.label = "Attributes"


def write_commands(app):
    """Write the page of commands: the help of each, as a terminal shows it."""
    import click

    from hellofmt_cli.main import hello

    context = click.Context(hello, info_name="hello", max_content_width=96, terminal_width=96)
    pages = [("hello", hello.get_help(context))]
    for name in hello.list_commands(context):
        command = hello.get_command(context, name)
        inner = click.Context(command, info_name=name, parent=context, terminal_width=96)
        pages.append((f"hello {name}", command.get_help(inner)))
    text = "\n\n".join(f"## {title}\n\n```text\n{help_text}\n```" for title, help_text in pages)
    (Path(app.srcdir) / "commands.md").write_text(f"# Commands\n\n{text}\n")


def copy_format(app):
    """Copy the pages of the format, with links to what is no page turned to the repository."""
    folder = Path(app.srcdir) / "format"
    folder.mkdir(exist_ok=True)
    for name in ("hello-1.md", "towers.md", "rationale.md"):
        text = (ROOT / "spec" / name).read_text()
        text = re.sub(r"\]\(((?:vectors|[\w.-]+\.json)[^)]*)\)", r"](repo:spec/\1)", text)
        text = re.sub(r"\]\(\.\./([^)]*)\)", r"](repo:\1)", text)
        (folder / name).write_text(text)


def setup(app):
    """Let Sphinx make the pages that stand elsewhere first."""
    app.connect("builder-inited", write_commands)
    app.connect("builder-inited", copy_format)
