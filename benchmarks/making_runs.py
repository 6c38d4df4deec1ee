"""Measure making at the size of ImageNet: views a second, memory, the first step, time in between.

    python benchmarks/making_runs.py --sample in1k-sample --out benchmarks/results/making-runs-cpu

`--sample` is a folder of real images, one folder a class (1,000 ImageNet images, one of each class,
as they are: median 500 x 375 px, 110 kB). Folders of 10,000 and 1,281,167 names are hard links to
them, made under `--scratch` and kept. The label function adapts the smallest seeded base, so
that the engine is what is measured.

- Views a second: the engine beside torchvision's `ImageFolder` with v2's `RandomResizedCrop` and
  flip in a `DataLoader` of as many workers, interleaved, the same images and size.
- Between networks: what the loop waits for a batch of 128 while a worker is ahead, at 1,281,167
  images that are one array of 8 x 8 px.
- Memory and first step: `hello distill` in a process of its own; the largest of its processes, less
  one that imports the same. Twice: the second finds listing and check kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from making import linked
from making_prediction import prediction_lines

SIDE, BATCH, CLASSES = 224, 128, 1000
SIZES = (10_000, 1_281_167)


def views_of(size=SIDE, mix="cutmix"):
    import msgspec

    from hellofmt.archive import default_views

    return msgspec.structs.replace(
        default_views(size), mix=mix, mix_alpha="1", mix_probability="0.5"
    )


def rates(sample, workers, views, rounds):
    """Views a second, median of rounds, of the engine and of torchvision."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from hellofmt.making import ViewBatches
    from hellofmt.sources import open_source

    torch.set_num_threads(1)
    steps = views // BATCH
    cut = v2.Compose([v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()])
    folder = ImageFolder(sample, v2.Compose([cut, v2.PILToTensor()]))
    source = open_source([str(sample)])

    def theirs():
        loader = DataLoader(folder, BATCH, shuffle=True, num_workers=workers, drop_last=True)
        for k, _ in enumerate(loader, 1):
            if k == steps:
                return

    def ours(mix):
        for _ in ViewBatches(source, views_of(mix=mix), BATCH, 0).stream(
            end=steps, workers=workers
        ):
            pass

    cases = {
        "ImageFolder, uint8": theirs,
        "engine, float32 in [0, 1]": lambda: ours("none"),
        "engine, float32 in [0, 1], CutMix": lambda: ours("cutmix"),
    }
    seconds = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: steps * BATCH / float(np.median(all_[1:])) for name, all_ in seconds.items()}


class OneArray:
    """As many images as ImageNet has, all of them one array."""

    def __init__(self, count):
        from hellofmt.archive import ClassLine

        self.labels = np.arange(count, dtype=np.int64) % CLASSES
        self.classes = tuple(ClassLine(f"{k}", (f"{k}",)) for k in range(CLASSES))
        self._pixels = np.zeros((8, 8, 3), np.uint8)
        self.skips_unreadable = False

    def __len__(self):
        return len(self.labels)

    def read(self, _row):
        return self._pixels

    def name_of(self, row):
        return str(row)

    def labels_of(self, rows):
        return self.labels[rows]

    def note(self, _row, _kinds=()):
        pass


def between(count, steps=400):
    """Milliseconds that a step waits for its batch, with a worker ahead."""
    import torch

    from hellofmt.making import ViewBatches

    torch.set_num_threads(1)
    stream = ViewBatches(OneArray(count), views_of(8), BATCH, 0).stream(end=steps, workers=1)
    start = time.perf_counter()
    next(stream)
    first = 1e3 * (time.perf_counter() - start)
    waits = []
    for _ in range(steps - 1):
        # What the networks would take.
        time.sleep(0.05)
        start = time.process_time(), time.perf_counter()
        if next(stream, None) is None:
            break
        waits.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    cpu, wall = 1e3 * np.array(waits).T
    return {
        "first batch ms": first,
        "cpu ms": [float(np.quantile(cpu, q)) for q in (0.1, 0.5)],
        "wall ms": [float(np.quantile(wall, q)) for q in (0.1, 0.5)],
    }


