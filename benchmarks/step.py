"""Time a whole training step with online labels beside its two networks alone.

    python benchmarks/step.py [--device cuda] [--out benchmarks/results/step-cpu]

Online labels cost an encoder pass for every view. That cannot be avoided, only the work around it.
So three things are timed in turn in one run: the encoder on ready inputs, a ResNet-18 step on a
ready batch, and the same step fed by ``HelloLoader``, which draws the views, runs the encoder and
makes the labels. What the third takes beyond the sum of the first two is the overhead of this
package; on a GPU the loader works ahead on a second stream, so it may be negative. Beside them, in
the same run, the step with labels from a pool of views that is filled already, and with hard labels
of the same views, which are the least that a step can take. The encoder is
RN50's architecture with generated weights and a stored head; C = 1000, 224 px. The floor is
arithmetic alone, counted by torch, at the rate that a square matrix product reaches here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import hellofmt
from hellofmt.archive import (
    Arch,
    ClassLine,
    Dataset,
    Draft,
    ImageItem,
    ImageSet,
    Limits,
    Preprocess,
    VisionArch,
    encode_image,
    write_archive,
)
from hellofmt.loading import HelloLoader, view_recipe
from hellofmt.projector import Labeler, Projector, seeded_base
from hellofmt.student import build_student, recipe
from hellofmt.student.optimiser import optimiser_of
from hellofmt.student.train import loss_of

CLASSES, SIDE, GOAL = 1000, 224, 0.03
# A generated base of RN50's size is larger than a reader takes from a stranger.
ROOM = Limits(parameters=1 << 26)


def build(path, images):
    """Write an archive of noise, one image per class, labelled by RN50's architecture."""
    preprocess = Preprocess(
        antialias=True,
        interpolation="bicubic",
        mean=["0.48145466", "0.4578275", "0.40821073"],
        size=SIDE,
        std=["0.26862954", "0.26130258", "0.27577711"],
    )
    vision = VisionArch(image_size=SIDE, layers=[3, 4, 6, 3], width=64)
    base = seeded_base(Arch(embed_dim=1024, quick_gelu=False, vision=vision), preprocess, seed=0)
    classes = [ClassLine(f"c{k}", (f"class {k}",)) for k in range(CLASSES)]
    projector = Projector.build(
        base, classes, targets="paper", start="stored", temperature=20.0, seed=0
    )
    random = np.random.default_rng(0)
    items = [
        ImageItem(k, encode_image(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8), "png"))
        for k in range(images)
    ]
    facts = Dataset(name="step", version="1", license="CC0-1.0", method="noise", sources=[])
    views = view_recipe("rded", SIDE, 1)
    draft = Draft(facts, classes, views, images=ImageSet("png", items), projector=projector.part())
    write_archive(path, draft, limits=ROOM)


