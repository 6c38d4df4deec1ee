"""Time the label and view operators beside what one would write without them.

    python benchmarks/kernels.py --out benchmarks/results/kernels-cpu [--device cuda]

Rivals: eager torch; ``torch.compile`` with float32 logits; torchvision, one sample at a time; for
the student's loss torch's ``linear_cross_entropy``, whole and in chunks, where this torch has it.
On a CUDA device calls are replayed from a CUDA graph to exclude dispatch; on an H200 the floor set
by arithmetic and memory is stated too. Every row first checks that the rivals agree; no time is
reported for a wrong answer. `--only tiles` times other tiles of the label kernel on a GPU:
entries for ``hellofmt_kernels/tiles.json``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from times import best, facts, head, publish, rows
from torchvision.transforms.v2 import functional

from hellofmt.student import recipe
from hellofmt.student.train import loss_of
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
SMALL = "--small" in sys.argv
CPU_CLOCK = "of the thread's own time, least of 15 to 300 interleaved rounds"

# One H200, measured: dense half-precision GEMM and copy.
FLOP_PER_S, BYTES_PER_S = 790e12, 4.3e12


def floor(flop, moved_bytes):
    """Return the least milliseconds that arithmetic and memory allow, if the device is known."""
    if "H200" not in torch.cuda.get_device_name():
        return {}
    return {"floor_ms": max(flop / FLOP_PER_S, moved_bytes / BYTES_PER_S) * 1000}


def compiled(function, mode=None):
    """Compile a rival, but not where the script itself is tried."""
    return function if SMALL else torch.compile(function, mode=mode)


def times_of(rivals, is_cuda):
    """Return milliseconds by name, and why a rival has none; ours must not fail.

    On a CPU the least of interleaved rounds, of the thread's own time where there is one thread, so
    that other work on the machine matters little.
    """
    failed = {}
    for name, call in list(rivals.items()):
        try:
            call()
        except Exception as error:
            if name == "hellofmt":
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            del rivals[name]
    if is_cuda:
        return {name: 1000 * time_graph(call) for name, call in rivals.items()}, failed
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    least = dict.fromkeys(rivals, float("inf"))
    rounds = 0
    # Short calls are soon disturbed, so they are tried more often.
    while rounds < 15 or (rounds < 300 and rounds * sum(least.values()) < 300):
        rounds += 1
        # Each is first in its turn: a call pays for what the one before it left in the caches.
        turn = rounds % len(rivals)
        calls = list(rivals.items())
        for name, call in calls[turn:] + calls[:turn]:
            start = now()
            call()
            least[name] = min(least[name], 1000 * (now() - start))
        if SMALL:
            break
    return least, failed


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


def inputs(n, c, d, dtype, device):
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)
    w = torch.nn.functional.normalize(torch.randn(c, d, generator=g), dim=1)
    return x.to(device, dtype), w.to(device, dtype), torch.randn(c, generator=g).to(device)


def eager_labels(x, w, bias):
    z = torch.nn.functional.linear(x, w) * SCALE + bias.to(x.dtype)
    return torch.softmax(z / TEMPERATURE, dim=1)


def wide_labels(x, w, bias):
    """Make labels as the strongest rival: float32 logits of a half-precision GEMM, then fused."""
    if x.dtype == torch.float32 or x.device.type == "cpu":
        z = (x @ w.T).float()
    else:
        z = torch.mm(x, w.T, out_dtype=torch.float32)
    return torch.softmax((z * SCALE + bias) / TEMPERATURE, dim=1).to(x.dtype)


def row(what, shape, milliseconds, failed, agree, **more):
    return {
        "what": what,
        "shape": shape,
        "ms": milliseconds,
        "failed": failed,
        "difference": agree,
        **more,
    }


def shapes_of(device):
    """Return the sizes (N, D, C) and dtypes of heads."""
    if device.type == "cuda":
        return [(1024, 768, c) for c in (10, 100, 1000, 21841)], (torch.float16, torch.bfloat16)
    sizes = [(128, 512, 10), (128, 1024, 100), (128, 512, 1000), (128, 512, 21841)]
    return sizes, (torch.float32, torch.bfloat16)


def label_row(n, d, c, dtype, device):
    is_cuda = device.type == "cuda"
    x, w, bias = inputs(n, c, d, dtype, device)
    options = LabelOptions(SCALE, TEMPERATURE, dtype)
    fused = compiled(wide_labels, "max-autotune-no-cudagraphs" if is_cuda else None)
    calls = {
        "hellofmt": lambda: soft_labels(x, w, bias, options),
        "eager torch": lambda: eager_labels(x, w, bias),
        "torch.compile": lambda: fused(x, w, bias),
    }
    more = {"algorithm": algorithm(n, d, c, device, dtype, dtype)}
    if is_cuda:
        more |= floor(2 * n * c * d, (n * d + c * d + n * c) * x.element_size())
    milliseconds, failed = times_of(calls, is_cuda)
    exact = torch.softmax((SCALE * x.double() @ w.double().T + bias.double()) / TEMPERATURE, dim=1)
    difference = {k: (f().double() - exact).abs().max().item() for k, f in calls.items()}
    if difference["hellofmt"] > 2e-2:
        raise SystemExit(f"labels {n}x{d}x{c} {dtype}: wrong by {difference['hellofmt']}")
    return row("soft labels", name_of(n, d, c, dtype), milliseconds, failed, difference, **more)


def name_of(n, d, c, dtype):
    return f"{n}x{d}x{c} {str(dtype).removeprefix('torch.')}"


def loss_row(n, d, c, dtype, device):
    """Time the student's last layer and its loss on soft labels, forward and backward."""
    plan = replace(recipe("kl"), temperature=1.0)
    functional = torch.nn.functional
    x, w, bias = inputs(n, c, d, dtype, device)
    q = torch.softmax(4 * functional.linear(x, w).float(), 1).to(dtype)
    x, w = x.requires_grad_(), (8 * w).detach().requires_grad_()
    bias = bias.to(dtype)

    def ours():
        return loss_of(plan, functional.linear(x, w, bias), q)

    def theirs(options):
        return functional.linear_cross_entropy(x, w, q, linear_bias=bias, options=options)

    losses = {"hellofmt": ours, "torch.compile": compiled(ours)}
    if hasattr(functional, "linear_cross_entropy"):
        chunked = torch.nn.LinearCrossEntropyOptions()
        losses["linear_cross_entropy"] = lambda: theirs(None)
        losses["linear_cross_entropy, chunked"] = lambda: theirs(chunked)
    # The gradients, which do not depend on the entropy of the labels.
    calls = {k: lambda loss=loss: torch.autograd.grad(loss(), (x, w)) for k, loss in losses.items()}
    milliseconds, failed = times_of(calls, device.type == "cuda")
    wanted = calls["hellofmt"]()[1].double()
    difference = {
        name: ((call()[1].double() - wanted).norm() / wanted.norm()).item()
        for name, call in calls.items()
    }
    if max(difference.values()) > 2e-2:
        raise SystemExit(f"loss {n}x{d}x{c}: gradients differ by {difference}")
    what = "student's loss and gradients"
    return row(what, name_of(n, d, c, dtype), milliseconds, failed, difference)


