"""Time a training step in bfloat16 autocast beside float32: what ``--bfloat16`` gains.

    python benchmarks/bfloat16.py [--out benchmarks/results/bfloat16-cpu]

bfloat16 is used only on request; this shows where it pays. Both steps run in turn in one process on
one thread, forward, backward and AdamW, on a ready batch. The heap is set as for the cells of
``evidence.py``, since page faults would hide the difference.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from cells import MALLOC
from times import facts, head, publish, rows

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


def measured(name, rounds):
    """Measure median milliseconds of both steps, interleaved."""
    steps = {"float32": step_of(name, False), "bfloat16": step_of(name, True)}
    times = {kind: [] for kind in steps}
    for count in range(rounds + 2):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            # The first two compile and grow the heap.
            if count >= 2:
                times[kind].append(1e3 * (time.perf_counter() - start))
    found = {kind: round(statistics.median(each), 1) for kind, each in times.items()}
    return {"network": name, **found, "gain": round(found["float32"] / found["bfloat16"], 2)}


def page(document):
    """Return the results as Markdown."""
    lines = head(
        document,
        "bfloat16 beside float32",
        f"A training step of {BATCH} images of {SIDE} px; median of {document['rounds']} rounds,"
        " interleaved. A gain below 1 is a loss.",
    )
    cells = [
        (r["network"], f"{r['float32']:.0f}", f"{r['bfloat16']:.0f}", f"{r['gain']:.2f}")
        for r in document["rows"]
    ]
    columns = ("network", "float32 ms:", "bfloat16 ms:", "gain:")
    return "\n".join([*lines, *rows(columns, cells)]) + "\n"


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
    found = [measured(name, options.rounds) for name in NETWORKS]
    document = {"facts": facts(("hellofmt", "torch")), "rounds": options.rounds, "rows": found}
    publish(options.out, document, page)


if __name__ == "__main__":
    main()
