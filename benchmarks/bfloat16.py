"""Time training steps and labels in bfloat16 beside float32: what ``--bfloat16`` and
``--label-dtype`` gain.

    python benchmarks/bfloat16.py [--rounds 5] [--out benchmarks/results/bfloat16-cpu]

Neither is used unless asked for; this shows where each pays. Everything runs in turn in one process
on one thread: a training step (forward, backward, AdamW) on a ready batch, and the labels of ready
views by towers with generated weights, on which no speed depends. The heap is set as for the cells
of ``evidence.py``, since page faults would hide the difference.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from cells import MALLOC
from times import facts, head, publish, rows

from hellofmt.archive import Arch, ClassLine, Preprocess, VisionArch
from hellofmt.archive.format.probes import probe_images
from hellofmt.projector import Labeler, Projector, seeded_base
from hellofmt.student import build_student

CLASSES, SIDE, BATCH = 100, 64, 50
NETWORKS = (
    "convnet3",
    "resnet10w16",
    "resnet10w32",
    "mobilenet_v2",
    "shufflenet_v2_x0_5",
    "vit_tiny_patch16_224",
)

LABEL_CLASSES, LABEL_BATCH = 1000, 8
TOWERS = {
    "RN50": (1024, VisionArch(image_size=224, layers=[3, 4, 6, 3], width=64)),
    "ViT-B-32": (512, VisionArch(image_size=224, layers=12, width=768, patch_size=32)),
    "efficientnet_lite1": (
        512,
        VisionArch(
            image_size=240,
            timm_model_name="efficientnet_lite1",
            timm_pool="avg",
            timm_proj="linear",
        ),
    ),
}


def step_of(name, bfloat16):
    """Make a training step with a new network."""
    network = build_student(name, CLASSES, SIDE, seed=0).train()
    network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    images = torch.rand(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = network(images)
        optimiser.zero_grad(set_to_none=True)
        logits.float().square().mean().backward()
        optimiser.step()

    return step


def timed(works, rounds):
    """Measure the median seconds of each work, in turn."""
    times = {name: [] for name in works}
    for count in range(rounds + 2):
        for name, work in works.items():
            start = time.thread_time()
            work()
            # The first two compile and grow the heap.
            if count >= 2:
                times[name].append(time.thread_time() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def measured(name, rounds):
    """Measure median milliseconds of both steps."""
    steps = {"float32": step_of(name, False), "bfloat16": step_of(name, True)}
    found = {kind: round(1e3 * each, 1) for kind, each in timed(steps, rounds).items()}
    return {"network": name, **found, "gain": round(found["float32"] / found["bfloat16"], 2)}


class Eager:
    """Labels as one would write them with the base and the head as they were built."""

    def __init__(self, base, linear, double=False):
        self.encoder, self._head = copy.deepcopy(base.encoder), linear
        self._resized = base.encoder.resized
        self._dtype = torch.float64 if double else torch.float32
        self.encoder.to(self._dtype)

    def logits(self, views):
        encoder = self.encoder
        with torch.inference_mode():
            x = (self._resized(views).to(self._dtype) - encoder.mean) / encoder.std
            x = torch.nn.functional.normalize(encoder.visual(x), dim=-1)
            return (x * self._head.logit_scale.exp()) @ self._head.merged().to(self._dtype).T

    def labels(self, views):
        return torch.softmax(self.logits(views), dim=1)


def int8(base, linear):
    """Make labels with torch's dynamic int8, of linear layers alone: a transformer's MLPs."""
    labels = Eager(base, linear)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.ao.quantization.quantize_dynamic(
            labels.encoder, {torch.nn.Linear}, dtype=torch.qint8, inplace=True
        )
    return labels


def label_row(name, rounds):
    """Measure labels a second of one tower in every form, and the worst error of a probe."""
    dim, vision = TOWERS[name]
    size = vision.image_size
    preprocess = Preprocess(
        antialias=True, interpolation="bicubic", mean=["0.48"] * 3, size=size, std=["0.27"] * 3
    )
    arch = Arch(embed_dim=dim, quick_gelu=False, vision=vision)
    base = seeded_base(arch, preprocess, seed=0)
    classes = [ClassLine(f"c{k}", (f"class {k}",)) for k in range(LABEL_CLASSES)]
    built = Projector.build(base, classes, targets=(), start="stored", temperature=1.0, seed=0)
    linear = built.head.requires_grad_(False)
    forms = {"float32, eager": Eager(base, linear)}
    for dtype in (torch.float32, torch.bfloat16):
        for is_compiled in (False, True):
            key = str(dtype).removeprefix("torch.") + (", compiled" if is_compiled else "")
            forms[key] = Labeler(
                base, (), linear, temperature=1.0, dtype=dtype, compile=is_compiled
            )
    if name.startswith("ViT"):
        forms["int8"] = int8(base, linear)
    pictures = torch.from_numpy(probe_images(size, LABEL_BATCH)).permute(0, 3, 1, 2).float() / 255
    exact = Eager(base, linear, double=True).logits(pictures)
    # On the cosine scale, as probes are checked.
    scale = linear.logit_scale.exp() * linear.merged().norm(dim=1)
    error = {
        key: float(((form.logits(pictures).double() - exact) / scale).abs().max())
        for key, form in forms.items()
    }
    views = torch.rand(LABEL_BATCH, 3, size, size)
    times = timed({key: lambda f=form: f.labels(views) for key, form in forms.items()}, rounds)
    return {
        "tower": name,
        "forms": {
            key: {"per_second": round(LABEL_BATCH / seconds, 1), "error": error[key]}
            for key, seconds in times.items()
        },
    }


def page(document):
    """Return the results as Markdown."""
    labels = [
        (
            row["tower"],
            form,
            f"{found['per_second']:.1f}",
            f"{found['per_second'] / row['forms']['float32, eager']['per_second']:.2f}",
            f"{found['error']:.1e}",
        )
        for row in document["labels"]
        for form, found in row["forms"].items()
    ]
    steps = [
        (row["network"], f"{row['float32']:.0f}", f"{row['bfloat16']:.0f}", f"{row['gain']:.2f}")
        for row in document["rows"]
    ]
    lines = [
        *head(
            document,
            "bfloat16 beside float32",
            f"Medians of {document['rounds']} rounds, interleaved, of that thread's own time.\n"
            "A gain below 1 is a loss.",
        ),
        "## Labels",
        "",
        f"Labels a second of ready views: {LABEL_CLASSES:,} classes, batches of {LABEL_BATCH}.",
        "*float32, eager* is the tower as open_clip or timm builds it. The other forms are those",
        "of `Labeler`, which folds the BatchNorms of CLIP's ResNets and runs in channels-last",
        "memory; *compiled* is `Labeler(compile=True)`. The error is the worst logit of",
        f"{LABEL_BATCH} probes against float64, on the cosine scale; a reader allows 1e-4 in",
        "float32 and 2e-2 in bfloat16. *int8* is torch's dynamic quantisation of linear layers:",
        "slower than bfloat16, and not offered.",
        "",
        *rows(("tower", "form", "labels a second:", "gain:", "probe error:"), labels),
        "",
        "## Training steps",
        "",
        f"A training step of {BATCH} images of {SIDE} px, milliseconds.",
        "",
        *rows(("network", "float32:", "bfloat16:", "gain:"), steps),
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bfloat16-cpu"))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    if MALLOC.items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})  # noqa: S606
    torch.set_num_threads(1)
    document = {
        "schema": "hello.bench.bfloat16/2",
        "rounds": options.rounds,
        "labels": [label_row(name, options.rounds) for name in TOWERS],
        "rows": [measured(name, options.rounds) for name in NETWORKS],
        "facts": facts(("hellofmt", "torch", "torchvision", "timm", "open_clip_torch")),
    }
    publish(options.out, document, page)


if __name__ == "__main__":
    main()