CHILD = """
import importlib, json, os, sys, time
start = time.time()
if len(sys.argv) == 1:
    for name in json.load(open(os.environ["MODULES"])):
        try:
            importlib.import_module(name)
        except Exception:
            pass
    print("imported", time.process_time(), file=sys.stderr)
    raise SystemExit
import hellofmt_cli.making as making
from hellofmt_cli.main import hello
seen = []
def step(done, total):
    if not seen:
        seen.append(time.time() - start)
        print("\\nfirst step", seen[0], file=sys.stderr)
        print("first cpu", time.process_time(), file=sys.stderr)
making.console.step = step
hello(sys.argv[1:], standalone_mode=False)
with open(os.environ.get("MODULES", os.devnull), "w") as file:
    json.dump([name for name in list(sys.modules) if name != "__main__"], file)
"""
"""Without arguments: what a run has imported by its end, its own code and that of libraries."""


def child(arguments):
    """Run ``hello`` in a process of its own: seconds, seconds to the first step, peak bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", CHILD, *arguments],
        # Not the working directory, whose modules would come before the installed ones.
        cwd=tempfile.gettempdir(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    out, err = process.communicate()
    lines = dict(
        line.rsplit(" ", 1) for line in err.splitlines() if line.startswith(("first ", "imported"))
    )
    if process.returncode:
        raise SystemExit(f"{arguments}: {err}")
    return {
        "seconds": time.perf_counter() - start,
        **{name: float(value) for name, value in lines.items()},
        "out": out,
    }


def peak(arguments):
    """The same in a process that does nothing else, whose largest child is this one."""
    code = (
        "import json, resource, sys; sys.path.insert(0, sys.argv[1]);"
        "from making_runs import child;"
        "done = child(sys.argv[2:]);"
        "done['peak'] = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss;"
        "print(json.dumps(done))"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, str(Path(__file__).parent), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


TEACHER = """
import os
from pathlib import Path
import numpy as np
import torch
from PIL import Image


def seen(path):
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((8, 8))) / 255