def tile_row(n, d, c, dtype, device):
    """Time the label kernel with the table's tile and the four best others."""
    from hellofmt_kernels.labels import fused
    from hellofmt_kernels.tiles import LabelTile, table

    x, w, bias = inputs(n, c, d, dtype, device)
    options = LabelOptions(SCALE, TEMPERATURE, dtype)
    blocks = [(64, 128), (64, 256), (128, 128), (128, 256), (256, 128)]
    chosen = table().labels(n, c, 2, torch.cuda.get_device_capability())
    if c <= table().row_max_classes:
        blocks = [(height, chosen.block_c) for height in (16, 32, 64, 128)]
    calls = {"hellofmt": lambda: fused.launch(x, w, bias, options, chosen)}
    for (block_n, block_c), warps, stages in itertools.product(blocks, (4, 8), (2, 3, 4)):
        tile = LabelTile(block_n, block_c, 64, warps, stages)
        name = f"[{block_n}, {block_c}, 64, {warps}, {stages}]"
        calls[name] = lambda tile=tile: fused.launch(x, w, bias, options, tile)
    milliseconds, _ = times_of(calls, is_cuda=True)
    ours = milliseconds.pop("hellofmt")
    fastest = dict(sorted(milliseconds.items(), key=lambda item: item[1])[:4])
    return row("tile of labels", name_of(n, d, c, dtype), {"hellofmt": ours, **fastest}, {}, {})


def head_rows(make, device, least_classes=0, dtypes=2):
    """Make a row for each size and dtype of a head."""
    if device.type == "cuda":
        sizes, kinds = (
            [(1024, 768, c) for c in (10, 100, 1000, 21841)],
            (torch.float16, torch.bfloat16),
        )
    else:
        sizes = [(128, 512, 10), (128, 1024, 100), (128, 512, 1000), (128, 512, 21841)]
        kinds = (torch.float32, torch.bfloat16)
    for (n, d, c), dtype in itertools.product(sizes[:3] if SMALL else sizes, kinds[:dtypes]):
        if c >= least_classes:
            yield make(n, d, c, dtype, device)


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


def pictures(side, is_blended, device):
    """Return bytes of 50 images and a table of their views, both on the device."""
    count = 1024 if device.type == "cuda" else 128 if side < 100 else 16
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, side, side, 3), generator=g, dtype=torch.uint8)
    return images.to(device), view_table(count, 50, side, is_blended)


