"""Predict what distilling ImageNet-1K takes on GPUs: arithmetic from the measured parts."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

NAMES = 1_281_167

# Of the prediction: networks in GFLOP a view of 224 px, and what a GPU does of them a second.
RESNET18, RN50, FIT_FACTOR = 3.6, 12.2, 3
TFLOPS = 150
CORES = 16
PNG = 13.06e-3
TEXT = 46e-3


ASSUMED = f"""
Arithmetic from the parts above and in [making-cpu.md](making-cpu.md); no GPU was used. Assumed:
{CORES} cores beside each GPU that decode as fast as the one measured and scale linearly; files on a
disk that keeps up; ResNet-18 as teacher ({RESNET18} GFLOP a view) and CLIP's RN50 as base ({RN50}
GFLOP, {FIT_FACTOR} times that in a fit); {TFLOPS} TFLOP/s sustained with `--bfloat16` (15 % of the
peak); decoding and networks overlap, so that the slower one counts; 4,000 steps of 128; 300
candidates of five crops, factor 2; text rows at 46 ms on one core; images cut and encoded, PNG at
13 ms, by the cores of one process. Not counted: imports, messages between GPUs (3 MB a
step).
"""


def prediction():
    """Seconds by stage for ImageNet-1K on one and eight GPUs, from the measured parts."""
    folder = Path(__file__).parent / "results"
    crop = json.loads((folder / "making-cpu.json").read_text())["crops"]["224"]["ours"]
    listing = json.loads((folder / "making-cpu.json").read_text())["listing"]
    listed = listing[f"folder of {NAMES:,}"]["seconds"]

    def stage(views, gflop, gpus, decodes=None):
        decoding = (views if decodes is None else decodes) * crop / (CORES * gpus)
        return max(decoding, views * gflop / 1e3 / TFLOPS / gpus)

    rows, fit = [], RESNET18 + FIT_FACTOR * RN50
    for ipc in (10, 50):
        images = 1000 * ipc
        for gpus in (1, 8):
            cells = {
                "listing": listed,
                "text": 1000 * TEXT,
                "check": stage(4_000, RESNET18, gpus),
                "fit": stage(4000 * 128, fit, gpus),
                # One decode serves five crops; the other four are cut for half of its time each.
                "select": stage(1_500_000, RESNET18, gpus, decodes=300_000 * 3),
                "cut, write": images * (4 * crop + PNG) / CORES,
                "fit, 50 epochs": stage(50 * NAMES, fit, gpus),
            }
            rows.append((ipc, gpus, cells))
    return rows


def prediction_lines():
    rows = prediction()
    names = list(rows[0][2])
    lines = [
        "## ImageNet-1K on H200s, predicted",
        "",
        textwrap.fill(ASSUMED.strip(), 100),
        "",
        "| IPC | GPUs | " + " | ".join(f"{name}, s" for name in names[:-1]) + " | all, min |"
        " fit of 50 epochs instead, h |",
        "| ---: " * (len(names) + 3) + "|",
    ]
    for ipc, gpus, cells in rows:
        *counted, long = cells.values()
        shown = " | ".join(f"{seconds:.0f}" for seconds in counted)
        lines.append(f"| {ipc} | {gpus} | {shown} | {sum(counted) / 60:.0f} | {long / 3600:.1f} |")
    return [*lines, ""]
