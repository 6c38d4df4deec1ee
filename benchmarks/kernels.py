"""Time the label and view operators beside what one would write without them.

On a CPU: the operators against eager torch, and against torchvision one sample at a time. On a CUDA
device also: Triton against torch.compile with float32 logits, replayed from a CUDA graph to exclude
dispatch; on an H200 also the floor set by arithmetic and memory. Every row first checks that the
rivals agree; no time is reported for a wrong answer.

    python benchmarks/kernels.py --out benchmarks/results/kernels-cpu

prints a table and JSON, and writes both.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torchvision.transforms.v2 import functional

from hellofmt_kernels import (
    WEIGHT_ONE,
    LabelOptions,
    ViewColumn,
    ViewForm,
    algorithm,
    soft_labels,
    view_pair,
    views,
)

SCALE, TEMPERATURE = 100.0, 2.0

# One H200, measured: dense half-precision GEMM and copy.
FLOP_PER_S, BYTES_PER_S = 790e12, 4.3e12


def floor(flop, moved_bytes):
    """Return the least milliseconds that arithmetic and memory allow, if the device is known."""
    if "H200" not in torch.cuda.get_device_name():
        return {}
    return {"floor_ms": max(flop / FLOP_PER_S, moved_bytes / BYTES_PER_S) * 1000}


def time_cpu(call, repeats=15):
    """Return the median seconds of a call after a warm-up call.

    With one thread, measures that thread's time, so other work on the machine matters little.
    """
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    times = []
    for _ in range(repeats):
        start = now()
        call()
        times.append(now() - start)
    return statistics.median(times)


def time_graph(call, inner=20, repeats=15):
    """Return the median seconds of a call on a CUDA device, replayed from a graph of several."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inner):
            call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000 / inner)
    return statistics.median(times)


def head(n, c, d, dtype, device):
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)
    w = torch.nn.functional.normalize(torch.randn(c, d, generator=g), dim=1)
    return x.to(device, dtype), w.to(device, dtype), torch.randn(c, generator=g).to(device)


def eager_labels(x, w, bias):
    z = torch.nn.functional.linear(x, w) * SCALE + bias.to(x.dtype)
    return torch.softmax(z / TEMPERATURE, dim=1)


def wide_labels(x, w, bias):
    """Make labels as the strongest rival: float32 logits of a half-precision GEMM, then fused."""
    z = torch.mm(x, w.T, out_dtype=torch.float32) if x.dtype != torch.float32 else x @ w.T
    return torch.softmax((z * SCALE + bias) / TEMPERATURE, dim=1).to(x.dtype)


def row(what, shape, milliseconds, agree, **more):
    return {"what": what, "shape": shape, "ms": milliseconds, "difference": agree} | more


def label_rows(device, is_cuda):
    clock = time_graph if is_cuda else time_cpu
    shapes = [(128, 512, 10), (128, 1024, 100), (128, 512, 1000), (128, 512, 21841)]
    if is_cuda:
        shapes = [(1024, 768, c) for c in (10, 100, 1000, 21841)]
    dtypes = [torch.float16, torch.bfloat16] if is_cuda else [torch.float32, torch.bfloat16]
    for n, d, c in shapes:
        for dtype in dtypes:
            x, w, bias = head(n, c, d, dtype, device)
            options = LabelOptions(SCALE, TEMPERATURE, dtype)
            rivals = {
                "hellofmt": lambda x=x, w=w, b=bias, o=options: soft_labels(x, w, b, o),
                "eager torch": lambda x=x, w=w, b=bias: eager_labels(x, w, b),
            }
            more = {"algorithm": algorithm(n, d, c, device, dtype, dtype)}
            if is_cuda:
                compiled = torch.compile(wide_labels, mode="max-autotune-no-cudagraphs")
                rivals["torch.compile"] = lambda x=x, w=w, b=bias, f=compiled: f(x, w, b)
                moved = (n * d + c * d + n * c) * x.element_size()
                more |= floor(2 * n * c * d, moved)
            exact = torch.softmax(
                (SCALE * x.double() @ w.double().T + bias.double()) / TEMPERATURE, dim=1
            )
            difference = {k: (f().double() - exact).abs().max().item() for k, f in rivals.items()}
            if difference["hellofmt"] > 2e-2:
                raise SystemExit(f"labels {n}x{d}x{c} {dtype}: wrong by {difference['hellofmt']}")
            times = {name: clock(call) * 1000 for name, call in rivals.items()}
            shape = f"{n}x{d}x{c} {str(dtype).removeprefix('torch.')}"
            yield row("soft labels", shape, times, difference, **more)