class Clock:
    """Measures seconds of a call: of the processor, or on a GPU those until its work is done."""

    def __init__(self, device):
        self._device = device

    def __call__(self, work):
        self._wait()
        now = time.perf_counter if self._device.type == "cuda" else time.process_time
        start = now()
        work()
        self._wait()
        return now() - start

    def _wait(self):
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def rate(clock, device, dtype):
    """Measure GFLOP/s of a square matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.ones(side, side, device=device, dtype=dtype)
    seconds = min(clock(lambda: a @ a) for _ in range(30))
    return 2 * side**3 / seconds / 1e9


def gflop(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def endless(loader):
    while True:
        yield from loader


def measured(path, batch, rounds, device):
    is_cuda = device.type == "cuda"
    dtype = torch.float16 if is_cuda else torch.float32
    options = {
        "batch_size": batch,
        "device": device,
        "dtype": dtype,
        "channels_last": True,
        "limits": ROOM,
    }
    loader = HelloLoader(path, **options)
    pooled = HelloLoader(path, views_per_image=1, **options)
    hard = HelloLoader(path, labels="hard", **options)
    for _ in pooled:
        pass
    labeler = Labeler.from_file(loader.dataset.file, device=device, dtype=dtype)
    plan = replace(recipe("kl"), temperature=loader.dataset.temperature)
    student = build_student("resnet18", CLASSES, SIDE, seed=0).to(device)
    student.to(memory_format=torch.channels_last)
    optimiser = optimiser_of(student, plan)

    def step(images, labels, plan=plan):
        with torch.autocast(device.type, torch.bfloat16, enabled=is_cuda):
            logits = student(images)
        loss = loss_of(plan, logits.float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    ready = next(iter(loader))
    inputs = torch.rand(batch, 3, SIDE, SIDE, device=device).to(
        dtype,
        memory_format=torch.channels_last,
    )
    stream, pool, areas = endless(loader), endless(pooled), endless(hard)
    works = {
        "encoder alone": lambda: labeler.embeddings_of_inputs(inputs),
        "student step alone": lambda: step(*ready),
        "step fed by HelloLoader": lambda: step(*next(stream)),
        "step with pooled labels": lambda: step(*next(pool)),
        "step with hard labels": lambda: step(*next(areas), recipe("hard")),
    }
    clock = Clock(device)
    for work in works.values():
        work()
    times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(clock(work))
    counted = {
        "encoder alone": gflop(works["encoder alone"]),
        "student step alone": gflop(works["student step alone"]),
    }
    counted["step with pooled labels"] = counted["step with hard labels"] = counted[
        "student step alone"
    ]
    counted["step fed by HelloLoader"] = counted["encoder alone"] + counted["student step alone"]
    speed = rate(clock, device, dtype)
    rows = [
        {
            "what": name,
            "ms": round(1e3 * min(times[name]), 2),
            "gflop": round(counted[name], 1),
            "floor_ms": round(1e3 * counted[name] / speed, 2),
        }
        for name in works
    ]
    alone = rows[0]["ms"] + rows[1]["ms"]
    return {
        "rows": rows,
        "added": round(rows[2]["ms"] / alone - 1, 4),
        "pooled_over_hard": round(rows[3]["ms"] / rows[4]["ms"], 4),
        "matmul_gflop_per_second": round(speed, 1),
        "kernel": loader.kernel,
    }


def page(document):
    added = 100 * document["added"]
    kernels = ", ".join(f"{k} {v}" for k, v in document["kernel"].items())
    head = f"""# A training step with online labels

`{document["command"]}`: {document["machine"]}.
{document["versions"]}.

RN50's architecture labels {document["batch"]} views of {SIDE} px for a ResNet-18, {CLASSES:,}
classes; the least of {document["rounds"]} rounds, interleaved, {document["clock"]}. The floor is
the counted arithmetic at the rate of a square matrix product
({document["matmul_gflop_per_second"]:,.0f} GFLOP/s).
Kernels: {kernels}.

| what | ms | GFLOP | floor ms |
| --- | ---: | ---: | ---: |
"""
    rows = "".join(
        f"| {row['what']} | {row['ms']:,.2f} | {row['gflop']:,.1f} | {row['floor_ms']:,.2f} |\n"
        for row in document["rows"]
    )
    seen = "reached" if added <= 100 * GOAL else "**missed**"
    end = f"Added to the sum of both networks: **{added:+.1f} %**; goal at most {100 * GOAL:.0f} %"
    ratio = (
        f"A step with pooled labels takes {document['pooled_over_hard']:.3f} of one with hard ones."
    )
    return f"{head}{rows}\n{end}, {seen}.\n\n{ratio}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step-cpu"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="views [default: 8, on a GPU 256]")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    device = torch.device(options.device)
    batch = options.batch or (256 if device.type == "cuda" else 8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.hello"
        build(path, 4 * batch)
        result = measured(path, batch, options.rounds, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    document = {
        "schema": "hello.bench.step/1",
        "command": f"python benchmarks/step.py --device {options.device} --batch {batch}",
        "machine": f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load "
        f"{os.getloadavg()[0]:.1f} at the end",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"hellofmt {hellofmt.__version__}",
        "batch": batch,
        "rounds": options.rounds,
        "clock": "on the clock" if device.type == "cuda" else "processor time",
        **result,
    }
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(page(document))
    print(page(document))


if __name__ == "__main__":
    main()