def view_row(side, is_blended, device):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    images, table = pictures(side, is_blended, device)
    count, on_device = len(table), table.to(device)

    def ours(dtype=torch.float32):
        return views(images, on_device, side, mean=mean, std=std, out_dtype=dtype)

    def theirs():
        return one_by_one(images, table, side, mean, std)

    difference = (ours() - theirs()).abs().max().item()
    if difference > 1e-3:
        raise SystemExit(f"views {side} px: differ by {difference}")
    more = {}
    if device.type == "cuda":
        # A loop of launches, one sample at a time, is bound by the host: no graph for it.
        waited = best(lambda: (theirs(), torch.cuda.synchronize()), 3)[0]
        resident = time_graph(lambda: ours(torch.float16))
        times = {"hellofmt": 1000 * resident, "torchvision, one by one": 1000 * waited}
        more = floor(0, count * side * side * 3 * (1 + 2))
    else:
        times, _ = times_of({"hellofmt": ours, "torchvision, one by one": theirs}, False)
    shape = f"{count} x {side} px{', CutMix' if is_blended else ''}"
    return row("views", shape, times, {}, {"torchvision": difference}, **more)


def pair_row(side, device):
    """Time both networks' inputs in one pass beside views in [0, 1] normalised in two passes."""
    is_cuda = device.type == "cuda"
    # A student's float32, and what CLIP's ResNets take: normalised otherwise, channels_last.
    student = ViewForm((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    dtype = torch.float16 if is_cuda else torch.float32
    encoder = ViewForm(mean, std, dtype, is_channels_last=True)
    images, table = pictures(side, False, device)
    table = table.to(device)
    (student_mean, student_std), (mean, std) = (
        [torch.tensor(v, device=device).view(3, 1, 1) for v in (form.mean, form.std)]
        for form in (student, encoder)
    )

    def twice():
        batch = views(images, table, side)
        inputs = (batch - mean).div_(std).to(dtype, memory_format=torch.channels_last)
        return batch.sub_(student_mean).div_(student_std), inputs

    calls = {
        "hellofmt": lambda: view_pair(images, table, side, student, encoder),
        "views, then normalised for each": twice,
        "the same by torch.compile": compiled(twice),
        "one output alone": lambda: views(images, table, side, mean=student.mean, std=student.std),
    }
    pairs = zip(calls["hellofmt"](), twice(), strict=True)
    difference = max((a.float() - b.float()).abs().max().item() for a, b in pairs)
    if difference > (4e-3 if is_cuda else 1e-4):
        raise SystemExit(f"pairs of views {side} px: differ by {difference}")
    times, failed = times_of(calls, is_cuda)
    # Each pixel's bytes in, float32 and float16 out.
    more = floor(0, len(table) * side * side * 3 * (1 + 4 + 2)) if is_cuda else {}
    shape = f"{len(table)} x {side} px, float32 and {str(dtype).removeprefix('torch.')}"
    return row("pair of views", shape, times, failed, {"normalised apart": difference}, **more)


def sides(*all_):
    return all_[:1] if SMALL else all_


def page(document):
    is_cuda = document["is_cuda"]
    lines = head(
        document,
        "Kernels: times",
        "Milliseconds a call, "
        + ("median of replays of a CUDA graph" if is_cuda else CPU_CLOCK)
        + ". Below 1 the rival wins. The student's loss is KL, whose value needs the labels'"
        " entropy; torch's is cross-entropy, of the same gradient.",
    )
    cells = []
    for one in document["rows"]:
        ours = one["ms"]["hellofmt"]
        rivals = {name: ms for name, ms in one["ms"].items() if name != "hellofmt"}
        if "floor_ms" in one:
            rivals["floor"] = one["floor_ms"]
        for rival, ms in rivals.items():
            shown = (one["what"], one["shape"], f"{ours:.3f}", rival, f"{ms:.3f}")
            cells.append((*shown, f"{ms / ours:.2f}"))
        for rival, why in one["failed"].items():
            cells.append((one["what"], one["shape"], f"{ours:.3f}", rival, f"failed: {why}", ""))
    columns = ("what", "shape", "hellofmt:", "rival", "ms:", "times faster:")
    return "\n".join([*lines, *rows(columns, cells)]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument(
        "--only", choices=PARTS, nargs="+", default=["labels", "loss", "views", "pair"]
    )
    parser.add_argument("--small", action="store_true", help="few sizes: tries this script")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type != "cuda":
        torch.set_num_threads(options.threads)
    made = facts(("hellofmt", "torch", "torchvision", "triton", "numpy"), device.type)
    document = {"facts": made, "is_cuda": device.type == "cuda", "rows": []}
    for one in itertools.chain.from_iterable(PARTS[part](device) for part in options.only):
        sys.stderr.write(f"{one['what']} {one['shape']}: {one['ms']} {one['failed'] or ''}\n")
        document["rows"].append(one)
        made["load"] = round(os.getloadavg()[0], 1)
        # Whoever stops this keeps what is done.
        publish(options.out, document, page, is_last=False)
    publish(options.out, document, page)


PARTS = {
    "labels": lambda device: head_rows(label_row, device),
    "loss": lambda device: head_rows(loss_row, device, least_classes=1000, dtypes=1),
    "views": lambda device: (
        view_row(side, is_blended, device)
        for side in sides(16, 32, 64, 224)
        for is_blended in (False, True)
    ),
    "pair": lambda device: (pair_row(side, device) for side in sides(32, 64, 224)),
    "tiles": lambda device: head_rows(tile_row, device, dtypes=1),
}

if __name__ == "__main__":
    main()