def view_table(count, images, side, is_blended):
    g = torch.Generator().manual_seed(0)
    rows = torch.zeros(count, 20, dtype=torch.int32)
    for first in (ViewColumn.IMAGE, ViewColumn.PARTNER_IMAGE):
        # Areas from a quarter of the image up, as RandomResizedCrop(0.25) draws them.
        height = torch.randint(side // 2, side + 1, (count,), generator=g)
        width = torch.randint(side // 2, side + 1, (count,), generator=g)
        rows[:, first] = torch.randint(0, images, (count,), generator=g)
        rows[:, first + 1] = torch.randint(0, 1 << 30, (count,), generator=g) % (side - height + 1)
        rows[:, first + 2] = torch.randint(0, 1 << 30, (count,), generator=g) % (side - width + 1)
        rows[:, first + 3], rows[:, first + 4] = height, width
        rows[:, first + 5] = torch.randint(0, 2, (count,), generator=g)
    rows[:, ViewColumn.WEIGHT] = WEIGHT_ONE
    if is_blended:
        rows[:, ViewColumn.Y1] = rows[:, ViewColumn.X1] = side // 2
    return rows


def one_by_one(images, rows, size, mean, std):
    out = []
    for values in rows.tolist():
        pair = []
        for first in (0, 6):
            y0, x0, y1, x1 = values[12:16]
            if first and (y0 >= y1 or x0 >= x1):
                continue
            image, top, left, height, width, flip = values[first : first + 6]
            view = functional.to_dtype(images[image].permute(2, 0, 1), torch.float32, scale=True)
            view = functional.resized_crop(view, top, left, height, width, [size, size])
            pair.append(functional.horizontal_flip(view) if flip else view)
        if len(pair) == 2:
            pair[0][:, y0:y1, x0:x1] = pair[1][:, y0:y1, x0:x1]
        out.append(functional.normalize(pair[0], mean, std))
    return torch.stack(out)


def view_rows(device, is_cuda):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for side in (32, 64, 224) if is_cuda else (16, 32, 64, 224):
        for is_blended in (False, True):
            count = 1024 if is_cuda else 128 if side < 100 else 16
            g = torch.Generator().manual_seed(0)
            images = torch.randint(0, 256, (50, side, side, 3), generator=g, dtype=torch.uint8)
            images = images.to(device)
            rows = view_table(count, 50, side, is_blended)

            def ours(images=images, rows=rows, side=side):
                return views(images, rows, side, mean=mean, std=std)

            def theirs(images=images, rows=rows, side=side):
                return one_by_one(images, rows, side, mean, std)

            difference = (ours() - theirs()).abs().max().item()
            if difference > 1e-3:
                raise SystemExit(f"views {side} px: differ by {difference}")
            on_device = rows.to(device)

            def resident(images=images, rows=on_device, side=side):
                return views(images, rows, side, mean=mean, std=std, out_dtype=torch.float16)

            # A loop of launches, one sample at a time, is bound by the host: no graph for it.
            times = {
                "hellofmt": (time_graph(resident) if is_cuda else time_cpu(ours)) * 1000,
                "torchvision, one by one": time_cpu(
                    (lambda f=theirs: (f(), torch.cuda.synchronize())) if is_cuda else theirs, 5
                )
                * 1000,
            }
            more = floor(0, count * side * side * 3 * (1 + 2)) if is_cuda else {}
            shape = f"{count} x {side} px{', CutMix' if is_blended else ''}"
            yield row("views", shape, times, {"torchvision": difference}, **more)


def pair_rows(device, is_cuda):
    """Time both networks' inputs in one pass beside views in [0, 1] normalised in two passes."""
    # A student's float32, and what CLIP's ResNets take: normalised otherwise, channels_last.
    student = ViewForm((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    dtype = torch.float16 if is_cuda else torch.float32
    encoder = ViewForm(mean, std, dtype, is_channels_last=True)

    for side in (32, 64, 224):
        count = 1024 if is_cuda else 128 if side < 100 else 16
        g = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (50, side, side, 3), generator=g, dtype=torch.uint8)
        images, rows = images.to(device), view_table(count, 50, side, is_blended=False).to(device)
        affines = [
            [torch.tensor(v, device=device).view(3, 1, 1) for v in (form.mean, form.std)]
            for form in (student, encoder)
        ]

        def ours(images=images, rows=rows, side=side):
            return view_pair(images, rows, side, student, encoder)

        def twice(images=images, rows=rows, side=side, affines=affines):
            batch = views(images, rows, side)
            (student_mean, student_std), (mean, std) = affines
            inputs = (batch - mean).div_(std).to(dtype, memory_format=torch.channels_last)
            return batch.sub_(student_mean).div_(student_std), inputs

        pairs = zip(ours(), twice(), strict=True)
        difference = max((a.float() - b.float()).abs().max().item() for a, b in pairs)
        if difference > (4e-3 if is_cuda else 1e-4):
            raise SystemExit(f"pairs of views {side} px: differ by {difference}")
        clock = time_graph if is_cuda else time_cpu
        times = {
            "hellofmt": clock(ours) * 1000,
            "views, then normalised for each": clock(twice) * 1000,
            "one output alone": clock(
                lambda i=images, r=rows, s=side: views(i, r, s, mean=student.mean, std=student.std)
            )
            * 1000,
        }
        # Each pixel's bytes in, float32 and float16 out.
        more = floor(0, count * side * side * 3 * (1 + 4 + 2)) if is_cuda else {}
        kind = str(dtype).removeprefix("torch.")
        shape = f"{count} x {side} px, float32 and {kind}"
        yield row("pair of views", shape, times, {"normalised apart": difference}, **more)


def device_facts(is_cuda):
    if is_cuda:
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else platform.processor()
    packages = ("torch", "torchvision", "triton", "numpy")
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: version(package) for package in packages},
    }


def table(result):
    facts = result["facts"]
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    lines = [
        "# Kernels: times",
        "",
        f"{facts['device']}, {facts['threads']} thread(s), Python {facts['python']}, {versions}.",
        "Medians, milliseconds per call; with one thread, of that thread's own time.",
        "Below 1 the rival wins.",
        "",
    ]
    if not result["is_cuda"]:
        lines += ["Run times on a GPU are unmeasured.", ""]
    lines += [
        "| what | shape | hellofmt | rival | times faster |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in result["rows"]:
        ours = one["ms"]["hellofmt"]
        for rival, time_ms in one["ms"].items():
            if rival != "hellofmt":
                lines.append(
                    f"| {one['what']} | {one['shape']} | {ours:.3f} | {rival}: {time_ms:.3f} "
                    f"| {time_ms / ours:.2f} |"
                )
        if "floor_ms" in one:
            lines.append(
                f"| {one['what']} | {one['shape']} | {ours:.3f} | floor: {one['floor_ms']:.3f} "
                f"| {one['floor_ms'] / ours:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args()
    is_cuda = options.device.startswith("cuda")
    if not is_cuda:
        torch.set_num_threads(options.threads)
    rows = []
    for part in (label_rows, view_rows, pair_rows):
        for one in part(torch.device(options.device), is_cuda):
            sys.stderr.write(f"{one['what']} {one['shape']}: {one['ms']}\n")
            rows.append(one)
    result = {"facts": device_facts(is_cuda), "is_cuda": is_cuda, "rows": rows}
    text = table(result)
    print(json.dumps(result, indent=1))
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
