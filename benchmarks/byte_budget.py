"""Measure the rule by which ``--bytes`` spends bytes: drift by codec, and what students make of it.

    python benchmarks/byte_budget.py DIR --base BASE [--out .cache/bench]

DIR holds ``train`` and ``val`` (or ``test``, neither used) with a folder of images per class.
Teacher and label function are those of ``pool.py``, and so are the validation images, cut from the
training part, on which everything is measured.

First every way to store images: bytes and drift, as ``affordable`` measures them. Then students of
nested random images, by number, way and side. So many trainings of networks would take days here,
and differences between ways are smaller than those between two seeds of a network, so a student is
ridge regression: responses of whitened patches of the images in nine fields of the view, three
views an image, to the label function's log-labels. Nothing in it is random but patches and images,
which are the same in all ways.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pool import pool_setting
from torch.nn import functional

from hellofmt.archive import DEFAULT_LIMITS, changed_views, decode_image, encode_image
from hellofmt.ledger import ways_of
from hellofmt.making import ViewBatches
from hellofmt.sources import ArrayImages

SAMPLE = 250
PATCH, FILTERS, COPIES, RIDGE, TEMPERATURE = 6, 160, 3, 0.3, 4.0


def log_labels(logits, views):
    with torch.inference_mode():
        return torch.cat([logits(part).float() for part in views.split(100)]).log_softmax(1)


def views_of(source, pixels, views, copies):
    """All images ``copies`` times, each time in another view."""
    images = ArrayImages(pixels, np.arange(len(pixels)) % 2, source.classes[:2])
    batches = ViewBatches(images, views, len(pixels), seed=1)
    return torch.cat([batches.batch(k).views for k in range(copies)])


def table_of_ways(setting, logits):
    source = setting.split[0]
    pixels = source.pixels[np.arange(SAMPLE) * len(source) // SAMPLE]
    before = log_labels(logits, views_of(source, pixels, setting.views, 1)).double()

    def divergence(after):
        return functional.kl_div(after, before, reduction="batchmean", log_target=True).item()

    told = divergence(before.exp().mean(0, keepdim=True).log().expand_as(before))
    print(f"\nLabels of {SAMPLE} images tell {told:.3f} nats.\n")
    print("| codec | quality | bytes per pixel | bytes in the archive | KL, nats | drift |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for codec, quality, size, files in ways_of(pixels):
        if files:
            after = np.stack([decode_image(data, codec, DEFAULT_LIMITS) for data in files])
            labels = log_labels(logits, views_of(source, after, setting.views, 1)).double()
            kl, weight = divergence(labels), np.mean([len(data) for data in files])
            row = f"{weight / setting.size**2:.3f} | {size:,.0f} | {kl:.4f} | {kl / told:.3f}"
            print(f"| {codec} | {quality} | {row} |", flush=True)


class Responses:
    """Responses of whitened random patches, rectified both ways, mean of 3 x 3 fields."""

    def __init__(self, pixels, random):
        at = random.integers(0, pixels.shape[1] - PATCH + 1, (4000, 2))
        rows = random.integers(len(pixels), size=4000)
        cut = [
            pixels[i, y : y + PATCH, x : x + PATCH].ravel()
            for i, (y, x) in zip(rows, at, strict=True)
        ]
        patches = self.normalised(np.stack(cut) / 255)
        mean = patches.mean(0)
        values, vectors = np.linalg.eigh(np.cov((patches - mean).T))
        white = (vectors * (values + 0.1) ** -0.5) @ vectors.T
        chosen = (patches[random.permutation(4000)[:FILTERS]] - mean) @ white
        kernels = chosen / np.linalg.norm(chosen, axis=1, keepdims=True) @ white
        shaped = kernels.reshape(FILTERS, PATCH, PATCH, 3).transpose(0, 3, 1, 2)
        self.kernels = torch.from_numpy(np.ascontiguousarray(shaped)).float()
        self.shift = torch.from_numpy(kernels @ mean).float().view(1, -1, 1, 1)
        self.box = torch.full((1, 3, PATCH, PATCH), 1 / (3 * PATCH**2))

    @staticmethod
    def normalised(patches):
        patches = patches - patches.mean(1, keepdims=True)
        return patches / (patches.std(1, keepdims=True) + 0.03)

    def __call__(self, views):
        found = []
        for part in views.split(200):
            mean = functional.conv2d(part, self.box, stride=2)
            spread = functional.conv2d(part**2, self.box, stride=2) - mean**2
            seen = functional.conv2d(part, self.kernels, stride=2)
            seen = seen - mean * self.kernels.sum((1, 2, 3)).view(1, -1, 1, 1)
            seen = seen / (spread.clamp_min(0).sqrt() + 0.03) - self.shift
            both = torch.cat([functional.relu(seen - 1), functional.relu(-seen - 1)], 1)
            found.append(functional.adaptive_avg_pool2d(both, 3).flatten(1))
        return torch.cat(found)


def stored(pixels, codec, quality, side):
    """Pixels as they come back from a file of a smaller side."""
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    file = encode_image(np.asarray(image), codec, quality=quality, subsampling="4:4:4")
    return decode_image(file, codec, DEFAULT_LIMITS)


def accuracy(setting, logits, responses, measured, pixels):
    """Top-1 in percent of ridge regression to labels of three views of each image."""
    seen = views_of(setting.train, pixels, changed_views(setting.views, {"mix": "none"}), COPIES)
    labels = log_labels(lambda views: logits(views) / TEMPERATURE, seen)
    rows, centre = responses(seen), labels.mean(0)
    mean, std = rows.mean(0), rows.std(0) + 1e-4
    rows = (rows - mean) / std
    normal = rows.T @ rows + RIDGE * len(rows) * torch.eye(rows.shape[1])
    weights = torch.linalg.solve(normal, rows.T @ (labels - centre))
    shown = torch.from_numpy(measured.pixels).permute(0, 3, 1, 2).float() / 255
    guess = (((responses(shown) - mean) / std) @ weights + centre).argmax(1).numpy()
    return 100 * (guess == measured.labels).mean()


def table_of_students(setting, measured, logits, numbers, seeds):
    source, size = setting.split[0], setting.size
    cases = [("webp", q, size) for q in (95, 60, 30, 10)]
    cases += [("webp", 90, size * 3 // 4), ("webp", 90, size // 2)]
    heads = " | ".join(f"{c} {q}, {side} px" for c, q, side in cases)
    print(f"\n| images per class | seed | {heads} |\n| ---: | ---: |{' ---: |' * len(cases)}")
    for seed in seeds:
        random = np.random.default_rng(seed)
        order = np.lexsort((random.random(len(source)), source.labels))
        place = np.arange(len(order)) - np.searchsorted(source.labels[order], source.labels[order])
        responses = Responses(source.pixels, random)
        for number in numbers:
            real = source.pixels[order[place < number]]
            cells = [
                accuracy(
                    *(setting, logits, responses, measured),
                    np.stack([stored(pixels, *case) for pixels in real]),
                )
                for case in cases
            ]
            shown = " | ".join(f"{cell:.1f}" for cell in cells)
            print(f"| {number} | {seed} | {shown} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder with train and val or test")
    parser.add_argument("--base", required=True, help="as for `hello fit`")
    parser.add_argument("--out", type=Path, default=Path(".cache/bench"), help="work")
    parser.add_argument("--numbers", type=int, nargs="*", default=[25, 50, 100, 200])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    setting, validation = pool_setting(args.data, args.base, args.out, 50)
    logits = setting.fitted_main()[0].eval()
    table_of_ways(setting, logits)
    table_of_students(setting, validation, logits, args.numbers, range(args.seeds))


if __name__ == "__main__":
    main()
