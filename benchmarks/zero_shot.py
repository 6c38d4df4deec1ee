"""Compare zero-shot accuracy of open_clip's pipeline and of an unfitted projector.

    python benchmarks/zero_shot.py --data DIR --base BASE [--classes FILE] [--describe TEXT]

DIR has one folder of images per class; FILE is a class list, ``folder TAB name[, synonym...]`` (the
first name goes into the prompts). BASE is ``open_clip:NAME:PRETRAINED``, ``local-dir:PATH`` or
``hf-hub:ORG/NAME``. Prints a Markdown page.

open_clip's pipeline: its image transform, ``encode_image``, ``build_zero_shot_classifier``, times
``exp(logit_scale)``. Ours: `Projector.build(start="text")` before any training, written to an
archive, read back, its probes checked, and served. Both see the same pixels: a view is the output
of open_clip's transform before normalisation.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import tempfile
import textwrap
import time
from pathlib import Path

import open_clip
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms import Normalize

from hellofmt.archive import ClassLine, Draft, default_views, read_class_lines, write_archive
from hellofmt.archive.format.manifest import Dataset
from hellofmt.projector import Labeler, Projector, load_base


def read_views(folder: Path, keys: list[str], transform) -> tuple[torch.Tensor, torch.Tensor]:
    """Read all images as views in [0, 1], and their labels."""
    steps = [step for step in transform.transforms if not isinstance(step, Normalize)]
    views, labels = [], []
    for label, key in enumerate(keys):
        for path in sorted((folder / key).iterdir()):
            with Image.open(path) as image:
                x = image
                for step in steps:
                    x = step(x)
            views.append(x)
            labels.append(label)
    return torch.stack(views), torch.tensor(labels)


def open_clip_logits(model, tokenizer, names, prompts, views) -> torch.Tensor:
    """Compute zero-shot logits as open_clip does."""
    templates = [lambda name, p=p: p.replace("{}", name) for p in prompts]
    weights = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)
    normalise = Normalize(model.visual.image_mean, model.visual.image_std)
    out = []
    with torch.no_grad():
        for batch in views.split(250):
            features = functional.normalize(model.encode_image(normalise(batch)), dim=-1)
            out.append(model.logit_scale.exp() * features @ weights)
    return torch.cat(out)


def projector_logits(base, source, classes, prompts, views, file: Path) -> torch.Tensor:
    """Compute logits from an archive of an untrained projector: rank-8 deltas, all zero."""
    projector = Projector.build(
        base,
        classes,
        rank=8,
        head_rank=8,
        start="text",
        prompts=prompts,
        bias=False,
        train_scale=False,
        temperature=1.0,
        seed=0,
    )
    dataset = Dataset(name="zero-shot", version="1", license="CC0-1.0", method="none", sources=[])
    part = projector.part("int8")
    views_of_file = default_views(base.spec.preprocess.size)
    draft = Draft(dataset=dataset, classes=classes, views=views_of_file, projector=part)
    write_archive(file, draft, force=True)
    labeler = Labeler.from_file(file, source)
    return torch.cat([labeler.logits(batch) for batch in views.split(250)])


def weights_digest(source: str) -> str:
    """Return the SHA-256 of a ``local-dir:`` weights file, to identify the measured model."""
    if not source.startswith("local-dir:"):
        return ""
    folder = Path(source.removeprefix("local-dir:"))
    (file,) = [*folder.glob("open_clip_model.safetensors"), *folder.glob("open_clip_*.bin")][:1]
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> None:
    """Measure and print the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--describe", default="")
    arguments = parser.parse_args()
    source = arguments.base
    keys = sorted(p.name for p in arguments.data.iterdir() if p.is_dir())
    lines = {key: ClassLine(key, (key,)) for key in keys}
    if arguments.classes:
        lines |= {line.key: line for line in read_class_lines(arguments.classes)}
    classes = [lines[key] for key in keys]
    names = [line.names[0] for line in classes]

    name, _, pretrained = source.removeprefix("open_clip:").partition(":")
    options = {"pretrained": pretrained} if source.startswith("open_clip:") else {}
    name = name if options else source
    model, _, transform = open_clip.create_model_and_transforms(name, **options)
    model.eval()
    scale = float(model.logit_scale.detach().exp())
    base = load_base(source)
    views, labels = read_views(arguments.data, keys, transform)

    rows = []
    for title, prompts in (
        ("a photo of a {}.", ("a photo of a {}.",)),
        ("the 80 of ImageNet", tuple(f("{}") for f in open_clip.OPENAI_IMAGENET_TEMPLATES)),
    ):
        start = time.perf_counter()
        theirs = open_clip_logits(model, open_clip.get_tokenizer(name), names, prompts, views)
        middle = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "zero-shot.hello"
            ours = projector_logits(base, source, classes, prompts, views, file)
            size = file.stat().st_size
        end = time.perf_counter()
        accuracy = [100 * float((z.argmax(1) == labels).float().mean()) for z in (theirs, ours)]
        agreement = 100 * float((theirs.argmax(1) == ours.argmax(1)).float().mean())
        rows.append(
            f"| {title} | {accuracy[0]:.2f} % | {accuracy[1]:.2f} % | {agreement:.2f} % | "
            f"{float((theirs - ours).abs().max()) / scale:.1e} | {size:,} | "
            f"{middle - start:.0f} / {end - middle:.0f} |"
        )
    digest = weights_digest(source)
    described = f"Base: {arguments.describe or f'`{source}`'}"
    if digest:
        described += f" Its weights have SHA-256 `{digest}`."
    versions = f"open_clip {open_clip.__version__}, torch {torch.__version__.partition('+')[0]}"
    threads = torch.get_num_threads()
    paragraphs = f"""# Zero-shot: open_clip's path and a projector that was never fitted

`python benchmarks/zero_shot.py --data DIR --base BASE --classes FILE --describe TEXT`, with
{versions}, Python {platform.python_version()}, CPU threads: {threads}.

{described}

Images: {len(labels):,} of {len(keys)} classes, chance {100 / len(keys):.1f} %. The projector starts
from text; its deltas are zero, its archive is written, read back and checked by its probes. Logits
are cosines times {scale:.2f}; differences are of cosines. Time is that of text and images together,
on a machine that did other work too.""".split("\n\n")
    print("\n\n".join(textwrap.fill(p, 100, break_on_hyphens=False) for p in paragraphs))
    print("""
| prompts | open_clip | projector | same class | largest difference | archive, bytes | seconds |
| --- | --- | --- | --- | --- | --- | --- |""")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
