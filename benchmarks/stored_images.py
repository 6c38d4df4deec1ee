"""What images of 224 px cost in an archive, by codec and quality.

    python benchmarks/stored_images.py data/in1k-sample

DATA is a folder per class of real images. ``factor 1``: the centre square of each, at 224 px;
``factor 2``: four of these, at 112 px each, to an image. ``hello distill`` cuts its crops
elsewhere, which changes the bytes by their content.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from hellofmt.archive import DEFAULT_LIMITS, decode_image, encode_image
from hellofmt.sources import decode_centre, open_source

IMAGES = 50_000
CASES = [("png", 100, "")] + [
    (codec, quality, colour)
    for codec, colour in (("jpeg", "4:2:0"), ("jpeg", "4:4:4"), ("webp", ""))
    for quality in (75, 85, 90, 95)
]


def pictures(source, factor):
    """Images as a distillation stores them, uint8 (N, 224, 224, 3)."""
    cells = np.stack([decode_centre(source, row, 224 // factor) for row in range(len(source))])
    if factor == 1:
        return cells
    four = [np.roll(cells, -k, 0) for k in range(4)]
    return np.concatenate(
        [np.concatenate(four[:2], axis=2), np.concatenate(four[2:], axis=2)], axis=1
    )


def measured(images, codec, quality, colour):
    """Bytes and CPU milliseconds an image, and PSNR in dB."""
    began = time.process_time()
    files = [
        encode_image(image, codec, quality=quality, subsampling=colour or "4:2:0")
        for image in images
    ]
    seconds = time.process_time() - began
    errors = [
        np.mean((image.astype(float) - decode_image(data, codec, DEFAULT_LIMITS)) ** 2)
        for image, data in zip(images, files, strict=True)
    ]
    error = np.mean(errors)
    psnr = np.inf if error == 0 else 10 * np.log10(255**2 / error)
    return np.mean([len(data) for data in files]), 1000 * seconds / len(images), psnr


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    source = open_source(parser.parse_args().data)
    print(f"{len(source):,} images; PSNR of all pixels' RGB; CPU ms of one thread.\n")
    print("| factor | codec | quality | kB an image | ImageNet-1K at 50 per class, GB | dB | ms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for factor in (1, 2):
        images = pictures(source, factor)
        for codec, quality, colour in CASES:
            size, ms, psnr = measured(images, codec, quality, colour)
            shown = "-" if codec == "png" else str(quality)
            decibels = "exact" if np.isinf(psnr) else f"{psnr:.1f}"
            total = f"{size * IMAGES / 1e9:.2f}"
            print(
                f"| {factor} | {codec} {colour}".rstrip()
                + f" | {shown} | {size / 1e3:.1f} | {total} | {decibels} | {ms:.2f} |",
                flush=True,
            )


main()
