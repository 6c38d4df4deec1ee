"""What pages of times share: processor seconds, the facts of a run, and the files of a result."""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cells import processor


def used():
    """Return the processor seconds of this process and of the children it has waited for."""
    every = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in every)


def spent(call):
    """Return the wall and processor seconds of a call."""
    start, before = time.perf_counter(), used()
    call()
    return time.perf_counter() - start, used() - before


def interleaved(calls, rounds):
    """Call each in turn, ``rounds`` times; return the least wall and processor seconds by name."""
    found = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(spent(call))
    return {name: tuple(map(min, zip(*pairs, strict=True))) for name, pairs in found.items()}


def best(call, rounds):
    """Return the least wall and processor seconds of a call."""
    return interleaved({"": call}, rounds)[""]


def facts(packages, device="cpu"):
    """Return what ran, on what, and how busy it was; paths of the command lose their folders."""
    import torch

    versions = {"Python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    return {
        "command": shlex.join(["python", script, *words]),
        "date": time.strftime("%Y-%m-%d"),
        "device": processor() if device == "cpu" else torch.cuda.get_device_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "versions": versions,
    }


def head(document, title, *paragraphs):
    """Return the first lines of a page."""
    made = document["facts"]
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    date = f", {made['date']}" if "date" in made else ""
    run = (
        f"`{made['command']}`{date}: {made['device']}, {made['cores']} cores,"
        f" {made['threads']} thread(s) of torch, load {made['load']} at the end. {versions}."
    )
    return [line for text in (f"# {title}", run, *paragraphs) for line in (text, "")]


def rows(columns, cells):
    """Return the lines of a table; columns whose names end in ``:`` hold numbers."""
    marks = ["---:" if name.endswith(":") else "---" for name in columns]
    names = [name.removesuffix(":") for name in columns]
    return [f"| {' | '.join(map(str, line))} |" for line in (names, marks, *cells)]


def publish(out, document, page, *, is_last=True):
    """Write a document and its page beside each other if ``out`` is a prefix; print the last."""
    # What is written is what the file says, so that a test can make the page again from it.
    document = json.loads(json.dumps(document))
    if is_last:
        print(page(document))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_name(f"{out.name}.json").write_text(json.dumps(document, indent=1) + "\n")
        out.with_name(f"{out.name}.md").write_text(page(document))
