"""A data set card made of what the archive knows: the questions that people ask of a data set.

Markdown with the YAML head of the Hugging Face Hub, which sorts data sets by it. A card is a
function of manifest, classes and record, so a copy with another record gets another card, and a
card that somebody wrote is told from one that was made.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import yaml
from msgspec import UNSET

from hellofmt.archive.format.record import record_bytes
from hellofmt.archive.record_text import record_rows, result_line
from hellofmt.errors import printable, shown_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellofmt.archive.format.classes import ClassLine
    from hellofmt.archive.format.manifest import Base, Dataset
    from hellofmt.archive.format.record import Record
    from hellofmt.archive.format.views import Views
    from hellofmt.archive.read.archive import Archive

# SPDX identifiers that the Hub knows, in its spelling.
_LICENSES: Final = {
    *("apache-2.0", "mit", "mpl-2.0", "unlicense", "bsd-2-clause", "bsd-3-clause"),
    *("gpl-3.0", "lgpl-3.0", "agpl-3.0", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0"),
    *("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0"),
    *("cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0"),
}
_SIZES: Final = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
_LARGE: Final = "100K<n<1M"
_MOST_CLASSES: Final = 20


def generated_card(
    dataset: Dataset,
    classes: Sequence[ClassLine],
    views: Views,
    images: int,
    base: Base | None,
    record: Record,
) -> str:
    """Write the card of an archive with ``images`` images: Markdown that begins with a YAML head.

    ``base`` is the encoder of its label function, None without one; classes are in label order.
    """
    # As it is read again, keys in their order, so that the same record gives the same card.
    facts: dict[str, Any] = json.loads(record_bytes(record))
    parts = [
        f"---\n{_head(dataset, images)}---",
        f"# {_text(dataset.name)} {_text(dataset.version)}",
        _summary(dataset, len(classes), images, base),
        "## How was it made, and with which teacher?",
        _list(record_rows({key: facts[key] for key in facts if key != "results"})),
        "## In which order are the classes?",
        _classes(classes),
        "## How are images normalised?",
        _normalisation(views),
        "## What do students reach, and what do random images give?",
        _results(facts.get("results", [])),
        "## How is it used?",
        _usage(dataset, images, base),
    ]
    return "\n\n".join(parts) + "\n"


def base_argument(base: Base) -> str:
    """Spell a base that is not in the file as ``base`` of every reader takes it."""
    name, tag = printable(base.name, 80), base.pretrained
    if base.name.startswith("hf-hub:"):
        return name
    if base.arch.vision.timm_proj == "none":
        return f"{name}=FILE" if tag is UNSET else f"{name}.{printable(tag, 80)}"
    return "local-dir:PATH" if tag is UNSET else f"open_clip:{name}:{printable(tag, 80)}"


def renewed_card(archive: Archive, record: Record) -> str | None:
    """The card of a copy with another record; None where the archive's is not a generated one."""
    if archive.record is None or not archive.has_section("card"):
        return None
    manifest, classes = archive.manifest, archive.classes.lines()
    base = None if manifest.base is UNSET else manifest.base

    def card(record: Record) -> str:
        return generated_card(manifest.dataset, classes, manifest.views, len(archive), base, record)

    is_generated = archive.section("card") == card(archive.record).encode()
    return card(record) if is_generated else None


def _text(value: object) -> str:
    """Words of the data set as Markdown that is only text."""
    # Not cut: what a manifest and a record hold is bounded.
    shown = shown_path(value)
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~" else c for c in shown)


def _list(rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return "That is not recorded."
    return "\n".join(f"- {_text(name)}: {_text(text)}" for name, text in rows)


def _head(dataset: Dataset, images: int) -> str:
    """The YAML head, without its fences."""
    license = dataset.license.lower()
    if license in _LICENSES:
        head: dict[str, Any] = {"license": license}
    elif license in ("", "noassertion"):
        head = {"license": "unknown"}
    else:
        head = {"license": "other", "license_name": printable(dataset.license, 80)}
    head["pretty_name"] = printable(dataset.name, 200)
    if images:
        head["size_categories"] = [next((s for most, s in _SIZES if images < most), _LARGE)]
    head["tags"] = ["dataset-distillation", "hello", "soft-labels"]
    head["task_categories"] = ["image-classification"]
    return yaml.safe_dump(head, allow_unicode=True, sort_keys=False)


def _summary(dataset: Dataset, classes: int, images: int, base: Base | None) -> str:
    sources = ", ".join(map(_text, dataset.sources)) or "sources that are not stated"
    what = f"{images:,} images of {classes:,} classes" if images else f"{classes:,} classes"
    if base is None:
        text = (
            f"A distilled data set in one `.hello` file: {what}, from {sources}, hard labels only."
        )
    elif images:
        text = (
            f"A distilled data set in one `.hello` file: {what}, from {sources}, and the function"
            " that makes their soft labels."
        )
    else:
        text = f"A label function in one `.hello` file, for images of {what}, fitted on {sources}."
    if base is not None and base.kind == "open_clip":
        text += f" It needs the public encoder {_text(base.name)}, which is not in the file."
    return text


def _classes(classes: Sequence[ClassLine]) -> str:
    lines = [
        f"{label}. {_text(line.key)}: {_text(', '.join(line.names))}"
        for label, line in enumerate(classes[:_MOST_CLASSES])
    ]
    more = len(classes) - _MOST_CLASSES
    if more > 0:
        lines.append(f"\n... and {more:,} more: `hello inspect FILE --classes`")
    return "\n".join(["By label, from 0:\n", *lines])


def _normalisation(views: Views) -> str:
    mean, std = (" ".join(values) for values in (views.mean, views.std))
    return (
        f"Students are given `(view - mean) / std` with mean {mean} and std {std}, of views of"
        f" {views.size} x {views.size} pixels in [0, 1]. Labels are made of the view before that."
        " `HelloDataset` does both."
    )


def _results(results: Sequence[dict[str, Any]]) -> str:
    lines = [f"- {_text(result_line(result))}" for result in results]
    if not any(result["images"] == "random" for result in results):
        lines.append(
            "- Random images were not measured; `hello train FILE --student NAME --eval DIR"
            " --random DATA` does."
        )
    if not any(result["labels"] == "hard" for result in results):
        lines.append(
            "- Hard labels were not measured; `hello train FILE --student NAME --eval DIR"
            " --labels hard` does."
        )
    return "\n".join(lines)


def _usage(dataset: Dataset, images: int, base: Base | None) -> str:
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in dataset.name)
    options = [f'"{name}.hello"']
    if not images:
        options.append("images=your_images")
    if base is None:
        options.append('labels="hard"')
    elif base.kind == "open_clip":
        options.append(f'base="{base_argument(base)}"')
    lines = [
        "import hellofmt, torch",
        f"dataset = hellofmt.HelloDataset({', '.join(options)})",
        "loader = torch.utils.data.DataLoader(dataset, batch_size=50, shuffle=True)",
        "for images, labels in loader:",
        "    ...  # labels: float32 (N, C), new views in every pass",
    ]
    if base is None:
        lines[-1] = "    ...  # labels: the classes, new views in every pass"
    return "```python\n" + "\n".join(lines) + "\n```"