class Nearest(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        file = Path(__file__).with_suffix(".npy")
        if not file.exists():
            folders = sorted(p for p in Path(os.environ["SAMPLE"]).iterdir() if p.is_dir())
            np.save(file, [seen(next(folder.iterdir())) for folder in folders])
        known = np.load(file)[:classes]
        known = torch.tensor(known, dtype=torch.float32).permute(0, 3, 1, 2).flatten(1)
        self.weight = torch.nn.Parameter(8 * known)
        self.bias = torch.nn.Parameter(-4 * known.square().sum(1))

    def forward(self, views):
        small = torch.nn.functional.adaptive_avg_pool2d(views, 8)
        return torch.nn.functional.linear(small.flatten(1), self.weight, self.bias)


def nearest(classes):
    return Nearest(classes)
"""
"""A teacher that costs nothing and knows the sample: the nearest of its images at 8 x 8 px."""


def distillations(sample, scratch, sizes, workers):
    """Peak memory and first step of ``hello distill`` at each size, listing new and kept."""
    rows = []
    modules = str(scratch / "modules.json")
    path = os.pathsep.join([str(scratch), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.update(SAMPLE=str(sample), PYTHONPATH=path, MODULES=modules)
    (scratch / "nearest.py").write_text(TEACHER)
    # Reading the sample is no part of a run.
    subprocess.run([sys.executable, "-c", "import nearest; nearest.nearest(1)"], check=True)
    for count in sizes:
        folder = linked(sample, scratch.parent / f"links-{count}", count)
        work = scratch / f"work-{count}"
        for listing in ("new", "kept"):
            done = peak(
                [
                    *("distill", str(folder), "--ipc", "1", "--view-size", "64"),
                    *("--candidates", "2", "--select", "rded", "--crop", "none"),
                    *("--workers", str(workers)),
                    *("--teacher", "nearest:nearest", "--base", "seeded", "--rank", "1"),
                    *("--head-start", "stored", "--steps", "10", "--batch-size", str(BATCH)),
                    *("--teacher-mean", "0", "0", "0", "--teacher-std", "1", "1", "1"),
                    *("--no-precision-table", "--json", "--work", str(work)),
                    *("-o", str(scratch / f"{count}-{listing}.hello")),
                ]
            )
            rows.append({"images": count, "listing": listing, "load": os.getloadavg()[0], **done})
            rows[-1]["stages"] = json.loads(rows[-1].pop("out"))["cost"]
            print(rows[-1], file=sys.stderr)
            # A second run finds the listing, and what the teacher said when it was checked.
            for stage in work.glob("*.safetensors"):
                if not stage.name.startswith(("check", "listing")):
                    stage.unlink()
    imports = peak([])
    for row in rows:
        row["peak less imports"] = row["peak"] - imports["peak"]
        row["imports cpu"] = imports["imported"]
    return rows


def whole_run(sample, scratch, workers, weights):
    """``hello distill`` of the sample with real weights, then verify, inspect and train."""
    target = scratch / "in1k.hello"
    teacher = [
        *("--teacher", f"timm:efficientnet_lite0={weights}"),
        *("--teacher-mean", "0.5", "0.5", "0.5", "--teacher-std", "0.5", "0.5", "0.5"),
    ]
    made = peak(
        [
            *("distill", str(sample), "--view-size", str(SIDE), "--ipc", "1", *teacher),
            *("--base", "seeded", "--head-start", "stored", "--workers", str(workers)),
            *("--steps", "10", "--batch-size", "32", "--select", "rded"),
            *("--no-precision-table", "--json"),
            *("--force", "-o", str(target)),
        ]
    )
    document = json.loads(made["out"])
    parts = {}
    for command in (["verify", str(target)], ["inspect", str(target), "--json"]):
        done = child(command)
        parts[command[0]] = done["seconds"]
    inspected = json.loads(done["out"])
    student = child(
        [
            *("train", str(target), "--eval", str(sample), "--student", "resnet10w16"),
            *("--steps", "4", "--batch-size", "32", "--json"),
        ]
    )
    return {
        "seconds": made["seconds"],
        "peak": made["peak"],
        "stages": document["cost"],
        "teacher": document["teacher"],
        "bytes": document["bytes"],
        "parts": inspected.get("bytes", inspected),
        "commands": {**parts, "train": student["seconds"]},
    }


def page(facts):
    """The results as Markdown."""
    lines = [
        "# Making: runs",
        "",
        (
            f"{facts['cpu']}, {facts['cores']} cores, which others used as well."
            f" {facts['versions']}."
            " Each part by `python benchmarks/making_runs.py --sample DIR --out OUT` and:"
        ),
        "",
        "| options | load of the machine |",
        "| --- | ---: |",
        *(f"| `{options}` | {load:.1f} |" for options, load in facts["measured"].values()),
        "",
    ]
    if "views" in facts:
        lines += [
            f"## Views of {SIDE} px a second",
            "",
            "Median of rounds, interleaved. The engine draws, converts and mixes as well.",
            "",
            "| workers | case | views/s | beside `ImageFolder` |",
            "| ---: | --- | ---: | ---: |",
        ]
        for workers, cases in facts["views"].items():
            base = next(iter(cases.values()))
            lines += [
                f"| {workers} | {name} | {rate:.0f} | {rate / base:.2f} |"
                for name, rate in cases.items()
            ]
        lines.append("")
    if "between" in facts:
        row = facts["between"]
        lines += [
            "## Time outside networks and decoding",
            "",
            (
                f"A step of {BATCH} views at {SIZES[-1]:,} images: {row['cpu ms'][1]:.2f} ms of"
                f" CPU ({row['cpu ms'][0]:.2f} in the least tenth of the steps),"
                f" {row['wall ms'][1]:.2f} ({row['wall ms'][0]:.2f}) ms of wall time. The first"
                " batch, with the order of the epoch and the start of the worker:"
                f" {row['first batch ms']:.0f} ms."
            ),
            "",
        ]
    if "distill" in facts:
        lines += [
            "## Memory and first step of `hello distill`",
            "",
            "Peak memory is of the largest process, beyond that of one that imports the same. The",
            "first step is told from the start of the process, in seconds of the clock and of the",
            "processor, and the processor's seconds of the imports alone beside it. The check",
            "decodes 4,000 images, and at 10,000 images 1,000 more.",
            "",
            "| images | listing, check | peak MB | first step s | CPU s | imports | all s | load |",
            "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {row['images']:,} | {row['listing']} | {row['peak less imports'] / 1e6:.0f}"
            f" | {row['first step']:.1f} | {row['first cpu']:.1f} | {row['imports cpu']:.1f}"
            f" | {row['seconds']:.0f} | {row['load']:.1f} |"
            for row in facts["distill"]
        ]
        lines.append("")
    if "whole" in facts:
        row = facts["whole"]
        lines += [
            "## A whole run: 1,000 classes, one image each, EfficientNet-Lite0 as teacher",
            "",
            (
                f"{row['seconds']:.0f} s, peak {row['peak'] / 1e6:.0f} MB, teacher"
                f" {row['teacher']:.1f} %, file of {row['bytes']:,} bytes."
            ),
            "",
            "| stage | s |",
            "| --- | ---: |",
        ]
        lines += [f"| {stage['stage']} | {stage['seconds']:.1f} |" for stage in row["stages"]]
        lines += [
            f"| `hello {name}` | {seconds:.1f} |" for name, seconds in row["commands"].items()
        ]
        lines += ["", f"Bytes by part: {row['parts']}", ""]
    return "\n".join([*lines, *prediction_lines()])


def cpu():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown CPU")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=Path, required=True, help="folder of real images")
    parser.add_argument("--out", type=Path, required=True, help="write OUT.json and OUT.md")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--only", nargs="*", default=["views", "between", "distill"])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--weights", type=Path, help="EfficientNet-Lite0 for `--only whole`")
    options = parser.parse_args()
    sample = options.sample.resolve()
    file = options.out.with_suffix(".json")
    facts = json.loads(file.read_text()) if file.exists() else {}
    facts |= {"cpu": cpu(), "cores": len(os.sched_getaffinity(0))}
    facts["versions"] = f"Python {platform.python_version()}, torch {version('torch')}"
    for part in options.only:
        own = {
            "views": ("--workers", *options.workers, "--rounds", options.rounds),
            "distill": ("--workers", max(options.workers), "--sizes", *options.sizes),
            "whole": ("--workers", max(options.workers), "--weights", "FILE"),
        }
        words = " ".join(map(str, ("--only", part, *own.get(part, ()))))
        facts.setdefault("measured", {})[part] = [words, os.getloadavg()[0]]
    if "views" in options.only:
        facts["views"] = {
            str(workers): rates(sample, workers, 4 * BATCH, options.rounds)
            for workers in options.workers
        }
    if "between" in options.only:
        facts["between"] = between(SIZES[-1])
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        if "distill" in options.only:
            facts["distill"] = distillations(
                sample, Path(scratch), options.sizes, max(options.workers)
            )
        if "whole" in options.only:
            facts["whole"] = whole_run(sample, Path(scratch), max(options.workers), options.weights)
    file.write_text(json.dumps(facts, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(page(facts))


if __name__ == "__main__":
    main()
